"""What every sink stores of a shard's position, and when it moves: pure."""

from __future__ import annotations

from replicator.core.fanout import rank
from replicator.model import SHARD_END, Pending, Position


def furthest(stored: Position | None, new: Position) -> Position:
    """The position to keep: never behind the stored one, never past `SHARD_END`.

    Sequence numbers of a shard only rise, so they tell; a start (by time, at an
    end of the stream) lies before every sequence number.
    """
    return new if stored is None or rank(new) > rank(stored) else stored


def tip_age_seconds(pending: Pending, now: float) -> float | None:
    """How long ago nothing lay behind the fetch's position, by the source's word; `now` is
    `Clock.monotonic()`. None where that isn't known, and at a shard's end: a closed shard has
    nothing more however old that is, so its end doesn't say when its children begin."""
    if pending.next == SHARD_END or pending.behind_ms is None:
        return None
    return max(now - pending.received_at, 0.0) + pending.behind_ms / 1_000
