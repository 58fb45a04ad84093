"""One shard's trouble is its own: what the others do meanwhile, and when it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest
from structlog.testing import capture_logs

from replicator.core.retry import FATAL_RETRY_SECONDS
from replicator.errors import FatalError, LeaseLost, PositionLost, TransientError
from replicator.model import (
    LATEST,
    SHARD_END,
    Fence,
    LeaseRow,
    Position,
    PositionKind,
    Stream,
    WriteResult,
)
from replicator.reader import BEGINNERS_MAX
from replicator.store.memory import MemoryLeases, MemoryLeaseStore
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemoryPayload, MemorySink, MemoryWriter
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.engine import Engine
from tests.pausable_loop import run_virtually
from tests.shop import Shop

FIRST, SECOND = "shardId-000000000000", "shardId-000000000001"
FATAL = FatalError("denied", "no permission")
PAUSED = "paused: waits for sink w: room in the memory budget"


class Rig:
    """A stream of two shards, and an engine that reads it."""

    def __init__(self, *, start: Position | None = None) -> None:
        self.shop = Shop(seed=5)
        self.stream = ScriptedStream(2, now_ms=lambda: 1_700_000_000_000)
        self.source = ScriptedSource(LoopClock(), self.stream, heartbeat_seconds=1.0)
        self.sink = MemorySink()
        self.leases = MemoryLeases()
        self.engine = Engine(self.source, self.sink, MemoryLeaseStore(self.leases), start=start)

    def add(self, shard_id: str) -> None:
        self.stream.append(shard_id, [data for _, data in self.shop.changes(3)])

    def state(self, shard_id: str) -> str:
        return self.engine.states().get(shard_id, "")

    def stored(self, shard_id: str) -> Position | None:
        return self.sink.store.positions.get((self.sink.pipeline, self.source.identity, shard_id))

    def is_read(self, shard_id: str) -> bool:
        """True when everything of the shard is durable."""
        return self.stored(shard_id) == self.stream.continuation(
            shard_id, self.stream.count(shard_id)
        )


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def test_what_an_operator_must_mend_stops_its_shard_and_is_looked_at_again() -> None:
    async def main() -> None:
        rig = Rig()
        rig.source.fail("fetch", 1, FATAL, shard_id=FIRST)
        rig.add(FIRST)
        async with rig.engine.running():
            await until(lambda: rig.state(FIRST).startswith("failed: no permission"))
            failed_at = asyncio.get_running_loop().time()
            for _ in range(5):
                rig.add(SECOND)
                await until(lambda: rig.is_read(SECOND), 1)
            assert not rig.is_read(FIRST)
            await until(lambda: rig.is_read(FIRST))
            waited = asyncio.get_running_loop().time() - failed_at
            assert waited == pytest.approx(FATAL_RETRY_SECONDS, abs=2)
            assert rig.state(FIRST) == "reading"

    run_virtually(main())


def test_a_lost_position_stops_its_shard_for_good_and_no_other() -> None:
    async def main() -> None:
        rig = Rig()
        rig.source.fail("fetch", 1, PositionLost("trimmed", "behind the horizon"), shard_id=FIRST)
        rig.add(FIRST)
        async with rig.engine.running():
            await until(lambda: rig.state(FIRST).startswith("gap: behind the horizon"))
            await asyncio.sleep(10 * FATAL_RETRY_SECONDS)
            assert rig.state(FIRST).startswith("gap")
            assert rig.source.calls[f"fetch {FIRST}"] == 1
            rig.add(SECOND)
            await until(lambda: rig.is_read(SECOND), 1)
        assert rig.engine.stats.gaps == 1
        assert {row.owner for row in rig.leases.rows.values()} == {None}

    run_virtually(main())


def test_the_wait_doubles_until_something_of_the_shard_was_written() -> None:
    async def main() -> None:
        rig = Rig()
        for call in (1, 2, 3, 5, 6):
            error = TransientError("throttled", "slower, please")
            rig.source.fail("fetch", call, error, shard_id=FIRST)
        rig.add(FIRST)
        with capture_logs() as logs:
            async with rig.engine.running():
                await until(lambda: rig.source.calls[f"fetch {FIRST}"] >= 8)
        waits = [log["wait_seconds"] for log in logs if log["event"] == "retrying"]
        first = waits[0]
        doubling = [first, 2 * first, 4 * first, first, 2 * first]
        assert waits == pytest.approx(doubling, abs=0.003)
        assert rig.engine.stats.retries == {"throttled": 5}
        assert rig.is_read(FIRST)

    run_virtually(main())


class Refilling(MemorySink):
    """As a log sink that is sick: what is read again needs no write, and what follows fails."""

    def writer(self, fence: Fence) -> MemoryWriter:
        return RefillingWriter(self)


class RefillingWriter(MemoryWriter):
    writes = 0

    async def write(self, payload: MemoryPayload) -> WriteResult:
        self.writes += 1
        if self.writes == 1:
            return WriteResult(is_asked=False)
        raise TransientError("sick", "not now")


def test_the_wait_doubles_though_what_is_read_again_needs_no_write() -> None:
    """Regression: it began at its least again each time, for as long as the sink was sick."""

    async def main() -> None:
        rig = Rig()
        rig.sink = Refilling()
        rig.engine = Engine(rig.source, rig.sink, MemoryLeaseStore(rig.leases))
        rig.add(FIRST)
        with capture_logs() as logs:
            async with rig.engine.running():
                await until(lambda: rig.engine.stats.retries["sick"] >= 6)
        waits = [
            log["wait_seconds"]
            for log in logs
            if log["event"] == "retrying" and log["shard"] == FIRST
        ]
        assert waits == pytest.approx([waits[0] * 2**n for n in range(len(waits))], rel=0.05)

    run_virtually(main())


def test_the_service_says_how_long_to_wait() -> None:
    async def main() -> None:
        rig = Rig()
        error = TransientError("throttled", "slower, please", retry_after_seconds=20)
        rig.source.fail("fetch", 1, error, shard_id=FIRST)
        rig.add(FIRST)
        async with rig.engine.running():
            await until(lambda: rig.state(FIRST).startswith("retrying"))
            await asyncio.sleep(19)
            assert not rig.is_read(FIRST)
            await until(lambda: rig.is_read(FIRST), 3)

    run_virtually(main())


def test_a_second_reader_is_left_alone_for_a_leases_length() -> None:
    async def main() -> None:
        rig = Rig()
        rig.source.fail("fetch", 1, LeaseLost("taken_over", "it is theirs"), shard_id=FIRST)
        async with rig.engine.running():
            await until(lambda: rig.source.calls[f"fetch {FIRST}"] == 1)
            await asyncio.sleep(0.9 * rig.engine.lease_seconds)
            assert rig.state(FIRST) == "given_back: it is theirs"
            await until(lambda: rig.state(FIRST) == "reading")

    run_virtually(main())


class SlowTakes(MemoryLeaseStore):
    """A store whose takes wait for `go` after they took effect, as a busy disk's do."""

    def __init__(self, leases: MemoryLeases) -> None:
        super().__init__(leases)
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def take(self, seen: LeaseRow, owner: str) -> LeaseRow | None:
        taken = await super().take(seen, owner)
        self.asked.set()
        await self.go.wait()
        return taken


