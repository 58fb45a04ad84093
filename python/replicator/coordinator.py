"""The shell around lineage and leases: begins, runs three loops that don't wait for each other,
and stops in order.

Discovery (`discovery.py`) asks the service and the sink which shards there are, leasing
(`leasing.py`) decides by `core.lease` who reads them and runs a reader (`reader.py`) for each,
and the watchdog looks for silence. None depends on whether changes flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from replicator.beginning import Beginning
from replicator.core import gap, lease, lineage, liveness
from replicator.core.holes import Hole
from replicator.core.retry import FATAL_RETRY_SECONDS, Backoff
from replicator.discovery import DISCOVERY_SECONDS, Discovery
from replicator.errors import ReplicatorError, TransientError
from replicator.gaps import Gaps
from replicator.graph import Graph
from replicator.leasing import Leasing
from replicator.model import SHARD_END, Position, Start, Stream, TableSchema
from replicator.outlets import Outlet, Outlets
from replicator.pipeline import Pipeline
from replicator.protocols import Clock, LeaseStore, Measured, Source
from replicator.reader import Reader, Shared
from replicator.stopping import sleep_unless, unless_stopped
from replicator.telemetry.logging import say
from replicator.telemetry.stats import Stats

RETRY_BACKOFF = Backoff(base_seconds=0.5, cap_seconds=30.0)


class Coordinator:
    """Runs one pipeline's shards: `run` until told to stop.

    `start`: see `Beginning`.
    """

    def __init__(
        self,
        *,
        name: str,
        start: Start | None,
        owner: str,
        describe: Callable[[], Awaitable[Sequence[TableSchema]]],
        source: Source,
        outlets: Sequence[Outlet],
        store: LeaseStore,
        make_pipeline: Callable[[asyncio.TaskGroup], Pipeline],
        clock: Clock,
        jitter: Callable[[], float],
        stats: Stats,
        alive: liveness.Liveness | None = None,
        lease_seconds: float = lease.DURATION_SECONDS,
        discovery_seconds: float = DISCOVERY_SECONDS,
        backoff: Backoff = RETRY_BACKOFF,
        gap_margin_us: int = gap.MARGIN_US,
    ) -> None:
        self._name = name
        self._owner = owner
        self._describe = describe
        self._source = source
        self._outlets = Outlets(outlets)
        self._store = store
        self._make_pipeline = make_pipeline
        self._clock = clock
        self._jitter = jitter
        self._stats = stats
        self._backoff = backoff
        self._alive = alive or liveness.Liveness()
        self._calls = source.calls if isinstance(source, Measured) else None
        self._gaps = Gaps(name, source, self._outlets, clock, stats, margin_us=gap_margin_us)
        self._beginning = Beginning(name, start, source, self._outlets, self._gaps)
        self._graph = Graph(self._gaps)
        self._discovery = Discovery(
            name,
            source,
            self._outlets,
            store,
            self._graph,
            clock,
            jitter,
            stats,
            backoff=backoff,
            seconds=discovery_seconds,
        )
        self._leasing = Leasing(
            name,
            owner,
            store,
            self._graph,
            self._alive,
            clock,
            stats,
            duration_seconds=lease_seconds,
        )
        self._has_begun = False
        self._tables: Sequence[TableSchema] = ()
        self._log = structlog.get_logger().bind(pipeline=name)

    def gaps(self) -> tuple[gap.Gap, ...]:
        """The gaps that this process has met and nobody has mended yet, by shard, with what
        each holds up now."""
        stopped = {lineage.ShardState.GAPPED, lineage.ShardState.LOST}
        graph = self._graph.lineage
        return tuple(
            replace(each, held_up=graph.held_up(each.shard_id))
            for each in self._gaps.found
            if graph.state(each.shard_id) in stopped
        )

    def holes(self) -> tuple[Hole, ...]:
        """What nobody can read, as the audits of the shard graph found it."""
        return self._discovery.holes()

    def views(self) -> list[liveness.ShardView]:
        """Every shard that is owned here, stands at a gap that was met here, or was given back
        to nobody, by its name."""
        now = self._clock.monotonic()
        gapped = {found.shard_id: found for found in self.gaps()}
        views = []
        for shard_id, life in self._alive.lives():
            if life.phase is liveness.Phase.GAP and shard_id not in gapped:
                continue  # its position was moved
            gapped.pop(shard_id, None)
            reader = self._leasing.readers.get(shard_id)
            fan = reader.fan if reader else None
            waiting_from = fan.waiting_from if fan else None
            sink = (fan.waits_for if fan else "") or self._outlets.in_trouble
            calls = self._calls(shard_id) if self._calls is not None else None
            view = self._alive.view(
                shard_id, life, now, calls=calls, waiting_from=waiting_from, sink=sink
            )
            views.append(view)
        for shard_id, found in gapped.items():
            seconds = self._gaps.seconds(shard_id)
            views.append(liveness.at_gap(shard_id, found.position, found.reason, seconds))
        return sorted(views, key=lambda view: view.shard)

    def unready(self) -> str:
        """Why it can't take its part of the work now; empty when it can."""
        if self._leasing.is_draining:
            return "it stops"
        if not self._has_begun:
            return "it has not begun: the log says why"
        return self._leasing.unready()

    async def run(self, stopping: asyncio.Event) -> None:
        """Replicates until `stopping`, then drains: stops reading, waits for what was
        read to be durable, gives the leases up. Raises FatalError when it can't begin."""
        if (stream := await unless_stopped(stopping, self._begin(stopping))) is None:
            return
        self._has_begun = True
        async with asyncio.TaskGroup() as group:
            pipeline = self._make_pipeline(group)
            watchdog = group.create_task(self._watch())
            admission = group.create_task(self._admit(stream))
            discovery = group.create_task(self._discovery.run(stream))
            leasing = group.create_task(self._leasing.run(self._starter(stream, pipeline, group)))
            await stopping.wait()
            discovery.cancel()
            watchdog.cancel()
            admission.cancel()
            await self._leasing.drain()
            # Not cancelled: a take under way would leave a lease that nobody gives up.
            await asyncio.wait({leasing})
            pipeline.close()

    # ---- the beginning

    async def _begin(self, stopping: asyncio.Event) -> Stream | None:
        """Opens both sides and resolves the first start; None when stopped before. Where the
        stream was begun already, one sink that answers is enough."""
        attempt = 0
        while not stopping.is_set():
            try:
                await self._store.open()
                self._tables = await self._describe()
                await self._outlets.open(self._tables)
                stream = await self._source.open()
                await self._beginning.resolve(stream, self._tables)
                self._graph.lineage = lineage.Lineage(await self._outlets.positions(stream))
            except TransientError as error:
                wait = self._backoff.next(attempt, self._jitter(), error.retry_after_seconds)
                attempt += 1
                self._stats.retries[error.code] += 1
                say(self._log, error, "retrying", wait_seconds=round(wait, 3), during="start")
                await sleep_unless(stopping, wait)
            else:
                self._log.info("started", stream=stream.arn, owner=self._owner)
                return stream
        return None

    async def _admit(self, stream: Stream) -> None:
        """Lets the sinks in that couldn't be opened at the beginning; the others go on."""
        attempt = 0
        while absent := self._outlets.absent:
            error = absent[0].absent
            assert error is not None
            wait = FATAL_RETRY_SECONDS
            if isinstance(error, TransientError):
                wait = self._backoff.next(attempt, self._jitter(), error.retry_after_seconds)
            attempt += 1
            await self._clock.sleep(wait)
            for outlet in absent:
                try:
                    await self._beginning.admit(stream, outlet, self._tables)
                    positions = await outlet.sink.positions(stream)
                except ReplicatorError as again:
                    outlet.absent = again
                    outlet.failed("", again)
                    self._stats.retries[again.code] += 1
                    say(self._log, again, "retrying", during="start", sink=outlet.name)
                else:
                    self._require_finished(outlet, positions)
                    outlet.absent = None
                    outlet.works("")
                    self._log.info("sink_opened", sink=outlet.name)

    def _require_finished(self, outlet: Outlet, positions: Mapping[str, Position]) -> None:
        """Law 5: what the others finished counted as finished without it."""
        for shard_id in self._graph.lineage.finished():
            if (position := positions.get(shard_id, SHARD_END)) != SHARD_END:
                raise TransientError(
                    "sink_behind",
                    f"sink {outlet.name} answers, and was read up to {position} of {shard_id}, "
                    "whose children are read already: the pipeline begins again with it",
                    retry_after_seconds=0.0,
                )

    # ---- the readers

    def _starter(
        self, stream: Stream, pipeline: Pipeline, group: asyncio.TaskGroup
    ) -> Callable[[str, liveness.ShardLife], Reader]:
        shared = Shared(
            pipeline=pipeline,
            stream=stream,
            outlets=self._outlets,
            owner=self._owner,
            graph=self._graph,
            leases=self._leasing,
            alive=self._alive,
            clock=self._clock,
            jitter=self._jitter,
            backoff=self._backoff,
            stats=self._stats,
            log=self._log,
        )

        def start(shard_id: str, life: liveness.ShardLife) -> Reader:
            reader = Reader(shard_id, life, shared)
            reader.task = group.create_task(reader.run())
            return reader

        return start

    async def _watch(self) -> None:
        """Law 10: the net under every source, whose own deadlines are shorter."""
        readers = self._leasing.readers
        while True:
            await self._clock.sleep(self._alive.deadline_seconds / 10)
            now = self._clock.monotonic()
            if self._calls is not None:
                for shard_id, reader in readers.items():
                    reader.life.counted(self._calls(shard_id), now)
            for action in self._alive.step(now):
                match action:
                    case liveness.Cut(shard_id, silent, misses):
                        reason = f"{shard_id} gave no answer for {silent:.0f} s"
                        readers[shard_id].cut(reason, misses)
                    case liveness.GiveBack(shard_id, silent, misses):
                        reason = f"no answer of the source for {silent:.0f} s"
                        readers[shard_id].give_back(reason, misses)
