from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from replicator.core.budget import Budget
from replicator.core.liveness import ShardLife
from replicator.errors import PositionLost, TransientError
from replicator.fan import Fan
from replicator.flow import Gate
from replicator.model import SHARD_END, TRIM_HORIZON, Batching, Fetch, Position, Shard
from replicator.outlets import Outlet, Outlets
from replicator.pipeline import IDLE_POSITION_SECONDS, Pipeline
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemorySink
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.changes import put
from tests.engine import TABLES
from tests.pausable_loop import run_virtually
from tests.shop import TABLE

SHARD = "shardId-000000000000"


class Rig:
    """One pipeline over one shard, and the sink behind it."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.behind_ms_max: int | None = None
        self.stream = ScriptedStream(1, now_ms=lambda: self.now_ms)
        self.source = ScriptedSource(LoopClock(), self.stream, fetch_records=1)
        self.sink = MemorySink()
        self.stats = Stats()
        self.gate = Gate(Budget(1_000_000))
        self.stopping = asyncio.Event()
        self.fan: Fan | None = None
        self.life = ShardLife(0.0, 90.0)
        self.cut: asyncio.Future[None] | None = None

    def add(self, *tables: str) -> None:
        """A change of each of these tables, each in a fetch of its own."""
        for table in tables:
            us = self.stream.count(SHARD) + 1
            self.stream.append(SHARD, [put(table, {"id": {"S": "apple"}}, us)])

    async def durable(self, count: int) -> None:
        """Returns when the shard is durable up to its n-th record."""
        while self.fan is None or self.fan.durable != self.stream.continuation(SHARD, count):
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[asyncio.Task[tuple[Shard, ...] | None]]:
        outlet = Outlet(
            "w", self.sink, LoopClock(), self.stats, batching=Batching(100, 1_000_000, 0.1)
        )
        outlets = Outlets([outlet])
        await outlets.open(TABLES)
        fences = await outlets.fence(self.source.identity, SHARD, "me")
        answers = await outlets.stand(fences.good, (), ())
        async with asyncio.TaskGroup() as group:
            pipeline = Pipeline(
                source=self.source,
                tables=[TABLE],
                gate=self.gate,
                clock=LoopClock(),
                stats=self.stats,
                group=group,
            )
            self.fan = pipeline.open(answers, lambda *_: 1.0)
            # Not the group's: what it ends with is for the test to look at.
            self.cut = asyncio.get_running_loop().create_future()
            run = asyncio.ensure_future(
                pipeline.run(
                    self.fan,
                    TRIM_HORIZON,
                    self.stopping,
                    self.life,
                    self.cut,
                    self.behind_ms_max,
                )
            )
            try:
                yield run
                await asyncio.wait({run})
            finally:
                run.cancel()
                await asyncio.wait({run})
                pipeline.close()


def test_a_table_nobody_asked_for_is_counted_always_and_named_once() -> None:
    async def main() -> None:
        rig = Rig()
        rig.add("other", TABLE, "other", "third", "other")
        with capture_logs() as logs:
            async with rig.reading():
                await rig.durable(5)
                rig.stopping.set()
        assert rig.stats.dropped == {"unknown_table": 4}
        named = [entry["table"] for entry in logs if entry["event"] == "table_not_configured"]
        assert named == ["other", "third"]
        assert list(rig.sink.store.items) == [(TABLE, ("apple",))]

    run_virtually(main())


@pytest.mark.parametrize("has_come_near", [False, True])
def test_only_who_came_near_the_tip_can_fall_behind(has_come_near: bool) -> None:
    """Regression: an answer without records, which DynamoDB Streams gives anywhere, made old
    records behind it a gap."""

    async def main() -> None:
        rig = Rig()
        rig.behind_ms_max = 50_000
        async with rig.reading() as run:
            if has_come_near:
                rig.add(TABLE)
                await rig.durable(1)
            await asyncio.sleep(3 * IDLE_POSITION_SECONDS)
            rig.add(TABLE, TABLE)
            rig.now_ms = 100_000
            if has_come_near:
                await asyncio.wait({run}, timeout=60)
                assert isinstance(run.exception(), PositionLost)
            else:
                await rig.durable(2)
                rig.stopping.set()

    run_virtually(main())


def test_the_position_of_an_idle_shard_is_stored_now_and_then() -> None:
    async def main() -> None:
        rig = Rig()
        async with rig.reading():
            await asyncio.sleep(20 * IDLE_POSITION_SECONDS)
            rig.stopping.set()
        assert rig.source.calls["fetch"] >= 55, "a heartbeat every five seconds"
        assert 15 <= rig.sink.writes <= 20
        assert rig.fan is not None
        assert rig.fan.durable == rig.stream.continuation(SHARD, 0)

    run_virtually(main())


def test_records_are_never_held_back_as_idle() -> None:
    async def main() -> None:
        rig = Rig()
        async with rig.reading():
            for number in range(1, 6):
                rig.add(TABLE)
                async with asyncio.timeout(1):
                    await rig.durable(number)
            rig.stopping.set()

    run_virtually(main())


def test_the_end_of_a_shard_is_durable_before_its_children_are_named() -> None:
    async def main() -> None:
        rig = Rig()
        rig.add(TABLE, TABLE)
        left, right = rig.stream.split(SHARD)
        rig.sink.flowing.clear()
        async with rig.reading() as run:
            await asyncio.sleep(10)
            assert not run.done()
            rig.sink.flowing.set()
        children = run.result()
        assert children is not None
        assert [child.id for child in children] == [left, right]
        assert rig.fan is not None
        assert rig.fan.durable == SHARD_END
        assert rig.gate.used == 0

    run_virtually(main())


def test_an_empty_end_is_stored_though_the_shard_was_idle() -> None:
    async def main() -> None:
        rig = Rig()
        async with rig.reading() as run:
            await asyncio.sleep(6)  # a heartbeat was just stored
            rig.stream.split(SHARD)
        assert run.result()
        assert rig.fan is not None
        assert rig.fan.durable == SHARD_END

    run_virtually(main())


@pytest.mark.parametrize(
    "error", [TransientError("throttled", "later"), PositionLost("trimmed", "gone")]
)
def test_an_error_of_the_source_is_raised_after_what_came_before_it_is_written(
    error: TransientError | PositionLost,
) -> None:
    async def main() -> None:
        rig = Rig()
        rig.add(TABLE, TABLE)
        rig.source.fail("fetch", 3, error)
        async with rig.reading() as run:
            pass
        assert run.exception() is error
        assert rig.fan is not None
        assert rig.fan.durable == rig.stream.continuation(SHARD, 2)
        assert rig.gate.used == 0

    run_virtually(main())


def test_a_failed_write_ends_the_reading_at_once() -> None:
    async def main() -> None:
        rig = Rig()
        rig.add(TABLE)
        rig.sink.fail_write()
        async with rig.reading() as run:
            pass
        assert isinstance(run.exception(), TransientError)
        assert rig.source.readers[SHARD] == 0
        assert rig.gate.used == 0

    run_virtually(main())


def test_a_run_that_is_cancelled_twice_gives_everything_back() -> None:
    """Regression: cancelled again while its reading ended, it left its ways to the sinks open,
    with the bytes that they held."""

    async def main() -> None:
        rig = Rig()
        rig.add(TABLE)
        closing, closed = asyncio.Event(), asyncio.Event()

        async def slow(shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
            try:
                async for fetch in ScriptedSource.read(rig.source, shard_id, position):
                    yield fetch
            finally:
                closing.set()
                await closed.wait()

        rig.source.read = slow  # type: ignore[method-assign]
        rig.sink.flowing.clear()
        async with rig.reading() as run:
            await asyncio.sleep(5)
            run.cancel()
            await closing.wait()
            run.cancel()
            await asyncio.wait({run})
            assert rig.fan is not None
            assert rig.fan.failure.cancelled()
            assert all(inlet.is_over for inlet in rig.fan.inlets)
            closed.set()
            rig.sink.flowing.set()
            await asyncio.sleep(5)
            assert rig.gate.used == 0

    run_virtually(main())
