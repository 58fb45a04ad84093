"""Runs what a pipeline's tags find: looks again every 60 s, starts what is new, stops what went.

`core.tables` decides. Each table is supervised on its own, as a pipeline is; tables that share
one stream are one run, which drains and begins anew with the other tables when they change.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from replicator.core.retry import Backoff
from replicator.core.tables import Change, Tables
from replicator.errors import ReplicatorError, TransientError
from replicator.protocols import Clock
from replicator.stopping import unless_stopped
from replicator.supervisor import Supervised, raise_undrained

log = structlog.get_logger()

DISCOVERY_SECONDS = 60.0
RETRY_BACKOFF = Backoff(base_seconds=1.0, cap_seconds=DISCOVERY_SECONDS)


@dataclass(slots=True)
class _Run:
    """What reads some tables. The next run of the same waits until this one has drained."""

    task: asyncio.Task[None]
    stopping: asyncio.Event


class Hooks(Protocol):
    """What the composition root does for a pipeline whose tables are found."""

    async def discover(self) -> Collection[str]:
        """The tables that the tags find now. Raises FatalError and TransientError."""
        ...

    async def is_first(self) -> bool:
        """True when no process ever looked for this pipeline's tables: asked once, and
        remembered at the sink. Raises FatalError and TransientError."""
        ...

    def begun(self) -> None:
        """The tables of now are known."""
        ...

    def make(self, tables: Sequence[str], *, is_later: bool) -> Supervised:
        """Makes what reads these tables; `is_later`: they were not found first."""
        ...

    def drop(self, supervised: Supervised) -> None:
        """It is over, and shown no more."""
        ...


class TaggedPipeline:
    """`run` until told to stop."""

    def __init__(
        self,
        name: str,
        hooks: Hooks,
        clock: Clock,
        *,
        is_shared: bool,
        jitter: Callable[[], float] = random.random,
        backoff: Backoff = RETRY_BACKOFF,
    ) -> None:
        """`is_shared`: all tables come in one stream."""
        self.problem: ReplicatorError | None = None
        """Why the tables can't be looked for now."""
        self._hooks = hooks
        self._clock = clock
        self._is_shared = is_shared
        self._jitter = jitter
        self._backoff = backoff
        self._tables = Tables()
        self._is_first = False
        self._runs: dict[str, _Run] = {}
        self._undrained: list[Supervised] = []
        self._log = log.bind(pipeline=name)

    async def run(self, stopping: asyncio.Event) -> None:
        """Replicates what is found until `stopping`, then drains it all. Raises FatalError when
        the first look fails; later ones change nothing when they do."""
        async with asyncio.TaskGroup() as group:
            attempt = 0
            while not stopping.is_set():
                try:
                    change = await unless_stopped(stopping, self._look())
                except ReplicatorError as error:
                    if not self._tables.answers and not isinstance(error, TransientError):
                        raise
                    self.problem = error
                    wait = self._wait(error, attempt)
                    attempt += 1
                else:
                    self.problem, attempt, wait = None, 0, DISCOVERY_SECONDS
                    if change is not None:
                        self._hooks.begun()
                        self._apply(change, group)
                await unless_stopped(stopping, self._clock.sleep(wait))
            for each in self._runs.values():
                each.stopping.set()
        raise_undrained(self._undrained)

    async def _look(self) -> Change:
        found = await self._hooks.discover()
        if not self._tables.answers:
            self._is_first = await self._hooks.is_first()
        return self._tables.step(found)

    def _wait(self, error: ReplicatorError, attempt: int) -> float:
        if not isinstance(error, TransientError):
            self._log.error(
                "failed",
                during="tables",
                code=error.code,
                reason=error.message,
                wait_seconds=DISCOVERY_SECONDS,
            )
            return DISCOVERY_SECONDS
        wait = self._backoff.next(attempt, self._jitter(), error.retry_after_seconds)
        self._log.warning(
            "retrying",
            during="tables",
            code=error.code,
            reason=error.message,
            wait_seconds=round(wait, 3),
        )
        return wait

    # ---- what changed

    def _apply(self, change: Change, group: asyncio.TaskGroup) -> None:
        is_later = not self._is_first or self._tables.answers > 1
        for table in change.added:
            note = "its changes from now on are replicated" if self._is_shared and is_later else ""
            self._log.info("table_added", table=table, **({"note": note} if note else {}))
        for table in change.removed:
            self._log.info("table_removed", table=table, note="its rows and positions stay")
        if not self._is_shared:
            for table in change.removed:
                self._runs[table].stopping.set()
            for table in change.added:
                self._start(table, (table,), group, is_later=is_later)
        elif not change.is_empty:
            if (running := self._runs.get("")) is not None:
                running.stopping.set()
            if tables := self._tables.running:
                self._start("", tables, group, is_later=is_later)
        if not self._tables.running and (self._tables.answers == 1 or change.removed):
            self._log.warning("no_tables", reason="no table carries the tags and fits the patterns")

    def _start(
        self, key: str, tables: Sequence[str], group: asyncio.TaskGroup, *, is_later: bool
    ) -> None:
        before, stopping = self._runs.get(key), asyncio.Event()
        task = group.create_task(
            self._keep(None if before is None else before.task, tables, stopping, is_later=is_later)
        )
        self._runs[key] = _Run(task, stopping)

    async def _keep(
        self,
        before: asyncio.Task[None] | None,
        tables: Sequence[str],
        stopping: asyncio.Event,
        *,
        is_later: bool,
    ) -> None:
        if before is not None:
            await asyncio.wait({before})
        if stopping.is_set():
            return
        supervised = self._hooks.make(tables, is_later=is_later)
        try:
            await supervised.run(stopping)
        finally:
            self._hooks.drop(supervised)
        if supervised.undrained is not None:
            self._undrained.append(supervised)