def test_a_take_under_way_when_the_drain_begins_is_given_up_again() -> None:
    """The lease of a take that was cancelled by the drain stayed owned by the dead worker."""

    async def main() -> None:
        rig = Rig()
        store = rig.engine.store = SlowTakes(rig.leases)
        rig.engine.__post_init__()
        work = asyncio.ensure_future(rig.engine.coordinator.run(rig.engine.stopping))
        await store.asked.wait()
        rig.engine.stopping.set()
        await asyncio.sleep(1)
        store.go.set()
        async with asyncio.timeout(30):
            await work
        assert {row.owner for row in rig.leases.rows.values()} == {None}

    run_virtually(main())


def test_a_copy_that_cannot_be_stored_keeps_no_lease() -> None:
    """A failed checkpoint, a copy for display, left the lease with the drained worker."""

    class NoCopies(MemoryLeaseStore):
        async def checkpoint(self, pipeline: str, shard_id: str, position: Position) -> None:
            raise TransientError("lease_store_busy", "database is locked")

    async def main() -> None:
        rig = Rig()
        rig.engine.store = NoCopies(rig.leases)
        rig.engine.__post_init__()
        rig.add(FIRST)
        async with rig.engine.running():
            await until(lambda: rig.is_read(FIRST))
        assert {row.owner for row in rig.leases.rows.values()} == {None}

    run_virtually(main())


