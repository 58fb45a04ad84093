"""Who may read which shard, performed: renews what is held, takes what is free, and gives up what
nobody needs or nobody here can read. Nothing of it depends on whether changes flow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial

import structlog

from replicator.core import lease
from replicator.core.liveness import Liveness, Phase, ShardLife
from replicator.core.retry import FATAL_RETRY_SECONDS
from replicator.errors import ReplicatorError
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
        except ReplicatorError as error:
            self._failed(error)
            rows = None
        now = self._clock.monotonic()
        renewals: list[str] = []
        missing: Sequence[str] = ()
        takes: list[lease.Take] = []
        wanted = self._wanted(now)
        for action in self._view.step(rows, wanted, now, self._avoiding(wanted, now)):
            match action:
                case lease.Create(shard_ids):
                    missing = shard_ids
                case lease.Take():
                    takes.append(action)
                case lease.Renew(row):
                    renewals.append(row.shard_id)
                case lease.Release(row) | lease.Expire(row):
                    self._end(row.shard_id, action)
        # One step of the store for each kind, the most urgent first: a step for each of
        # thousands of shards would take longer than a lease lasts.
        for work in (
            partial(self.renew, renewals),
            partial(self._create, missing),
            partial(self._take, takes, start),
            self._copy_checkpoints,
        ):
            try:
                await work()
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
            self._drop(shard_id, now)

    def _drop(self, shard_id: str, now: float) -> None:
        life = self._alive.drop(shard_id)
        if life is not None and life.is_late(now):
            # Who could not read it takes it from nobody for as long as it tries.
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

    async def _create(self, shard_ids: Sequence[str]) -> None:
        if shard_ids:
            await self._store.create(self._name, shard_ids)
            self._graph.lease_now.set()

    async def _take(
        self, takes: Sequence[lease.Take], start: Callable[[str, ShardLife], Reader]
    ) -> None:
        if not takes or self._draining.is_set():
            return
        reasons = {take.row.shard_id: take.reason for take in takes}
        asked_at = self._clock.monotonic()
        for taken in await self._store.take_all([take.row for take in takes], self._owner):
            if self._draining.is_set():
                await self._store.release(taken)
                continue
            self._view.taken(taken, asked_at)
            life = self._alive.own(taken.shard_id, self._clock.monotonic())
            self.readers[taken.shard_id] = start(taken.shard_id, life)
            self._stats.leases_taken[reasons[taken.shard_id]] += 1
            self._log.info("lease_taken", shard=taken.shard_id)

    async def renew(self, shard_ids: Sequence[str]) -> None:
        """Renews the leases of those that are held; ends the readers of those that are lost."""
        async with self._renewal:
            # Read now: others of them may have been given up meanwhile.
            held = [row for shard_id in shard_ids if (row := self._view.row(shard_id))]
            if not held:
                return
            asked_at = self._clock.monotonic()
            renewed = {row.shard_id: row for row in await self._store.renew_all(held)}
            for row in held:
                if (new := renewed.get(row.shard_id)) is not None:
                    self._view.renewed(new, asked_at)
                else:
                    self._end(row.shard_id, self._view.lost(row.shard_id))

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
        moved = {
            reader.shard_id: (reader, reader.durable)
            for reader in self.readers.values()
            if reader.durable is not None and reader.durable != reader.checkpoint
        }
        copies = {shard_id: durable for shard_id, (_, durable) in moved.items()}
        await self._store.checkpoint_all(self._name, copies)
        for reader, durable in moved.values():
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
                    if (row := self._view.row(shard_id)) is not None:
                        await self._store.release(row)
        finally:
            # Even when this is cancelled: one that stays would block its shard for ever.
            if self._view.row(shard_id) is not None:
                self._view.stopped(shard_id)
            del self.readers[shard_id]
            # At a gap it stays to be seen.
            if not reader.given_back and reader.life.phase is not Phase.GAP:
                self._drop(shard_id, now)
            self._graph.lease_now.set()
