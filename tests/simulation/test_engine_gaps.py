"""Law 9 over the whole engine: a stream that keeps its records for a short time and says
nothing when asked for older ones, and workers that are away for longer than that now and then.

The ledger counts every record that a stored position has passed. One that was trimmed
unread and passed all the same makes it fail: a silent skip.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from replicator.core.lineage import ShardState
from replicator.core.start import to_reset
from replicator.model import TRIM_HORIZON, Position, Reached
from tests.engine import Engine
from tests.simulation.engine_world import FINISH_SECONDS, World, simulate

SEEDS = range(int(os.environ.get("ENGINE_SEEDS", "25")))
RETENTION_SECONDS = 60.0
MARGIN_SECONDS = 3.0


class GapWorld(World):
    """Workers stop for up to `away` retentions; an operator accepts what is lost at the end."""

    retention_seconds = RETENTION_SECONDS
    gap_margin_us = int(MARGIN_SECONDS * 1_000_000)

    def __init__(self, seed: int, *, workers: int, faults: float, away: float) -> None:
        super().__init__(seed, workers=workers, faults=faults, steps=30)
        self.stream.trims_silently = True
        self.away = away
        self.told = 0
        self.accepted = 0
        self._is_expiring = True

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            expiring = group.create_task(self._expire())
            for worker in self.workers:
                worker.start(group)
            for _ in range(self._length):
                await asyncio.sleep(self.rng.uniform(0, 0.6))
                if self.rng.random() < 0.15:
                    await self._outage(group)
                await self._one_thing(group)
            self.faults.share = 0.0
            expiring.cancel()
            self.close()
            deadline = asyncio.get_running_loop().time() + 4 * FINISH_SECONDS
            while not self._is_done():
                assert asyncio.get_running_loop().time() < deadline, self._stuck()
                self._accept()
                await asyncio.sleep(5)
            for worker in self.workers:
                await worker.stop()
        self.ledger.complete()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self.stream.expire(self.now_ms() - int(self.retention_seconds * 1_000))

    async def _outage(self, group: asyncio.TaskGroup) -> None:
        for worker in self.workers:
            await worker.stop()
        self.told += sum(self._engine(worker).stats.gaps for worker in self.workers)
        for _ in range(4):
            self.feed(self.rng.randint(0, 5))
            if self.rng.random() < 0.2:
                self.split()
            await asyncio.sleep(self.away * self.retention_seconds * self.rng.random() / 4)
        for worker in self.workers:
            worker.start(group)

    def _accept(self) -> None:
        """What `positions reset` does, for each shard that stands at a gap everywhere."""
        engines = [self._engine(worker) for worker in self.workers]
        for shard in self.stream.shards():
            states = {each.coordinator._graph.lineage.state(shard.id) for each in engines}
            if states == {ShardState.GAPPED}:
                self.accepted += 1
                for shard_id in to_reset(self.stream.shards(), shard.id, self._positions()):
                    key = (self.pipeline, self.identity, shard_id)
                    self.store.positions[key] = TRIM_HORIZON
                    self.store.reached[key] = Reached(tip_us=self.now_ms() * 1_000)
                    self.ledger.skipped(shard_id)

    def _positions(self) -> dict[str, Position]:
        return {shard_id: at for (_, _, shard_id), at in self.store.positions.items()}

    @staticmethod
    def _engine(worker: object) -> Engine:
        engine = getattr(worker, "engine", None)
        assert isinstance(engine, Engine)
        return engine


# Seed 140: a loss that was accepted hid that of a grandchild which had read nothing yet.
@pytest.mark.parametrize("seed", sorted({*SEEDS, 140}))
def test_nothing_is_skipped_in_silence(seed: int) -> None:
    simulate(lambda: GapWorld(seed, workers=1, faults=0.0, away=2.0))


@pytest.mark.parametrize("seed", SEEDS[:15])
def test_nothing_is_skipped_in_silence_though_everything_fails_now_and_then(seed: int) -> None:
    simulate(lambda: GapWorld(seed, workers=2, faults=0.03, away=2.0))


@pytest.mark.parametrize("seed", SEEDS[:15])
def test_who_was_not_away_for_long_has_no_gap(seed: int) -> None:
    world = simulate(lambda: GapWorld(seed, workers=2, faults=0.0, away=0.5))
    assert isinstance(world, GapWorld)
    assert (world.told, world.accepted) == (0, 0)


def test_gaps_do_happen_and_are_told() -> None:
    """Else nothing was tried."""
    worlds = [
        simulate(lambda: GapWorld(seed, workers=1, faults=0.0, away=2.0))  # noqa: B023
        for seed in range(8)
    ]
    assert sum(world.accepted for world in worlds if isinstance(world, GapWorld)) > 3
    assert sum(world.told for world in worlds if isinstance(world, GapWorld)) > 3
