"""Two workers and one stream: only one reads a shard, and a stale one writes nothing."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.shop import Shop
from tests.stack import Stack, make_stack, run_worker, until


@pytest.fixture
async def stack(ministack_url: str, postgres_dsn: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with make_stack(ministack_url, postgres_dsn, tmp_path, shards=1) as made:
        yield made


async def owners(stack: Stack) -> list[tuple[str, int]]:
    rows = await stack.fetch("SELECT owner, epoch FROM replicator_positions")
    return [(row["owner"], row["epoch"]) for row in rows]


async def test_a_paused_worker_that_wakes_up_is_refused(stack: Stack, tmp_path: Path) -> None:
    shop = Shop(seed=11)
    config = stack.config()
    await stack.put(shop.changes(100))
    async with run_worker(config, tmp_path / "first") as first:
        await stack.until_equal(shop.plain())
        async with run_worker(config, tmp_path / "second") as second:
            ((first_owner, _),) = await owners(stack)
            # Changes that the first one has received but not written when it is paused.
            await stack.put(shop.changes(50))
            first.process.send_signal(signal.SIGSTOP)
            await stack.put(shop.changes(100))

            async def taken_over() -> bool:
                return [owner for owner, _ in await owners(stack)] != [first_owner]

            await until(taken_over)
            await stack.until_equal(shop.plain())
            first.process.send_signal(signal.SIGCONT)
            await stack.put(shop.changes(100))
            await stack.until_equal(shop.plain())

            async def noticed() -> bool:
                return "lease_lost" in first.log

            await until(noticed)
            assert await second.stop() == 0
        await stack.put(shop.changes(50))
        await stack.until_equal(shop.plain())
        assert await first.stop() == 0


async def test_a_second_lease_store_is_refused_while_the_first_is_alive(
    stack: Stack, tmp_path: Path
) -> None:
    shop = Shop(seed=12)
    config = stack.config()
    await stack.put(shop.changes(100))
    async with run_worker(config, tmp_path / "first") as first:
        await stack.until_equal(shop.plain())
        elsewhere = {"REPLICATOR_STATE_DIRECTORY": str(tmp_path / "elsewhere")}
        async with run_worker(config, tmp_path / "second", **elsewhere) as second:

            async def refused() -> bool:
                return "foreign_lease_store" in second.log

            await until(refused)
            await stack.put(shop.changes(100))
            await stack.until_equal(shop.plain())
            assert await first.stop() == 0
            await second.stop()
