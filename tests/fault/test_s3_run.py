"""`replicator run` into S3: killed, begun again with another interval, and read back by others."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow.parquet as pq

from replicator.testing.json_server import Refusal
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.s3_server import Request, S3Server
from replicator.testing.stream import ScriptedStream
from tests.archive import plans
from tests.engine import TABLES
from tests.integration.test_check import replicator
from tests.shop import TABLE, Shop
from tests.stack import Stack, run_worker, until


class World:
    """A stream of two shards, a bucket, and the file that joins them."""

    def __init__(self, kinesis: KinesisServer, bucket: S3Server, folder: Path) -> None:
        self.stream, self.bucket, self.folder = kinesis.stream, bucket, folder
        self._stack = Stack(kinesis.url, "", folder, None)
        self.puts = 0
        bucket.after = self._count

    async def _count(self, request: Request) -> None:
        self.puts += request.operation == "PutObject"

    def config(self, **sink: Any) -> Path:
        settings: dict[str, Any] = {
            "name": "archive",
            "kind": "s3",
            "bucket": "archive",
            "prefix": "data/",
            "aws": {"endpoint_url": self.bucket.url, "region": "us-east-1"},
            **sink,
        }
        pipeline = {
            "name": "p",
            "tables": [TABLE],
            "source": {"kind": "kinesis", "stream": TABLE, "mode": "polling"},
            "sinks": [settings],
        }
        return self._stack.config(pipelines=[pipeline])

    def append(self, changes: list[tuple[str, bytes]]) -> None:
        # A key's changes are in one shard, as the service has them.
        for key, data in changes:
            self.stream.append(f"shardId-{sum(key.encode()) % 2:012d}", [data])

    async def until_ended(self, *, refused: int = 0) -> None:
        """Closes both shards: what is held is given then. So many requests find no service."""
        left = refused

        async def gone(_: Request) -> None:
            nonlocal left
            if left:
                left -= 1
                raise Refusal("ServiceUnavailable", "as scripted", 503)

        self.bucket.before = gone
        self.stream.close("shardId-000000000000")
        self.stream.close("shardId-000000000001")

        async def ended() -> bool:
            last = [plan for plan in plans(self.bucket) if "SHARD_END" in plan["after"]]
            named = {each["key"] for plan in last for each in plan["objects"]}
            return len(last) == 2 and named <= self.bucket.objects().keys()

        await until(ended)

    def files(self) -> Path:
        """The bucket's data as files."""
        for key, body in self.bucket.objects(prefix="data/").items():
            path = self.folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        return self.folder / "data"


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with (
        KinesisServer(ScriptedStream(2), name=TABLE, tables=TABLES) as kinesis,
        S3Server() as bucket,
    ):
        yield World(kinesis, bucket, folder)


