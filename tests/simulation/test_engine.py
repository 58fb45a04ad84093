"""The engine over many seeds: reshards, redeliveries, disorder, failures and pauses at once.

The id of a failing test names its seed and so replays it. `ENGINE_SEEDS=1000` runs more.
"""

from __future__ import annotations

import os

import pytest

from replicator.model import LATEST
from tests.simulation.engine_world import World, simulate

SEEDS = range(int(os.environ.get("ENGINE_SEEDS", "25")))


@pytest.mark.parametrize("seed", SEEDS)
def test_one_worker(seed: int) -> None:
    world = simulate(lambda: World(seed))
    assert world.ledger.lost == 0, "nobody else fences"


@pytest.mark.parametrize("seed", SEEDS)
def test_one_worker_and_everything_fails_now_and_then(seed: int) -> None:
    simulate(lambda: World(seed, faults=0.05))


@pytest.mark.parametrize("seed", SEEDS)
def test_two_workers_one_of_them_standing_still(seed: int) -> None:
    simulate(lambda: World(seed, workers=2, is_exclusive=seed % 2 == 0))


@pytest.mark.parametrize("seed", SEEDS)
def test_three_workers_and_everything_fails_now_and_then(seed: int) -> None:
    simulate(lambda: World(seed, workers=3, faults=0.03))


@pytest.mark.parametrize("seed", SEEDS[:10])
def test_from_the_latest_record_on(seed: int) -> None:
    """The instant is resolved once: what fails before it is stored resolves another."""
    simulate(lambda: World(seed, faults=0.05, start=LATEST))


@pytest.mark.parametrize("memory_bytes_max", [1, 3_000])
def test_a_budget_that_no_fetch_fits_in(memory_bytes_max: int) -> None:
    for seed in range(5):
        simulate(lambda: World(seed, memory_bytes_max=memory_bytes_max))  # noqa: B023


def test_a_woken_worker_does_write_and_is_refused() -> None:
    """Else the fences were never tried."""
    worlds = [simulate(lambda: World(seed, workers=2)) for seed in range(6)]  # noqa: B023
    assert sum(world.pauses for world in worlds) > 0
    assert sum(world.ledger.lost for world in worlds) > 0


def test_a_seed_is_a_run() -> None:
    first, second = (simulate(lambda: World(7, workers=2, faults=0.03)) for _ in range(2))
    assert first.faults.trace == second.faults.trace


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sinks", [2, 3])
def test_several_sinks_each_down_now_and_then(seed: int, sinks: int) -> None:
    simulate(lambda: World(seed, sinks=sinks))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sinks", [2, 3])
def test_several_sinks_and_workers_and_everything_fails(seed: int, sinks: int) -> None:
    simulate(lambda: World(seed, sinks=sinks, workers=2, faults=0.03))
