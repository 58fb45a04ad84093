"""The engine of `service.py` over any source and sink: for faults that no wire shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from replicator.coordinator import Coordinator
from replicator.core import gap
from replicator.core.budget import Budget
from replicator.core.liveness import DEADLINE_SECONDS, Liveness
from replicator.core.retry import Backoff
from replicator.flow import Gate
from replicator.model import TRIM_HORIZON, Batching, Start, TableSchema
from replicator.outlets import Outlet
from replicator.pipeline import Pipeline
from replicator.protocols import Clock, LeaseStore, Sink, Source
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from tests.shop import TABLE

TABLES = (TableSchema(TABLE, (("id", "S"),)),)


@dataclass
class Engine:
    """One pipeline; its parts can be looked at while it runs."""

    source: Source
    sink: Sink[Any]
    store: LeaseStore
    start: Start | None = TRIM_HORIZON
    describe: Callable[[], Awaitable[Sequence[TableSchema]]] | None = None
    owner: str = "worker"
    lease_seconds: float = 10.0
    discovery_seconds: float = 5.0
    deadline_seconds: float = DEADLINE_SECONDS
    memory_bytes_max: int = 268_435_456
    batch_limits: tuple[int, int, float] = (5_000, 8_388_608, 0.02)
    clock: Clock = field(default_factory=LoopClock)
    stats: Stats = field(default_factory=Stats)
    others: Sequence[Outlet] = ()
    gap_margin_us: int = gap.MARGIN_US

    def __post_init__(self) -> None:
        self.budget = Budget(self.memory_bytes_max)
        self.gate = Gate(self.budget)
        self.stopping = asyncio.Event()
        first = Outlet(
            "w", self.sink, self.clock, self.stats, batching=Batching(*self.batch_limits)
        )
        self.outlets = (first, *self.others)
        self.coordinator = Coordinator(
            name="test/p",
            start=self.start,
            owner=self.owner,
            describe=self.describe or self._describe,
            source=self.source,
            outlets=self.outlets,
            store=self.store,
            make_pipeline=self._make_pipeline,
            clock=self.clock,
            jitter=lambda: 0.5,
            stats=self.stats,
            alive=Liveness("w", deadline_seconds=self.deadline_seconds),
            lease_seconds=self.lease_seconds,
            discovery_seconds=self.discovery_seconds,
            gap_margin_us=self.gap_margin_us,
            backoff=Backoff(base_seconds=0.05, cap_seconds=1.0),
        )

    async def _describe(self) -> Sequence[TableSchema]:
        return TABLES

    def _make_pipeline(self, group: asyncio.TaskGroup) -> Pipeline:
        return Pipeline(
            source=self.source,
            tables=[table.name for table in TABLES],
            gate=self.gate,
            clock=self.clock,
            stats=self.stats,
            group=group,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs it for the length of the block, then drains."""
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self.coordinator.run(self.stopping))
            try:
                yield
            except BaseException:
                work.cancel()
                raise
            self.stopping.set()

    def states(self) -> dict[str, str]:
        """What each shard does now, and why, in one text."""
        return {
            view.shard: f"{view.phase}: {view.why}" if view.why else str(view.phase)
            for view in self.coordinator.views()
        }
