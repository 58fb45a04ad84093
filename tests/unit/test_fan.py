"""A shard's ways to its sinks, when what must not happen does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from replicator.core.batch import Batcher
from replicator.errors import LeaseLost, TransientError
from replicator.fan import Fan
from replicator.lane import Lane
from replicator.model import Batching, Reached, Stream
from replicator.outlets import Outlet, Stand
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemorySink
from tests.changes import STREAM
from tests.pausable_loop import run_virtually


class Asked(MemorySink):
    """It answers with this."""

    def __init__(self, answer: Exception) -> None:
        super().__init__()
        self.answer = answer

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> dict[str, Reached]:
        raise self.answer


@pytest.mark.parametrize("answer", [KeyError("a bug"), LeaseLost("fence_lost", "gone")])
def test_what_a_sink_that_is_waited_for_never_says_ends_the_reading(answer: Exception) -> None:
    """Regression: it was asked no more, and the shard stood still once the memory was full."""

    async def main() -> None:
        clock, stats = LoopClock(), Stats()
        batching = Batching(100, 1_000_000, 0.1)
        here = Outlet("here", MemorySink(), clock, stats, batching=batching)
        away = Outlet("away", Asked(answer), clock, stats, batching=batching)
        await here.sink.begin(STREAM, {})
        fence = await here.sink.fence(STREAM, "shard-0", "me")
        stand = Stand(here, fence, None, {})
        lane = Lane(here.sink.writer(stand.fence), Batcher(), clock, here)
        absent = {away: TransientError("sink_away", "no answer")}
        fan = Fan([stand], absent, lambda _: lane, clock, lambda *_: 1.0)
        try:
            async with asyncio.timeout(60):
                with pytest.raises(type(answer)):
                    await asyncio.shield(fan.failure)
        finally:
            fan.close()

    run_virtually(main())
