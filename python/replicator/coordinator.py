"""The shell around lineage and leases: finds shards, holds leases, runs and restarts
one reader a shard, and stops them in order.

Three loops that don't wait for each other: discovery asks the service and the sink,
the lease loop renews, the watchdog looks for silence. None depends on whether changes
flow. The decisions are those of `core.lineage`, `core.lease` and `core.liveness`; this
file performs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from replicator.core import gap, lease, lineage, liveness
from replicator.core.retry import Backoff
from replicator.core.start import first_starts, position_to_read, require_comparable
from replicator.errors import FatalError, LeaseLost, PositionLost, ReplicatorError, TransientError
from replicator.gaps import Gaps
from replicator.lane import Inlet
from replicator.model import (
    SHARD_END,
    TRIM_HORIZON,
    LeaseRow,
    Position,
    Start,
    Stream,
    TableSchema,
)
from replicator.pipeline import Pipeline
from replicator.protocols import Clock, LeaseStore, Measured, Sink, Source
from replicator.telemetry.stats import Stats

log = structlog.get_logger()

DISCOVERY_SECONDS = 30.0
# What an operator must mend is looked at again this often: often enough that mending is
# enough, seldom enough to read the log.
FATAL_RETRY_SECONDS = 30.0
RETRY_BACKOFF = Backoff(base_seconds=0.5, cap_seconds=30.0)


@dataclass(slots=True)
class _Run:
    """One shard's reader in this process."""

    shard_id: str
    life: liveness.ShardLife
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    inlet: Inlet | None = None
    position: Position | None = None
    # Fails to end the reader of this moment.
    cut: asyncio.Future[None] | None = None
    checkpoint: Position | None = None
    is_leaving: bool = False
    # Why somebody else may read it now though it isn't finished.
    given_back: str = ""