def test_a_lease_that_is_gone_at_the_second_look_is_let_go_of() -> None:
    """A run that found its lease gone cancelled itself, and then never left: its shard was
    not read again by this process, and the drain ran into its timeout."""

    async def main() -> None:
        rig = Rig()
        rig.add(FIRST)
        taken = asyncio.Event()

        class Stolen(MemorySink):
            async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
                fence = await super().fence(stream, shard_id, owner)
                if not taken.is_set():
                    taken.set()
                    (row,) = [r for r in rig.leases.rows.values() if r.shard_id == FIRST]
                    await MemoryLeaseStore(rig.leases).take(row, "other")
                return fence

        class Waiting(MemoryLeaseStore):
            """Every call waits, as those of a real store do."""

            async def release(self, held: LeaseRow) -> None:
                await asyncio.sleep(0.001)
                await super().release(held)

        rig.sink = rig.engine.sink = Stolen()
        rig.engine.store = Waiting(rig.leases)
        rig.engine.__post_init__()
        async with rig.engine.running():
            await taken.wait()
            await until(lambda: rig.is_read(FIRST))
        assert {row.owner for row in rig.leases.rows.values()} == {None}

    run_virtually(main())


class Busy(MemoryLeaseStore):
    """A store of which every call takes a tenth of a second, however many rows it is for."""

    def __init__(self, leases: MemoryLeases) -> None:
        super().__init__(leases)
        self._inner = MemoryLeaseStore(leases)

    async def take_all(self, seen: Sequence[LeaseRow], owner: str) -> Sequence[LeaseRow]:
        await asyncio.sleep(0.1)
        return await self._inner.take_all(seen, owner)

    async def renew_all(self, held: Sequence[LeaseRow]) -> Sequence[LeaseRow]:
        await asyncio.sleep(0.1)
        return await self._inner.renew_all(held)

    async def checkpoint_all(self, pipeline: str, positions: Mapping[str, Position]) -> None:
        await asyncio.sleep(0.1)
        await self._inner.checkpoint_all(pipeline, positions)


def test_leases_outlast_a_crowd_of_shards() -> None:
    """A step of the store for each of thousands of shards took longer than a lease lasts: they
    were lost and won again without end."""

    async def main() -> None:
        rig = Rig()
        beginning = most = 0

        class Counted(MemorySink):
            async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
                nonlocal beginning, most
                beginning += 1
                most = max(most, beginning)
                await asyncio.sleep(0.01)
                beginning -= 1
                return await super().fence(stream, shard_id, owner)

        for _ in range(398):
            rig.stream.add_shard()
        rig.sink = rig.engine.sink = Counted()
        rig.engine.store = Busy(rig.leases)
        rig.engine.__post_init__()
        with capture_logs() as logs:
            async with rig.engine.running():
                states = rig.engine.states
                await until(lambda: [*states().values()].count("reading") == 400, 120)
                await asyncio.sleep(5 * rig.engine.lease_seconds)
                assert [*states().values()].count("reading") == 400
        assert [log for log in logs if log["event"] == "lease_lost"] == []
        assert most <= BEGINNERS_MAX

    run_virtually(main())


