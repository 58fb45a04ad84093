from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from replicator.core.batch import Batcher, FlushReason
from replicator.core.budget import Budget
from replicator.errors import LeaseLost, ReplicatorError, TransientError
from replicator.flow import Charge, Gate
from replicator.lane import Inlet, Lane
from replicator.model import Batching, Fence, Pending, WriteResult, after
from replicator.outlets import SLOW_WRITE_SECONDS, Outlet
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemorySink
from tests.changes import STREAM, number, pending, put
from tests.pausable_loop import run_virtually

CHARGE = 100


class Writer:
    """Keeps what it is given; waits while it is not `flowing`, then ends as ordered."""

    def __init__(self) -> None:
        self.payloads: list[tuple[Pending, ...]] = []
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.outcomes: list[WriteResult | ReplicatorError] = []

    def encode(self, pending: Sequence[Pending]) -> tuple[Pending, ...]:
        return tuple(pending)

    async def write(self, payload: tuple[Pending, ...]) -> WriteResult:
        self.payloads.append(payload)
        await self.flowing.wait()
        outcome = self.outcomes.pop(0) if self.outcomes else WriteResult()
        if isinstance(outcome, ReplicatorError):
            raise outcome
        return outcome


class Bench:
    """A lane that writes only when told, unless it is given less patience."""

    def __init__(self, *, rows_max: int = 100, delay_seconds: float = 3_600.0) -> None:
        self.writer = Writer()
        self.gate = Gate(Budget(1_000_000))
        self.stats = Stats()
        batcher: Batcher[object] = Batcher(rows_max=rows_max, delay_seconds=delay_seconds)
        self.outlet = Outlet(
            "w",
            MemorySink(),
            LoopClock(),
            self.stats,
            batching=Batching(rows_max, 1, delay_seconds),
        )
        self.lane = Lane(self.writer, batcher, LoopClock(), self.outlet)  # type: ignore[arg-type]
        self.failed: list[Inlet] = []
        self._numbers: dict[str, int] = {}

    def open(self, shard_id: str, epoch: int = 1) -> Inlet:
        return self.lane.open(
            Fence(STREAM, shard_id, epoch), self.outlet, None, lambda it, _: self.failed.append(it)
        )

    async def put(self, inlet: Inlet) -> None:
        """One more fetch of one change."""
        shard_id = inlet.fence.shard_id
        first = self._numbers[shard_id] = self._numbers.get(shard_id, 0) + 1
        await self.gate.take(CHARGE)
        payload = put("products", {"id": {"S": shard_id}}, first)
        charge = Charge(self.gate, CHARGE)
        inlet.put(pending(inlet.fence, [payload], first=first), charge.hold())
        charge.release()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        work = asyncio.ensure_future(self.lane.run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.wait({work})
            assert work.cancelled()

    def written(self) -> list[list[str]]:
        """The shards of each payload, a fetch each."""
        return [[one.fence.shard_id for one in payload] for payload in self.writer.payloads]


async def test_what_waits_of_several_shards_goes_in_one_write() -> None:
    bench = Bench()
    one, two = bench.open("s1"), bench.open("s2")
    async with bench.running():
        for inlet in (one, two, one):
            await bench.put(inlet)
        await one.drain()
    assert bench.written() == [["s1", "s2", "s1"]]
    assert one.durable == after(number(2))
    assert two.durable == after(number(1))
    assert bench.gate.used == 0
    assert (bench.stats.changes, bench.stats.flushes) == (3, 1)
    assert bench.stats.flush_reasons == {FlushReason.DRAIN: 1}


async def test_what_a_filter_kept_out_is_counted_by_its_reason() -> None:
    bench = Bench()
    inlet = bench.open("s1")
    bench.writer.outcomes = [WriteResult(filtered=2), WriteResult(unmatched=3), WriteResult()]
    async with bench.running():
        for _ in range(3):
            await bench.put(inlet)
            await inlet.drain()
    assert bench.stats.dropped == {"filtered_deletes": 2, "filtered": 3}


def test_it_waits_for_company_as_long_as_it_may() -> None:
    async def main() -> None:
        bench = Bench(delay_seconds=5.0)
        inlet, loop = bench.open("s1"), asyncio.get_running_loop()
        async with bench.running():
            begun = loop.time()
            await bench.put(inlet)
            await asyncio.sleep(4.9)
            await bench.put(inlet)
            assert bench.written() == []
            while inlet.durable is None:
                await asyncio.sleep(0.01)
            assert loop.time() - begun == pytest.approx(5, abs=0.05)
        assert bench.written() == [["s1", "s1"]]
        assert bench.stats.flush_reasons == {FlushReason.DELAY: 1}

    run_virtually(main())


async def test_what_comes_during_a_write_waits_for_the_next() -> None:
    bench = Bench(rows_max=1)
    one, two = bench.open("s1"), bench.open("s2")
    bench.writer.flowing.clear()
    async with bench.running():
        await bench.put(one)
        while not bench.writer.payloads:
            await asyncio.sleep(0)
        await bench.put(two)
        await asyncio.sleep(0)
        assert bench.written() == [["s1"]]
        bench.writer.flowing.set()
        await two.drain()
    assert bench.written() == [["s1"], ["s2"]]


async def test_a_failed_write_fails_its_own_shards_only() -> None:
    bench = Bench()
    one, two, three = (bench.open(name) for name in ("s1", "s2", "s3"))
    bench.writer.outcomes = [TransientError("cut", "connection lost")]
    async with bench.running():
        await bench.put(one)
        await bench.put(two)
        with pytest.raises(TransientError):
            await one.drain()
        with pytest.raises(TransientError):
            await two.drain()
        await bench.put(three)
        await three.drain()
    assert (one.durable, three.durable) == (None, after(number(1)))
    assert bench.written() == [["s1", "s2"], ["s3"]]
    assert bench.stats.changes == 1
    assert bench.failed == [one, two]
    trouble = bench.outlet.trouble()
    assert trouble is not None
    assert (trouble.why, trouble.shards) == ("connection lost [cut]", 2)
    # What the sink is owed stays in the budget until their runs are over.
    assert bench.gate.used == 2 * CHARGE
    one.close()
    two.close()
    assert bench.gate.used == 0


async def test_a_lost_fence_fails_its_own_shard_only() -> None:
    bench = Bench()
    stale, good = bench.open("s1"), bench.open("s2")
    bench.writer.outcomes = [WriteResult(rows=1, lost=frozenset({"s1"}))]
    async with bench.running():
        await bench.put(stale)
        await bench.put(good)
        await good.drain()
        with pytest.raises(LeaseLost):
            await stale.drain()
    assert (stale.durable, good.durable) == (None, after(number(1)))
    assert bench.stats.changes == 1, "what was not written is not counted"
    assert bench.outlet.trouble() is None, "that is no fault of the sink"
    stale.close()
    assert bench.gate.used == 0


@pytest.mark.parametrize("how", ["fail", "close"])
async def test_what_an_ended_inlet_left_behind_is_dropped_and_its_bytes_given_back(
    how: str,
) -> None:
    bench = Bench()
    old, new = bench.open("s1", epoch=1), bench.open("s1", epoch=2)
    async with bench.running():
        await bench.put(old)
        if how == "fail":
            old.fail(LeaseLost("fence_lost", "another worker has it"))
        old.close()
        await bench.put(new)
        await new.drain()
    assert [[one.fence.epoch for one in payload] for payload in bench.writer.payloads] == [[2]]
    assert bench.gate.used == 0


async def test_a_lane_that_ends_gives_back_what_it_writes_and_what_waits() -> None:
    """Bytes of what nobody waited for any more stayed charged when the lane ended."""
    bench = Bench(rows_max=1)
    inlet = bench.open("s1")
    bench.writer.flowing.clear()
    async with bench.running():
        await bench.put(inlet)
        await bench.put(inlet)
        while not bench.writer.payloads:
            await asyncio.sleep(0)
        assert bench.gate.used == 2 * CHARGE
    assert bench.gate.used == 0
    assert inlet.durable is None


async def test_to_drain_an_inlet_that_holds_nothing_takes_no_write() -> None:
    bench = Bench()
    async with bench.running():
        await bench.open("s1").drain()
    assert bench.written() == []


async def test_a_drain_takes_as_many_writes_as_it_needs() -> None:
    bench = Bench(rows_max=2)
    inlet = bench.open("s1")
    for _ in range(5):
        await bench.put(inlet)
    async with bench.running():
        await inlet.drain()
    assert bench.written() == [["s1"] * 2, ["s1"] * 2, ["s1"]]
    assert inlet.durable == after(number(5))


async def test_a_full_budget_makes_it_write_at_once() -> None:
    bench = Bench()
    bench.gate = Gate(Budget(CHARGE))
    bench.gate.register(bench.lane)
    inlet = bench.open("s1")
    async with bench.running():
        await bench.put(inlet)
        await bench.put(inlet)
    assert bench.stats.flush_reasons == {FlushReason.PRESSURE: 1}


async def test_a_lane_that_is_over_gives_back_what_comes_late() -> None:
    """A reader may be ended after the lane; the gate outlives both."""
    bench = Bench()
    inlet = bench.open("s1")
    async with bench.running():
        await bench.put(inlet)
        await asyncio.sleep(0)
    await bench.put(inlet)
    assert (bench.gate.used, inlet.waiting_from) == (0, None)


async def test_a_lane_ends_with_its_last_shard() -> None:
    """A writer a shard would leave a lane for each of ten thousand shards."""
    bench = Bench()
    one, two = bench.open("s1"), bench.open("s2")
    work = asyncio.ensure_future(bench.lane.run())
    await bench.put(one)
    await one.drain()
    one.close()
    await bench.put(two)
    await two.drain()
    assert not work.done()
    two.close()
    await asyncio.wait_for(work, 1)
    assert bench.lane.is_over


async def test_a_write_that_gets_no_answer_is_told() -> None:
    bench = Bench(rows_max=1)
    inlet = bench.open("s1")
    bench.writer.flowing.clear()
    async with bench.running():
        await bench.put(inlet)
        while not bench.writer.payloads:
            await asyncio.sleep(0)
        assert bench.outlet.trouble() is None
        (begun_at,) = bench.outlet._writing.values()
        bench.outlet._writing[bench.lane] = begun_at - SLOW_WRITE_SECONDS
        trouble = bench.outlet.trouble()
        assert trouble is not None
        assert trouble.why == "a write has had no answer for 10 s"
        bench.writer.flowing.set()
        await inlet.drain()
    assert bench.outlet.trouble() is None


async def test_a_write_that_asked_nothing_tells_nothing_of_the_sink() -> None:
    """Regression: what was read again after a failure, and needed no write, took the failure for
    mended, so a sick destination was asked again at once for as long as that lasted."""
    bench = Bench()
    inlet = bench.open("s1")
    bench.outlet.failed("s1", TransientError("away", "it was away"))
    bench.writer.outcomes = [WriteResult(is_asked=False), WriteResult()]
    async with bench.running():
        await bench.put(inlet)
        await inlet.drain()
        assert inlet.durable is not None
        assert (inlet.has_written, bench.outlet.trouble() is None) == (False, False)
        await bench.put(inlet)
        await inlet.drain()
    assert (inlet.has_written, bench.outlet.trouble()) == (True, None)
