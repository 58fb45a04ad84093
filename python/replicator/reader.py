"""One shard's reader: raises the fences, reads from the least position of its sinks, and begins
again after every failure that may pass, for as long as its lease holds."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from replicator.core import gap, lineage
from replicator.core.liveness import Liveness, ShardLife
from replicator.core.retry import FATAL_RETRY_SECONDS, Backoff
from replicator.core.start import position_to_read
from replicator.errors import (
    FatalError,
    LeaseLost,
    PositionLost,
    ReplicatorError,
    TransientError,
)
from replicator.fan import Fan
from replicator.graph import Graph
from replicator.model import SHARD_END, Position, Stream
from replicator.outlets import Answers, Outlet, Outlets, Stand, start_of
from replicator.pipeline import Pipeline
from replicator.protocols import Clock
from replicator.stopping import sleep_unless
from replicator.telemetry.logging import say
from replicator.telemetry.stats import Stats

# Readers of one pipeline that look for their beginning at once. Each asks the sink and the
# service some small questions; thousands that ask together would all be answered too late.
BEGINNERS_MAX = 32


class Leases(Protocol):
    """What a reader asks of the leases."""

    async def renew(self, shard_ids: Sequence[str]) -> None:
        """Renews the shards' leases now; when one is lost, `holds` says so."""
        ...

    def holds(self, shard_id: str) -> bool:
        """True while the shard may be read here."""
        ...

    async def let_go(self, reader: Reader) -> None:
        """The reader has ended: its lease is given up."""
        ...


@dataclass(frozen=True, slots=True)
class Shared:
    """What all readers of one pipeline share."""

    pipeline: Pipeline
    stream: Stream
    outlets: Outlets
    owner: str
    graph: Graph
    leases: Leases
    alive: Liveness
    clock: Clock
    jitter: Callable[[], float]
    backoff: Backoff
    stats: Stats
    log: structlog.typing.FilteringBoundLogger
    beginners: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(BEGINNERS_MAX))


