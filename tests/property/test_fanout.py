"""Where reading starts for several sinks: no sink misses a record, whatever each of them holds."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from replicator.core.fanout import Held, Owed, last_held, least, owed, rank, reached_by
from replicator.core.gap import MARGIN_US
from replicator.model import (
    SHARD_END,
    TRIM_HORIZON,
    Position,
    PositionKind,
    Reached,
    after,
    at_timestamp,
)

RECORDS = 12
# One of them a long while after the one before, so that times tell something.
STEP_US = 3 * MARGIN_US
FIRST_US = 1_700_000_000_000_000


def arrival_us(number: int) -> int:
    return FIRST_US + number * STEP_US


def at_number(number: int) -> Position:
    return Position(PositionKind.AT_SEQUENCE_NUMBER, sequence_number=str(number))


def first_read(position: Position | None) -> int:
    """The first of the records 1 to RECORDS that reading from there brings."""
    match position:
        case None | Position(kind=PositionKind.TRIM_HORIZON):
            return 1
        case Position(kind=PositionKind.SHARD_END):
            return RECORDS + 1
        case Position(kind=PositionKind.AT_TIMESTAMP, timestamp_us=us):
            assert us is not None
            return next((n for n in range(1, RECORDS + 1) if arrival_us(n) >= us), RECORDS + 1)
        case Position(kind=PositionKind.AT_SEQUENCE_NUMBER, sequence_number=number):
            return int(number or 0)
        case _:
            return int(position.sequence_number or 0) + 1


@dataclass(frozen=True)
class Sink:
    held: Held
    owed_from: int


@st.composite
def sinks(draw: st.DrawFn) -> Sink:
    """A sink as it may truly stand: its times are what it saw, or were set with its position."""
    begun_us = FIRST_US - STEP_US
    match draw(st.sampled_from(["new", "horizon", "time", "read", "moved", "end"])):
        case "new":
            position = None
            reached = None
        case "horizon":
            position, reached = TRIM_HORIZON, Reached(tip_us=begun_us, begun_us=begun_us)
        case "time":
            us = arrival_us(draw(st.integers(0, RECORDS))) + draw(st.integers(-1, 1))
            position, reached = at_timestamp(us), Reached(tip_us=us, begun_us=us + STEP_US)
        case "read":
            number = draw(st.integers(1, RECORDS))
            position = after(str(number))
            tip_us = arrival_us(number) + draw(st.integers(0, STEP_US - 1))
            reached = Reached(arrival_us(number), draw(st.sampled_from([None, tip_us])), begun_us)
        case "moved":
            number = draw(st.integers(1, RECORDS))
            position = draw(st.sampled_from([after(str(number)), at_number(number)]))
            now_us = arrival_us(RECORDS + 1)
            reached = Reached(tip_us=now_us, begun_us=now_us)
        case _:
            position, reached = SHARD_END, Reached(arrival_us(RECORDS))
    return Sink(Held(position, reached), first_read(position))


@given(st.lists(sinks(), min_size=1, max_size=4))
def test_reading_starts_where_no_sink_misses_anything(found: list[Sink]) -> None:
    held = [sink.held for sink in found]
    start = least(held)
    # But for a sink that begins at a time: what came before another one's place, when that was
    # not read since, nobody can tell.
    assert first_read(start) <= min(sink.owed_from for sink in found)


@given(st.lists(sinks(), min_size=1, max_size=4))
def test_the_times_are_those_of_a_sink_that_stands_there(found: list[Sink]) -> None:
    held = [sink.held for sink in found]
    chosen = held[reached_by(held)]
    start = least(held)
    assert chosen.position == start or start not in [each.position for each in held]


@given(sinks(), st.integers(0, RECORDS), st.integers(1, RECORDS), st.booleans())
def test_a_sink_is_given_each_record_it_is_owed_and_none_that_it_holds(
    sink: Sink, read: int, count: int, ended: bool
) -> None:
    before, last = after(str(read)), min(read + count, RECORDS)
    following = SHARD_END if ended and last == RECORDS else after(str(last))
    records = list(range(read + 1, last + 1))
    position = sink.held.position
    match owed(position, before, following):
        case Owed.NOTHING:
            given_records = []
        case Owed.ALL:
            given_records = records
        case Owed.REST:
            assert position is not None
            given_records = [n for n in records if n > int(last_held(position))]
    numbered = position is not None and rank(position)[0] > 0
    wanted = [n for n in records if not numbered or n >= sink.owed_from]
    assert given_records == wanted


@given(sinks(), st.integers(0, RECORDS), st.integers(1, RECORDS))
def test_a_position_never_goes_back(sink: Sink, read: int, count: int) -> None:
    following = after(str(read + count))
    position = sink.held.position
    if owed(position, after(str(read)), following) is not Owed.NOTHING and position is not None:
        assert rank(following) > rank(position)
