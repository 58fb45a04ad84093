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
from replicator.errors import TransientError
from replicator.model import Shard
from replicator.store.memory import MemoryLeaseStore
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemorySink
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.engine import Engine
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
