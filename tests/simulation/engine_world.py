"""The whole engine in virtual time: a stream that splits and merges, its sinks, workers that
fail, stand still and wake up.

A seed is a run. The checkers look at the stream's own records and at what the sink stored,
never at what the engine believes:

- after every write: what is stored equals the fold of exactly the records that the
  positions cover, refused ones in the dead letters (law 1);
- at every read: the parents are durable (law 5), and fence, lease and position were asked
  for in this order (law 6);
- at every write: under the newest fence, or nothing of it (law 6);
- at the end: nothing is missing, no byte is held, no lease is owned, every shard is finished.
"""

from __future__ import annotations

import asyncio
import contextvars
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from replicator.core.budget import Budget
from replicator.core.lineage import ShardState
from replicator.errors import FatalError, TransientError, one_cause
from replicator.flow import Gate
from replicator.model import TRIM_HORIZON, Batching, Position, TableSchema
from replicator.outlets import Outlet
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from tests.engine import TABLES, Engine
from tests.pausable_loop import WORKER, PausableLoop, run_virtually
from tests.shop import Shop
from tests.simulation.engine_seams import Outage, Scene, SeamSink, SeamSource, SeamStore

SLOTS = 16
FIRST_SHARDS = (1, 2, 4)
LEASE_SECONDS = 3.0
# All may have failed at once, and what an operator must mend is looked at every 30 s.
FINISH_SECONDS = 120.0


async def described() -> Sequence[TableSchema]:
    """The tables' keys, as the service asks DynamoDB for them."""
    return TABLES


class WatchedBudget(Budget):
    """Knows its largest single take."""

    largest = 0

    def try_take(self, nbytes: int) -> bool:
        is_taken = super().try_take(nbytes)
        if is_taken:
            self.largest = max(self.largest, nbytes)
        return is_taken


@dataclass
class Worker:
    """A process and its supervisor: what exits by an error is started again."""

    world: World
    name: str
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    engine: Engine | None = None
    source: SeamSource | None = None
    task: asyncio.Task[None] | None = None
    starts: int = 0

    def start(self, group: asyncio.TaskGroup) -> None:
        context = contextvars.copy_context()
        context.run(WORKER.set, self.name)
        self.task = group.create_task(self._run(), context=context)

    async def stop(self) -> None:
        """An orderly stop: afterwards it holds nothing."""
        assert self.task is not None
        self.stopping.set()
        _, late = await asyncio.wait({self.task}, timeout=FINISH_SECONDS)
        assert not late, f"{self.name} doesn't stop: {self.engine and self.engine.states()}"
        self.task.result()
        self.stopping = asyncio.Event()

    async def _run(self) -> None:
        while not self.stopping.is_set():
            self.starts += 1
            owner = f"{self.name}-{self.starts}"
            self.source = SeamSource(self.world, owner)
            self.engine = Engine(
                self.source,
                SeamSink(self.world, owner),
                others=[
                    Outlet(
                        f"w{index}",
                        SeamSink(self.world, owner, index),
                        LoopClock(),
                        Stats(),
                        batching=Batching(20 * index, 16_384, 0.02 * index),
                    )
                    for index in range(1, len(self.world.stores))
                ],
                store=SeamStore(self.world, owner),
                start=self.world.start,
                describe=lambda: self.world.faults.around("describe", described),
                owner=owner,
                lease_seconds=LEASE_SECONDS,
                memory_bytes_max=self.world.memory_bytes_max,
                batch_limits=(20, 16_384, 0.02),
                gap_margin_us=self.world.gap_margin_us,
            )
            budget = self.engine.budget = WatchedBudget(self.world.memory_bytes_max)
            self.engine.gate = Gate(budget)
            try:
                with one_cause():
                    await self.engine.coordinator.run(self.stopping)
            except (FatalError, TransientError):
                await asyncio.sleep(1)
            assert budget.used == 0, f"{budget.used} bytes were never given back"
            most = self.world.growth * max(budget.limit, budget.largest)
            assert budget.peak <= most, (budget.peak, most)
            mine = [row for row in self.world.leases.rows.values() if row.owner == owner]
            assert not mine or self.world.may_keep_leases, f"a drained worker owns {mine}"