class AwayStore(MemoryLeaseStore):
    """Answers nothing but errors while `is_away`."""

    is_away = False

    def _require(self) -> None:
        if self.is_away:
            raise TransientError("throttled", "the table of leases is throttled")

    async def rows(self, pipeline: str) -> Sequence[LeaseRow]:
        self._require()
        return await super().rows(pipeline)

    async def take(self, seen: LeaseRow, owner: str) -> LeaseRow | None:
        self._require()
        return await super().take(seen, owner)

    async def renew(self, held: LeaseRow) -> LeaseRow:
        self._require()
        return await super().renew(held)

    async def checkpoint(self, pipeline: str, shard_id: str, position: Position) -> None:
        self._require()
        await super().checkpoint(pipeline, shard_id, position)

    async def release(self, held: LeaseRow) -> None:
        self._require()
        await super().release(held)


def test_a_lease_store_that_is_away_for_five_minutes_costs_only_time() -> None:
    async def main() -> None:
        rig = Rig()
        store = rig.engine.store = AwayStore(rig.leases)
        rig.engine.__post_init__()
        rig.add(FIRST)
        async with rig.engine.running():
            await until(lambda: rig.is_read(FIRST))
            store.is_away = True
            await asyncio.sleep(rig.engine.lease_seconds + 1)
            # Anybody may have the shards by now.
            assert "reading" not in rig.engine.states().values()
            rig.add(FIRST)
            rig.add(SECOND)
            await asyncio.sleep(300)
            assert not rig.is_read(FIRST)
            store.is_away = False
            await until(lambda: rig.is_read(FIRST) and rig.is_read(SECOND), 20)
        assert {row.owner for row in rig.leases.rows.values()} == {None}

    run_virtually(main())


class FastClock(LoopClock):
    """Five minutes ahead of everybody else's."""

    def monotonic(self) -> float:
        return super().monotonic() + 300


def test_workers_whose_clocks_differ_share_the_shards_in_peace() -> None:
    async def main() -> None:
        rig = Rig()
        other = Engine(
            rig.source, rig.sink, MemoryLeaseStore(rig.leases), owner="other", clock=FastClock()
        )

        def owners() -> set[str | None]:
            return {row.owner for row in rig.leases.rows.values()}

        with capture_logs() as logs:
            async with rig.engine.running(), other.running():
                await until(lambda: owners() == {rig.engine.owner, "other"})
                before = len(logs)
                for _ in range(10):
                    await asyncio.sleep(rig.engine.lease_seconds)
                    rig.add(FIRST)
                    rig.add(SECOND)
                    await until(lambda: rig.is_read(FIRST) and rig.is_read(SECOND), 5)
                    assert owners() == {rig.engine.owner, "other"}
                changed = [log for log in logs[before:] if log["event"].startswith("lease")]
        assert changed == []

    run_virtually(main())


def test_a_start_at_the_latest_record_is_resolved_once() -> None:
    async def main() -> None:
        rig = Rig(start=LATEST)
        rig.add(FIRST)
        async with rig.engine.running():
            await until(lambda: rig.state(FIRST) == "reading")
        begun = dict(rig.sink.store.positions)
        assert {position.kind for position in begun.values()} <= {
            PositionKind.AT_TIMESTAMP,
            PositionKind.AFTER_SEQUENCE_NUMBER,
        }
        starts = rig.sink.store.streams[rig.sink.pipeline, rig.source.identity]
        again = Engine(rig.source, rig.sink, MemoryLeaseStore(), start=LATEST)
        async with again.running():
            await until(lambda: again.states().get(FIRST) == "reading")
        assert rig.sink.store.streams[rig.sink.pipeline, rig.source.identity] == starts

    run_virtually(main())


def test_data_without_a_position_is_refused_unless_told_where_to_start() -> None:
    async def main() -> None:
        rig = Rig()
        rig.add(FIRST)
        async with rig.engine.running():
            await until(lambda: rig.is_read(FIRST))
        rig.sink.store.streams.clear()
        rig.sink.store.positions.clear()
        again = Engine(rig.source, rig.sink, MemoryLeaseStore(), start=None)
        with pytest.raises(FatalError) as caught:
            await again.coordinator.run(asyncio.Event())
        assert caught.value.code == "position_missing"

    run_virtually(main())


