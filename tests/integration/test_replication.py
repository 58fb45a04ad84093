"""`replicator run` over the wire: emulator's Kinesis → this process → a real Postgres."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from replicator.testing.servers import PostgresServer
from tests.integration.test_admin import admin_of, samples
from tests.shop import TABLE, Shop, payload
from tests.stack import PATIENCE_SECONDS, Stack, Worker, make_stack, run_worker, until


@pytest.fixture
async def stack(ministack_url: str, postgres_dsn: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with make_stack(ministack_url, postgres_dsn, tmp_path) as made:
        yield made


def said(worker: Worker, event: str) -> list[dict[str, Any]]:
    """The log's entries of one event."""
    entries = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == event]


async def positions(stack: Stack) -> dict[str, str]:
    rows = await stack.fetch("SELECT shard, position FROM replicator_positions")
    return {row["shard"]: row["position"] for row in rows}


async def test_changes_arrive_once_and_in_order_though_the_stream_repeats_and_mixes_them(
    stack: Stack, tmp_path: Path
) -> None:
    shop = Shop(seed=1)
    await stack.put(shop.disturbed(2_000))
    async with run_worker(stack.config(), tmp_path / "log") as worker:
        await stack.until_equal(shop.plain())
        await stack.put(shop.disturbed(500))
        await stack.until_equal(shop.plain())
        admin, count = await admin_of(worker), 2_000 + 100 + 500 + 25

        async def all_read() -> bool:
            """Copies behind the last change change no row."""
            _, text = await admin.get("/metrics")
            found = samples(text)
            return count == sum(
                found[f"replicator_{name}_total", ()] for name in ("changes", "duplicates")
            )

        await until(all_read)
        assert await worker.stop() == 0
        (drained,) = said(worker, "drained")
        assert drained["changes"] + drained["duplicates"] == count
    deleted = await stack.fetch(f"SELECT item FROM {TABLE} WHERE deleted")
    assert deleted, "deletes leave tombstones"
    assert all(row["item"] is None for row in deleted)


async def test_a_restart_goes_on_where_the_sink_stands(stack: Stack, tmp_path: Path) -> None:
    shop = Shop(seed=2)
    changes = 0
    for run, lose_the_file in enumerate([False, True, False]):
        await stack.put(shop.changes(400))
        async with run_worker(stack.config(), tmp_path / f"log{run}") as worker:
            await stack.until_equal(shop.plain())
            assert await worker.stop() == 0
            (drained,) = said(worker, "drained")
            assert drained["superseded"] == 0
            changes += drained["changes"] + drained["duplicates"]
        if lose_the_file:
            for file in (tmp_path / "state").iterdir():
                file.unlink()
    assert changes == 3 * 400, "nothing is read twice"


async def test_data_without_a_position_is_not_touched_until_told_where_to_start(
    stack: Stack, tmp_path: Path
) -> None:
    shop = Shop(seed=8)
    await stack.put(shop.changes(50))
    async with run_worker(stack.config(), tmp_path / "log") as worker:
        await stack.until_equal(shop.plain())
        assert await worker.stop() == 0
    await stack.fetch("DROP TABLE replicator_positions, replicator_streams")
    async with run_worker(stack.config(), tmp_path / "log1") as worker:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await worker.process.wait() == 1
        assert [entry["code"] for entry in said(worker, "failed")] == ["position_missing"]
    await stack.put(shop.changes(50))
    told = {"REPLICATOR_PIPELINES__P__SOURCE__START": "TRIM_HORIZON"}
    async with run_worker(stack.config(), tmp_path / "log2", **told) as worker:
        await stack.until_equal(shop.plain())
        assert await worker.stop() == 0


async def test_poison_is_kept_and_stops_nothing(stack: Stack, tmp_path: Path) -> None:
    shop = Shop(seed=3)
    first = shop.changes(100)
    with_nul = payload(
        "INSERT",
        {
            "ApproximateCreationDateTime": 1_706_542_773_000_000,
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
            # A key's column is text, which holds no U+0000.
            "Keys": {"id": {"S": "poi\x00son"}},
            "NewImage": {"id": {"S": "poi\x00son"}},
        },
        event_id="nul",
    )
    stranger = payload(
        "INSERT",
        {
            "ApproximateCreationDateTime": 1_706_542_773_000,
            "Keys": {"id": {"S": "x"}},
            "NewImage": {"id": {"S": "x"}},
        },
        event_id="stranger",
        table="other",
    )
    bad = [("p", with_nul), ("p", b'{"no": "change"'), ("p", b"\xff\xfe"), ("p", stranger)]
    await stack.put([*first[:50], *bad, *first[50:], *shop.changes(100)])
    async with run_worker(stack.config(), tmp_path / "log") as worker:
        await stack.until_equal(shop.plain())
        rows: list[Any] = []

        async def all_kept() -> bool:
            nonlocal rows
            rows = await stack.fetch("SELECT code, raw, attempts FROM replicator_dead_letters")
            # The log tells them once they are stored.
            return len(rows) == len(said(worker, "dead_letter")) == 3

        await until(all_kept)
        assert {bytes(row["raw"]) for row in rows} == {with_nul, b'{"no": "change"', b"\xff\xfe"}
        assert all(row["attempts"] == 1 for row in rows)
        assert [entry["table"] for entry in said(worker, "table_not_configured")] == ["other"]
        assert await worker.stop() == 0


async def test_latest_starts_at_the_end_and_is_resolved_once(stack: Stack, tmp_path: Path) -> None:
    before, after = Shop(seed=4), Shop(seed=5)
    await stack.put(before.changes(50))
    # The service's clock has whole seconds: what was put within this one would be read too.
    await asyncio.sleep(1.2)
    config = stack.config()
    environment = {"REPLICATOR_PIPELINES__0__SOURCE__START": "LATEST"}
    async with run_worker(config, tmp_path / "log", **environment) as worker:

        async def begun() -> bool:
            return len(await positions(stack)) == 2

        await until(begun)
        await worker.stop(signal.SIGKILL)
    await stack.put(after.changes(60))
    async with run_worker(config, tmp_path / "log", **environment) as worker:
        await stack.until_equal(after.plain())
        assert await worker.stop() == 0


async def test_postgres_restarted_in_mid_write(
    stack: Stack, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    shop = Shop(seed=6, filler=2_000)
    async with run_worker(stack.config(), tmp_path / "log") as worker:
        for mode in ("immediate", "fast"):
            await stack.put(shop.disturbed(1_500))
            await asyncio.to_thread(postgres_server.restart, mode)
            await stack.put(shop.disturbed(500))
            await stack.until_equal(shop.plain())
        # A restart between two writes is no failure: the connection is opened again.
        assert not said(worker, "failed")
        assert not said(worker, "gap")
        assert await worker.stop() == 0


async def test_a_drain_that_takes_too_long_says_so(
    stack: Stack, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    shop = Shop(seed=7)
    await stack.put(shop.changes(50))
    config = stack.config(drain_timeout_seconds=1)
    async with run_worker(config, tmp_path / "log") as worker:
        await stack.until_equal(shop.plain())
        admin = await admin_of(worker)
        with postgres_server.stalled():
            await stack.put(shop.changes(50))

            async def is_read() -> bool:
                _, status = await admin.json("/status")
                (pipeline,) = status["pipelines"]
                return any("not durable at sink w" in each["why"] for each in pipeline["shards"])

            await until(is_read)
            assert await worker.stop() == 3
    async with run_worker(config, tmp_path / "log") as worker:
        await stack.until_equal(shop.plain())
        assert await worker.stop() == 0