class World(Scene):
    """Everything together."""

    def __init__(
        self,
        seed: int,
        *,
        workers: int = 1,
        steps: int = 25,
        faults: float = 0.0,
        start: Position | None = TRIM_HORIZON,
        memory_bytes_max: int = 16_384,
        is_exclusive: bool = True,
        may_keep_leases: bool = False,
        first_shards: Sequence[int] = FIRST_SHARDS,
        sinks: int = 1,
    ) -> None:
        super().__init__(seed, faults=faults, is_exclusive=is_exclusive, sinks=sinks)
        self.start = start
        self.memory_bytes_max = memory_bytes_max
        # Where a release, or the answer to a take, may have failed.
        self.may_keep_leases = may_keep_leases or faults > 0
        self.slots = [""] * SLOTS
        count = self.rng.choice(first_shards)
        for index in range(count):
            first, after = index * SLOTS // count, (index + 1) * SLOTS // count
            self._own(self.stream.add_shard(), range(first, after))
        self.shop = Shop(seed=seed, keys=30)
        self.pauses = 0
        self.workers = [Worker(self, f"w{number}") for number in range(workers)]
        self._length = steps

    # ---- what happens

    def _own(self, shard_id: str, slots: Sequence[int]) -> None:
        for slot in slots:
            self.slots[slot] = shard_id

    def feed(self, count: int) -> None:
        for key, data in self.shop.disturbed(count):
            shard_id = self.slots[zlib.crc32(key.encode()) % SLOTS]
            self.stream.append(shard_id, [data])
        if self.rng.random() < 0.2:
            self.stream.append(self.rng.choice(self.slots), [b'{"not": "a change"'])

    def split(self) -> None:
        self.split_shard(self.rng.choice(self.slots))

    def split_shard(self, shard_id: str) -> None:
        slots = [slot for slot in range(SLOTS) if self.slots[slot] == shard_id]
        if len(slots) > 1:
            left, right = self.stream.split(shard_id)
            self._own(left, slots[: len(slots) // 2])
            self._own(right, slots[len(slots) // 2 :])

    def merge(self) -> None:
        two = list(dict.fromkeys(self.slots))[:2]
        if len(two) == 2:
            self.merge_shards(*two)

    def merge_shards(self, *two: str) -> None:
        slots = [slot for slot in range(SLOTS) if self.slots[slot] in two]
        self._own(self.stream.merge(*two), slots)

    def redeliver(self) -> None:
        for worker in self.workers:
            if worker.source is not None:
                worker.source.redeliver(self.rng.choice(self.slots), self.rng.randint(1, 20))

    def pause(self) -> None:
        self.pause_worker(self.rng.choice(self.workers), self.rng.uniform(0.1, 3 * LEASE_SECONDS))

    def pause_worker(self, worker: Worker, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, PausableLoop)
        self.pauses += 1
        loop.pause(worker.name)
        # Not by the paused one's own hand: its timers wait with it.
        contextvars.Context().run(loop.call_later, seconds, loop.resume, worker.name)

    def outage(self) -> None:
        """One sink is down for a while."""
        sink = self.rng.randrange(len(self.stores))
        if self.outages[sink] is None:
            outage = self.outages[sink] = Outage(self.rng.random() < 0.5)
            seconds = self.rng.uniform(0.1, 4 * LEASE_SECONDS)
            asyncio.get_running_loop().call_later(seconds, self._end_outage, sink, outage)

    def _end_outage(self, sink: int, outage: Outage) -> None:
        self.outages[sink] = None
        outage.over.set()

    def close(self) -> None:
        for shard_id in dict.fromkeys(self.slots):
            self.stream._close(shard_id, ())

    async def run(self) -> None:
        """Lets it happen, then waits until all is finished, and stops."""
        async with asyncio.TaskGroup() as group:
            for worker in self.workers:
                worker.start(group)
            await self.happen(group)
            self.faults.share = 0.0
            self.close()
            await self.until(self._is_done)
            await self.after_the_end()
            for worker in self.workers:
                await worker.stop()
        for ledger in self.ledgers:
            ledger.complete()
        if self.start in {None, TRIM_HORIZON}:
            for ledger in self.ledgers:
                live = {key for key, (_, made) in ledger.rows.items() if made is not None}
                assert live == set(self.shop.items)

    async def happen(self, group: asyncio.TaskGroup) -> None:
        """What comes to pass while the workers run; here the seed says it."""
        self.feed(self.rng.randint(0, 40))
        for _ in range(self._length):
            await asyncio.sleep(self.rng.uniform(0, 0.6))
            await self._one_thing(group)

    async def after_the_end(self) -> None:
        """What comes to pass once every shard is finished."""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when it holds; fails when that takes too long."""
        deadline = asyncio.get_running_loop().time() + FINISH_SECONDS
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, self._stuck()
            await asyncio.sleep(0.5)

    async def _one_thing(self, group: asyncio.TaskGroup) -> None:
        weights = [10, 2, 2, 2, 2 * (len(self.workers) > 1), 1]
        things = ["feed", "split", "merge", "redeliver", "pause", "stop"]
        if len(self.stores) > 1:
            things, weights = [*things, "outage"], [*weights, 3]
        match self.rng.choices(things, weights)[0]:
            case "feed":
                self.feed(self.rng.randint(1, 40))
            case "split":
                self.split()
            case "merge":
                self.merge()
            case "redeliver":
                self.redeliver()
            case "pause":
                self.pause()
            case "outage":
                self.outage()
            case _:
                worker = self.rng.choice(self.workers)
                await worker.stop()
                worker.start(group)

    def _is_done(self) -> bool:
        return all(
            worker.engine is not None
            and worker.engine.coordinator._graph.lineage.state(shard.id) is ShardState.FINISHED
            for worker in self.workers
            for shard in self.stream.shards()
        )

    def _stuck(self) -> str:
        positions = {
            shard.id: [str(ledger.position(shard.id)) for ledger in self.ledgers]
            for shard in self.stream.shards()
        }
        states = {w.name: w.engine and w.engine.states() for w in self.workers}
        return f"not finished in time: {positions}, {states}"


def simulate(world: Callable[[], World]) -> World:
    """Runs a world made inside a loop of its own."""

    async def run() -> World:
        made = world()
        await made.run()
        return made

    return run_virtually(run())
