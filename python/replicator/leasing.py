"""Who may read which shard, performed: renews what is held, takes what is free, and gives up what
nobody needs or nobody here can read. Nothing of it depends on whether changes flow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress

import structlog

from replicator.core import lease
from replicator.core.liveness import Liveness, Phase, ShardLife
from replicator.core.retry import FATAL_RETRY_SECONDS
from replicator.errors import LeaseLost, ReplicatorError
from replicator.graph import Graph
from replicator.model import LeaseRow
from replicator.protocols import Clock, LeaseStore
from replicator.reader import Reader
from replicator.telemetry.logging import say
from replicator.telemetry.stats import Stats

# Who gave a shard back for what an operator must mend takes nothing from others for so long:
# each attempt would leave a shard unread that is read well.
REFUSED_SECONDS = 600.0


class Leasing:
    """One pipeline's leases in this process, and the readers that they are held for."""

    def __init__(
        self,
        name: str,
        owner: str,
        store: LeaseStore,
        graph: Graph,
        alive: Liveness,
        clock: Clock,
        stats: Stats,
        *,
        duration_seconds: float = lease.DURATION_SECONDS,
    ) -> None:
        self.readers: dict[str, Reader] = {}
        self._name = name
        self._owner = owner
        self._store = store
        self._graph = graph
        self._alive = alive
        self._clock = clock
        self._stats = stats
        self._view = lease.LeaseView(owner, duration_seconds=duration_seconds)
        # Until when a shard is taken not at all, or from nobody who reads it.
        self._shunned: dict[str, float] = {}
        self._avoided: dict[str, float] = {}
        self._refused_until = 0.0
        # One renewal at a time: two of one row would make the second look lost.
        self._renewal = asyncio.Lock()
        self._draining = asyncio.Event()
        self._leased_at: float | None = None
        self._log = structlog.get_logger().bind(pipeline=name)

    @property
    def is_draining(self) -> bool:
        """True from `drain` on."""
        return self._draining.is_set()

    def unready(self) -> str:
        """Why nothing can be leased now; empty when it can."""
        age = None if self._leased_at is None else self._clock.monotonic() - self._leased_at
        if age is None or age > self._view.duration_seconds:
            return "the lease store does not answer"
        return ""

    def holds(self, shard_id: str) -> bool:
        """True while this worker may read the shard."""
        return self._view.holds(shard_id, self._clock.monotonic())

    async def run(self, start: Callable[[str, ShardLife], Reader]) -> None:
        """Until `drain`, and until all readers have let go then. `start` makes the reader of a
        shard that was won."""
        while self.readers or not self._draining.is_set():
            self._graph.lease_now.clear()
            await self._once(start)
            with suppress(TimeoutError):
                # Never at once: a store that refuses a renewal would be asked without pause.
                wait = max(
                    self._view.renew_seconds / 10,
                    self._view.until_next(self._clock.monotonic()),
                )
                async with asyncio.timeout(wait):
                    await self._graph.lease_now.wait()

    async def drain(self) -> None:
        """Takes no more, stops the readers in order, and returns when they have ended."""
        self._draining.set()
        for reader in self.readers.values():
            reader.stop()
        while tasks := [
            reader.task
            for reader in self.readers.values()
            if reader.task is not None and not reader.task.done()
        ]:
            await asyncio.wait(tasks)
        self._graph.lease_now.set()

    # ---- the loop

    async def _once(self, start: Callable[[str, ShardLife], Reader]) -> None:
        try:
            rows = await self._store.rows(self._name)
            self._leased_at = self._clock.monotonic()
            self._leave_to_others(rows)
            await self._copy_checkpoints()
        except ReplicatorError as error:
            self._failed(error)
            rows = None
        now = self._clock.monotonic()
        wanted = self._wanted(now)
        for action in self._view.step(rows, wanted, now, self._avoiding(wanted, now)):
            try:
                match action:
                    case lease.Create(shard_ids):
                        await self._store.create(self._name, shard_ids)
                        self._graph.lease_now.set()
                    case lease.Take(row, reason):
                        await self._take(row, reason, start)
                    case lease.Renew(row):
                        await self.renew(row.shard_id)
                    case lease.Release(row) | lease.Expire(row):
                        self._end(row.shard_id, action)
            except ReplicatorError as error:
                self._failed(error)

    def _failed(self, error: ReplicatorError) -> None:
        self._stats.lease_failures[error.code] += 1
        say(self._log, error, "retrying", during="leases")

    def _leave_to_others(self, rows: Sequence[LeaseRow]) -> None:
        """What was given back, and is another's now or wanted by nobody, is no concern here."""
        if not (given_back := self._alive.given_back()):
            return
        now = self._clock.monotonic()
        free = {row.shard_id for row in rows if row.owner in {None, self._owner}}
        for shard_id in set(given_back) - (free & frozenset(self._graph.lineage.wanted())):
            life = self._alive.drop(shard_id)
            if life is not None and life.is_late(now):
                # Who could not read it takes it from nobody for as long as it tried.
                patience = self._alive.misses_max * self._alive.deadline_seconds
                self._avoided[shard_id] = now + patience

    def _wanted(self, now: float) -> frozenset[str]:
        if self._draining.is_set():
            return frozenset(self.readers)
        self._shunned = {shard: until for shard, until in self._shunned.items() if until > now}
        wanted = frozenset(self._graph.lineage.wanted())
        return wanted - (self._shunned.keys() - self.readers.keys())

    def _avoiding(self, wanted: frozenset[str], now: float) -> AbstractSet[str]:
        self._avoided = {shard: until for shard, until in self._avoided.items() if until > now}
        # What one shard was refused for is hardly that shard's own.
        return wanted if now < self._refused_until else self._avoided.keys()

    async def _take(
        self, row: LeaseRow, reason: lease.TakeReason, start: Callable[[str, ShardLife], Reader]
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
        self._view.taken(taken, asked_at)
        life = self._alive.own(row.shard_id, self._clock.monotonic())
        self.readers[row.shard_id] = start(row.shard_id, life)
        self._stats.leases_taken[reason] += 1
        self._log.info("lease_taken", shard=row.shard_id)

    async def renew(self, shard_id: str) -> None:
        """Renews the shard's lease, if it is held; ends its reader when it is lost."""
        async with self._renewal:
            if (row := self._held(shard_id)) is None:
                return
            asked_at = self._clock.monotonic()
            try:
                renewed = await self._store.renew(row)
            except LeaseLost:
                self._end(shard_id, self._view.lost(shard_id))
            else:
                self._view.renewed(renewed, asked_at)

    def _held(self, shard_id: str) -> LeaseRow | None:
        return next((row for row in self._view.held() if row.shard_id == shard_id), None)

    def _end(self, shard_id: str, action: lease.Release | lease.Expire) -> None:
        """Ends a reader that may not or need not go on. It lets go itself."""
        reader = self.readers.get(shard_id)
        if reader is None or reader.is_leaving:
            return
        if isinstance(action, lease.Expire):
            self._stats.leases_lost[action.reason] += 1
            self._log.warning("lease_lost", shard=shard_id, reason=action.reason.value)
            reader.abort()
        else:
            reader.stop()

    async def _copy_checkpoints(self) -> None:
        for shard_id, reader in tuple(self.readers.items()):
            durable = reader.durable
            if durable is not None and durable != reader.checkpoint:
                await self._store.checkpoint(self._name, shard_id, durable)
                reader.checkpoint = durable

    async def let_go(self, reader: Reader) -> None:
        """The reader has ended: stores its copy, and gives the lease up."""
        shard_id = reader.shard_id
        now = self._clock.monotonic()
        if reader.given_back:
            seconds = self._view.duration_seconds
            if reader.is_refused:
                # Where nobody else is, it is tried again as often as before.
                seconds = max(seconds, FATAL_RETRY_SECONDS)
                self._refused_until = now + REFUSED_SECONDS
            self._shunned[shard_id] = now + seconds
            reader.life.given_back(reader.given_back, now)
        try:
            async with self._renewal:
                with suppress(ReplicatorError):
                    if reader.durable is not None:
                        await self._store.checkpoint(self._name, shard_id, reader.durable)
                # On its own: a copy that can't be stored must not keep the lease.
                with suppress(ReplicatorError):
                    if (row := self._held(shard_id)) is not None:
                        await self._store.release(row)
        finally:
            # Even when this is cancelled: one that stays would block its shard for ever.
            if self._held(shard_id) is not None:
                self._view.stopped(shard_id)
            del self.readers[shard_id]
            # At a gap it stays to be seen.
            if not reader.given_back and reader.life.phase is not Phase.GAP:
                self._alive.drop(shard_id)
            self._graph.lease_now.set()
