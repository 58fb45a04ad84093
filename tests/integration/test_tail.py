"""`replicator tail` over the wire: whole batches as lines, from anywhere, and no trace left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from replicator.testing.streams_server import StreamsServer, table_stream
from tests.integration.test_check import replicator
from tests.integration.test_gap import FIRST, feed, serve
from tests.integration.test_streams_replication import Load, pipelines
from tests.shop import TABLE, Shop
from tests.stack import CREDENTIALS, PATIENCE_SECONDS, Stack, run_worker, until


@pytest.fixture
async def server() -> AsyncIterator[KinesisServer]:
    async with serve(ScriptedStream(2)) as running:
        yield running


@pytest.fixture
def config(server: KinesisServer, postgres_dsn: str, tmp_path: Path) -> Path:
    return Stack(server.url, postgres_dsn, tmp_path, None).config()


async def started(config: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "replicator", "tail", "--config", str(config), *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **CREDENTIALS},
    )  # fmt: skip


def lines(out: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


async def test_all_that_is_kept_parents_first_and_no_more_than_asked_for(
    server: KinesisServer, config: Path
) -> None:
    shop = Shop(seed=71)
    feed(server.stream, shop, 40)
    server.stream.split(FIRST)
    server.stream.append(server.stream.shards()[-1].id, [data for _, data in shop.changes(3)])
    code, out, err = await replicator(
        "tail", "p", "--config", config, "--from", "TRIM_HORIZON", "--limit", 43
    )
    assert code == 0, err
    assert len({json.dumps(line) for line in lines(out)}) == 43
    code, out, _ = await replicator(
        "tail", "--config", config, "--from", "2h ago", "--limit", 7, "--form", "dynamodb"
    )
    assert code == 0
    assert len(lines(out)) == 7
    assert all("S" in line["key"]["id"] for line in lines(out))
    assert server.called("RegisterStreamConsumer") == [], "no trace is left"


async def test_it_follows_beside_a_worker_until_it_is_stopped(
    server: KinesisServer, config: Path, postgres_dsn: str, tmp_path: Path
) -> None:
    shop = Shop(seed=72)
    stack = Stack(server.url, postgres_dsn, tmp_path, None)
    feed(server.stream, shop, 20)
    pattern = '{"eventName": ["REMOVE"]}'
    async with run_worker(config, tmp_path / "log") as worker:
        await stack.until_equal(shop.plain())
        process = await started(config, "p", "--from", "TRIM_HORIZON", "--filter", pattern)
        assert process.stdout is not None
        server.stream.append(FIRST, [b"no change"])
        for _ in range(3):
            feed(server.stream, shop, 100)
            line = json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE_SECONDS))
            assert line["event"] == "REMOVE"
        await stack.until_equal(shop.plain())
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert process.returncode == 1, "a record was refused"
        assert b'"malformed_json"' in err
        assert await worker.stop() == 0
    assert '"level": "error"' not in worker.log
    assert "subscription_taken" not in worker.log


async def test_a_reader_that_has_enough_ends_it_quietly(
    server: KinesisServer, config: Path
) -> None:
    shop = Shop(seed=73)
    feed(server.stream, shop, 20)
    process = await started(config, "--from", "TRIM_HORIZON")
    assert process.stdout is not None
    assert process.stderr is not None
    await asyncio.wait_for(process.stdout.readline(), PATIENCE_SECONDS)
    process.stdout._transport.close()  # type: ignore[attr-defined]

    async def ended() -> bool:
        feed(server.stream, shop, 20)
        return process.returncode is not None

    await until(ended)
    assert process.returncode == 0
    assert await process.stderr.read() == b""


async def test_a_stream_without_a_configuration(
    server: KinesisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(server.stream, Shop(seed=74), 5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    missing = tmp_path / "none.yaml"
    arguments = ("--config", missing, "--from", "TRIM_HORIZON", "--limit", 5)
    code, out, err = await replicator("tail", "--stream", TABLE, *arguments)
    assert code == 0, err
    assert len(lines(out)) == 5
    code, _, err = await replicator("tail", "p", "--stream", TABLE, *arguments)
    assert (code, "usage_tail" in err) == (2, True)
    code, _, err = await replicator("tail", "--stream", TABLE, *arguments[:2], "--from", "soon")
    assert (code, "--from" in err) == (2, True)
    code, _, err = await replicator("tail", "--stream", TABLE, *arguments[:2], "--from", "30h ago")
    assert (code, "start_before_horizon" in err) == (1, True)


async def test_a_tables_own_stream(postgres_dsn: str, tmp_path: Path) -> None:
    """Its records name no table: the source does."""
    async with StreamsServer(table_stream(2)) as server:
        load = Load(server, 75)
        load.feed(30)
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(**pipelines(stack))
        arguments = ("--config", config, "--from", "TRIM_HORIZON", "--limit", 30)
        code, out, err = await replicator("tail", *arguments)
    assert code == 0, err
    assert [line["table"] for line in lines(out)] == [TABLE] * 30
