"""Law 9 over the wire: a worker that was away for longer than the stream keeps its records
stops the shards that may have lost some, and says so. The rest goes on."""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES
from tests.integration.test_check import findings, replicator
from tests.shop import TABLE, Shop
from tests.stack import Stack, Worker, run_worker, until

FIRST, SECOND = "shardId-000000000000", "shardId-000000000001"
HOUR_SECONDS = 3_600


def serve(stream: ScriptedStream) -> KinesisServer:
    return KinesisServer(
        stream,
        name=TABLE,
        tables=TABLES,
        heartbeat_seconds=0.2,
        subscribe_interval_seconds=0.05,
    )


def feed(stream: ScriptedStream, shop: Shop, count: int) -> None:
    for key, data in shop.changes(count):
        shards = [shard.id for shard in stream.shards()]
        stream.append(shards[zlib.crc32(key.encode()) % len(shards)], [data])


def gaps(worker: Worker) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == "gap"]


async def test_a_worker_that_was_away_for_too_long_stops_and_says_so(
    postgres_dsn: str, tmp_path: Path
) -> None:
    shop = Shop(seed=51)
    stream = ScriptedStream(2, trims_silently=True)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config()
        feed(stream, shop, 100)
        async with run_worker(config, tmp_path / "log-1") as worker:
            await stack.until_equal(shop.plain())
            assert await worker.stop() == 0
        assert gaps(worker) == []

        # 25 hours later. The second shard was read until now, as far as its position says.
        before = stream.count(FIRST)
        feed(stream, shop, 100)
        server.clock_ahead_seconds = 25 * HOUR_SECONDS
        stream.trim(FIRST, before + 5)
        await stack.fetch(
            "UPDATE replicator_positions SET tip_at = now() + interval '25 h' WHERE shard = $1",
            SECOND,
        )
        async with run_worker(config, tmp_path / "log-2") as worker:

            async def second_goes_on() -> bool:
                rows = await stack.fetch(
                    "SELECT position FROM replicator_positions WHERE shard = $1", SECOND
                )
                return bool(
                    rows[0]["position"] == str(stream.continuation(SECOND, stream.count(SECOND)))
                )

            await until(second_goes_on)

            async def is_said() -> bool:
                return bool(gaps(worker))

            await until(is_said)
            (gap,) = gaps(worker)
            assert (gap["shard"], gap["code"]) == (FIRST, "position_aged")
            assert gap["pipeline"] in gap["alarm"]
            assert f"replicator positions reset --pipeline p --shard {FIRST}" in gap["action"]
            assert await worker.stop() == 0
        rows = await stack.fetch(
            "SELECT position FROM replicator_positions WHERE shard = $1", FIRST
        )
        assert rows[0]["position"] == str(stream.continuation(FIRST, before)), "it stands still"

        # The operator accepts the loss; the clocks of this test agree again.
        await stack.fetch("UPDATE replicator_positions SET updated_at = now() - interval '1 min'")
        server.clock_ahead_seconds = 0.0
        code, _, err = await replicator(
            "positions", "reset", "--shard", FIRST, "--yes", "--config", config
        )
        assert code == 0, err
        async with run_worker(config, tmp_path / "log-3") as worker:

            async def first_goes_on() -> bool:
                rows = await stack.fetch(
                    "SELECT position FROM replicator_positions WHERE shard = $1", FIRST
                )
                return bool(
                    rows[0]["position"] == str(stream.continuation(FIRST, stream.count(FIRST)))
                )

            await until(first_goes_on)
            assert await worker.stop() == 0
        assert gaps(worker) == []


