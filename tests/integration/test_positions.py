"""`replicator positions` over the wire: what it shows, whom it refuses, and what it moves."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from replicator import config as configuration
from replicator.errors import FatalError
from replicator.positions import Move, set_position
from replicator.service import open_store
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from replicator.testing.streams_server import StreamsServer, table_stream
from tests.integration.test_check import replicator
from tests.integration.test_gap import FIRST, SECOND, feed, serve
from tests.shop import TABLE, Shop
from tests.stack import CREDENTIALS, Stack, run_worker, until


@pytest.fixture
async def server() -> AsyncIterator[KinesisServer]:
    async with serve(ScriptedStream(2)) as running:
        yield running


@pytest.fixture
def stack(server: KinesisServer, postgres_dsn: str, tmp_path: Path) -> Stack:
    return Stack(server.url, postgres_dsn, tmp_path, None)


async def positions(config: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    code, out, err = await replicator(
        "positions", *arguments, "--config", config, "--output", "json"
    )
    return code, json.loads(out) if out else {}, err


async def settle(stack: Stack) -> None:
    """As if a minute had passed since anybody stored something."""
    await stack.fetch("UPDATE replicator_positions SET updated_at = now() - interval '1 min'")


async def test_what_a_worker_reads_is_shown_and_not_moved(
    stack: Stack, server: KinesisServer, tmp_path: Path
) -> None:
    shop, config = Shop(seed=61), stack.config()
    code, _, err = await positions(config, "reset", "--yes")
    assert code == 1
    assert "position_unknown" in err
    feed(server.stream, shop, 60)
    async with run_worker(config, tmp_path / "log") as worker:
        await stack.until_equal(shop.plain())
        code, shown, _ = await positions(config, "show")
        assert code == 0
        assert {row["shard"] for row in shown["positions"]} == {FIRST, SECOND}
        for row in shown["positions"]:
            assert (row["pipeline"], row["sink"], row["epoch"]) == ("p", "w", 1)
            assert 0 <= row["lag_seconds"] <= row["age_seconds"] < 60
        code, _, err = await positions(config, "set", FIRST, "TRIM_HORIZON", "--yes")
        assert code == 1
        assert "shard_in_use" in err, "its fence was raised a moment ago"
        await settle(stack)
        code, _, err = await positions(config, "set", FIRST, "TRIM_HORIZON", "--yes")
        assert code == 1
        assert "is leased by" in err, "and its lease is renewed"
        assert await worker.stop() == 0
    assert len(server.called("RegisterStreamConsumer")) == 1


async def test_a_position_is_moved_after_a_yes_and_read_from_there(
    stack: Stack, server: KinesisServer, tmp_path: Path
) -> None:
    shop, config = Shop(seed=62), stack.config()
    feed(server.stream, shop, 60)
    async with run_worker(config, tmp_path / "log-1") as worker:
        await stack.until_equal(shop.plain())
        assert await worker.stop() == 0
    await settle(stack)
    end = str(server.stream.continuation(FIRST, server.stream.count(FIRST)))
    third = server.stream.continuation(FIRST, 3)
    code, _, err = await positions(config, "set", FIRST, str(third))
    assert code == 2, "nobody can be asked"
    assert f"{FIRST}  {end} -> {third}" in err
    code, moved, err = await positions(config, "set", FIRST, str(third), "--yes")
    assert code == 0, err
    assert moved["shards"] == [{"shard": FIRST, "old": end, "new": str(third)}]
    assert "position_moved" in err
    (row,) = await stack.fetch("SELECT * FROM replicator_positions WHERE shard = $1", FIRST)
    assert (row["position"], row["epoch"]) == (str(third), 2)
    before = len(server.called("SubscribeToShard"))
    async with run_worker(config, tmp_path / "log-2") as worker:
        feed(server.stream, shop, 20)
        await stack.until_equal(shop.plain())
        assert await worker.stop() == 0
    starts = {
        call["ShardId"]: call["StartingPosition"].get("SequenceNumber")
        for call in server.called("SubscribeToShard")[before:]
    }
    assert starts[FIRST] == third.sequence_number

    for wrong, said in [
        (("set", FIRST, "yesterday"), "usage_position"),
        (("set", "shardId-00000000000x", "LATEST"), "did you mean"),
        (("set", FIRST, "30h ago"), "start_before_horizon"),
        (("reset", "--pipeline", "q"), "usage_pipeline"),
    ]:
        code, _, err = await positions(config, *wrong, "--yes")
        assert code != 0
        assert said in err


async def test_who_begins_to_read_while_the_question_stands_is_seen(
    stack: Stack, server: KinesisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: nobody looked again after the answer."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    shop, path = Shop(seed=64), stack.config()
    feed(server.stream, shop, 60)
    async with run_worker(path, tmp_path / "log") as worker:
        await stack.until_equal(shop.plain())
        assert await worker.stop() == 0
    await settle(stack)
    config = configuration.load(path, {})
    begun = "UPDATE replicator_positions SET owner = 'w/1', updated_at = now()"
    asked: list[Move] = []

    def somebody_begins(move: Move) -> bool:
        asked.append(move)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, stack.fetch(begun)).result()
        return True

    def somebody_leases(move: Move) -> bool:
        asked.append(move)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, lease()).result()
        return True

    async def lease() -> None:
        async with open_store(config) as store:
            rows = {row.shard_id: row for row in await store.rows("test/p")}
            assert await store.take(rows[FIRST], "w") is not None

    for confirm in (somebody_begins, somebody_leases):
        with pytest.raises(FatalError) as refused:
            await set_position(config, None, FIRST, "TRIM_HORIZON", confirm)
        assert refused.value.code == "shard_in_use"
        await settle(stack)
    assert len(asked) == 2
    rows = await stack.fetch("SELECT position FROM replicator_positions")
    assert "TRIM_HORIZON" not in {row["position"] for row in rows}


async def test_a_finished_shard_returns_only_when_no_worker_of_the_pipeline_runs(
    stack: Stack, server: KinesisServer, tmp_path: Path
) -> None:
    """Regression: workers that know that a shard is finished failed when it was not any more."""
    shop, config = Shop(seed=65), stack.config()
    feed(server.stream, shop, 60)
    async with run_worker(config, tmp_path / "log-1") as worker:
        await stack.until_equal(shop.plain())
        server.stream.split(FIRST)

        async def finished() -> bool:
            rows = await stack.fetch(
                "SELECT FROM replicator_positions WHERE shard = $1 AND position = 'SHARD_END'",
                FIRST,
            )
            return bool(rows)

        await until(finished)
        await settle(stack)
        code, _, err = await positions(config, "reset", "--shard", FIRST, "--yes")
        assert code == 1
        assert "stop every worker of the pipeline" in err
        assert await worker.stop() == 0
    await settle(stack)
    code, _, err = await positions(config, "reset", "--shard", FIRST, "--yes")
    assert code == 0, err
    async with run_worker(config, tmp_path / "log-2") as worker:
        await until(finished)
        assert await worker.stop() == 0


async def test_all_shards_go_back_to_the_oldest_record_once_their_worker_is_dead(
    stack: Stack, server: KinesisServer, tmp_path: Path
) -> None:
    shop, config = Shop(seed=63), stack.config()
    feed(server.stream, shop, 60)
    async with run_worker(config, tmp_path / "log-1") as worker:
        await stack.until_equal(shop.plain())
        await worker.stop(signal.SIGKILL)
    await settle(stack)
    code, moved, err = await positions(config, "reset", "--yes")
    assert code == 0, err
    assert "waiting" in err, "its leases were still there"
    assert {change["new"] for change in moved["shards"]} == {"TRIM_HORIZON"}
    async with run_worker(config, tmp_path / "log-2") as worker:
        feed(server.stream, shop, 20)
        await stack.until_equal(shop.plain())
        assert await worker.stop() == 0
    assert '"level": "error"' not in worker.log


async def test_positions_of_a_tables_own_stream(postgres_dsn: str, tmp_path: Path) -> None:
    stream = table_stream(2)
    first, second = (shard.id for shard in stream.shards())
    async with StreamsServer(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        source = {"kind": "streams"}
        sinks = [{"name": "w", "kind": "postgres", "dsn": postgres_dsn}]
        pipeline = {"name": "p", "tables": [TABLE], "source": source, "sinks": sinks}
        config = stack.config(pipelines=[pipeline])
        shop = Shop(seed=66)

        def append(count: int) -> None:
            for key, data in shop.changes(count):
                shard = (first, second)[zlib.crc32(key.encode()) % 2]
                stream.append(shard, [data])

        append(60)
        async with run_worker(config, tmp_path / "log-1") as worker:
            await stack.until_equal(shop.plain())
            code, _, err = await positions(config, "reset", "--yes")
            assert code == 1
            assert "shard_in_use" in err
            assert await worker.stop() == 0
        await settle(stack)
        code, shown, _ = await positions(config, "show")
        assert code == 0
        ends = {s: str(stream.continuation(s, stream.count(s))) for s in (first, second)}
        assert {row["shard"]: row["position"] for row in shown["positions"]} == ends
        third = stream.continuation(first, 3)
        now_us = time.time_ns() // 1_000
        for text, stored in [
            (str(third), str(third)),
            (f"AT_SEQUENCE_NUMBER:{third.sequence_number}",) * 2,
            ("1h ago", "AT_TIMESTAMP:"),
            ("LATEST", "AT_TIMESTAMP:"),
            ("TRIM_HORIZON", "TRIM_HORIZON"),
        ]:
            code, moved, err = await positions(config, "set", first, text, "--yes")
            assert code == 0, err
            (change,) = moved["shards"]
            assert change["new"].startswith(stored)
            if text == "1h ago":
                ago = now_us - int(change["new"].partition(":")[2])
                assert abs(ago - 3_600_000_000) < 60_000_000
        for wrong, said in [
            (("set", first, "30h ago"), "start_before_horizon"),
            (("set", second, str(third)), "start_not_found"),
        ]:
            code, _, err = await positions(config, *wrong, "--yes")
            assert code == 1
            assert said in err
        await positions(config, "set", first, str(third), "--yes")
        code, moved, err = await positions(config, "reset", "--shard", second, "--yes")
        assert code == 0, err
        before = len(server.called("GetShardIterator"))
        async with run_worker(config, tmp_path / "log-2") as worker:
            append(20)
            await stack.until_equal(shop.plain())
            assert await worker.stop() == 0
        asked = {
            call["ShardId"]: (call["ShardIteratorType"], call.get("SequenceNumber"))
            for call in server.called("GetShardIterator")[before:]
        }
        assert asked == {
            first: ("AFTER_SEQUENCE_NUMBER", third.sequence_number),
            second: ("TRIM_HORIZON", None),
        }
        assert '"level": "error"' not in worker.log
