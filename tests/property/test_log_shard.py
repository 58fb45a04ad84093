"""A log sink's memory of a shard over restarts (law 7): wherever it is killed and however the
stream is cut anew, each distinct change is written once, in order per key."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import Records, decode
from replicator.model import SHARD_END, TRIM_HORIZON, Fence, Pending, Position, Stream, after
from replicator.sink.log_shard import LogPosition, LogShard
from tests.property.test_window import REORDER_US, Change, Given, T, fact, histories, in_keys, shown

FENCE = Fence(Stream("s", "arn:aws:kinesis:eu-north-1:1:stream/s", 1), "shard-0", 1, "me/1")
# No copy comes later than this in `histories`.
DUPLICATE_US = 100_000


def opened(stored: LogPosition, *, compacted: bool, duplicate_us: int = DUPLICATE_US) -> LogShard:
    return LogShard(
        LogPosition.from_json(stored.to_json()),
        reorder_us=REORDER_US,
        duplicate_us=duplicate_us,
        compacted=compacted,
    )


def place(position: Position) -> int:
    """How many of the stream's changes lie before it."""
    return 0 if position.sequence_number is None else int(position.sequence_number) // 2


def fetch(
    stream: Sequence[Change], start: int, end: int, *, is_last: bool = False, ahead: int = 0
) -> Pending:
    """Its position lies behind its last record where that is read `ahead` by 1, as a
    subscription does."""
    numbers = [str(2 * i + 2) for i in range(start, end)]
    payloads = [change.payload() for change in stream[start:end]]
    bad = [b"{"] if is_last else []
    batch = decode(
        Records.pack(
            [*payloads, *bad],
            [*numbers, *(str(2 * end + 2) for _ in bad)],
            [1_700_000_000_000 + i for i in range(start, end + len(bad))],
        )
    )
    following = SHARD_END if is_last else after(str(2 * end + ahead)) if end else TRIM_HORIZON
    newest_us = max((change.us for change in stream[:end]), default=T)
    return Pending(FENCE, batch, following, 0, (newest_us - T) / 1_000_000)


@settings(max_examples=200)
@given(
    histories(),
    st.booleans(),
    st.lists(st.integers(0, 9), max_size=5),
    # After which steps it is killed, and whether that step was committed.
    st.dictionaries(st.integers(0, 30), st.booleans(), max_size=6),
)
def test_killed_anywhere_each_change_is_written_once(
    fetches: list[list[Change]], compacted: bool, sizes: list[int], kills: dict[int, bool]
) -> None:
    stream = [change for fetch in fetches for change in fetch]
    stored = LogPosition(TRIM_HORIZON, begun_us=7)
    written: list[Given] = []
    rejected = at = ahead = 0
    shard = opened(stored, compacted=compacted)
    for step, size in enumerate(itertools.cycle([*sizes, 3])):
        end = min(len(stream), at + size)
        is_last = at == len(stream)
        taken = shard.take(fetch(stream, at, end, is_last=is_last, ahead=ahead))
        at = end
        assert is_last or place(taken.stored.start) <= place(taken.stored.position)
        if kills.get(step, True):
            stored = taken.stored
            written += shown(taken.changes)
            rejected += len(taken.rejections)
            if stored.position == SHARD_END:
                break
        if step in kills:
            shard = opened(stored, compacted=compacted)
            at, ahead = place(stored.start), 1 - ahead
    distinct = {fact(change) for change in stream}
    times = Counter(fact(one) for one in written)
    assert not [one for one, count in times.items() if count > 1]
    assert set(times) <= distinct
    if not compacted:
        assert set(times) == distinct
    assert rejected == 1
    for one in in_keys(written).values():
        punctual = [change.us for change in one if not change.late]
        assert punctual == sorted(punctual)
    assert (stored.begun_us, stored.replay_from) == (7, None)


def test_what_is_held_keeps_its_place_and_is_given_when_time_passes() -> None:
    stream = [Change(i, "a", T + i * 1_000, i or None, i + 1) for i in range(3)]
    shard = opened(LogPosition(TRIM_HORIZON), compacted=False)
    taken = shard.take(fetch(stream, 0, 1))
    assert (len(taken.changes), taken.is_holding, str(taken.stored.start)) == (
        0,
        True,
        "TRIM_HORIZON",
    )
    taken = shard.take(fetch(stream, 1, 3))
    assert (len(taken.changes), taken.is_holding) == (0, True)
    assert str(taken.stored.position) == "AFTER_SEQUENCE_NUMBER:6"
    later = Pending(FENCE, decode(Records.pack([])), after("6"), 0, 3.1)
    taken = shard.take(later)
    assert (len(taken.changes), taken.is_holding) == (3, False)
    assert taken.stored.given_us == T + 3_100_000 - REORDER_US, "also when nothing is held"
    # No copy is known any more, so nothing is read again.
    assert taken.stored.start == taken.stored.position == after("6")


