"""Workers with clocks of their own: never two of them on one shard, never none for long."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from replicator.core.lease import Create, Expire, LeaseView, Release, Renew, Take, TakeReason
from replicator.errors import LeaseLost
from replicator.model import LeaseRow

DURATION = 9.0
SHARDS = ["s1", "s2", "s3"]
NUMBERS = st.integers(0, 1)
RARELY = st.sampled_from([False, False, False, True])


class Store:
    """The rows, with the store's own conditions and nothing else."""

    def __init__(self) -> None:
        self.rows: dict[str, LeaseRow] = {}
        self.victims: set[tuple[str, str | None]] = set()  # who doesn't know of a steal yet

    def create(self, shard_id: str) -> None:
        self.rows.setdefault(shard_id, LeaseRow("p", shard_id, None, 0))

    def take(self, seen: LeaseRow, owner: str) -> LeaseRow | None:
        row = self.rows.get(seen.shard_id)
        if row is None or row.counter != seen.counter:
            return None
        return self._put(replace(row, owner=owner, counter=row.counter + 1))

    def renew(self, held: LeaseRow) -> LeaseRow:
        row = self.rows.get(held.shard_id)
        if row is None or (row.owner, row.counter) != (held.owner, held.counter):
            raise LeaseLost("lease_lost", held.shard_id)
        return self._put(replace(row, counter=row.counter + 1))

    def release(self, held: LeaseRow) -> None:
        row = self.rows.get(held.shard_id)
        if row is not None and (row.owner, row.counter) == (held.owner, held.counter):
            self._put(replace(row, owner=None, counter=row.counter + 1))

    def _put(self, row: LeaseRow) -> LeaseRow:
        self.rows[row.shard_id] = row
        return row


@dataclass
class Worker:
    """The shell around one view, whose clock is `offset` seconds from the others'."""

    view: LeaseView
    offset: float
    wanted: set[str] = field(default_factory=lambda: set(SHARDS))
    stopping: set[str] = field(default_factory=set)

    def now(self, time: float) -> float:
        return time + self.offset

    def tick(self, store: Store, rows: list[LeaseRow] | None, asked: float, lost: bool) -> None:
        """One round at clock time `asked`; with `lost`, no reply of the store arrives."""
        for action in self.view.step(rows, self.wanted, asked):
            match action:
                case Create(shard_ids):
                    for shard_id in shard_ids:
                        store.create(shard_id)
                case Take(row, reason):
                    taken = store.take(row, self.view.owner)
                    if taken is not None and reason is TakeReason.BALANCE:
                        store.victims.add((row.shard_id, row.owner))
                    if taken is not None and not lost:
                        self.view.taken(taken, asked)
                case Renew(row):
                    try:
                        renewed = store.renew(row)
                    except LeaseLost:
                        if not lost:
                            self.stopping.add(self.view.lost(row.shard_id).row.shard_id)
                    else:
                        if not lost:
                            self.view.renewed(renewed, asked)
                case Release(row):
                    store.release(row)
                    self.view.stopped(row.shard_id)
                case Expire(row):
                    self.stopping.add(row.shard_id)

    def stop_all(self) -> None:
        for shard_id in self.stopping:
            self.view.stopped(shard_id)
        self.stopping.clear()


class LeaseMachine(RuleBasedStateMachine):
    """Two workers, one store, replies that get lost, crashes, shards that come and go."""

    @initialize(offsets=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2))
    def start(self, offsets: list[float]) -> None:
        self.time = 0.0
        self.store = Store()
        self.restarts = 0
        self.workers = [self.worker(f"w{number}", at) for number, at in enumerate(offsets)]

    def worker(self, owner: str, offset: float) -> Worker:
        return Worker(LeaseView(owner, duration_seconds=DURATION), offset)

    @rule(seconds=st.sampled_from([0.1, 1.0, DURATION / 3, 0.6 * DURATION, DURATION]))
    def wait(self, seconds: float) -> None:
        self.time += seconds

    @rule(number=NUMBERS, lost=RARELY)
    def tick(self, number: int, lost: bool) -> None:
        worker = self.workers[number]
        rows = list(self.store.rows.values())
        worker.tick(self.store, rows, worker.now(self.time), lost)

    @rule(number=NUMBERS)
    def tick_without_rows(self, number: int) -> None:
        worker = self.workers[number]
        worker.tick(self.store, None, worker.now(self.time), lost=True)

    @rule(number=NUMBERS)
    def readers_stop(self, number: int) -> None:
        self.workers[number].stop_all()

    @rule(number=NUMBERS)
    def crash(self, number: int) -> None:
        self.restarts += 1
        old = self.workers[number]
        self.workers[number] = self.worker(f"r{self.restarts}", old.offset)

    @rule(number=NUMBERS, shard_id=st.sampled_from(SHARDS))
    def finish(self, number: int, shard_id: str) -> None:
        self.workers[number].wanted ^= {shard_id}

    @invariant()
    def one_holder(self) -> None:
        """The victim of a take for balance learns of it at its next renewal, and what it
        writes until then is refused by the fence. Nobody else is ever one of two."""
        for shard_id in SHARDS:
            holders = {
                worker.view.owner
                for worker in self.workers
                if worker.view.holds(shard_id, worker.now(self.time))
            }
            victims = {owner for stolen, owner in self.store.victims if stolen == shard_id}
            self.store.victims -= {(shard_id, owner) for owner in victims - holders}
            assert len(holders - victims) <= 1, (shard_id, holders)

    def teardown(self) -> None:
        """Left alone, every wanted shard has a live holder within three durations."""
        if not hasattr(self, "workers"):
            return
        for worker in self.workers:
            worker.wanted = set(SHARDS)
        for _ in range(12):
            for worker in self.workers:
                rows = list(self.store.rows.values())
                worker.tick(self.store, rows, worker.now(self.time), lost=False)
                worker.stop_all()
            self.time += DURATION / 3 - 0.01
        for shard_id in SHARDS:
            holders = [w for w in self.workers if w.view.holds(shard_id, w.now(self.time))]
            assert len(holders) == 1, shard_id
        loads = sorted(len(worker.view.held()) for worker in self.workers)
        assert loads[-1] - loads[0] <= 1, loads


LeaseMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
# Finding a failure is quick; shrinking it may take minutes.
TestLease = pytest.mark.timeout(330)(LeaseMachine.TestCase)