class Coordinator:
    """Runs one pipeline's shards: `run` until told to stop.

    `start` is where a stream that was never read begins; None means the oldest record,
    and only into a sink that holds nothing yet.
    """

    def __init__(
        self,
        *,
        name: str,
        start: Start | None,
        owner: str,
        describe: Callable[[], Awaitable[Sequence[TableSchema]]],
        source: Source,
        sink: Sink[Any],
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
        self._start = start
        self._owner = owner
        self._describe = describe
        self._source = source
        self._sink = sink
        self._store = store
        self._make_pipeline = make_pipeline
        self._clock = clock
        self._jitter = jitter
        self._stats = stats
        self._discovery_seconds = discovery_seconds
        self._backoff = backoff
        self._leases = lease.LeaseView(owner, duration_seconds=lease_seconds)
        self._gaps = Gaps(name, source, sink, clock, stats, margin_us=gap_margin_us)
        self._alive = alive or liveness.Liveness()
        self._calls = source.calls if isinstance(source, Measured) else None
        self._lineage = lineage.Lineage()
        self._runs: dict[str, _Run] = {}
        self._shunned: dict[str, float] = {}
        self._draining = asyncio.Event()
        # One renewal at a time: two of one row would make the second look lost.
        self._renewal = asyncio.Lock()
        self._list_now = asyncio.Event()
        self._lease_now = asyncio.Event()
        self._has_begun = False
        self._leased_at: float | None = None
        self._log = log.bind(pipeline=name)

    def states(self) -> dict[str, str]:
        """What each shard does now that is owned here, or stopped here at a gap."""
        return {
            shard_id: life.state()
            for shard_id, life in self._shown()
            if shard_id in self._runs or life.phase is liveness.Phase.GAP
        }

    def gaps(self) -> tuple[gap.Gap, ...]:
        """The gaps that this process has met and nobody has mended yet, by shard."""
        stopped = {lineage.ShardState.GAPPED, lineage.ShardState.LOST}
        return tuple(
            each for each in self._gaps.found if self._lineage.state(each.shard_id) in stopped
        )

    def views(self) -> list[liveness.ShardView]:
        """Every shard that is owned here, stopped here at a gap, or was given back to nobody,
        by its name."""
        now = self._clock.monotonic()
        views = []
        for shard_id, life in self._shown():
            run = self._runs.get(shard_id)
            waiting_from = run.inlet.waiting_from if run is not None and run.inlet else None
            calls = self._calls(shard_id) if self._calls is not None else None
            view = self._alive.view(shard_id, life, now, calls=calls, waiting_from=waiting_from)
            views.append(view)
        return views

    def _shown(self) -> list[tuple[str, liveness.ShardLife]]:
        gapped = {found.shard_id for found in self.gaps()}
        return [
            (shard_id, life)
            for shard_id, life in sorted(self._alive.lives())
            if life.phase is not liveness.Phase.GAP or shard_id in gapped
        ]

    def unready(self) -> str:
        """Why it can't take its part of the work now; empty when it can."""
        if self._draining.is_set():
            return "it stops"
        if not self._has_begun:
            return "it has not begun: the log says why"
        age = None if self._leased_at is None else self._clock.monotonic() - self._leased_at
        if age is None or age > self._leases.duration_seconds:
            return "the lease store does not answer"
        return ""

    async def run(self, stopping: asyncio.Event) -> None:
        """Replicates until `stopping`, then drains: stops reading, waits for what was
        read to be durable, gives the leases up. Raises FatalError when it can't begin."""
        beginning = asyncio.ensure_future(self._begin(stopping))
        stop = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait({beginning, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not beginning.done():
                beginning.cancel()
                await asyncio.wait({beginning})
        stream = None if beginning.cancelled() else beginning.result()
        if stream is None:
            return
        self._has_begun = True
        async with asyncio.TaskGroup() as group:
            pipeline = self._make_pipeline(group)
            watchdog = group.create_task(self._watch_always())
            discovery = group.create_task(self._discover_always(stream))
            leasing = group.create_task(self._lease_always(stream, pipeline, group))
            await stopping.wait()
            self._draining.set()
            discovery.cancel()
            watchdog.cancel()
            for run in self._runs.values():
                run.stopping.set()
            while tasks := [
                run.task
                for run in self._runs.values()
                if run.task is not None and not run.task.done()
            ]:
                await asyncio.wait(tasks)
            # Not cancelled: a take under way would leave a lease that nobody gives up.
            self._lease_now.set()
            await asyncio.wait({leasing})
            pipeline.close()

    # ---- the beginning

    async def _begin(self, stopping: asyncio.Event) -> Stream | None:
        """Opens both sides and resolves the first start; None when stopped before."""
        attempt = 0
        while not stopping.is_set():
            try:
                await self._store.open()
                await self._sink.open(await self._describe())
                stream = await self._source.open()
                await self._resolve_start(stream)
                self._lineage = lineage.Lineage(await self._sink.positions(stream))
            except TransientError as error:
                await self._pause(error, attempt, stopping, during="start")
                attempt += 1
            else:
                self._log.info("started", stream=stream.arn, owner=self._owner)
                return stream
        return None

    async def _resolve_start(self, stream: Stream) -> None:
        """Law 5: the start becomes an instant once, stored before the first read."""
        if await self._sink.is_known(stream):
            return
        holds_data = await self._sink.holds_data()
        if holds_data:
            require_comparable(stream.arn, await self._sink.begun())
        if self._start is None and holds_data:
            raise FatalError(
                "position_missing",
                f"the tables of {self._name} hold rows, but no position says up to where "
                f"{stream.name} was read into them: say where to start with `start:` at the "
                "source (TRIM_HORIZON is safe, older changes undo nothing), or empty the tables",
            )
        start = await self._gaps.first_start(self._start or TRIM_HORIZON)
        starts = first_starts(await self._source.shards(), start)
        await self._sink.begin(stream, starts)

    # ---- discovery

    async def _discover_always(self, stream: Stream) -> None:
        attempt = 0
        while True:
            self._list_now.clear()
            finished = self._lineage.finished()
            try:
                shards = await self._source.shards()
                # Read after the list, so that what was finished and trimmed meanwhile
                # isn't taken for lost.
                positions = await self._sink.positions(stream)
                # A table's stream that was disabled may have been replaced by another.
                is_over = self._lineage.is_over(shards)
                newest = await self._source.open() if is_over else stream
            except TransientError as error:
                wait = self._backoff.next(attempt, self._jitter(), error.retry_after_seconds)
                attempt += 1
                self._say(error, "retrying", during="discovery", wait_seconds=round(wait, 3))
            except ReplicatorError as error:
                wait = FATAL_RETRY_SECONDS
                self._say(error, "failed", during="discovery", wait_seconds=wait)
            else:
                self._require_no_return(finished, positions)
                self._apply(lineage.Discovered(tuple(shards), positions))
                for shard_id in await self._gaps.mended(stream, self._lineage.gapped()):
                    self._apply(lineage.Mended(shard_id))
                # What another stream brings can't be written over what this one brought.
                require_comparable(newest.arn, [stream.arn])
                await self._forget()
                attempt = 0
                wait = self._discovery_seconds
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._list_now.wait()

    def _require_no_return(
        self, finished: Sequence[str], positions: Mapping[str, Position]
    ) -> None:
        """A sink that failed over to an older state may have lost the end of a shard.
        Its children must wait again, so everything begins anew from its positions."""
        for shard_id in finished:
            if (position := positions.get(shard_id, SHARD_END)) != SHARD_END:
                raise FatalError(
                    "positions_returned",
                    f"the sink of {self._name} says that {shard_id} was read up to {position}, "
                    "but it was finished before: the sink lost its newest state (a failover to "
                    "a replica that was behind?). Start again: reading goes on where the sink "
                    "stands, and nothing is lost while the stream still keeps it",
                )

    async def _forget(self) -> None:
        if forgettable := self._lineage.forgettable():
            self._lineage.step(lineage.Forgotten(forgettable))
            with suppress(ReplicatorError):  # rows too many do no harm
                await self._store.delete(self._name, forgettable)

    def _apply(self, event: lineage.Event) -> None:
        for action in self._lineage.step(event):
            match action:
                case lineage.Readable():
                    self._lease_now.set()
                case lineage.ListAgain():
                    self._list_now.set()
                case lineage.ParentVanished(shard_id, position, children):
                    self._gaps.vanished(shard_id, position, children)

    # ---- leases

    async def _lease_always(
        self, stream: Stream, pipeline: Pipeline, group: asyncio.TaskGroup
    ) -> None:
        while self._runs or not self._draining.is_set():
            self._lease_now.clear()
            await self._lease_once(stream, pipeline, group)
            with suppress(TimeoutError):
                # Never at once: a store that refuses a renewal would be asked without pause.
                wait = max(
                    self._leases.renew_seconds / 10,
                    self._leases.until_next(self._clock.monotonic()),
                )
                async with asyncio.timeout(wait):
                    await self._lease_now.wait()

    async def _lease_once(
        self, stream: Stream, pipeline: Pipeline, group: asyncio.TaskGroup
    ) -> None:
        try:
            rows = await self._store.rows(self._name)
            self._leased_at = self._clock.monotonic()
            self._leave_to_others(rows)
            await self._copy_checkpoints()
        except ReplicatorError as error:
            self._say(error, "retrying", during="leases")
            rows = None
        now = self._clock.monotonic()
        for action in self._leases.step(rows, self._wanted(now), now):
            try:
                match action:
                    case lease.Create(shard_ids):
                        await self._store.create(self._name, shard_ids)
                        self._lease_now.set()
                    case lease.Take(row):
                        await self._take(row, stream, pipeline, group)
                    case lease.Renew(row):
                        await self._renew(row.shard_id)
                    case lease.Release(row) | lease.Expire(row):
                        self._end_run(row.shard_id, action)
            except ReplicatorError as error:
                self._say(error, "retrying", during="leases")

    def _leave_to_others(self, rows: Sequence[LeaseRow]) -> None:
        """What was given back, and is another's now or wanted by nobody, is no concern here."""
        if not (given_back := self._alive.given_back()):
            return
        now = self._clock.monotonic()
        free = {row.shard_id for row in rows if row.owner in {None, self._owner}}
        for shard_id in set(given_back) - (free & frozenset(self._lineage.wanted())):
            life = self._alive.drop(shard_id)
            if life is not None and life.is_late(now):
                # Who could not read it takes it from nobody for as long as it tried.
                patience = self._alive.misses_max * self._alive.deadline_seconds
                self._shunned[shard_id] = now + patience

    def _wanted(self, now: float) -> frozenset[str]:
        if self._draining.is_set():
            return frozenset(self._runs)
        self._shunned = {shard: until for shard, until in self._shunned.items() if until > now}
        return frozenset(self._lineage.wanted()) - (self._shunned.keys() - self._runs.keys())

    async def _take(
        self, row: LeaseRow, stream: Stream, pipeline: Pipeline, group: asyncio.TaskGroup
    ) -> None:
        if self._draining.is_set():
            return
        asked_at = self._clock.monotonic()
        taken = await self._store.take(row, self._owner)
        if taken is None:
            return
        if self._draining.is_set():
            await self._store.release(taken)
            return
        self._leases.taken(taken, asked_at)
        life = self._alive.own(row.shard_id, self._clock.monotonic())
        run = self._runs[row.shard_id] = _Run(row.shard_id, life)
        run.task = group.create_task(self._own(run, stream, pipeline))
        self._log.info("lease_taken", shard=row.shard_id)

    async def _renew(self, shard_id: str) -> None:
        async with self._renewal:
            if (row := self._held_row(shard_id)) is None:
                return
            asked_at = self._clock.monotonic()
            try:
                renewed = await self._store.renew(row)
            except LeaseLost:
                self._end_run(shard_id, self._leases.lost(shard_id))
            else:
                self._leases.renewed(renewed, asked_at)

    def _held_row(self, shard_id: str) -> LeaseRow | None:
        return next((row for row in self._leases.held() if row.shard_id == shard_id), None)

    def _end_run(self, shard_id: str, action: lease.Release | lease.Expire) -> None:
        """Ends a reader that may not or need not go on. It says `stopped` itself."""
        run = self._runs.get(shard_id)
        if run is None or run.is_leaving:
            return
        if isinstance(action, lease.Expire):
            self._log.warning("lease_lost", shard=shard_id, reason=action.reason.value)
            # A run that finds out itself leaves by itself: cancelled, it couldn't let go.
            if run.task is not None and run.task is not asyncio.current_task():
                run.task.cancel()
        else:
            run.stopping.set()

    async def _copy_checkpoints(self) -> None:
        for shard_id, run in tuple(self._runs.items()):
            durable = run.inlet.durable if run.inlet is not None else None
            if durable is not None and durable != run.checkpoint:
                await self._store.checkpoint(self._name, shard_id, durable)
                run.checkpoint = durable

    # ---- the watchdog

    async def _watch_always(self) -> None:
        """Law 10: the net under every source, whose own deadlines are shorter."""
        while True:
            await self._clock.sleep(self._alive.deadline_seconds / 10)
            now = self._clock.monotonic()
            if self._calls is not None:
                for shard_id, run in self._runs.items():
                    run.life.counted(self._calls(shard_id), now)
            for action in self._alive.step(now):
                run = self._runs[action.shard_id]
                match action:
                    case liveness.Cut(shard_id, silent, misses):
                        self._cut(run, f"{shard_id} gave no answer for {silent:.0f} s", misses)
                    case liveness.GiveBack(_, silent, misses):
                        self._give_back(run, f"no answer of the source for {silent:.0f} s", misses)

    def _cut(self, run: _Run, reason: str, misses: int) -> None:
        if run.cut is None or run.cut.done():
            return
        self._stats.reader_cuts += 1
        self._log.warning("reader_cut", shard=run.shard_id, reason=reason, misses=misses)
        run.cut.set_exception(
            TransientError("shard_silent", f"{reason}, so its reader was cut and starts again")
        )
        # The run looks at it when it can; it may also be over already.
        run.cut.exception()

    def _give_back(self, run: _Run, reason: str, misses: int) -> None:
        if run.is_leaving or run.stopping.is_set():
            return
        self._stats.leases_given_back += 1
        self._log.warning("lease_given_back", shard=run.shard_id, reason=reason, misses=misses)
        run.given_back = "its lease was given back: another worker may be able to read it"
        run.stopping.set()

    # ---- one shard

    async def _own(self, run: _Run, stream: Stream, pipeline: Pipeline) -> None:
        """Reads one shard for as long as its lease holds, again after every failure
        that may pass. Whatever ends it, the lease is given up and the graph told."""
        shard_id = run.shard_id
        attempt = 0
        try:
            while not run.stopping.is_set():
                before = run.inlet
                try:
                    await self._read(run, stream, pipeline)
                    return
                except TransientError as error:
                    self._unread(run)
                    if run.inlet is not None and run.inlet is not before and run.inlet.durable:
                        attempt = 0
                    run.life.retries(str(error), self._clock.monotonic())
                    await self._pause(error, attempt, run.stopping, shard=shard_id)
                    attempt += 1
                except PositionLost as error:
                    self._unread(run)
                    run.life.stops(liveness.Phase.GAP, error.message, self._clock.monotonic())
                    await self._stop_at_gap(run, stream, error)
                    return
                except FatalError as error:
                    self._unread(run)
                    run.life.stops(liveness.Phase.FAILED, str(error), self._clock.monotonic())
                    self._say(error, "failed", shard=shard_id, wait_seconds=FATAL_RETRY_SECONDS)
                    await _wait(run.stopping, FATAL_RETRY_SECONDS)
        except LeaseLost as error:
            self._log.info("lease_lost", shard=shard_id, code=error.code, reason=error.message)
            run.given_back = error.message
        finally:
            # From here on nobody cancels it: a run that never leaves would block its shard.
            run.is_leaving = True
            self._unread(run)
            now = self._clock.monotonic()
            if run.given_back:
                self._shunned[shard_id] = now + self._leases.duration_seconds
                run.life.given_back(run.given_back, now)
            await self._let_go(run)

    async def _let_go(self, run: _Run) -> None:
        try:
            async with self._renewal:
                with suppress(ReplicatorError):
                    if run.inlet is not None and run.inlet.durable is not None:
                        await self._store.checkpoint(self._name, run.shard_id, run.inlet.durable)
                # On its own: a copy that can't be stored must not keep the lease.
                with suppress(ReplicatorError):
                    if (row := self._held_row(run.shard_id)) is not None:
                        await self._store.release(row)
        finally:
            # Even when this is cancelled: a run that stays would block its shard for ever.
            if self._held_row(run.shard_id) is not None:
                self._leases.stopped(run.shard_id)
            del self._runs[run.shard_id]
            # At a gap it stays to be seen.
            if not run.given_back and run.life.phase is not liveness.Phase.GAP:
                self._alive.drop(run.shard_id)
            self._lease_now.set()

    def _unread(self, run: _Run) -> None:
        if self._lineage.state(run.shard_id) in {
            lineage.ShardState.READING,
            lineage.ShardState.ENDED,
        }:
            self._apply(lineage.Stopped(run.shard_id))

    async def _stop_at_gap(self, run: _Run, stream: Stream, error: PositionLost) -> None:
        """Law 9, policy `stop`: nobody wants the lease any more until the position is moved."""
        durable = run.inlet.durable if run.inlet is not None else None
        position = run.position if durable is None else durable
        held_up = self._lineage.held_up(run.shard_id)
        await self._gaps.lost(stream, gap.of(run.shard_id, position, error, held_up))
        self._apply(lineage.GapFound(run.shard_id))

    async def _read(self, run: _Run, stream: Stream, pipeline: Pipeline) -> None:
        """Law 6, in its order: the lease is won; fence; look at the lease; position; read."""
        shard_id, life = run.shard_id, run.life
        life.waits_for_sink("the fence", self._clock.monotonic())
        fence = await self._sink.fence(stream, shard_id, self._owner)
        life.starts(self._clock.monotonic())
        await self._renew(shard_id)
        if not self._leases.holds(shard_id, self._clock.monotonic()):
            raise LeaseLost("lease_lost", f"the lease of {shard_id} was lost before reading")
        life.waits_for_sink("the position", self._clock.monotonic())
        run.inlet, run.position = None, await self._sink.position(fence)
        if run.position == SHARD_END:
            self._apply(lineage.Stored(shard_id, SHARD_END))
            return
        # A parent that ended without a record knows no time of its own.
        ancestors = self._lineage.ancestors(shard_id)
        reached = await self._sink.reached(stream, [shard_id, *ancestors])
        # From here on the source is asked.
        life.starts(self._clock.monotonic())
        behind_ms_max = await self._gaps.look(shard_id, run.position, ancestors, reached)
        position = position_to_read(run.position)
        if self._lineage.state(shard_id) is not lineage.ShardState.READABLE:
            # A discovery since the take has seen its parent unfinished, or itself gone.
            raise LeaseLost("not_readable", f"{shard_id} may not be read now")
        self._apply(lineage.Started(shard_id))
        life.position = position
        self._log.debug("reading", shard=shard_id, position=str(position))
        run.inlet = pipeline.lane(fence).open(fence)
        run.cut = asyncio.get_running_loop().create_future()
        children = await pipeline.run(
            run.inlet, position, run.stopping, life, run.cut, behind_ms_max
        )
        if children is not None:
            self._apply(lineage.Ended(shard_id, children))
            self._apply(lineage.DurableEnd(shard_id))
            self._log.info("shard_finished", shard=shard_id, children=[c.id for c in children])

    # ---- waiting and saying

    async def _pause(
        self, error: TransientError, attempt: int, stopping: asyncio.Event, **where: Any
    ) -> None:
        wait = self._backoff.next(attempt, self._jitter(), error.retry_after_seconds)
        self._stats.retries[error.code] += 1
        self._say(error, "retrying", wait_seconds=round(wait, 3), **where)
        await _wait(stopping, wait)

    def _say(self, error: ReplicatorError, event: str, **where: Any) -> None:
        level = self._log.warning if isinstance(error, TransientError) else self._log.error
        level(event, code=error.code, reason=error.message, **where)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
