"""Keeps pipelines running, each on its own: one that fails is begun anew, and harms no other.

What a pipeline raises ends its run, not its neighbours'. It is said, shown, and tried again with a
fresh source, sink and coordinator. Only where nothing would be left to run (every pipeline
of the process failed to begin) the process ends, so that whoever started it sees it. A bug
ends it always.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import structlog

from replicator.errors import ReplicatorError, TransientError, one_cause
from replicator.protocols import Clock
from replicator.stopping import unless_stopped
from replicator.telemetry.stats import Stats

log = structlog.get_logger()

# As with a shard that failed: often enough that mending is enough.
RETRY_SECONDS = 30.0


class DrainTimeout(Exception):
    """The orderly stop took longer than `drain_timeout_seconds`."""


class Runnable(Protocol):
    """One run of a pipeline."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Works until `stopping`, then drains. Raises the ReplicatorError that ended it."""
        ...


class Supervised:
    """One pipeline, run after run. `open_run` makes all that a run needs, and closes it.

    Whoever makes the run calls `begun` once it has begun: up to there a failure may mean
    that there was never anything to run.
    """

    def __init__(
        self,
        name: str,
        open_run: Callable[[], AbstractAsyncContextManager[Runnable]],
        clock: Clock,
        stats: Stats,
    ) -> None:
        self.name = name
        self.has_begun = False
        self.failure: ReplicatorError | None = None
        """Why it doesn't run; None while it does, or begins for the first time."""
        self.undrained: ReplicatorError | None = None
        """What kept it from draining."""
        self._open_run = open_run
        self._clock = clock
        self._stats = stats

    def begun(self) -> None:
        """It runs."""
        self.has_begun = True
        self.failure = None

    async def run(
        self, stopping: asyncio.Event, may_try_again: Callable[[], bool] = lambda: True
    ) -> None:
        """Runs until `stopping`, again after every failure for as long as `may_try_again`.
        Raises the ReplicatorError after which it may not, and every bug."""
        while not stopping.is_set():
            try:
                with one_cause():
                    async with self._open_run() as each:
                        await each.run(stopping)
            except ReplicatorError as error:
                ran = self.has_begun and self.failure is None
                self.failure = error
                self._stats.retries[error.code] += 1
                if stopping.is_set():
                    self._say(error)
                    # What never ran has read nothing that could be left over.
                    self.undrained = error if ran else None
                elif not may_try_again():
                    raise
                else:
                    soon = error.retry_after_seconds if isinstance(error, TransientError) else None
                    wait = RETRY_SECONDS if soon is None else soon
                    self._say(error, wait_seconds=wait)
                    await unless_stopped(stopping, self._clock.sleep(wait))

    def _say(self, error: ReplicatorError, **more: Any) -> None:
        log.error(
            "pipeline_failed", pipeline=self.name, code=error.code, reason=error.message, **more
        )


async def supervise(
    pipelines: Sequence[Supervised], stopping: asyncio.Event, *, drain_timeout_seconds: float
) -> None:
    """Runs them all until `stopping`, then waits for them to drain.

    Raises a ReplicatorError when every one of them failed to begin, or one failed to drain
    (the others did); DrainTimeout; and every bug.
    """

    def has_hope() -> bool:
        return any(each.has_begun or each.failure is None for each in pipelines)

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(each.run(stopping, has_hope)) for each in pipelines]
        await stopping.wait()
        _, late = await asyncio.wait(running, timeout=drain_timeout_seconds)
        if late:
            raise DrainTimeout(
                f"not everything was durable {drain_timeout_seconds:g} s after the stop; the rest "
                "is read again at the next start"
            )
    raise_undrained(pipelines)


def raise_undrained(pipelines: Sequence[Supervised]) -> None:
    """Raises what kept one of them from draining."""
    for each in pipelines:
        if each.undrained is not None:
            raise each.undrained