async def test_each_change_is_there_once_whatever_was_killed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        shop = Shop(seed=61)
        changes: list[tuple[str, bytes]] = []
        for run, interval in enumerate([0.2, 1.0, 0.1]):
            some = shop.changes(200)
            shop._now_us += 1_500_000_000
            some += shop.changes(200)
            changes += some
            here.append([*some, *some[-20:]])
            before = here.puts
            config = here.config(buffering={"IntervalInSeconds": interval, "SizeInMBs": 1})
            async with run_worker(config, tmp_path / f"log{run}") as worker:

                async def written(least: int = before + 2 + run) -> bool:
                    return here.puts >= least

                await until(written)
                worker.process.kill()
                await worker.process.wait()
        async with run_worker(here.config(buffering={"interval_seconds": 0.2}), tmp_path / "log"):
            await here.until_ended(refused=10)
        folder = here.files()
    found = [
        orjson.loads(line)
        for path in sorted(folder.rglob("*.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    expected = [orjson.loads(data)["eventID"] for _, data in changes]
    assert Counter(change["eventID"] for change in found) == Counter(expected)
    (counted,) = (
        duckdb.connect()
        .execute(
            'SELECT count(*), count(DISTINCT "eventID"), count(DISTINCT dynamodb."Keys".id."S")'
            f" FROM read_json_auto('{folder}/**/*.gz', union_by_name = true)"
        )
        .fetchall()
    )
    assert counted == (1200, 1200, 50)
    # The order of a key's changes is that of its shard's plans.
    last: dict[str, Any] = {}
    for plan in reversed(plans(here.bucket)):
        for each in plan["objects"]:
            body = here.bucket.objects()[each["key"]]
            for line in gzip.decompress(body).splitlines():
                change = orjson.loads(line)["dynamodb"]
                last[change["Keys"]["id"]["S"]] = change.get("NewImage")
    assert {key: item for key, item in last.items() if item is not None} == shop.items


async def test_parquet_is_read_by_others(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        shop = Shop(seed=62)
        here.append(shop.changes(300))
        config = here.config(
            format="parquet",
            prefix="data/{table}/!{timestamp:yyyy-MM-dd}/",
            columns={"name": "text", "Stock": "bigint"},
            buffering={"interval_seconds": 0.2},
        )
        async with run_worker(config, tmp_path / "log"):
            await here.until_ended()
        folder = here.files()
    tables = [pq.read_table(path) for path in sorted(folder.rglob("*.parquet"))]
    ids = [each for table in tables for each in table.column("event_id").to_pylist()]
    assert (len(ids), len(set(ids))) == (300, 300)
    (counted,) = (
        duckdb.connect()
        .execute(
            'SELECT count(*), count(DISTINCT event_id), sum("Stock") > 0'
            f" FROM read_parquet('{folder}/**/*.parquet')"
        )
        .fetchall()
    )
    assert counted == (300, 300, True)


async def test_positions_are_shown_and_moved(tmp_path: Path) -> None:
    """Regression: `positions set` and `reset` ended in an error of ours at every S3 sink."""
    first, second = (f"shardId-{n:012d}" for n in range(2))

    async def positions(*arguments: str) -> tuple[int, dict[str, Any], str]:
        settings = ("--config", here.config(buffering={"interval_seconds": 0.2}))
        code, out, err = await replicator("positions", *arguments, *settings, "--output", "json")
        return code, orjson.loads(out) if out else {}, err

    def stored_at(at: datetime) -> None:
        for stored in here.bucket.buckets["archive"].values():
            stored.modified = at

    async with world(tmp_path) as here:
        here.append(Shop(seed=63).changes(100))
        here.stream.close(second)

        async def written() -> bool:
            return len({plan["shard_id"] for plan in plans(here.bucket) if plan["objects"]}) == 2

        config = here.config(buffering={"interval_seconds": 0.2})
        async with run_worker(config, tmp_path / "log-1") as worker:
            await until(written)
            assert await worker.stop() == 0
        # A moment ago, however long a process takes to begin.
        stored_at(datetime.now(UTC) + timedelta(hours=1))
        code, shown, _ = await positions("show")
        assert code == 0
        (row,) = (row for row in shown["positions"] if row["shard"] == first)
        assert (row["epoch"], row["stored_seconds"]) == (1, 0.0)
        code, _, err = await positions("set", first, "TRIM_HORIZON", "--yes")
        assert (code, "shard_in_use" in err) == (1, True), "its fence was raised a moment ago"
        stored_at(datetime.now(UTC) - timedelta(hours=1))
        code, moved, err = await positions("set", first, "TRIM_HORIZON", "--yes")
        assert code == 0, err
        assert [each["new"] for each in moved["shards"]] == ["TRIM_HORIZON"]
        code, moved, err = await positions("reset", "--yes")
        assert code == 0, err
        assert [each["shard"] for each in moved["shards"]] == [first, second]
        here.stream.close(first)

        async def ended() -> bool:
            return sum("SHARD_END" in plan["after"] for plan in plans(here.bucket)) == 3

        async with run_worker(config, tmp_path / "log-2") as worker:
            await until(ended)
            assert await worker.stop() == 0
    found = [
        orjson.loads(line)["eventID"]
        for _, body in here.bucket.objects(prefix="data/").items()
        for line in gzip.decompress(body).splitlines()
    ]
    assert {*Counter(found).values()} == {2}, "all of it was written again"
