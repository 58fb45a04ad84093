"""Several sinks fed from one read, in virtual time: one that stalls or fails holds up the others
only by the memory, each is given what it doesn't hold, and one that joins says from where."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.model import (
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    Batching,
    Fence,
    Position,
    PositionKind,
    Reached,
    Stream,
    TableSchema,
    at_timestamp,
)
from replicator.outlets import Outlet, SinkStart
from replicator.store.memory import MemoryLeases, MemoryLeaseStore
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemoryPayload, MemorySink, MemoryStore
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.engine import Engine
from tests.pausable_loop import run_virtually
from tests.shop import Shop

SHARD = "shardId-000000000000"
EPOCH_S = 1_700_000_000
T = TypeVar("T")


class Sink(MemorySink):
    """The one in memory; `down` is what every call of it raises, `given` the sequence numbers
    of each write."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__("test/p", store, monotonic=LoopClock().monotonic, now_us=now_us)
        self.down: ReplicatorError | None = None
        self.given = 0
        self.asked = 0
        self.on_write = self._count

    def _count(self, payload: MemoryPayload) -> None:
        self.look()
        self.given += sum(len(one.batch) for one in payload.pending)

    def look(self) -> None:
        self.asked += 1
        if self.down is not None:
            raise self.down

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        self.look()
        return await super().fence(stream, shard_id, owner)

    async def position(self, fence: Fence) -> Position | None:
        self.look()
        return await super().position(fence)

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        self.look()
        return await super().positions(stream)

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Reached]:
        self.look()
        return await super().reached(stream, shard_ids)

    async def open(self, tables: Sequence[TableSchema]) -> None:
        self.look()
        await super().open(tables)


def now_us() -> int:
    return int((EPOCH_S + asyncio.get_running_loop().time()) * 1_000_000)


