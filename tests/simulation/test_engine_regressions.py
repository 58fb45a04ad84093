"""Runs that once went wrong. Each test's first line names the cause."""

from __future__ import annotations

import asyncio

from replicator.errors import PositionLost, TransientError
from replicator.model import LeaseRow, Position, after
from replicator.store.memory import MemoryLeases, MemoryLeaseStore
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemorySink
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.engine import Engine
from tests.shop import Shop
from tests.stack import until

SLOW_BATCHES = (5_000, 8 << 20, 0.1)


def fed(shards: int = 1, changes: int = 50) -> ScriptedStream:
    stream, shop = ScriptedStream(shards), Shop(seed=1)
    for shard in stream.shards():
        stream.append(shard.id, [data for _, data in shop.changes(changes)])
    return stream


def newest(sink: MemorySink) -> list[Position]:
    return list(sink.store.positions.values())


async def test_a_source_that_keeps_failing_still_gets_on() -> None:
    """An error of the source dropped what had been read just before it, every time."""
    stream = fed()
    source = ScriptedSource(LoopClock(), stream, fetch_records=5)
    sink = MemorySink("test/p")
    for call in range(2, 60, 2):
        source.fail("fetch", call, TransientError("kms_throttled", "as scripted"))
    engine = Engine(source, sink, MemoryLeaseStore(), batch_limits=SLOW_BATCHES)
    (shard,) = stream.shards()

    async def all_written() -> bool:
        return newest(sink) == [stream.continuation(shard.id, 50)]

    async with engine.running():
        await until(all_written)
    assert source.calls["fetch"] < 60


async def test_a_gap_costs_nothing_that_was_read_before_it() -> None:
    """A lost position dropped the good fetches that waited in the lane."""
    stream = fed()
    source = ScriptedSource(LoopClock(), stream, fetch_records=5)
    sink = MemorySink("test/p")
    source.fail("fetch", 6, PositionLost("position_trimmed", "as scripted"))
    engine = Engine(source, sink, MemoryLeaseStore(), batch_limits=SLOW_BATCHES)
    (shard,) = stream.shards()

    async def stopped() -> bool:
        return engine.states().get(shard.id, "").startswith("gap")

    async with engine.running():
        await until(stopped)
        assert newest(sink) == [stream.continuation(shard.id, 25)]
    assert engine.stats.gaps == 1


async def test_a_stop_while_leases_are_being_taken_ends() -> None:
    """Leases that were taken after the stop had readers whom nobody told to stop."""

    class SlowStore(MemoryLeaseStore):
        async def take(self, seen: LeaseRow, owner: str) -> LeaseRow | None:
            await asyncio.sleep(0.02)
            return await super().take(seen, owner)

    leases = MemoryLeases()
    stream, sink = fed(shards=8, changes=20), MemorySink("test/p")
    engine = Engine(ScriptedSource(LoopClock(), stream), sink, SlowStore(leases))
    sink.flowing.clear()  # what was read takes its time, and meanwhile leases are taken

    async def some_taken() -> bool:
        return len(engine.states()) >= 3

    async with asyncio.timeout(20):
        async with engine.running():
            await until(some_taken)
            engine.stopping.set()
            await asyncio.sleep(0.2)
            sink.flowing.set()
    assert all(row.owner is None for row in await MemoryLeaseStore(leases).rows("test/p"))


async def test_a_lease_lost_between_fence_and_reading_is_taken_again() -> None:
    """The run that found its own lease lost was cancelled while it gave the lease up."""
    leases = MemoryLeases()
    other = MemoryLeaseStore(leases)

    class RobbedOnce(MemorySink):
        robbed = False

        async def fence(self, stream, shard_id, owner):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            fence = await super().fence(stream, shard_id, owner)
            if not self.robbed:
                self.robbed = True
                (row,) = await other.rows("test/p")
                taken = await other.take(row, "somebody else")
                assert taken is not None
                await other.release(taken)
            return fence

    stream, sink = fed(), RobbedOnce("test/p")
    engine = Engine(
        ScriptedSource(LoopClock(), stream), sink, MemoryLeaseStore(leases), lease_seconds=0.5
    )
    (shard,) = stream.shards()

    async def all_written() -> bool:
        return newest(sink) == [stream.continuation(shard.id, 50)]

    async with engine.running():
        await until(all_written)
    assert sink.robbed


async def test_a_sink_that_lost_the_end_of_a_shard_ends_the_run() -> None:
    """A failed-over sink says that a finished shard isn't: its children must wait again."""
    stream, sink = fed(), MemorySink("test/p")
    engine = Engine(
        ScriptedSource(LoopClock(), stream), sink, MemoryLeaseStore(), discovery_seconds=0.05
    )
    (shard,) = stream.shards()
    stream.split(shard.id)
    key = ("test/p", engine.source.identity, shard.id)  # type: ignore[attr-defined]

    async def finished() -> bool:
        return len(engine.states()) == 2

    failure: BaseException | None = None
    try:
        async with engine.running():
            await until(finished)
            sink.store.positions[key] = after(
                stream.continuation(shard.id, 10).sequence_number or ""
            )
            await asyncio.sleep(5)
    except* Exception as group:  # noqa: BLE001
        failure = group
    assert "but it was finished before" in repr(failure)