class Reader:
    """One shard in this process. `run` is its task, the rest is called by others."""

    def __init__(self, shard_id: str, life: ShardLife, shared: Shared) -> None:
        self.shard_id = shard_id
        self.life = life
        self.task: asyncio.Task[None] | None = None
        self.fan: Fan | None = None
        self.checkpoint: Position | None = None
        """What was copied to the lease store."""
        self.is_leaving = False
        """From here on nobody stops it."""
        self.given_back = ""
        """Why somebody else may read it now though it isn't finished."""
        self.is_refused = False
        """True when what an operator must mend made it give the shard back."""
        self._shared = shared
        self._stopping = asyncio.Event()
        self._position: Position | None = None
        self._found: Sequence[Stand] = ()
        # Failures in a row of each sink that the others went on without.
        self._failures: Counter[Outlet] = Counter()
        # The last failure was that of a sink's write.
        self._was_sinks = False
        # Fails to end the reading of this moment.
        self._cut: asyncio.Future[None] | None = None

    @property
    def durable(self) -> Position | None:
        """How far it is durable at every sink; None before its first write."""
        return None if self.fan is None else self.fan.durable

    # ---- what others demand

    def stop(self) -> None:
        """Ends it in order: what was read is written."""
        self._stopping.set()

    def abort(self) -> None:
        """Ends it at once: its lease is lost."""
        # One that finds out itself leaves by itself: cancelled, it couldn't let go.
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    def cut(self, reason: str, misses: int) -> None:
        """Ends the reading of this moment; it begins again."""
        if self._cut is None or self._cut.done():
            return
        self._shared.stats.reader_cuts += 1
        self._shared.log.warning("reader_cut", shard=self.shard_id, reason=reason, misses=misses)
        self._cut.set_exception(
            TransientError("shard_silent", f"{reason}, so its reader was cut and starts again")
        )
        # The reader looks at it when it can; it may also be over already.
        self._cut.exception()

    def give_back(self, reason: str, misses: int) -> None:
        """Ends it in order: another worker may be able to read the shard."""
        if self.is_leaving or self._stopping.is_set():
            return
        self._shared.stats.leases_given_back += 1
        self._shared.log.warning(
            "lease_given_back", shard=self.shard_id, reason=reason, misses=misses
        )
        self.given_back = (
            f"{reason}; its lease was given back: another worker may be able to read it"
        )
        self._stopping.set()

    # ---- the task

    async def run(self) -> None:
        """Reads the shard for as long as its lease holds, again after every failure that may
        pass. Whatever ends it, the lease is given up and the graph told."""
        shard_id, life, clock = self.shard_id, self.life, self._shared.clock
        attempt = 0
        try:
            while not self._stopping.is_set():
                before = self.fan
                try:
                    await self._read()
                    return
                except TransientError as error:
                    self._unread()
                    if self._has_moved(before):
                        attempt = 0
                    life.retries(str(error), clock.monotonic())
                    if not self._is_mended(before):
                        await self._pause(error, attempt)
                        attempt += 1
                except PositionLost as error:
                    self._unread()
                    life.stops(error.message, clock.monotonic())
                    await self._stop_at_gap(error)
                    return
                except FatalError as error:
                    self._unread()
                    if not self._is_mended(before):
                        await self._fail(error)
        except LeaseLost as error:
            self._shared.log.info(
                "lease_lost", shard=shard_id, code=error.code, reason=error.message
            )
            self.given_back = error.message
            if error.code != "lease_lost":  # that is counted where it was seen
                self._shared.stats.leases_lost[error.code] += 1
        finally:
            # From here on nobody cancels it: one that never leaves would block its shard.
            self.is_leaving = True
            self._unread()
            self._shared.outlets.works(self.shard_id)
            await self._shared.leases.let_go(self)

    def _has_moved(self, before: Fan | None) -> bool:
        """True when what failed last works: a sink that did, once one has written (that nothing
        was due tells nothing of it)."""
        fan = self.fan
        if fan is None or fan is before:
            return False
        was_sinks, self._was_sinks = self._was_sinks, fan.has_failed
        written = [inlet.outlet for inlet in fan.inlets if inlet.has_written]
        for outlet in written:
            del self._failures[outlet]
        return bool(written) if was_sinks else any(inlet.durable for inlet in fan.inlets)

    def _is_mended(self, before: Fan | None) -> bool:
        """True when a sink that failed was waited for already, while the others went on."""
        return self.fan is not None and self.fan is not before and self.fan.is_mended

    def _patience(self, outlet: Outlet, error: ReplicatorError) -> float:
        """How long a sink is left alone that failed while others go on; see `Fan`."""
        shared = self._shared
        if isinstance(error, TransientError):
            wait = shared.backoff.next(
                self._failures[outlet], shared.jitter(), error.retry_after_seconds
            )
            shared.stats.retries[error.code] += 1
            event = "retrying"
        else:
            wait = FATAL_RETRY_SECONDS
            shared.stats.failures[error.code] += 1
            event = "failed"
        self._failures[outlet] += 1
        say(
            shared.log,
            error,
            event,
            shard=self.shard_id,
            sink=outlet.name,
            wait_seconds=round(wait, 3),
        )
        return wait

    def _unread(self) -> None:
        self._shared.graph.unread(self.shard_id)

    async def _pause(self, error: TransientError, attempt: int) -> None:
        shared = self._shared
        wait = shared.backoff.next(attempt, shared.jitter(), error.retry_after_seconds)
        shared.stats.retries[error.code] += 1
        say(shared.log, error, "retrying", shard=self.shard_id, wait_seconds=round(wait, 3))
        await sleep_unless(self._stopping, wait)

    async def _fail(self, error: FatalError) -> None:
        """It may be this worker's own trouble (credentials, network, disk): after a few attempts
        another is let try."""
        shared, wait = self._shared, FATAL_RETRY_SECONDS
        shared.stats.failures[error.code] += 1
        say(shared.log, error, "failed", shard=self.shard_id, wait_seconds=wait)
        now = shared.clock.monotonic()
        if (action := shared.alive.failed(self.shard_id, str(error), now)) is None:
            await sleep_unless(self._stopping, wait)
        else:
            self.is_refused = True
            self.give_back(f"{action.misses} times in a row: {error}", action.misses)

    def _stands(self) -> Sequence[tuple[str, Position | None]]:
        """Each sink that answered, and where it stands."""
        if self.fan is not None:
            return [(i.outlet.name, i.durable or i.held) for i in self.fan.inlets]
        return [(stand.outlet.name, stand.position) for stand in self._found]

    async def _stop_at_gap(self, error: PositionLost) -> None:
        """Law 9, policy `stop`: nobody wants the lease any more until the position is moved."""
        graph = self._shared.graph
        position = self._position if self.durable is None else self.durable
        held_up = graph.lineage.held_up(self.shard_id)
        behind = [name for name, at in self._stands() if at == position]
        several = len(list(self._shared.outlets)) > 1
        found = gap.of(self.shard_id, position, error, held_up, behind if several else ())
        await graph.gaps.lost(self._shared.stream, found)
        graph.apply(lineage.GapFound(self.shard_id))

    async def _read(self) -> None:
        shard_id, life, shared = self.shard_id, self.life, self._shared
        graph, clock = shared.graph, shared.clock
        life.waits_for_sink("its turn", clock.monotonic())
        async with shared.beginners:
            begun = await self._begin()
        if begun is None:
            return
        answers, position, behind_ms_max = begun
        graph.apply(lineage.Started(shard_id))
        life.position = position
        shared.log.debug("reading", shard=shard_id, position=str(position))
        self.fan = shared.pipeline.open(answers, self._patience)
        self._cut = asyncio.get_running_loop().create_future()
        children = await shared.pipeline.run(
            self.fan, position, self._stopping, life, self._cut, behind_ms_max
        )
        if children is not None:
            graph.apply(lineage.Ended(shard_id, children))
            graph.apply(lineage.DurableEnd(shard_id))
            shared.log.info("shard_finished", shard=shard_id, children=[c.id for c in children])

    async def _begin(self) -> tuple[Answers[Stand], Position, int | None] | None:
        """Law 6, in its order: the lease is won; fence at every sink; look at the lease;
        positions. Gives what reading begins with, None where the shard is finished. A sink that
        doesn't answer is left behind, as long as another does."""
        shard_id, life, shared = self.shard_id, self.life, self._shared
        graph, outlets, clock = shared.graph, shared.outlets, shared.clock
        life.waits_for_sink("the fence", clock.monotonic())
        fences = await outlets.fence(shared.stream, shard_id, shared.owner)
        life.starts(clock.monotonic())
        await shared.leases.renew([shard_id])
        if not shared.leases.holds(shard_id):
            raise LeaseLost("lease_lost", f"the lease of {shard_id} was lost before reading")
        life.waits_for_sink("the position", clock.monotonic())
        # A parent that ended without a record knows no time of its own.
        ancestors = graph.lineage.ancestors(shard_id)
        parents = graph.lineage.parents(shard_id)
        answers = await outlets.stand(fences.good, ancestors, parents)
        answers.errors |= fences.errors
        self.fan, self._found = None, tuple(answers.good.values())
        self._position, reached = start_of(self._found)
        if self._position == SHARD_END:
            for error in answers.errors.values():
                raise error
            graph.apply(lineage.Stored(shard_id, SHARD_END))
            return None
        # From here on the source is asked.
        life.starts(clock.monotonic())
        behind_ms_max = await graph.gaps.look(shard_id, self._position, ancestors, reached)
        if graph.lineage.state(shard_id) is not lineage.ShardState.READABLE:
            # A discovery since the take has seen its parent unfinished, or itself gone.
            raise LeaseLost("not_readable", f"{shard_id} may not be read now")
        return answers, position_to_read(self._position), behind_ms_max