@pytest.mark.parametrize("mode", ["polling", "fan_out"])
async def test_an_idle_shard_whose_last_record_was_trimmed_has_no_gap(
    mode: str, postgres_dsn: str, tmp_path: Path
) -> None:
    """A shard that is polled keeps the number of its last record, however old that is. The
    service takes it, and the tip time proves that nothing came since."""
    shop = Shop(seed=52)
    stream = ScriptedStream(1, trims_silently=True)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(mode=mode)
        feed(stream, shop, 100)
        async with run_worker(config, tmp_path / "log-1") as worker:
            await stack.until_equal(shop.plain())
            assert await worker.stop() == 0
        # As after a day of answers at the tip. A number before the last: both are trimmed.
        last = stream.continuation(FIRST, stream.count(FIRST) - 1)
        await stack.fetch(
            "UPDATE replicator_positions SET last_arrival_at = now() - interval '30 h',"
            " tip_at = now() - interval '1 min', position = $1",
            str(last),
        )
        stream.trim(FIRST, stream.count(FIRST))
        async with run_worker(config, tmp_path / "log-2") as worker:
            feed(stream, shop, 20)
            await stack.until_equal(shop.plain())
            assert await worker.stop() == 0
        assert gaps(worker) == []
        assert '"level": "error"' not in worker.log
        asked = [call["ShardIteratorType"] for call in server.called("GetShardIterator")]
        if mode == "polling":
            assert asked[-1] == "AFTER_SEQUENCE_NUMBER"
            # A day later still, with nobody there meanwhile: that is one.
            await stack.fetch("UPDATE replicator_positions SET tip_at = now() - interval '25 h'")
            await stack.fetch("UPDATE replicator_positions SET last_arrival_at = tip_at")
            async with run_worker(config, tmp_path / "log-3") as worker:

                async def is_said() -> bool:
                    return bool(gaps(worker))

                await until(is_said)
                assert await worker.stop() == 0


async def test_a_start_at_the_oldest_record_may_be_restarted_in_its_first_minutes(
    postgres_dsn: str, tmp_path: Path
) -> None:
    shop = Shop(seed=53)
    stream = ScriptedStream(1, trims_silently=True)
    # As on a stream that is busy all day: the oldest record goes in half a minute.
    old_ms = time.time_ns() // 10**6 - (24 * 3_600 - 30) * 1_000
    stream.append(FIRST, [data for _, data in shop.changes(50)], arrival_ms=old_ms)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config()

        async def run(log: str) -> Worker:
            async with run_worker(config, tmp_path / log) as worker:
                await stack.until_equal(shop.plain())
                assert await worker.stop() == 0
            # As if more had been there that it hadn't read.
            await stack.fetch("UPDATE replicator_positions SET tip_at = last_arrival_at")
            return worker

        await run("log-1")
        feed(stream, shop, 20)
        assert gaps(await run("log-2")) == []
        await stack.fetch(
            "UPDATE replicator_positions SET begun_at = now() - interval '30 min',"
            " last_arrival_at = to_timestamp($1::float8), tip_at = to_timestamp($1::float8)",
            old_ms / 1_000,
        )
        async with run_worker(config, tmp_path / "log-3") as worker:

            async def is_said() -> bool:
                return bool(gaps(worker))

            await until(is_said)
            assert await worker.stop() == 0


async def test_a_start_before_the_horizon_is_refused_by_check_and_run(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with serve(ScriptedStream(1)) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)

        def config(start: str, **more: Any) -> Path:
            sinks = [{"name": "w", "kind": "postgres", "dsn": postgres_dsn}]
            source = {"kind": "kinesis", "stream": TABLE, "start": start}
            pipeline = {"name": "p", "tables": [TABLE], "source": source, "sinks": sinks, **more}
            return stack.config(pipelines=[pipeline])

        _, found = await findings(config("26h ago"))
        (problem,) = (one for one in found["problem"] if one["subject"] == "start")
        assert problem["code"] == "start_before_horizon"
        code, _, err = await replicator("run", "--config", tmp_path / "config.yaml")
        assert code == 1
        assert "start_before_horizon" in err
        _, found = await findings(config("23h ago", on_gap="snapshot"))
        problems = {one["subject"]: one for one in found["problem"]}
        assert "start" not in problems
        assert problems["on_gap"]["code"] == "config_on_gap"
        assert "don't exist yet" in problems["on_gap"]["message"]
        code, _, err = await replicator("run", "--config", tmp_path / "config.yaml")
        assert code != 0
        assert "config_on_gap" in err