def test_a_table_that_another_kind_of_stream_filled_is_refused_when_it_is_listed_later() -> None:
    """Regression: its rows were mixed with what can't be compared with them (law 3)."""

    async def main() -> None:
        rig = Rig()
        rig.add(FIRST)
        async with rig.engine.running():
            await until(lambda: rig.is_read(FIRST))
        mine, tables = (rig.sink.pipeline, rig.source.identity), rig.sink.store.tables
        listed = tables[mine]
        arn = "arn:aws:dynamodb:eu-north-1:000000000000:table/t/stream/2026-01-01T00:00:00.000"
        tables[mine] = frozenset()
        tables["another", Stream("t", arn, 0)] = listed
        again = Engine(rig.source, rig.sink, MemoryLeaseStore(), start=None)
        with pytest.raises(FatalError) as caught:
            await again.coordinator.run(asyncio.Event())
        assert caught.value.code == "stream_replaced"
        assert tables[mine] == frozenset()
        rig.sink.store.items.clear()
        with capture_logs() as logs:
            async with Engine(rig.source, rig.sink, MemoryLeaseStore(), start=None).running():
                await until(lambda: tables[mine] == listed)
        assert [log["tables"] for log in logs if log["event"] == "tables_added"] == [sorted(listed)]

    run_virtually(main())


def test_a_stop_while_connecting_is_heard() -> None:
    async def main() -> None:
        rig = Rig()
        for call in range(1, 100):
            rig.source.fail("open", call, TransientError("unreachable", "nobody answers"))
        work = asyncio.ensure_future(rig.engine.coordinator.run(rig.engine.stopping))
        await asyncio.sleep(5)
        rig.engine.stopping.set()
        async with asyncio.timeout(1):
            await work

    run_virtually(main())


def test_leases_are_renewed_however_long_the_sink_stands_still() -> None:
    async def main() -> None:
        rig = Rig()
        rig.engine.memory_bytes_max = 1
        rig.engine.__post_init__()
        rig.add(FIRST)
        rig.add(SECOND)
        rig.sink.flowing.clear()
        async with rig.engine.running():
            await until(lambda: rig.engine.gate.is_full)
            before = {row.shard_id: row.counter for row in rig.leases.rows.values()}
            await asyncio.sleep(5 * rig.engine.lease_seconds)
            for row in rig.leases.rows.values():
                assert row.owner == rig.engine.owner
                assert row.counter >= before[row.shard_id] + 14
            assert rig.state(FIRST).startswith(PAUSED)
            assert rig.state(SECOND).startswith(PAUSED)
            rig.sink.flowing.set()
            await until(lambda: rig.is_read(FIRST) and rig.is_read(SECOND))
        assert rig.engine.stats.retries == {}

    run_virtually(main())


def test_a_child_waits_for_its_parents_data() -> None:
    async def main() -> None:
        rig = Rig()
        rig.add(FIRST)
        left, _ = rig.stream.split(FIRST)
        rig.add(left)
        rig.sink.flowing.clear()
        async with rig.engine.running():
            await until(lambda: rig.source.calls[f"fetch {FIRST}"] > 0)
            await asyncio.sleep(20)
            assert rig.source.readers[left] == 0
            assert rig.source.calls[f"fetch {left}"] == 0
            rig.sink.flowing.set()
            await until(lambda: rig.is_read(left))
        assert rig.stored(FIRST) == SHARD_END

    run_virtually(main())


def test_a_run_that_ends_leaves_nothing_at_the_gate() -> None:
    """The gate outlives the runs of a pipeline that is begun anew again and again."""

    async def main() -> None:
        rig = Rig()
        rig.add(FIRST)
        async with rig.engine.running():
            await until(lambda: rig.is_read(FIRST))
            assert rig.engine.gate._holders
        assert not rig.engine.gate._holders
        assert rig.engine.gate.used == 0

    run_virtually(main())