def test_what_was_given_for_time_had_passed_is_not_given_again_two_restarts_later() -> None:
    """Regression: when nothing was held it wasn't stored up to when all was given. Who went on held
    the next change, said that only what is older than that by the window was given, and died."""
    stream = [Change(0, "a", T, None, 1), Change(1, "b", T + 2_000, None, 2)]
    first = opened(LogPosition(TRIM_HORIZON), compacted=False)
    first.take(fetch(stream, 0, 1))
    idle = Pending(FENCE, decode(Records.pack([])), after("2"), 0, REORDER_US / 1_000_000 + 0.02)
    taken = first.take(idle)
    assert len(taken.changes) == 1
    second = opened(taken.stored, compacted=False)
    taken = second.take(replace(fetch(stream, 0, 2), behind_ms=60_000))
    third = opened(taken.stored, compacted=False)
    again = third.take(replace(fetch(stream, place(taken.stored.start), 2), behind_ms=60_000))
    last = third.take(fetch(stream, 2, 2, is_last=True))
    given = [*shown(taken.changes), *shown(again.changes), *shown(last.changes)]
    assert [one.key for one in given] == ["b"]


def test_copies_are_known_for_a_while_after_the_last_change() -> None:
    shard = opened(LogPosition(TRIM_HORIZON), compacted=False)
    shard.take(fetch([Change(0, "a", T, None, 1)], 0, 1))
    for seconds, start in ((0.05, "TRIM_HORIZON"), (0.2, "AFTER_SEQUENCE_NUMBER:2")):
        idle = Pending(FENCE, decode(Records.pack([])), after("2"), 0, seconds)
        assert str(shard.take(idle).stored.start) == start


def test_a_fetch_from_far_behind_does_not_let_time_pass() -> None:
    stream = [Change(0, "a", T, None, 1)]
    shard = opened(LogPosition(TRIM_HORIZON), compacted=False)
    shard.take(fetch(stream, 0, 1))
    for behind_ms in (None, 60_000):
        idle = Pending(FENCE, decode(Records.pack([])), after("4"), behind_ms, 100.0)
        assert shard.take(idle).is_holding


def test_what_was_given_as_time_passed_stays_given_over_two_restarts() -> None:
    """Regression: of what an older version stored, without `given_us` when nothing was held, the
    second worker's lay before changes that the first had given, and the third gave them again."""
    times = (T, T + REORDER_US // 2, T + REORDER_US)
    stream = [Change(i, "a", us, i or None, i + 1) for i, us in enumerate(times)]

    def idle(n: int, seconds: float) -> Pending:
        return Pending(FENCE, decode(Records.pack([])), after(str(n)), 0, seconds)

    first = opened(LogPosition(TRIM_HORIZON), compacted=False, duplicate_us=10_000_000)
    first.take(fetch(stream, 0, 2))
    taken = first.take(idle(2, 2.0))
    assert len(taken.changes) == 2
    stored = replace(taken.stored, given_us=None)
    second = opened(stored, compacted=False, duplicate_us=10_000_000)
    second.take(fetch(stream, 0, 2))
    taken = second.take(fetch(stream, 2, 3))
    assert (len(taken.changes), taken.is_holding) == (0, True)
    third = opened(taken.stored, compacted=False, duplicate_us=10_000_000)
    third.take(fetch(stream, 0, 3))
    assert shown(third.take(idle(3, 5.0)).changes) == shown(second.take(idle(3, 5.0)).changes)


def test_positions_are_kept_as_text() -> None:
    whole = LogPosition(after("7"), 1, after("3"), 2, 3, 4, "6")
    assert LogPosition.from_json(whole.to_json()) == whole
    assert whole.start == after("3")
    least = LogPosition(SHARD_END)
    assert least.to_json() == '{"position":"SHARD_END"}'
    assert LogPosition.from_json('{"position":"SHARD_END","later":1}') == least


@settings(max_examples=200)
@given(
    histories(),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 12),
    st.integers(1, 12),
)
def test_what_another_worker_gave_is_given_again_however_it_comes(
    fetches: list[list[Change]], sizes: list[int], others: list[int], begin: int, length: int
) -> None:
    """A size of 0 is a fetch without records: time passes, less than copies are known for. That
    is not repeated."""
    stream = [change for fetch in fetches for change in fetch]
    shard = opened(LogPosition(TRIM_HORIZON), compacted=False, duplicate_us=10_000_000)
    before = LogPosition(TRIM_HORIZON)
    given_there: list[Given] = []
    at = 0
    for step, size in zip(range(begin + length), itertools.cycle(sizes), strict=False):
        end = min(len(stream), at + size)
        one = fetch(stream, at, end, ahead=1)
        later = one if end > at else replace(one, received_at=one.received_at + step / 50)
        taken = shard.take(later)
        at = end
        if step < begin:
            before = taken.stored
        else:
            given_there += shown(taken.changes)
    until = shard.stored
    shard = opened(before, compacted=False, duplicate_us=10_000_000)
    given_here: list[Given] = []
    at, last = place(before.start), place(until.position)
    for size in itertools.cycle(others):
        end = min(last, at + size)
        if end <= at:
            break
        taken = shard.take(replace(fetch(stream, at, end), behind_ms=None))
        given_here += shown(taken.changes)
        at = end
    given_here += shown(shard.reach(until).changes)
    assert Counter(map(fact, given_here)) == Counter(map(fact, given_there))
    assert shard.stored == until
