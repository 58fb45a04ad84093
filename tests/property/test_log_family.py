"""A log sink's memory across reshards (laws 2 and 7): however shards split and merge, with copies
and late changes that come behind the reshard, and wherever it is killed, each distinct change is
written once, in order per key."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from replicator.model import SHARD_END, TRIM_HORIZON, Pending, after
from replicator.sink.log_shard import LogPosition, LogShard
from tests.property.test_log_shard import DUPLICATE_US, fetch, place
from tests.property.test_window import REORDER_US, Change, Given, T, fact, histories, in_keys, shown


@dataclass
class Shard:
    """What came in one shard, and when by the clock of the source."""

    keys: str
    parents: tuple[int, ...] = ()
    changes: list[Change] = field(default_factory=list)
    begun_us: int = T
    ended_us: int = T

    def fetch(self, start: int, end: int, *, is_last: bool) -> Pending:
        """(The source says at the end of an answer that there is nothing more, and when.)"""
        known = self.changes[:end]
        now_us = self.ended_us if is_last else max([self.begun_us, *(one.us for one in known)])
        pending = fetch(self.changes, start, end, is_last=is_last)
        # A fetch without records moves the position, too: Kinesis names one.
        following = SHARD_END if is_last else after(str(2 * end))
        return replace(pending, next=following, received_at=(now_us - T) / 1_000_000)


def family(stream: list[Change], reshards: dict[int, int]) -> list[Shard]:
    """The stream's changes in shards, parents first. Before the change of that number one of the
    shards splits, or two merge, or (of a single key) one goes on as another."""
    shards = [Shard("abc")]
    opened = [0]
    now_us = T
    for number, change in enumerate([*stream, None]):
        if number in reshards:
            place = reshards[number] % (2 * len(opened))
            is_merge = place % 2 and len(opened) > 1
            old = opened[:2] if is_merge else [opened[place // 2]]
            opened = [i for i in opened if i not in old]
            keys = "".join(shards[i].keys for i in old)
            halves = [keys] if is_merge or len(keys) == 1 else [keys[:1], keys[1:]]
            for i in old:
                shards[i].ended_us = now_us
            for half in halves:
                opened.append(len(shards))
                shards.append(Shard(half, tuple(old), begun_us=now_us))
        if change is not None:
            now_us = max(now_us, change.us)
            (at,) = (i for i in opened if change.key in shards[i].keys)
            shards[at].changes.append(change)
    for i in opened:
        shards[i].ended_us = now_us
    return shards


@settings(max_examples=200)
@given(
    histories(),
    st.booleans(),
    st.dictionaries(st.integers(0, 25), st.integers(0, 5), max_size=6),
    st.lists(st.integers(0, 9), max_size=5),
    st.dictionaries(st.integers(0, 40), st.booleans(), max_size=8),
)
@example([[Change(0, "a", T, None, 1)] * 2], False, {1: 0}, [1], {}).via("a copy in the child")
@example([[Change(0, "a", T, None, 1)] * 2], False, {1: 0}, [1], {3: False}).via("the same, killed")
@example([[Change(0, "a", T, None, 1)] * 2], False, {1: 0}, [0, 1], {3: True}).via("a quiet child")
@example([[Change(0, "a", T, None, 1)] * 2], True, {1: 0, 2: 0}, [1], {}).via("in an heir's heir")
def test_each_change_of_a_family_is_written_once(
    fetches: list[list[Change]],
    compacted: bool,
    reshards: dict[int, int],
    sizes: list[int],
    kills: dict[int, bool],
) -> None:
    stream = [change for one in fetches for change in one]
    shards = family(stream, reshards)
    stored: dict[int, LogPosition] = {}
    remembered: dict[int, bytes] = {}
    written: list[Given] = []

    def opened(number: int) -> LogShard:
        """As a sink begins a shard, from what it stored."""
        log = stored.get(number, LogPosition(TRIM_HORIZON))
        parents = shards[number].parents if log.inherits else ()
        return LogShard(
            LogPosition.from_json(log.to_json()),
            reorder_us=REORDER_US,
            duplicate_us=DUPLICATE_US,
            compacted=compacted,
            inherited=[remembered[parent] for parent in parents if remembered[parent]],
        )

    steps = itertools.count()
    for number, shard in enumerate(shards):
        log, at = opened(number), 0
        for size in itertools.cycle([*sizes, 3]):
            end = min(len(shard.changes), at + size)
            is_last = at == len(shard.changes)
            taken = log.take(shard.fetch(at, end, is_last=is_last))
            at, step = end, next(steps)
            assert is_last or not taken.remembered
            if kills.get(step, True):
                stored[number] = taken.stored
                written += shown(taken.changes)
                if is_last:
                    remembered[number] = taken.remembered
                    break
            if step in kills:
                log = opened(number)
                at = place(log.stored.start)
    assert {stored[number].position for number in range(len(shards))} == {SHARD_END}
    distinct = {fact(change) for change in stream}
    times = Counter(fact(one) for one in written)
    assert not [one for one, count in times.items() if count > 1]
    assert set(times) <= distinct
    if not compacted:
        assert set(times) == distinct
    for one in in_keys(written).values():
        punctual = [change.us for change in one if not change.late]
        assert punctual == sorted(punctual)
