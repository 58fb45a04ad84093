"""Several sinks, one read: where reading starts, and what each of them is still owed.

Positions of one shard are compared as numbers: its oldest record lies before every sequence
number, its end behind all of them. A start by time has no number; where it meets one, the time
up to which the numbered position is known to be complete tells which comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from replicator.core.gap import MARGIN_US
from replicator.model import TRIM_HORIZON, Position, PositionKind, Reached

_STARTS = (PositionKind.TRIM_HORIZON, PositionKind.AT_TIMESTAMP, PositionKind.LATEST)


@dataclass(frozen=True, slots=True)
class Held:
    """What one sink holds of a shard: its position (None: a shard found later, of which it has
    nothing yet), and until when it was read."""

    position: Position | None
    reached: Reached | None = None


class Owed(Enum):
    """What of a fetch a sink is given."""

    NOTHING = auto()
    REST = auto()  # what lies behind its position
    ALL = auto()


def rank(position: Position) -> tuple[int, int, int]:
    """Grows along the shard."""
    if position.kind is PositionKind.SHARD_END:
        return (2, 0, 0)
    if position.sequence_number is not None:
        is_after = position.kind is PositionKind.AFTER_SEQUENCE_NUMBER
        return (1, int(position.sequence_number), int(is_after))
    return (0, _STARTS.index(position.kind), position.timestamp_us or 0)


def owed(held: Position | None, before: Position, following: Position) -> Owed:
    """What a sink is owed of a fetch that reaches from `before` to `following`, when it held
    everything up to `held` as reading began. A start is no place in the shard: from there on
    everything is owed that is read."""
    if held is None or rank(held)[0] == 0:
        return Owed.ALL
    if rank(following) <= rank(held):
        return Owed.NOTHING
    return Owed.ALL if rank(before) >= rank(held) else Owed.REST


def last_held(held: Position) -> str:
    """The last sequence number that a sink with this position surely holds, for a cut there."""
    assert held.sequence_number is not None, held
    is_after = held.kind is PositionKind.AFTER_SEQUENCE_NUMBER
    return held.sequence_number if is_after else str(int(held.sequence_number) - 1)


def least(held: Sequence[Held]) -> Position | None:
    """Where reading starts so that no sink misses anything; None: at the oldest record, of a
    shard that some sink has nothing of."""
    assert held, "a pipeline has a sink"
    positions = [each.position for each in held]
    if any(position is None for position in positions):
        return None
    known = [position for position in positions if position is not None]
    first = min(known, key=rank)
    numbered = [position for position in known if position.sequence_number is not None]
    if first.timestamp_us is None or not numbered:
        return first
    number = min(numbered, key=rank)
    until = [_complete_us(each.reached) for each in held if each.position == number]
    until_us = max((us for us in until if us is not None), default=None)
    if until_us is None:
        # A number that was set by hand, and nothing came since: nobody knows how old it is.
        return TRIM_HORIZON
    return first if until_us >= first.timestamp_us else number


def reached_by(held: Sequence[Held]) -> int:
    """The index of the sink whose times say how old `least` is."""
    start = least(held)

    def age(index: int) -> tuple[bool, bool, int]:
        each = held[index]
        us = None if each.reached is None else each.reached.us
        return (each.position != start, us is None, us or 0)

    return min(range(len(held)), key=age)


def _complete_us(reached: Reached | None) -> int | None:
    """The instant, by the service's clock, up to which a sink surely was given everything that
    arrived. Times that were stored with the position by hand say nothing of it."""
    if reached is None:
        return None
    tip_us = reached.tip_us
    if tip_us is not None and (reached.begun_us is None or tip_us > reached.begun_us):
        # That is the sink's own clock.
        tip_us -= MARGIN_US
    else:
        tip_us = None
    known = (us for us in (reached.last_arrival_us, tip_us) if us is not None)
    return max(known, default=None)
