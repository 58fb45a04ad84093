"""`replicator positions` over the wire: what it shows, whom it refuses, and what it moves."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.integration.test_check import replicator
from tests.integration.test_gap import FIRST, SECOND, feed, serve
from tests.shop import Shop
from tests.stack import Stack, run_worker

pytestmark = pytest.mark.timeout(180)


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