class Rig:
    """One shard, and what two sinks have stored. `worker` is a process."""

    def __init__(self, shards: int = 1) -> None:
        self.shop = Shop(seed=5)
        self.stream = ScriptedStream(shards, now_ms=lambda: now_us() // 1_000)
        self.stores = {"a": MemoryStore(), "b": MemoryStore()}
        self.leases = MemoryLeases()

    def add(self, count: int, shard_id: str = SHARD) -> None:
        self.stream.append(shard_id, [data for _, data in self.shop.changes(count)])

    def worker(self, *names: str, start: SinkStart | None = None, **options: Any) -> Worker:
        return Worker(self, names or ("a", "b"), start, options)


class Worker:
    def __init__(
        self, rig: Rig, names: Sequence[str], start: SinkStart | None, options: dict[str, Any]
    ) -> None:
        self.rig = rig
        self.sinks = {name: Sink(rig.stores[name]) for name in names}
        self.source = ScriptedSource(LoopClock(), rig.stream, fetch_records=5, now_us=now_us)
        self.stats = {name: Stats() for name in names}
        first, *rest = names
        self.engine = Engine(
            self.source,
            self.sinks[first],
            MemoryLeaseStore(rig.leases),
            stats=self.stats[first],
            others=[
                Outlet(
                    name,
                    self.sinks[name],
                    LoopClock(),
                    self.stats[name],
                    batching=Batching(5_000, 8 << 20, 0.02),
                    start=start,
                )
                for name in rest
            ],
            **options,
        )

    def trouble(self, name: str) -> str:
        (outlet,) = (outlet for outlet in self.engine.outlets if outlet.sink is self.sinks[name])
        found = outlet.trouble()
        return "" if found is None else found.why

    def position(self, name: str, shard_id: str = SHARD) -> Position | None:
        sink = self.sinks[name]
        found = sink.store.positions
        return next((at for (_, _, shard), at in found.items() if shard == shard_id), None)

    def holds_all(self, name: str, shard_id: str = SHARD) -> bool:
        stream = self.rig.stream
        return self.position(name, shard_id) == stream.continuation(
            shard_id, stream.count(shard_id)
        )

    def content(self, name: str) -> set[str]:
        items = self.sinks[name].items("products").items()
        return {key[0] for key, stored in items if not stored.deleted}


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def while_running(worker: Worker, plot: Callable[[], Awaitable[T]]) -> T:
    async with worker.engine.running():
        return await plot()
    raise AssertionError


DOWN = [
    TransientError("down", "the server is away"),
    FatalError("denied", "no permission"),
    None,  # it stalls
]


@pytest.mark.parametrize("error", DOWN, ids=["transient", "fatal", "stalled"])
def test_the_others_go_on_while_one_is_down(error: ReplicatorError | None) -> None:
    async def main() -> None:
        rig = Rig()
        worker = rig.worker()
        a, b = worker.sinks.values()
        async with worker.engine.running():
            rig.add(20)
            await until(lambda: worker.holds_all("a") and worker.holds_all("b"))
            if error is None:
                b.flowing.clear()
            else:
                b.down = error
            stood_at = worker.position("b")
            for _ in range(20):
                rig.add(5)
                await until(lambda: worker.holds_all("a"))
                await asyncio.sleep(5)
            assert worker.position("b") == stood_at
            assert worker.trouble("b")
            assert not worker.trouble("a")
            assert worker.engine.gate.used > 0, "what it is owed stays in the budget"
            a_given = a.given
            b.down = None
            b.flowing.set()
            await until(lambda: worker.holds_all("b"))
            assert a.given == a_given, "it was given again what it held"
            await until(lambda: not worker.trouble("b"))
        assert worker.content("a") == worker.content("b") == set(rig.shop.items)
        assert worker.engine.gate.used == 0

    run_virtually(main())


@pytest.mark.parametrize("error", DOWN, ids=["transient", "fatal", "stalled"])
def test_reading_waits_once_the_memory_is_full(error: ReplicatorError | None) -> None:
    async def main() -> None:
        rig = Rig()
        worker = rig.worker(memory_bytes_max=20_000)
        _, b = worker.sinks.values()
        async with worker.engine.running():
            rig.add(5)
            await until(lambda: worker.holds_all("a") and worker.holds_all("b"))
            b.down = error
            if error is None:
                b.flowing.clear()
            rig.add(500)
            await asyncio.sleep(20)
            stood_at = worker.position("a")
            await asyncio.sleep(9)
            assert not worker.holds_all("a")
            assert worker.position("a") == stood_at, "its reading goes on without end"
            (view,) = worker.engine.coordinator.views()
            assert view.waits_for_sink == "b"
            b.down = None
            b.flowing.set()
            await until(lambda: worker.holds_all("a") and worker.holds_all("b"))
        assert worker.content("a") == worker.content("b") == set(rig.shop.items)

    run_virtually(main())


@pytest.mark.parametrize("error", DOWN[:2], ids=["transient", "fatal"])
def test_a_shard_that_begins_again_meanwhile_leaves_the_one_behind_that_is_down(
    error: ReplicatorError,
) -> None:
    async def main() -> None:
        rig = Rig()
        worker = rig.worker()
        source, b = worker.source, worker.sinks["b"]
        async with worker.engine.running():
            rig.add(20)
            await until(lambda: worker.holds_all("a") and worker.holds_all("b"))
            b.down = error
            stood_at = worker.position("b")
            for _ in range(10):
                cut = TransientError("cut", "as scripted")
                source.fail("fetch", source.calls["fetch"] + 2, cut)
                rig.add(20)
                await until(lambda: worker.holds_all("a"))
            assert worker.position("b") == stood_at
            assert worker.trouble("b")
            assert worker.engine.gate.used > 0
            (row,) = rig.leases.rows.values()
            assert row.checkpoint == str(stood_at), "the copy is the least"
            b.down = None
            await until(lambda: worker.holds_all("b"))
        assert worker.content("a") == worker.content("b") == set(rig.shop.items)
        assert worker.engine.gate.used == 0

    run_virtually(main())


def test_the_end_of_a_shard_waits_for_the_one_that_is_down() -> None:
    async def main() -> None:
        rig = Rig()
        worker = rig.worker()
        b = worker.sinks["b"]
        async with worker.engine.running():
            rig.add(20)
            await until(lambda: worker.holds_all("a") and worker.holds_all("b"))
            b.down = TransientError("down", "the server is away")
            left, _ = rig.stream.split(SHARD)
            rig.add(5, left)
            await until(lambda: worker.position("a") == SHARD_END)
            await asyncio.sleep(60)
            assert worker.position("a", left) is None, "a child is read before its parent is held"
            b.down = None
            await until(lambda: all(worker.holds_all(name, left) for name in "ab"))
        assert worker.content("a") == worker.content("b") == set(rig.shop.items)

    run_virtually(main())


def test_a_sink_that_refuses_again_and_again_is_asked_less_and_less() -> None:
    """Its position can be read, so its shard begins again each time."""

    async def main() -> None:
        rig = Rig()
        worker = rig.worker()
        b = worker.sinks["b"]

        def full(_: MemoryPayload) -> None:
            b.asked += 1
            raise TransientError("disk_full", "no room")

        async with worker.engine.running():
            rig.add(5)
            await until(lambda: worker.holds_all("a") and worker.holds_all("b"))
            b.on_write, b.asked = full, 0
            for _ in range(30):
                rig.add(5)
                await until(lambda: worker.holds_all("a"))
                await asyncio.sleep(2)
            # Each beginning asks some things; the pauses grow to a second here.
            assert b.asked < 60 / 0.5 * 6
            b.on_write = b._count
            await until(lambda: worker.holds_all("b"))
        assert worker.content("a") == worker.content("b")

    run_virtually(main())


def test_each_is_given_what_it_does_not_hold_and_no_more() -> None:
    async def main() -> None:
        rig = Rig()
        rig.add(12)
        async with rig.worker("a", "b").engine.running():
            await asyncio.sleep(1)
        for name, held in (("a", 9), ("b", 3)):
            store = rig.stores[name]
            (key,) = store.positions
            store.positions[key] = rig.stream.continuation(SHARD, held)
        worker = rig.worker()
        async with worker.engine.running():
            await until(lambda: worker.holds_all("a") and worker.holds_all("b"))
        assert (worker.sinks["a"].given, worker.sinks["b"].given) == (3, 9)

    run_virtually(main())


def test_a_lane_a_shard_ends_with_it() -> None:
    """The sink in memory has a writer for each: the lanes of shards that ended stayed."""

    async def main() -> None:
        rig = Rig(8)
        worker = rig.worker()
        lanes: list[int] = []
        ids = [shard.id for shard in rig.stream.shards()]
        async with worker.engine.running():
            for shard_id in ids:
                rig.add(3, shard_id)
            await until(lambda: all(worker.holds_all(name, each) for name in "ab" for each in ids))
            lanes.append(len(worker.engine.gate._holders))
            for shard_id in ids:
                rig.stream._close(shard_id, ())
            await until(
                lambda: all(
                    worker.position(name, each) == SHARD_END for name in "ab" for each in ids
                )
            )
            await asyncio.sleep(1)
            lanes.append(len(worker.engine.gate._holders))
        assert lanes == [16, 0]
        assert not worker.sinks["a"].committed._seen

    run_virtually(main())


# ---- a sink that joins


async def refused(worker: Worker) -> FatalError:
    with pytest.raises(FatalError) as caught:
        await worker.engine.coordinator.run(asyncio.Event())
    return caught.value


async def only_a(rig: Rig, count: int = 10) -> None:
    """The pipeline has run with one sink."""
    rig.add(count)
    alone = rig.worker("a")
    async with alone.engine.running():
        await until(lambda: alone.holds_all("a"))


def test_a_sink_that_joins_must_say_from_where() -> None:
    async def main() -> None:
        rig = Rig()
        await only_a(rig)
        error = await refused(rig.worker())
        assert error.code == "sink_start_missing"
        assert "`now`" in error.message
        assert "TRIM_HORIZON" in error.message
        assert (await refused(rig.worker(start="snapshot"))).code == "snapshot_missing"

    run_virtually(main())


@pytest.mark.parametrize(
    ("start", "brought"), [("now", 5), (TRIM_HORIZON, 15), (LATEST, 5), ("number", 8)]
)
def test_a_sink_that_joins_begins_where_it_says(start: Any, brought: int) -> None:
    async def main() -> None:
        rig = Rig()
        await only_a(rig)
        await asyncio.sleep(60)
        where: SinkStart = start
        if start == "number":
            number = rig.stream.continuation(SHARD, 8).sequence_number
            where = Position(PositionKind.AT_SEQUENCE_NUMBER, sequence_number=number)
        worker = rig.worker(start=where)
        async with worker.engine.running():
            await until(lambda: worker.position("b") is not None)
            await asyncio.sleep(10)
            rig.add(5)
            await until(lambda: worker.holds_all("a") and worker.holds_all("b"))
        assert (worker.sinks["a"].given, worker.sinks["b"].given) == (5, brought)
        # It is resolved once.
        again = rig.worker(start=at_timestamp(1))
        async with again.engine.running():
            rig.add(5)
            await until(lambda: again.holds_all("a") and again.holds_all("b"))
        assert again.sinks["b"].given == 5

    run_virtually(main())


def test_a_sink_that_begins_at_a_time_loses_nothing_of_the_others() -> None:
    """A time and a number are no order by themselves: whoever is behind is read from."""

    async def main() -> None:
        rig = Rig()
        await only_a(rig)
        rig.add(10)  # which the first has not
        await asyncio.sleep(60)
        worker = rig.worker(start=at_timestamp(now_us()))
        async with worker.engine.running():
            await asyncio.sleep(10)
            rig.add(5)
            await until(lambda: worker.holds_all("a") and worker.holds_all("b"))
        assert worker.content("a") == set(rig.shop.items)
        assert worker.sinks["a"].given == 15

    run_virtually(main())


def test_a_process_that_ended_while_it_began_its_sinks_begins_the_rest_in_the_same_place() -> None:
    async def main() -> None:
        rig = Rig()
        rig.add(10)
        worker = rig.worker()

        async def ends(*_: object) -> bool:
            raise FatalError("killed", "as scripted")

        worker.sinks["b"].begin = ends  # type: ignore[method-assign,assignment]
        with suppress(FatalError):
            await worker.engine.coordinator.run(asyncio.Event())
        assert worker.position("a") == TRIM_HORIZON
        assert worker.position("b") is None
        again = rig.worker()
        async with again.engine.running():
            await until(lambda: again.holds_all("a") and again.holds_all("b"))
        assert again.content("a") == again.content("b") == set(rig.shop.items)

    run_virtually(main())


def test_a_shard_that_the_others_finished_is_read_again_for_who_joins() -> None:
    async def main() -> None:
        rig = Rig()
        rig.add(10)
        left, right = rig.stream.split(SHARD)
        rig.add(5, left)
        alone = rig.worker("a")
        async with alone.engine.running():
            await until(lambda: alone.holds_all("a", left))
        worker = rig.worker(start=TRIM_HORIZON)
        async with worker.engine.running():
            await until(lambda: worker.holds_all("b", left))
            assert worker.position("b") == SHARD_END
        assert worker.sinks["b"].given == 15
        assert worker.sinks["a"].given == 0
        assert worker.content("a") == worker.content("b") == set(rig.shop.items)
        assert right

    run_virtually(main())
