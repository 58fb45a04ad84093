"""One pipeline into two databases, over the wire: one stands still or is away while the other
goes on, and one that joins says from where."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from replicator.testing.kafka_server import KafkaServer
from replicator.testing.servers import PostgresServer, start_postgres
from replicator.testing.stream import ScriptedStream
from tests.integration.test_admin import FIRST, SECOND, Admin, admin_of, put, serve
from tests.integration.test_check import replicator
from tests.kafka_stack import check, kafka_config, made, seen
from tests.shop import TABLE, Shop
from tests.stack import Stack, run_worker, until


@pytest.fixture
def other() -> Iterator[PostgresServer]:
    """A server of this test's own, to be stopped and stalled."""
    with start_postgres(durable=False) as server:
        yield server


def two_sinks(stack: Stack, dsn: str, **second: Any) -> Path:
    sinks = [
        {"name": "near", "kind": "postgres", "dsn": stack.dsn},
        {"name": "far", "kind": "postgres", "dsn": dsn, **second},
    ]
    path = stack.config()
    settings = yaml.safe_load(path.read_text())
    settings["pipelines"][0]["sinks"] = sinks
    path.write_text(yaml.safe_dump(settings))
    return path


async def sink(admin: Admin, name: str) -> dict[str, Any]:
    _, status = await admin.json("/status")
    (pipeline,) = status["pipelines"]
    return next(each for each in pipeline["sinks"] if each["name"] == name)


async def fails(admin: Admin, name: str) -> bool:
    return bool((await sink(admin, name))["failing"])


@pytest.mark.parametrize("how", ["stalled", "away"])
async def test_one_database_goes_on_while_the_other_is_down(
    how: str, postgres_dsn: str, other: PostgresServer, tmp_path: Path
) -> None:
    stream, shop = ScriptedStream(2), Shop(seed=91)
    async with serve(stream) as server:
        near = Stack(server.url, postgres_dsn, tmp_path, None)
        far = replace(near, dsn=other.database())
        async with run_worker(two_sinks(near, far.dsn), tmp_path / "log") as worker:
            admin = await admin_of(worker)
            put(stream, FIRST, shop, 50)
            await near.until_equal(shop.plain())
            await far.until_equal(shop.plain())
            assert (await sink(admin, "far"))["failing"] == ""

            async def goes_on() -> None:
                for _ in range(5):
                    put(stream, FIRST, shop, 20)
                    put(stream, SECOND, shop, 20)
                    await near.until_equal(shop.plain())

            async def is_named() -> bool:
                code, health = await admin.json("/healthz")
                assert code == 200
                return [each["sink"] for each in health["failing_sinks"]] == ["far"]

            if how == "stalled":
                with other.stalled():
                    await goes_on()
                    await until(is_named)
            else:
                other.stop("immediate")
                await goes_on()
                await until(is_named)
                _, metrics = await admin.get("/metrics")
                assert 'replicator_sink_failing{pipeline="p",sink="far"} 1.0' in metrics
                assert 'replicator_sink_failing{pipeline="p",sink="near"} 0.0' in metrics
                other.start()
            await far.until_equal(shop.plain())
            await goes_on()
            await far.until_equal(shop.plain())
            assert await worker.stop() == 0
        positions = "SELECT shard, position FROM replicator_positions ORDER BY shard"
        assert await near.fetch(positions) == await far.fetch(positions)


async def test_a_process_that_starts_while_one_database_is_away_goes_on(
    postgres_dsn: str, other: PostgresServer, tmp_path: Path
) -> None:
    stream, shop = ScriptedStream(2), Shop(seed=95)
    async with serve(stream) as server:
        near = Stack(server.url, postgres_dsn, tmp_path, None)
        far = replace(near, dsn=other.database())
        config = two_sinks(near, far.dsn)
        async with run_worker(config, tmp_path / "log") as worker:
            put(stream, FIRST, shop, 50)
            await near.until_equal(shop.plain())
            await far.until_equal(shop.plain())
            other.stop("immediate")
            await worker.stop(signal.SIGKILL)
        async with run_worker(config, tmp_path / "log2") as worker:
            admin = await admin_of(worker)
            put(stream, SECOND, shop, 50)
            await near.until_equal(shop.plain())
            await until(partial(fails, admin, "far"))
            other.start()
            await far.until_equal(shop.plain())
            assert await worker.stop() == 0


