"""`replicator run` from our own Kinesis server into two tables of Iceberg, in a process of its own;
killed and started again."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import NoSuchTableError

from replicator import config, preflight, status
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES
from tests.lake import rows, settings
from tests.shop import TABLE, Shop
from tests.stack import CREDENTIALS, Stack, run_worker, until

LOG, ITEMS = ("lake", "changes"), ("lake", TABLE)


def _configured(stack: Stack, place: Path, **changes: Any) -> Path:
    common = {
        "kind": "iceberg",
        "catalog": dict(settings(place).catalog),
        "commit": {"seconds": 0.3, "mb": 1},
        **changes,
    }
    sinks = [
        {"name": "log", "table": "lake.changes", **common},
        {"name": "items", "table": "lake.{table}", "mode": "state", "buckets": 2, **common},
    ]
    source = {"kind": "kinesis", "stream": TABLE}
    pipeline = {"name": "p", "tables": [TABLE], "source": source, "sinks": sinks}
    return stack.config(pipelines=[pipeline])


def _found(place: Path, name: tuple[str, ...]) -> pa.Table:
    try:
        return rows(place, name)
    except NoSuchTableError:
        return pa.table({"event_id": [], "item": [], "id": [], "deleted": []})


def _live(place: Path) -> dict[str, Any]:
    items = _found(place, ITEMS).to_pylist()
    return {row["id"]: json.loads(row["item"]) for row in items if not row["deleted"]}


async def test_changes_arrive_through_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    stream, shop = ScriptedStream(3), Shop(seed=61)
    ids: set[str] = set()
    async with KinesisServer(stream, name=TABLE, tables=TABLES) as server:
        stack = Stack(server.url, "", tmp_path, None)
        path = _configured(stack, tmp_path)
        for run, number in enumerate([signal.SIGKILL, signal.SIGTERM]):
            before = await asyncio.to_thread(_found, tmp_path, LOG)
            async with run_worker(path, tmp_path / f"log{run}") as worker:
                for key, data in shop.disturbed(200):
                    stream.append(f"shardId-{sum(key.encode()) % 3:012d}", [data])
                    ids.add(json.loads(data)["eventID"])
                if number is signal.SIGKILL:

                    async def begun(count: int = len(before)) -> bool:
                        return len(await asyncio.to_thread(_found, tmp_path, LOG)) > count

                    await until(begun)
                    await worker.stop(number)
                    continue

                async def equal() -> bool:
                    log = await asyncio.to_thread(_found, tmp_path, LOG)
                    items = await asyncio.to_thread(_live, tmp_path)
                    return items == shop.plain() and set(log["event_id"].to_pylist()) >= ids

                await until(equal)
                assert await worker.stop(number) == 0
        times = Counter(_found(tmp_path, LOG)["event_id"].to_pylist())
        assert set(times) == ids
        assert set(times.values()) == {1}
        report = await asyncio.to_thread(status.status, config.load(path, {}))
        assert report.as_text().count("p/log: 3 shards, 0 dead letters") == 1
        assert '"level": "error"' not in worker.log


async def test_check_looks_at_the_sink_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with KinesisServer(name=TABLE, tables=TABLES) as server:
        stack = Stack(server.url, "", tmp_path, None)

        async def said(**sink: Any) -> list[str]:
            loaded = config.load(_configured(stack, tmp_path, **sink), {})
            report = await asyncio.to_thread(preflight.check, loaded)
            return [each.level for each in report.findings if "sink" in each.subject]

        assert await said() == ["ok", "todo", "todo"] * 2
        assert await said(create=False) == ["ok", "problem", "problem"] * 2
        with pytest.raises(NoSuchTableError):
            rows(tmp_path, LOG)
