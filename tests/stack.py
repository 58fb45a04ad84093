"""The real parts of an end-to-end test: a table and stream in the emulator, a Postgres, a
configuration that joins them, and `replicator run` as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import yaml

from replicator.aws import AWSSettings, aws_client
from tests.shop import TABLE

# Of a machine that does much beside.
PATIENCE_SECONDS = 90.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@dataclass(frozen=True)
class Stack:
    """One stream, one table, one database."""

    url: str
    dsn: str
    folder: Path
    kinesis: Any

    async def put(self, records: Sequence[tuple[str, bytes]]) -> None:
        """Puts records into the stream, partitioned by their key, in order."""
        for start in range(0, len(records), 100):
            answer = await self.kinesis.put_records(
                StreamName=TABLE,
                Records=[
                    {"Data": data, "PartitionKey": key}
                    for key, data in records[start : start + 100]
                ],
            )
            assert answer["FailedRecordCount"] == 0

    def config(self, *, mode: str | None = None, **overrides: Any) -> Path:
        """The configuration file, with the source's `mode`; `overrides` replace top-level keys."""
        source = {"kind": "kinesis", "stream": TABLE}
        settings = {
            "name": "test",
            "aws": {"region": "us-east-1", "endpoint_url": self.url},
            "pipelines": [
                {
                    "name": "p",
                    "tables": [TABLE],
                    "source": source if mode is None else {**source, "mode": mode},
                    "sinks": [{"name": "w", "kind": "postgres", "dsn": self.dsn}],
                }
            ],
            "leases": {"kind": "sqlite", "duration_seconds": 2},
            "admin": {"port": 0},
            "state_directory": str(self.folder / "state"),
            **overrides,
        }
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    async def live(self) -> dict[str, dict[str, Any]]:
        """What the view of live rows shows: id → item."""
        rows = await self.fetch(f'SELECT id, item::text FROM "{TABLE}_live"')
        return {row["id"]: orjson.loads(row["item"]) for row in rows}

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Rows of a query; none while the table or the server isn't there."""
        try:
            connection = await asyncpg.connect(self.dsn)
        except (OSError, asyncpg.PostgresError):
            return []
        try:
            return await connection.fetch(sql, *arguments)
        except asyncpg.UndefinedTableError:
            return []
        finally:
            await connection.close()

    async def until_equal(self, expected: dict[str, dict[str, Any]]) -> None:
        """Returns when the live rows are these; fails with the difference otherwise."""
        last: dict[str, dict[str, Any]] = {}

        async def equal() -> bool:
            nonlocal last
            last = await self.live()
            return last == expected

        try:
            await until(equal)
        except AssertionError:
            wrong = [
                key for key in expected.keys() | last.keys() if expected.get(key) != last.get(key)
            ]
            sample = [(key, expected.get(key), last.get(key)) for key in sorted(wrong)[:3]]
            busy = await self.fetch(
                "SELECT state, wait_event, query FROM pg_stat_activity WHERE state <> 'idle'"
            )
            raise AssertionError(
                f"{len(wrong)} of {len(expected)} items differ: {sample}; in Postgres: {busy}"
            ) from None


@asynccontextmanager
async def make_stack(url: str, dsn: str, folder: Path, *, shards: int = 2) -> AsyncIterator[Stack]:
    """The table `products` and a stream of the same name in an empty emulator."""
    os.environ.update(CREDENTIALS)
    settings = AWSSettings(region="us-east-1", endpoint_url=url)
    async with aws_client(settings, "dynamodb") as dynamodb:
        await dynamodb.create_table(
            TableName=TABLE,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        )
    async with aws_client(settings, "kinesis") as kinesis:
        await kinesis.create_stream(StreamName=TABLE, ShardCount=shards)

        async def active() -> bool:
            summary = await kinesis.describe_stream_summary(StreamName=TABLE)
            return bool(summary["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE")

        await until(active)
        yield Stack(url, dsn, folder, kinesis)


async def until(
    condition: Callable[[], Awaitable[bool]], seconds: float = PATIENCE_SECONDS
) -> None:
    """Returns when the condition holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


class Worker:
    """`replicator run` as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it has said so far, in whole lines."""
        said, end, _ = self._log.read_text(errors="replace").rpartition("\n")
        return said + end

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and gives the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def run_worker(config: Path, log: Path, **environment: str) -> AsyncIterator[Worker]:
    """Starts `replicator run`; killed at the end if it still runs."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "replicator",
            "run",
            "--log-level",
            "debug",
            "--config",
            str(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **CREDENTIALS, **environment},
        )
    worker = Worker(process, log)
    try:
        yield worker
    except BaseException:
        print(worker.log)
        raise
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