async def test_a_sink_that_joins_says_from_where(
    postgres_dsn: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    stream, shop = ScriptedStream(2), Shop(seed=92)
    async with serve(stream) as server:
        near = Stack(server.url, postgres_dsn, tmp_path, None)
        far = replace(near, dsn=postgres_server.database())
        put(stream, FIRST, shop, 50)
        alone = near.config()
        alone.write_text(alone.read_text().replace("name: w", "name: near"))
        async with run_worker(alone, tmp_path / "log") as worker:
            await near.until_equal(shop.plain())
            assert await worker.stop() == 0

        config = two_sinks(near, far.dsn)
        code, out, _ = await replicator("check", "--config", config)
        assert code == 1
        assert "sink far is new to pipeline p" in out
        code, out, _ = await replicator(
            "check", "--config", two_sinks(near, far.dsn, **{"from": "snapshot"})
        )
        assert code == 1
        assert "snapshots are not there yet" in out

        config = two_sinks(near, far.dsn, **{"from": "TRIM_HORIZON"})
        code, out, _ = await replicator("check", "--config", config)
        assert "sink far would join the others from TRIM_HORIZON" in out
        assert code == 0, out
        async with run_worker(config, tmp_path / "log2") as worker:
            await far.until_equal(shop.plain())
            put(stream, SECOND, shop, 50)
            await far.until_equal(shop.plain())
            await near.until_equal(shop.plain())
            code, out, _ = await replicator(
                "positions", "show", "--sink", "far", "--config", config
            )
            assert code == 0
            assert out.count("p/far  ") == 2
            assert "p/near" not in out
            assert await worker.stop() == 0
        code, _, err = await replicator("positions", "reset", "--yes", "--config", config)
        assert code == 2
        assert "name a sink with --sink: near, far" in err
        await far.fetch("UPDATE replicator_positions SET updated_at = now() - interval '1 min'")
        code, out, err = await replicator(
            "positions", "reset", "--yes", "--sink", "far", "--shard", FIRST, "--config", config
        )
        assert code == 0, err
        assert "TRIM_HORIZON" in out
        code, out, _ = await replicator("status", "--config", config)
        assert code == 0
        assert "p/near: 2 shards" in out
        assert "p/far: 2 shards" in out


async def test_two_sinks_of_one_database_have_positions_of_their_own(
    postgres_dsn: str, tmp_path: Path
) -> None:
    stream, shop = ScriptedStream(2), Shop(seed=93)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = two_sinks(stack, postgres_dsn, table="copy_of_{table}")
        async with run_worker(config, tmp_path / "log") as worker:
            for shard_id in (FIRST, SECOND):
                put(stream, shard_id, shop, 50)
                await stack.until_equal(shop.plain())
            copied = f"SELECT id, item::text FROM copy_of_{TABLE}_live"

            async def equal() -> bool:
                rows = await stack.fetch(copied)
                return {row["id"]: json.loads(row["item"]) for row in rows} == shop.plain()

            await until(equal)
            assert "fence_lost" not in worker.log
            assert await worker.stop() == 0
        rows = await stack.fetch("SELECT pipeline FROM replicator_positions ORDER BY pipeline")
        assert [row["pipeline"] for row in rows] == ["test/p/far"] * 2 + ["test/p/near"] * 2


async def test_a_table_and_a_topic_from_one_read(
    postgres_dsn: str, kafka_server: KafkaServer, tmp_path: Path
) -> None:
    """The topic keeps a memory that is read again after a failure; the table skips it."""
    stream, shop = ScriptedStream(2), Shop(seed=94)
    prefix = f"several-{secrets.token_hex(4)}"
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = kafka_config(tmp_path, server.url, kafka_server, prefix)
        settings = yaml.safe_load(config.read_text())
        sinks = settings["pipelines"][0]["sinks"]
        sinks.append({"name": "warehouse", "kind": "postgres", "dsn": postgres_dsn})
        config.write_text(yaml.safe_dump(settings))

        async def in_the_topic() -> bool:
            found = await seen(kafka_server, prefix)
            return {r.headers["event_id"].decode() for r in found} == made(stream)

        for run in range(2):
            async with run_worker(config, tmp_path / f"log{run}") as worker:
                admin = await admin_of(worker)
                # Between shards nobody promises an order.
                for shard_id in (FIRST, SECOND):
                    put(stream, shard_id, shop, 50)
                    await until(in_the_topic)
                await stack.until_equal(shop.plain())
                with kafka_server.stalled():
                    for _ in range(5):
                        put(stream, FIRST, shop, 20)
                        await stack.until_equal(shop.plain())
                    await until(partial(fails, admin, "bus"))
                await until(in_the_topic)
                assert (await sink(admin, "warehouse"))["errors"] == {}
                await worker.stop(signal.SIGTERM if run else signal.SIGKILL)
        check(await seen(kafka_server, prefix), made(stream))
        assert await stack.live() == shop.plain()
