"""The whole engine in virtual time over log sinks: shards split and merge, copies and late changes
come behind the reshard, writes fail, workers are killed; a seed is a run. In the end each change
was written once, in order per key (laws 2 and 7)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from replicator.model import Batching
from replicator.outlets import Outlet
from replicator.store.memory import MemoryLeases, MemoryLeaseStore
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.engine import Engine
from tests.pausable_loop import run_virtually
from tests.property.test_window import Change, fact, in_keys
from tests.simulation.log_sink import LogSink, LogStore
from tests.simulation.test_several_sinks import now_us

SECONDS = 200
KEYS = 12
# Copies and late changes come no later than this behind their first.
COPY_SECONDS = 50.0
# Less than a minute of these changes takes.
LITTLE_BYTES = 50_000
FETCH_BYTES_MAX = 7 * 1_500


class Load:
    """Changes of a few items, copies and late ones among them, and reshards meanwhile."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.stream = ScriptedStream(2, now_ms=lambda: now_us() // 1_000)
        self.changes: list[Change] = []
        self._state: dict[str, int | None] = {}
        self._later: list[tuple[float, Change]] = []
        self.moved = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + SECONDS
        reshard_at = loop.time()
        while loop.time() < end:
            await asyncio.sleep(self.rng.expovariate(3))
            self._change(loop.time())
            self._release(loop.time())
            if loop.time() >= reshard_at:
                self._reshard()
                reshard_at = loop.time() + self.rng.expovariate(1 / 8)
        self._release(end + 10 * COPY_SECONDS)
        for shard in self.stream.shards():
            if shard.is_open:
                self.stream.close(shard.id)

    def _change(self, now: float) -> None:
        rng = self.rng
        key = f"k{rng.randrange(KEYS)}"
        number, old = len(self.changes), self._state.get(key)
        new = None if old is not None and rng.random() < 0.2 else number + 1
        change = Change(number, key, now_us() + number, old, new)
        self._state[key] = new
        self.changes.append(change)
        delay = rng.choice([0.0] * 8 + [0.4, 5.0])
        self._later.append((now + delay, change))
        if rng.random() < 0.3:
            self._later.append((now + delay + rng.random() * (COPY_SECONDS - delay), change))

    def _release(self, now: float) -> None:
        due = sorted((one for one in self._later if one[0] <= now), key=lambda one: one[0])
        self._later = [one for one in self._later if one[0] > now]
        for _, change in due:
            self.stream.append(self.stream.shard_of(change.key), [change.payload()])

    def _reshard(self) -> None:
        shards = [shard for shard in self.stream.shards() if shard.is_open]
        shards.sort(key=lambda shard: shard.hash_range or ())
        place = self.rng.randrange(len(shards))
        if len(shards) > 4 or (place and self.rng.random() < 0.4):
            place = place or 1
            self.stream.merge(shards[place - 1].id, shards[place].id)
        else:
            self.stream.split(shards[place].id)


def sink(store: LogStore, **log: Any) -> LogSink:
    clock = LoopClock()
    return LogSink(store, log=log, monotonic=clock.monotonic, now_us=now_us)


async def simulate(seed: int) -> tuple[Load, list[LogStore]]:
    rng = random.Random(f"lives {seed}")
    load, leases = Load(seed), MemoryLeases()
    stores = [LogStore(), LogStore()]
    loading = asyncio.create_task(load.run())
    life = 0
    while True:
        sinks = [sink(store, compacted=bool(n)) for n, store in enumerate(stores)]
        engine = Engine(
            ScriptedSource(LoopClock(), load.stream, fetch_records=7, now_us=now_us),
            sinks[0],
            MemoryLeaseStore(leases),
            owner=f"worker-{life}",
            lease_seconds=3.0,
            others=[
                Outlet("c", sinks[1], LoopClock(), Stats(), batching=Batching(100, 10_000, 0.5))
            ],
        )
        for one in sinks:
            for nth in range(rng.randrange(1, 30), 400, rng.randrange(20, 90)):
                one.fail_write(nth, rng.choice(["before", "after"]))
        life += 1
        if not loading.done():
            await killed(engine, after_seconds=rng.expovariate(1 / 40))
            continue
        loading.result()
        async with engine.running(), asyncio.timeout(600):
            shards = [shard.id for shard in load.stream.shards()]
            while not all(finished(store, shards) for store in stores):
                await asyncio.sleep(1)
        return load, stores


async def killed(engine: Engine, after_seconds: float) -> None:
    """Runs it, and ends it without a drain."""

    async def run() -> None:
        async with engine.running():
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await asyncio.wait({running}, timeout=after_seconds)
    running.cancel()
    await asyncio.wait({running})


def finished(store: LogStore, shards: list[str]) -> bool:
    return store.remembered.keys() >= {*shards}


@pytest.mark.parametrize("seed", range(12))
def test_each_change_is_written_once_across_reshards(seed: int) -> None:
    load, stores = run_virtually(simulate(seed))
    distinct = {fact(change) for change in load.changes}
    for store, compacted in zip(stores, (False, True), strict=True):
        times = Counter(fact(one) for one in store.written)
        assert not [one for one, count in times.items() if count > 1]
        assert set(times) <= distinct
        if not compacted:
            assert set(times) == distinct
        for one in in_keys(store.written).values():
            punctual = [change.us for change in one if not change.late]
            assert punctual == sorted(punctual)
        assert store.inherited > 10
    last = {one.key: one for one in stores[1].written}
    assert {key: one.new for key, one in last.items()} == load._state


@pytest.mark.parametrize("reorder_us", [1_000_000, 3_600_000_000])
def test_what_windows_hold_is_bounded_and_never_keeps_from_reading(reorder_us: int) -> None:
    """Their own limits are far away; the larger one holds changes back until the shard's end."""

    async def main() -> None:
        load, store = Load(1), LogStore()
        one = sink(store, reorder_us=reorder_us, duplicate_us=max(reorder_us, 60_000_000))
        engine = Engine(
            ScriptedSource(LoopClock(), load.stream, fetch_records=7, now_us=now_us),
            one,
            MemoryLeaseStore(MemoryLeases()),
            memory_bytes_max=LITTLE_BYTES,
        )
        windows = one.windows = engine.budget.windows
        async with engine.running(), asyncio.timeout(SECONDS + 600):
            await load.run()
            shards = [shard.id for shard in load.stream.shards()]
            while not finished(store, shards):
                await asyncio.sleep(1)
        # What decoding adds to a fetch that was let in may pass the limit.
        assert engine.budget.peak <= LITTLE_BYTES + FETCH_BYTES_MAX
        assert LITTLE_BYTES // 4 < windows.peak <= windows.limit == LITTLE_BYTES // 2
        assert windows.forgotten > 0
        assert windows.early > 0 or reorder_us == 1_000_000
        assert {fact(one) for one in store.written} == {fact(change) for change in load.changes}

    run_virtually(main())
