"""A fleet over one lease store and one fenced sink: pauses, crashes, lost replies, reshards.

A seed is a run, in virtual time. The checkers are `lineage_world`'s (order per key,
once; parents durable first; nothing missing) and two more: a write under an old
fence never lands, and a shard that may be read isn't left alone for long.
"""

from __future__ import annotations

import random

import pytest

from replicator.core.lease import Create, Expire, LeaseView, Release, Renew, Take
from replicator.core.lineage import ShardState
from replicator.errors import LeaseLost
from replicator.model import SHARD_END, LeaseRow
from replicator.store.memory import MemoryLeases, MemoryLeaseStore
from tests.property.lineage_world import Service, Sink, Worker, World

DURATION = 10.0
TICK = 1.0
# A crashed owner's lease runs out, and whoever looks next takes it; every worker may be
# paused for three durations at that moment.
ALONE_SECONDS_MAX = 5 * DURATION


class FencedSink(Sink):
    """The sink's own epoch decides, not the lease."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[str, int] = {}
        self.refused = 0

    def fence(self, shard_id: str) -> int:
        self.epochs[shard_id] = self.epochs.get(shard_id, 0) + 1
        return self.epochs[shard_id]

    def is_current(self, shard_id: str, epoch: int) -> bool:
        is_current = self.epochs[shard_id] == epoch
        self.refused += not is_current
        return is_current


class FleetWorker(Worker):
    """A worker that reads what it has a lease for."""

    def __init__(
        self, service: Service, sink: FencedSink, store: MemoryLeaseStore, owner: str, offset: float
    ) -> None:
        super().__init__(service, sink)
        self.fenced = sink
        self.store = store
        self.offset = offset  # of its clock
        self.leases = LeaseView(owner, duration_seconds=DURATION)
        self.epochs: dict[str, int] = {}
        self.paused_until = 0.0

    async def tick(self, time: float, rng: random.Random) -> None:
        now = time + self.offset
        is_cut = rng.random() < 0.05
        rows = None if is_cut else await self.store.rows("p")
        for action in self.leases.step(rows, set(self.lineage.wanted()), now):
            is_reply_lost = rng.random() < 0.05
            match action:
                case Create(shard_ids):
                    await self.store.create("p", shard_ids)
                case Take(row):
                    taken = await self.store.take(row, self.leases.owner)
                    if taken is not None and not is_reply_lost:
                        self.leases.taken(taken, now)
                        self.own(taken)
                case Renew(row):
                    await self.renew(row, now, is_reply_lost=is_reply_lost)
                case Release(row):
                    self.abandon(row.shard_id)
                    await self.store.release(row)
                    self.leases.stopped(row.shard_id)
                case Expire(row):
                    self.abandon(row.shard_id)
                    self.leases.stopped(row.shard_id)

    async def renew(self, row: LeaseRow, now: float, *, is_reply_lost: bool) -> None:
        try:
            renewed = await self.store.renew(row)
        except LeaseLost:
            self.abandon(self.leases.lost(row.shard_id).row.shard_id)
            self.leases.stopped(row.shard_id)
        else:
            if not is_reply_lost:
                self.leases.renewed(renewed, now)

    def own(self, row: LeaseRow) -> None:
        """The lease is won: fence, then the position."""
        assert self.lineage.state(row.shard_id) is ShardState.READABLE
        self.epochs[row.shard_id] = self.fenced.fence(row.shard_id)
        self.start(row.shard_id)

    def abandon(self, shard_id: str) -> None:
        self.epochs.pop(shard_id, None)
        if shard_id in self.readings:
            self.stop(shard_id)

    def work(self, shard_id: str, rng: random.Random) -> None:
        if rng.random() < 0.7:
            self.read(shard_id)
        elif self.fenced.is_current(shard_id, self.epochs[shard_id]):
            self.flush(shard_id)
        else:
            self.abandon(shard_id)


class Fleet(World):
    def __init__(self, seed: int) -> None:
        super().__init__(random.Random(seed), workers=0)
        self.fenced = FencedSink()
        self.fenced.positions = dict(self.sink.positions)
        self.sink = self.fenced
        self.rows = MemoryLeases()
        self.time = 0.0
        self.hired = 0
        self.fleet = [self.hire() for _ in range(3)]
        self.alone_since: dict[str, float] = {}

    def hire(self) -> FleetWorker:
        self.hired += 1
        return FleetWorker(
            self.service,
            self.fenced,
            MemoryLeaseStore(self.rows),
            f"w{self.hired}",
            self.rng.uniform(-1e5, 1e5),
        )

    async def second(self, *, quiet: bool = False) -> None:
        rng = self.rng
        self.time += TICK
        for number, worker in enumerate(self.fleet):
            if not quiet and rng.random() < 0.01:
                self.fleet[number] = self.hire()  # SIGKILL, and a new one
                continue
            if not quiet and rng.random() < 0.02:
                worker.paused_until = self.time + rng.uniform(0, 3 * DURATION)
            if not quiet and worker.paused_until > self.time:
                continue
            # Awake after a pause, a reader may come before the lease is looked at.
            for _ in range(rng.randint(0, 8) + 20 * quiet):
                if worker.readings:
                    worker.work(rng.choice(sorted(worker.readings)), rng)
            worker.ask_for_list()
            if quiet or rng.random() < 0.5:
                worker.take_list()
            await worker.tick(self.time, rng)
        if not quiet:
            for _ in range(rng.randint(0, 3)):
                self.service_step()
            if rng.random() < 0.1:
                self.trim()
        self.check_fleet()

    def check_fleet(self) -> None:
        waiting: set[str] = set()
        for worker in self.fleet:
            assert worker.vanished == [], "nothing was trimmed unread"
            assert self.is_closing or worker.told == [], "no hole"
            waiting.update(worker.lineage.readable())
        read = {shard_id for worker in self.fleet for shard_id in worker.readings}
        done = {s for s, position in self.fenced.positions.items() if position == SHARD_END}
        alone = waiting - read - done
        self.alone_since = {s: self.alone_since.get(s, self.time) for s in alone}
        for shard_id, since in self.alone_since.items():
            assert self.time - since <= ALONE_SECONDS_MAX, f"{shard_id} is left alone"

    async def run(self) -> None:
        for _ in range(150):
            await self.second()
        self.is_closing = True
        for shard in self.service.open_shards():
            shard.closed = self.service.clock
        for _ in range(400):
            await self.second(quiet=True)
            if all(self.is_done(worker) for worker in self.fleet):
                break
        assert all(self.is_done(worker) for worker in self.fleet)
        put = {n for s in self.service.shards.values() for n, _ in s.records}
        arrived = {number for number, _ in self.fenced.log}
        assert put - self.skipped == arrived - self.skipped, "nothing is missing"


@pytest.mark.parametrize("batch", range(4))
async def test_a_fleet_loses_and_repeats_nothing(batch: int) -> None:
    refused = 0
    for seed in range(batch * 10, batch * 10 + 10):
        fleet = Fleet(seed)
        try:
            await fleet.run()
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        refused += fleet.fenced.refused
    assert refused > 0, "paused workers do try to write"
