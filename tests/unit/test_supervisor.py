"""Pipelines that are supervised each on its own, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from replicator.errors import FatalError, ReplicatorError, one_cause
from replicator.supervisor import RETRY_SECONDS, DrainTimeout, Supervised, supervise
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from tests.pausable_loop import run_virtually

MISSING = FatalError("stream_missing", "no stream of that name")
REPLACED = FatalError("stream_replaced", "another stream")


class Pipeline:
    """Stands in for a coordinator: `fails` with one error a run, to begin or `after` so many
    seconds, then works until told to stop, and `drains` for so long. It `begins` as long."""

    def __init__(
        self,
        *fails: Exception,
        after: float | None = None,
        begins: float = 0.0,
        drains: float = 0.0,
        undrained: Exception | None = None,
    ) -> None:
        self._fails = list(fails)
        self._after = after
        self._begins = begins
        self._drains = drains
        self._undrained = undrained
        self.runs = 0
        self.opened = 0
        self.ended = ""
        self.stats = Stats()
        self.supervised = Supervised("p", self._open, LoopClock(), self.stats)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Pipeline]:
        self.opened += 1
        self.runs += 1
        try:
            yield self
        finally:
            self.opened -= 1

    async def run(self, stopping: asyncio.Event) -> None:
        try:
            await asyncio.sleep(self._begins)
            if self._fails and self._after is None:
                raise self._fails.pop(0)
            self.supervised.begun()
            if self._fails and self._after is not None:
                await asyncio.sleep(self._after)
                raise self._fails.pop(0)
            await stopping.wait()
            await asyncio.sleep(self._drains)
            if self._undrained is not None:
                raise self._undrained
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "drained"


async def stopped_after(seconds: float, *pipelines: Pipeline) -> float:
    """Runs them, stops after that long, and gives how long the stop took."""
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.call_later(seconds, stopping.set)
    begun = loop.time()
    with one_cause():
        await supervise(
            [each.supervised for each in pipelines], stopping, drain_timeout_seconds=7.0
        )
    return loop.time() - begun - seconds


def test_a_stop_waits_for_every_pipeline() -> None:
    quick, slow = Pipeline(), Pipeline(drains=5)
    assert run_virtually(stopped_after(10, quick, slow)) == pytest.approx(5, abs=0.1)
    assert (quick.ended, slow.ended) == ("drained", "drained")


def test_a_drain_that_takes_too_long_is_ended_and_said() -> None:
    quick, slow = Pipeline(), Pipeline(drains=8)
    with pytest.raises(DrainTimeout, match="7 s after the stop"):
        run_virtually(stopped_after(10, quick, slow))
    assert (quick.ended, slow.ended) == ("drained", "cancelled")


def test_what_keeps_the_only_pipeline_from_beginning_ends_the_process() -> None:
    with pytest.raises(FatalError) as caught:
        run_virtually(stopped_after(10, Pipeline(MISSING)))
    assert caught.value is MISSING


def test_so_it_does_when_none_of_several_can_begin() -> None:
    first, second = Pipeline(MISSING, MISSING), Pipeline(REPLACED)
    with pytest.raises(FatalError):
        run_virtually(stopped_after(10, first, second))
    assert (first.runs, second.runs) == (1, 1)


def test_one_that_fails_harms_no_other_and_begins_when_it_can() -> None:
    well, ill = Pipeline(), Pipeline(MISSING, MISSING)
    seen: list[ReplicatorError | None] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for when in (RETRY_SECONDS - 1, 2 * RETRY_SECONDS - 1, 2 * RETRY_SECONDS + 1):
            loop.call_later(when, lambda: seen.append(ill.supervised.failure))
        await stopped_after(3 * RETRY_SECONDS, well, ill)

    run_virtually(run())
    assert seen == [MISSING, MISSING, None]
    assert (well.runs, ill.runs) == (1, 3)
    assert (well.ended, ill.ended) == ("drained", "drained")
    assert ill.stats.retries["stream_missing"] == 2
    assert well.opened == ill.opened == 0, "each run's source and sink are closed"


def test_the_only_one_is_begun_anew_when_it_fails_after_it_has_run() -> None:
    only = Pipeline(REPLACED, REPLACED, after=5)
    run_virtually(stopped_after(3 * RETRY_SECONDS, only))
    assert (only.runs, only.ended) == (3, "drained")


def test_one_that_ran_once_keeps_the_process_up_when_it_cannot_begin_again() -> None:
    """A process that has served is no crash loop: its other shards and answers stay."""
    ran, never = Pipeline(REPLACED, after=5), Pipeline(MISSING, MISSING, MISSING)
    run_virtually(stopped_after(2 * RETRY_SECONDS, ran, never))
    assert (ran.runs, ran.ended) == (2, "drained")


def test_a_stop_does_not_wait_for_the_next_attempt() -> None:
    well, ill = Pipeline(drains=2), Pipeline(MISSING)
    assert run_virtually(stopped_after(1, well, ill)) == pytest.approx(2, abs=0.1)
    assert (well.ended, ill.runs) == ("drained", 1)


def test_what_fails_to_begin_during_the_stop_has_drained_nothing() -> None:
    """Regression: it depended on the moment of the stop whether the exit code was 0 or 1."""
    for begun in (1, RETRY_SECONDS + 6):
        well, ill = Pipeline(), Pipeline(MISSING, MISSING, begins=5)
        run_virtually(stopped_after(begun, well, ill))
        assert (well.ended, ill.runs) == ("drained", 1 if begun == 1 else 2)
        assert ill.supervised.undrained is None


def test_what_fails_to_drain_is_raised_when_the_others_have_drained() -> None:
    ill, slow = Pipeline(undrained=REPLACED), Pipeline(drains=5)
    with pytest.raises(FatalError) as caught:
        run_virtually(stopped_after(1, ill, slow))
    assert caught.value is REPLACED
    assert slow.ended == "drained"


def test_a_bug_ends_them_all() -> None:
    well, ill = Pipeline(), Pipeline(KeyError("a bug"), after=5)
    with pytest.raises(KeyError):
        run_virtually(stopped_after(10, well, ill))
    assert well.ended == "cancelled"
