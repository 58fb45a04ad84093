"""The net under every source, in virtual time: a silent reader is cut, then given away; a
shard that its sink holds up is left alone (law 10)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from replicator.core.liveness import MISSES_MAX, Phase, ShardView
from replicator.core.retry import FATAL_RETRY_SECONDS
from replicator.errors import FatalError, LeaseLost, TransientError
from replicator.leasing import REFUSED_SECONDS
from replicator.model import Position, WriteResult
from replicator.store.memory import MemoryLeases, MemoryLeaseStore
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemoryPayload, MemorySink, MemoryStore, MemoryWriter
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.engine import Engine
from tests.pausable_loop import run_virtually
from tests.shop import Shop

FIRST, SECOND = "shardId-000000000000", "shardId-000000000001"
DEADLINE = 90.0


class Rig:
    """A stream of two shards, and workers that share what is stored."""

    def __init__(self) -> None:
        self.shop = Shop(seed=9)
        self.stream = ScriptedStream(2, now_ms=lambda: 1_700_000_000_000)
        self.store = MemoryStore()
        self.leases = MemoryLeases()

    def worker(self, owner: str) -> tuple[Engine, ScriptedSource, MemorySink]:
        source, sink = ScriptedSource(LoopClock(), self.stream), MemorySink("test/p", self.store)
        store = MemoryLeaseStore(self.leases)
        return Engine(source, sink, store, owner=owner), source, sink

    def add(self, shard_id: str, count: int = 3) -> None:
        self.stream.append(shard_id, [data for _, data in self.shop.changes(count)])

    def stored(self, shard_id: str) -> Position | None:
        found = [p for (_, _, shard), p in self.store.positions.items() if shard == shard_id]
        return found[0] if found else None

    def is_read(self, shard_id: str) -> bool:
        """True when everything of the shard is durable."""
        all_of_it = self.stream.continuation(shard_id, self.stream.count(shard_id))
        return self.stored(shard_id) == all_of_it

    def owner(self, shard_id: str) -> str | None:
        (row,) = [row for row in self.leases.rows.values() if row.shard_id == shard_id]
        return row.owner


def view(engine: Engine, shard_id: str) -> ShardView:
    (found,) = [view for view in engine.coordinator.views() if view.shard == shard_id]
    return found


async def until(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def test_a_reader_past_its_deadline_is_cut_and_reads_on() -> None:
    async def main() -> None:
        rig = Rig()
        engine, source, _ = rig.worker("one")
        loop = asyncio.get_running_loop()
        with capture_logs() as logs:
            async with engine.running():
                rig.add(FIRST)
                await until(lambda: rig.is_read(FIRST) and rig.is_read(SECOND))
                source.stall(FIRST)
                silent_from = loop.time()
                await until(lambda: view(engine, FIRST).is_late)
                assert loop.time() - silent_from == pytest.approx(DEADLINE, abs=6)
                assert "no answer of the source for 90 s" in view(engine, FIRST).why
                await until(lambda: engine.stats.reader_cuts == 1, DEADLINE / 10 + 1)
                assert not view(engine, SECOND).is_late
                assert source.readers[SECOND] == 1
                source.resume(FIRST)
                rig.add(FIRST)
                await until(lambda: rig.is_read(FIRST), 5)
                assert not view(engine, FIRST).is_late, "green again by itself"
                assert view(engine, FIRST).phase is Phase.READING
        (cut,) = [log for log in logs if log["event"] == "reader_cut"]
        assert (cut["shard"], cut["misses"]) == (FIRST, 1)
        assert "gave no answer" in cut["reason"]
        assert engine.stats.retries == {"shard_silent": 1}
        assert engine.stats.leases_given_back == 0

    run_virtually(main())


def test_what_was_read_before_the_cut_is_written() -> None:
    async def main() -> None:
        rig = Rig()
        engine, source, _ = rig.worker("one")
        engine.batch_limits = (5_000, 8 << 20, 1_000.0)  # only a drain flushes
        engine.__post_init__()
        async with engine.running():
            await until(lambda: source.readers[FIRST] == 1)
            rig.add(FIRST)
            await until(lambda: source.calls[f"fetch {FIRST}"] >= 1)
            source.stall(FIRST)
            await until(lambda: engine.stats.reader_cuts == 1)
            await until(lambda: rig.is_read(FIRST), 5)

    run_virtually(main())


def test_a_shard_that_stays_silent_is_given_to_a_worker_that_can_read_it() -> None:
    async def main() -> None:
        rig = Rig()
        one, deaf, _ = rig.worker("one")
        two, _, _ = rig.worker("two")
        loop = asyncio.get_running_loop()
        async with one.running():
            await until(lambda: rig.is_read(FIRST) and rig.is_read(SECOND))
            async with two.running():
                # Who has the fewer takes one.
                await until(lambda: {rig.owner(FIRST), rig.owner(SECOND)} == {"one", "two"})
                mine = FIRST if rig.owner(FIRST) == "one" else SECOND
                await asyncio.sleep(30)
                deaf.stall(mine)
                silent_from = loop.time()
                rig.add(mine)
                await until(lambda: one.stats.leases_given_back == 1)
                took = loop.time() - silent_from
                assert took == pytest.approx(MISSES_MAX * DEADLINE, abs=40)
                await until(lambda: rig.is_read(mine), 15)
                assert rig.owner(mine) == "two"
                await until(lambda: not one.coordinator.views(), one.lease_seconds)
                assert two.stats.leases_given_back == 0

    run_virtually(main())


def test_who_could_read_nothing_takes_no_shard_from_who_reads_it() -> None:
    """For balance it would take one back at once, which was then unread until given up again; one
    too that was taken from it for balance, while it was silent here."""

    async def main() -> None:
        rig = Rig()
        one, source, _ = rig.worker("one")
        two, _, _ = rig.worker("two")
        async with one.running():
            await until(lambda: source.readers[FIRST] == source.readers[SECOND] == 1)
            source.stall(FIRST)
            source.stall(SECOND)
            await until(lambda: view(one, FIRST).is_late and view(one, SECOND).is_late)
            async with two.running():
                await until(lambda: {rig.owner(FIRST), rig.owner(SECOND)} == {"two"})
                taken = two.stats.leases_taken.total()
                for _ in range(5):
                    await asyncio.sleep(DEADLINE / 10)
                    assert {rig.owner(FIRST), rig.owner(SECOND)} == {"two"}
                assert two.stats.leases_taken.total() == taken

    run_virtually(main())


def test_a_shard_that_nobody_else_takes_stays_red_until_it_answers() -> None:
    """Given back and taken again by the same worker, it was green for a deadline."""

    async def main() -> None:
        rig = Rig()
        engine, source, _ = rig.worker("one")
        async with engine.running():
            await until(lambda: rig.is_read(FIRST) and rig.is_read(SECOND))
            source.stall(FIRST)
            await until(lambda: view(engine, FIRST).is_late)
            for _ in range(1_000):
                await asyncio.sleep(1)
                assert view(engine, FIRST).is_late
            assert engine.stats.leases_given_back >= 2
            source.resume(FIRST)
            await until(lambda: not view(engine, FIRST).is_late, 60)

    run_virtually(main())


@pytest.mark.parametrize("held", ["budget", "write", "fence"])
def test_a_shard_that_its_sink_holds_up_is_no_silent_one(held: str) -> None:
    async def main() -> None:
        rig = Rig()
        engine, _, sink = rig.worker("one")
        if held == "budget":
            engine.memory_bytes_max = 1
            engine.__post_init__()
        sink_works = asyncio.Event()
        raise_fence = sink.fence

        async def fence(*arguments):  # type: ignore[no-untyped-def]  # noqa: ANN002, ANN202
            await sink_works.wait()
            return await raise_fence(*arguments)

        if held == "fence":
            sink.fence = fence  # type: ignore[method-assign]
        else:
            sink.flowing.clear()
        async with engine.running():
            await until(lambda: len(engine.coordinator.views()) == 2)
            if held == "write":
                # Its end is read; what is left is the sink's.
                rig.add(FIRST)
                rig.stream._close(FIRST, ())
                rig.stream.wake()
            for _ in range(20):
                rig.add(SECOND)
                await asyncio.sleep(DEADLINE / 2)
                assert not any(each.is_late for each in engine.coordinator.views())
            shard_id = FIRST if held != "budget" else SECOND
            assert view(engine, shard_id).waits_for_sink == "w"
            assert "waits for sink w: " in view(engine, shard_id).why
            assert engine.stats.reader_cuts == engine.stats.leases_given_back == 0
            lag = view(engine, SECOND).lag_seconds
            assert lag is None if held == "fence" else lag and lag > 5 * DEADLINE, "lag tells it"
            sink_works.set()
            sink.flowing.set()
            await until(lambda: rig.is_read(SECOND))
            await until(lambda: view(engine, SECOND).waits_for_sink is None)

    run_virtually(main())


def test_a_sink_that_keeps_failing_is_named_and_makes_nothing_red() -> None:
    async def main() -> None:
        rig = Rig()
        engine, _, sink = rig.worker("one")

        async def refuse(*arguments):  # type: ignore[no-untyped-def]  # noqa: ANN002, ANN202
            raise TransientError("postgres_unavailable", "it is away")

        raise_fence, sink.fence = sink.fence, refuse  # type: ignore[method-assign]
        async with engine.running():
            await until(lambda: len(engine.coordinator.views()) == 2)
            for _ in range(200):
                await asyncio.sleep(DEADLINE / 10)
                assert not any(each.is_late for each in engine.coordinator.views())
            assert "waits for sink w" in view(engine, FIRST).why
            sink.fence = raise_fence  # type: ignore[method-assign]
            await until(lambda: view(engine, FIRST).phase is Phase.READING)

    run_virtually(main())


def test_the_wait_after_a_failed_write_is_the_sinks() -> None:
    async def main() -> None:
        rig = Rig()
        engine, _, sink = rig.worker("one")

        class Full(MemoryWriter):
            async def write(self, payload: MemoryPayload) -> WriteResult:
                raise TransientError("disk_full", "no room", retry_after_seconds=20 * DEADLINE)

        full = Full(sink)
        sink.writer = lambda fence: full  # type: ignore[method-assign]
        rig.add(FIRST)
        async with engine.running():
            await until(lambda: engine.stats.retries["disk_full"] >= 1)
            await asyncio.sleep(10 * DEADLINE)
            assert "waits for sink w: no room" in view(engine, FIRST).why
            assert not view(engine, FIRST).is_late

    run_virtually(main())


def test_a_source_that_keeps_failing_is_red_and_given_back() -> None:
    async def main() -> None:
        rig = Rig()
        engine, source, _ = rig.worker("one")
        for call in range(1, 10_000):
            error = TransientError("throttled", "slower, please")
            source.fail("fetch", call, error, shard_id=FIRST)
        async with engine.running():
            await until(lambda: any(v.shard == FIRST for v in engine.coordinator.views()))
            await until(lambda: view(engine, FIRST).is_late, DEADLINE + 10)
            assert not view(engine, SECOND).is_late
            await until(lambda: engine.stats.leases_given_back == 1, 3 * DEADLINE)
            assert view(engine, FIRST).is_late

    run_virtually(main())


def test_a_service_that_hangs_before_the_first_read_is_red_and_a_sink_is_not() -> None:
    """While the service was asked for its horizon, the sink was thought to hold the shard up."""

    async def main(name: str) -> list[ShardView]:
        rig = Rig()
        engine, source, sink = rig.worker("one")
        side = {"horizon": source, "reached": sink}[name]
        answer = getattr(side, name)

        async def hang(*arguments: object) -> None:
            await asyncio.Event().wait()

        raise_fence = sink.fence

        async def fence(*arguments):  # type: ignore[no-untyped-def]  # noqa: ANN002, ANN202
            setattr(side, name, hang)
            engine.coordinator._gaps._seen = None  # what it knew is too old
            return await raise_fence(*arguments)

        sink.fence = fence  # type: ignore[method-assign]
        async with engine.running():
            await until(lambda: len(engine.coordinator.views()) == 2)
            await asyncio.sleep(DEADLINE + 10)
            views = engine.coordinator.views()
            setattr(side, name, answer)
            for run in engine.coordinator._leasing.readers.values():
                assert run.task is not None
                run.task.cancel()
        return views

    assert all(each.is_late for each in run_virtually(main("horizon")))
    for each in run_virtually(main("reached")):
        assert not each.is_late
        assert each.waits_for_sink == "w"


def test_what_an_operator_must_mend_is_red_and_tried_no_more_often_by_a_lone_worker() -> None:
    async def main() -> None:
        rig = Rig()
        engine, source, _ = rig.worker("one")
        for call in range(1, 30):
            source.fail("fetch", call, FatalError("denied", "no permission"), shard_id=FIRST)
        rig.add(FIRST)
        async with engine.running():
            await until(lambda: any(v.shard == FIRST for v in engine.coordinator.views()))
            await until(lambda: view(engine, FIRST).is_late, DEADLINE + 60)
            assert "no permission" in view(engine, FIRST).why
            for _ in range(500):
                await asyncio.sleep(1)
                assert view(engine, FIRST).is_late
                assert "no permission" in view(engine, FIRST).why
            tried = source.calls[f"fetch {FIRST}"]
            assert tried == pytest.approx(600 / FATAL_RETRY_SECONDS, abs=4)
            assert engine.stats.leases_given_back == tried // MISSES_MAX
            assert engine.stats.reader_cuts == 0
            await until(lambda: rig.is_read(FIRST), 30 * FATAL_RETRY_SECONDS)
            assert source.calls[f"fetch {FIRST}"] >= 30

    run_virtually(main())


def test_who_is_refused_leaves_the_shard_to_a_worker_that_is_not() -> None:
    """A worker whose own credentials failed kept its leases for ever."""

    async def main() -> None:
        rig = Rig()
        one, denied, _ = rig.worker("one")
        two, _, _ = rig.worker("two")
        async with one.running():
            await until(lambda: rig.is_read(FIRST) and rig.is_read(SECOND))
            async with two.running():
                await until(lambda: {rig.owner(FIRST), rig.owner(SECOND)} == {"one", "two"})
                mine = FIRST if rig.owner(FIRST) == "one" else SECOND
                at = denied.calls[f"fetch {mine}"]
                for call in range(at + 1, at + 4):
                    error = FatalError("access_denied", "no permission")
                    denied.fail("fetch", call, error, shard_id=mine)
                rig.add(mine)
                await until(lambda: rig.is_read(mine), (MISSES_MAX + 1) * FATAL_RETRY_SECONDS)
                assert rig.owner(mine) == "two"
                assert (one.stats.leases_given_back, two.stats.leases_given_back) == (1, 0)
                assert one.stats.failures == {"access_denied": MISSES_MAX}
                assert one.stats.leases_taken == {"free": 2}
                assert one.stats.leases_lost == {"taken": 1}
                assert two.stats.leases_taken == {"balance": 1, "free": 1}
                await until(lambda: not one.coordinator.views(), one.lease_seconds)
                for _ in range(int(REFUSED_SECONDS) - 60):
                    await asyncio.sleep(1)
                    assert rig.owner(FIRST) == rig.owner(SECOND) == "two", "nothing is taken"
                # Its part of the work comes back to it.
                await until(lambda: {rig.owner(FIRST), rig.owner(SECOND)} == {"one", "two"}, 90)
            # Alone, it takes what is free.
            await until(lambda: rig.owner(FIRST) == rig.owner(SECOND) == "one", 15)

    run_virtually(main())


def test_readers_outside_the_leases_make_a_shard_red() -> None:
    """Taken over again and again by somebody without a lease, it began anew each time."""

    async def main() -> None:
        rig = Rig()
        engine, source, _ = rig.worker("one")
        for call in range(1, 1_000):
            source.fail("fetch", call, LeaseLost("taken_over", "theirs"), shard_id=FIRST)
        async with engine.running():
            await until(lambda: any(v.shard == FIRST for v in engine.coordinator.views()))
            await until(lambda: view(engine, FIRST).is_late, 100 * DEADLINE)
            assert "theirs" in view(engine, FIRST).why

    run_virtually(main())
