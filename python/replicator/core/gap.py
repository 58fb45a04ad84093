"""Gaps: whether what comes next in a shard may be gone already, and what is said of it.

Kinesis mostly doesn't name a gap: asked for a position behind its horizon it goes on at the
oldest record it has. So the age of a position decides before every read, and how far a reader
is behind while it reads. DynamoDB Streams names it (`TrimmedDataAccess`) where a sequence number
was asked for, and doesn't tell when a reader is at the tip; there age decides only about what
is read from the oldest record on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from replicator.errors import FatalError, PositionLost
from replicator.model import Horizon, Position, Reached

# For clocks that differ (a sink stores the time of an answer by its own) and for the time
# between the look and the read. It is also the time by which a gap is told too early.
MARGIN_US = 120_000_000
# A list for people; their number is said.
HELD_UP_NAMED = 20


# The margin is a tenth of the time since a position was begun, until it is whole: who begins at
# the oldest record of a busy stream is within it at once, and has to come away from there.
_MARGIN_SHARE = 10


class Cause(StrEnum):
    """How a gap became known."""

    AGE = "age"
    """What comes next is older than the stream keeps its records, or nearly so."""
    REFUSED = "refused"
    """The service doesn't know the position any more, or says that it trimmed the records."""
    VANISHED = "vanished"
    """The shard isn't listed any more, and was not read to its end."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records of a shard that may never come. The shard stands still at `position` (None: it
    never had one) until an operator moves it; `held_up` are the shards that wait for it, `sinks`
    those of several that stand there."""

    shard_id: str
    cause: Cause
    code: str
    position: Position | None
    reason: str
    held_up: tuple[str, ...] = ()
    sinks: tuple[str, ...] = ()

    def as_fields(self, pipeline: str) -> dict[str, object]:
        """What the log says of it; `alarm` can be paged to a person as it is. `pipeline` with its
        namespace, which commands don't want: `shop/products`, `shop/tagged/products`."""
        name = pipeline.partition("/")[2] or pipeline
        reset = f"replicator positions reset --pipeline {name} --shard {self.shard_id}"
        resets = [f"`{reset} --sink {sink}`" for sink in self.sinks] or [f"`{reset}`"]
        return {
            "shard": self.shard_id,
            "cause": self.cause.value,
            "code": self.code,
            "position": str(self.position) if self.position is not None else None,
            "reason": self.reason,
            "held_up": list(self.held_up[:HELD_UP_NAMED]),
            "held_up_count": len(self.held_up),
            "alarm": f"changes of pipeline {pipeline} may be lost: shard {self.shard_id} stopped",
            "action": "on_gap: stop; other shards go on. What to do: accept the loss with "
            f"{' and '.join(resets)} (reading goes on at the oldest record kept), "
            "then compare the sink with the table",
        }


def of(
    shard_id: str,
    position: Position | None,
    error: PositionLost,
    held_up: Iterable[str] = (),
    sinks: Iterable[str] = (),
) -> Gap:
    """The gap that a reader's error is."""
    cause = Cause.AGE if error.code in {"position_aged", "position_overtaken"} else Cause.REFUSED
    return Gap(shard_id, cause, error.code, position, error.message, tuple(held_up), tuple(sinks))


def aged(
    shard_id: str,
    stored: Position | None,
    own: Reached | None,
    ancestors: Iterable[Reached],
    horizon: Horizon,
    margin_us: int = MARGIN_US,
    *,
    made_us: int | None = None,
) -> PositionLost | None:
    """The error to raise instead of reading from the stored position, when what comes next
    may lie behind the horizon; None when it is surely kept.

    What comes next arrived later than everything that is known to be stored: the shard's own
    times, those of its ancestors (all finished), and the instant of a start by time (which stays
    the position while nothing comes). From a start at TRIM_HORIZON or at a sequence number on,
    what arrived since it was stored is owed. `made_us` is when the shard was made, where that is
    known: nothing in it is older.
    """
    if horizon.is_named and stored is not None and stored.sequence_number is not None:
        return None
    made = Reached(tip_us=made_us if made_us is None else min(made_us, horizon.now_us))
    since_us = _since_us(stored, own, (made, *ancestors))
    if since_us is None or since_us > horizon.at_us + margin_us:
        return None
    hours = horizon.retention_us / 3_600_000_000
    return PositionLost(
        "position_aged",
        f"{shard_id} was read up to {_ago(horizon.now_us - since_us)} before the service's present "
        f"time, and the stream keeps its records for {hours:g} h: records may be gone unread",
    )


def margin_us_of(own: Reached | None, horizon: Horizon, margin_us: int = MARGIN_US) -> int:
    """The margin for a shard, less in the first minutes after its position was begun or set by
    hand. What is trimmed then was about to go when the start was chosen: to stop for what may
    be gone would keep every pipeline from starting over at the oldest record."""
    if own is None or own.begun_us is None:
        return margin_us
    return min(margin_us, max(horizon.now_us - own.begun_us, 0) // _MARGIN_SHARE)


def _since_us(
    stored: Position | None, own: Reached | None, ancestors: Iterable[Reached]
) -> int | None:
    mine = None if own is None else own.us
    if stored is None:
        mine = None  # found later: it began where its parents end
    elif stored.timestamp_us is not None:
        mine = max(stored.timestamp_us, mine or 0)
    elif mine is None:
        return None
    known = (mine, *(reached.us for reached in ancestors))
    return max((us for us in known if us is not None), default=None)


def behind_ms_max(horizon: Horizon, margin_us: int = MARGIN_US) -> int | None:
    """A reader that is further behind than this, in milliseconds, may be losing records. None
    where the service says so itself."""
    if horizon.is_named:
        return None
    return max(horizon.retention_us - margin_us, 0) // 1_000


def overtaken(shard_id: str, behind_ms: int, limit_ms: int) -> PositionLost:
    """The error for a reader that was within the limit before and isn't any more."""
    return PositionLost(
        "position_overtaken",
        f"{shard_id} is read {_ago(behind_ms * 1_000)} behind, and the stream keeps its records "
        f"hardly longer ({_ago(limit_ms * 1_000)}): records may be gone unread",
    )


def require_kept(start: Position, horizon: Horizon, margin_us: int = MARGIN_US) -> None:
    """Raises FatalError for a start by time that the stream doesn't reach back to."""
    if start.timestamp_us is None or start.timestamp_us > horizon.at_us + margin_us:
        return
    hours = horizon.retention_us / 3_600_000_000
    raise FatalError(
        "start_before_horizon",
        f"the start lies {_ago(horizon.now_us - start.timestamp_us)} back, and the stream keeps "
        f"its records for {hours:g} h: changes before that can't be read any more. Start at "
        "TRIM_HORIZON for all that is left, or at a later time",
    )


def require_policy(on_gap: str) -> None:
    """Raises FatalError for a policy that can't be followed yet."""
    if on_gap != "stop":
        raise FatalError(
            "config_on_gap",
            f"on_gap: {on_gap} needs snapshots of the table, which don't exist yet: set "
            "on_gap: stop, with which a gap stops its shard and says so",
        )


def _ago(us: int) -> str:
    minutes, seconds = divmod(max(us, 0) // 1_000_000, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"
