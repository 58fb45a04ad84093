"""`replicator run` from our own Kinesis server into CrateDB's stand-in, in a process of its own;
killed, started again, and checked before."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from replicator import config, preflight
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.crate_database import CrateDatabase, crate_database
from tests.engine import TABLES
from tests.shop import TABLE, Shop
from tests.stack import CREDENTIALS, Stack, run_worker, until


@pytest.fixture
async def database() -> AsyncIterator[CrateDatabase]:
    async with crate_database() as database:
        yield database


def _configured(stack: Stack, database: CrateDatabase, **sink: Any) -> Path:
    settings = {
        "name": "crate",
        "kind": "cratedb",
        "url": database.url,
        "default_schema": database.schema,
        "shards": 1,
        "replicas": "0",
        **sink,
    }
    source = {"kind": "kinesis", "stream": TABLE}
    pipeline = {"name": "p", "tables": [TABLE], "source": source, "sinks": [settings]}
    return stack.config(pipelines=[pipeline])


async def _live(database: CrateDatabase) -> dict[str, Any]:
    rows = await database.rows(TABLE)
    return {row["id"]: json.loads(row["exact"]) for row in rows if not row["deleted"]}


async def test_changes_arrive_through_kills(database: CrateDatabase, tmp_path: Path) -> None:
    stream, shop = ScriptedStream(3), Shop(seed=61)
    async with KinesisServer(stream, name=TABLE, tables=TABLES) as server:
        stack = Stack(server.url, "", tmp_path, None)
        path = _configured(stack, database)
        for run, number in enumerate([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]):
            async with run_worker(path, tmp_path / f"log{run}") as worker:
                for place, (_, data) in enumerate(shop.disturbed(300)):
                    stream.append(f"shardId-{place % 3:012d}", [data])
                if number is signal.SIGKILL:

                    async def begun() -> bool:
                        return bool(await database.rows(TABLE))

                    await until(begun)
                    await worker.stop(number)
                    continue

                async def equal() -> bool:
                    return await _live(database) == shop.plain()

                await until(equal)
                assert await worker.stop(number) == 0
        assert '"level": "error"' not in worker.log


async def test_check_looks_at_the_sink_and_makes_nothing(
    database: CrateDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with KinesisServer(name=TABLE, tables=TABLES) as server:
        stack = Stack(server.url, "", tmp_path, None)

        async def said(**sink: Any) -> dict[str, str]:
            loaded = config.load(_configured(stack, database, **sink), {})
            report = await asyncio.to_thread(preflight.check, loaded)
            return {each.message: each.level for each in report.findings if each.subject == "sink"}

        found = await said()
        assert list(found.values()) == ["ok", "todo", "todo", "todo", "todo"]
        assert any("CrateDB 6." in message for message in found)
        missing = await said(create=False)
        assert list(missing.values()) == ["ok", *["problem"] * 4]
        denied = await said(url="http://127.0.0.1:1")
        assert list(denied.values()) == ["problem"]
        assert await database.rows(TABLE) == []
