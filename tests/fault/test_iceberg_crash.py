"""A worker of the Iceberg sink dies, sleeps and wakes again, or loses an answer, at each of its
requests in turn; others go on with other cuts. Whatever happened, each change is there once, or
each item is the newest."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from replicator.errors import LeaseLost, TransientError
from tests.lake_gates import Gate, Sleeper
from tests.lake_world import World, history

ROOT = Path(__file__).parent.parent.parent


MODES: dict[str, dict[str, Any]] = {
    "log": {"mode": "log", "table": "lake.changes"},
    "state": {"mode": "state", "table": "lake.items", "buckets": 2},
    # Positions elsewhere, after the data.
    "states": {"mode": "state", "table": "lake.{table}", "buckets": 2},
}


@pytest.fixture(params=list(MODES))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], World]:
    def fresh(seed: int) -> World:
        place = tmp_path / str(seed)
        place.mkdir()
        return World(place, [history(seed), history(seed + 1_000)], **MODES[request.param])

    return fresh


async def _requests(world: Callable[[int], World]) -> int:
    """How many requests an undisturbed worker makes."""
    here, gate = world(0), Gate("count")
    await here.work(9, gate="count")
    here.check()
    return gate.count


def _steps(count: int, some: int) -> list[int]:
    """The first requests of all kinds, and some of the others."""
    return sorted({*range(1, count + 1, max(1, count // some)), count})


async def test_dead_at_any_request(world: Callable[[int], World]) -> None:
    """Dead before a request is the same as after the one before it, of which it knows nothing."""
    for nth in _steps(await _requests(world), 10):
        here = world(nth)

        def die(n: int, nth: int = nth) -> None:
            if n >= nth:
                raise ConnectionError("it is dead: no request of it comes through")

        Gate("dead", die)
        with suppress(TransientError):
            await here.work(9, gate="dead")
        await here.finish(7)
        here.check()


async def test_an_answer_that_is_lost(world: Callable[[int], World]) -> None:
    """The commit is there and nobody knows: the same worker goes on, by its fence."""
    for nth in range(2, 5):
        here, commits = world(nth), 0

        def lose(n: int, what: str, nth: int = nth) -> None:
            nonlocal commits
            commits += what == "commit"
            if what == "commit" and commits == nth:
                raise ConnectionError("cut before the answer came")

        Gate("lost", after=lose)
        for _ in range(2):
            with suppress(TransientError):
                await here.work(9, gate="lost")
        assert commits > nth
        here.check()


@pytest.mark.parametrize("writes", [1, 1_000])
async def test_a_zombie_wakes_at_any_request(world: Callable[[int], World], writes: int) -> None:
    """The other worker has done some writes, or all, when it wakes; a third one ends it."""
    for nth in _steps(await _requests(world), 4):
        here, sleeper = world(nth), Sleeper(nth)
        Gate("zombie", sleeper)
        zombie = asyncio.ensure_future(here.work(9, gate="zombie"))
        zombie.add_done_callback(sleeper.ended)
        await asyncio.to_thread(sleeper.reached.wait)
        with suppress(TransientError, LeaseLost):
            await here.work(5, writes=writes)
        sleeper.release.set()
        with suppress(TransientError, LeaseLost):
            await zombie
        await here.finish(7)
        here.check()


async def test_workers_that_take_the_shards_from_each_other(
    world: Callable[[int], World],
) -> None:
    """Three at once, each with cuts of its own."""
    for seed in range(1, 2):
        here = world(seed)

        async def greedy(size: int, here: World = here) -> None:
            for _ in range(4):
                with suppress(TransientError, LeaseLost):
                    await here.work(size)

        await asyncio.gather(greedy(3), greedy(5), greedy(8))
        await here.finish(7)
        here.check()


async def test_killed(tmp_path: Path) -> None:
    """Processes that are killed: while they raise fences, between files and commit, in a commit."""
    records = [history(7), history(8)]
    texts = [[record.decode() for record in each] for each in records]
    (tmp_path / "records.json").write_text(json.dumps(texts))
    here = World(tmp_path, records)
    for nth in (9, 23, 30):
        child = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, __file__, str(tmp_path), str(nth)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
            timeout=60,
        )
        assert child.returncode == -signal.SIGKILL
    await here.finish(7)
    here.check()


def _child(place: Path, nth: int) -> None:
    def die(n: int) -> None:
        if n == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    Gate("child", die)
    texts = json.loads((place / "records.json").read_text())
    world = World(place, [[record.encode() for record in each] for each in texts])
    asyncio.run(world.work(9, gate="child"))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]))
