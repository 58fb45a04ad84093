"""How often a stream is listed, in virtual time: as many calls as an account has for all."""

from __future__ import annotations

import asyncio

import pytest

from replicator.core.discovery import (
    ASKED_SECONDS_MAX,
    PAUSE_SECONDS_MAX,
    asked_seconds,
    pause_seconds,
)
from replicator.core.lineage import Lineage, ShardState
from replicator.core.retry import Backoff
from replicator.discovery import Discovery
from replicator.errors import TransientError
from replicator.gaps import Gaps
from replicator.graph import Graph
from replicator.model import SHARD_END, TRIM_HORIZON, Batching, Shard
from replicator.outlets import Outlet, Outlets
from replicator.store.memory import MemoryLeaseStore
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemorySink
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES, Engine
from tests.pausable_loop import run_virtually


@pytest.mark.parametrize("calls", [1, 2, 29, 31, 101, 299, 300])
def test_by_itself_it_makes_one_call_a_second_at_most(calls: int) -> None:
    assert calls / pause_seconds(calls, 30.0) <= 1
    assert pause_seconds(calls, 30.0) >= 30
    assert asked_seconds(calls) < pause_seconds(calls, 30.0)


def test_it_never_waits_for_ever() -> None:
    assert pause_seconds(10**6, 30.0) == PAUSE_SECONDS_MAX
    assert asked_seconds(10**6) == ASKED_SECONDS_MAX
    assert pause_seconds(10**6, 900.0) == 900, "who asked for less gets less"


class PagedSource(ScriptedSource):
    """A listing takes a call for each page."""

    def __init__(self, stream: ScriptedStream, pages: int) -> None:
        super().__init__(LoopClock(), stream)
        self.pages = pages
        self.listed = 0
        self.listings: list[float] = []

    async def shards(self) -> list[Shard]:
        self.listings.append(asyncio.get_running_loop().time())
        self.listed += self.pages
        return list(await super().shards())

    def listing_calls(self) -> int:
        return self.listed


def test_ten_thousand_shards_are_listed_by_one_call_a_second_and_ends_are_coalesced() -> None:
    async def main() -> None:
        stream = ScriptedStream(2)
        source = PagedSource(stream, pages=101)
        engine = Engine(source, MemorySink(), MemoryLeaseStore(), discovery_seconds=30.0)
        async with engine.running():
            await asyncio.sleep(1)
            began, before = asyncio.get_running_loop().time(), source.listed
            await asyncio.sleep(2_000)
            spent = asyncio.get_running_loop().time() - began
            assert (source.listed - before) / spent == pytest.approx(1, abs=0.06)
            # Ends that leave a question open.
            for _ in range(200):
                engine.coordinator._graph.list_now.set()
                await asyncio.sleep(1)
            gaps = [b - a for a, b in zip(source.listings, source.listings[1:], strict=False)]
            assert min(gaps[2:]) >= asked_seconds(101)
            assert min(gaps[-4:]) == pytest.approx(asked_seconds(101), abs=1.1), "at once"

    run_virtually(main())


def test_a_listing_that_fails_is_not_hurried_by_the_ends_of_shards() -> None:
    async def main() -> None:
        stream = ScriptedStream(1)
        source = PagedSource(stream, pages=1)
        engine = Engine(source, MemorySink(), MemoryLeaseStore(), discovery_seconds=30.0)
        for call in range(3, 8):
            error = TransientError("throttled", "slower", retry_after_seconds=10.0)
            source.fail("shards", call, error)
        async with engine.running():
            await asyncio.sleep(40)
            for _ in range(50):
                engine.coordinator._graph.list_now.set()
                await asyncio.sleep(1)
        gaps = [b - a for a, b in zip(source.listings[3:], source.listings[4:], strict=False)]
        assert min(gaps[:3]) >= 10
        assert engine.stats.discovery_failures == {"throttled": 5}
        assert engine.stats.listings == len(source.listings) - 5 - 1, "the first start's own"

    run_virtually(main())


def test_a_shard_that_another_worker_finishes_before_it_is_trimmed_is_not_lost() -> None:
    """The positions are read behind the list: else it would look unread, and be told as a gap."""

    async def main() -> None:
        stream, sink, clock, stats = ScriptedStream(2), MemorySink(), LoopClock(), Stats()
        first, second = (shard.id for shard in stream.shards())

        class Trimming(ScriptedSource):
            async def shards(self) -> list[Shard]:
                if stream.has_shard(first):
                    sink.store.positions[sink.pipeline, opened, first] = SHARD_END
                    stream.remove_shard(first)
                return list(await super().shards())

        source = Trimming(clock, stream)
        opened = await source.open()
        await sink.open(TABLES)
        await sink.begin(opened, dict.fromkeys([first, second], TRIM_HORIZON))
        outlets = Outlets([Outlet("w", sink, clock, stats, batching=Batching(1, 1, 0.0))])
        graph = Graph(Gaps("test/p", source, outlets, clock, stats))
        graph.lineage = Lineage(await sink.positions(opened))
        discovery = Discovery(
            *("test/p", source, outlets, MemoryLeaseStore(), graph, clock, lambda: 0.5, stats),
            backoff=Backoff(base_seconds=0.05, cap_seconds=1.0),
        )
        listing = asyncio.ensure_future(discovery.run(opened))
        await asyncio.sleep(1)
        listing.cancel()
        await asyncio.wait({listing})
        assert stats.listings == 1
        assert stats.gaps == 0
        assert graph.lineage.state(first) in {ShardState.FINISHED, None}
        assert graph.lineage.wanted() == (second,)

    run_virtually(main())
