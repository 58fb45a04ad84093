"""`replicator run` on DynamoDB Streams into Postgres: rotations, splits, pages that are empty,
small or cut, expired iterators, throttles and a SIGKILL. In the end the table is the cloud's."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from replicator.demo.compare import compare, plain_item, plain_row
from replicator.testing.cloud import Fault, StreamsCloud
from replicator.testing.items import with_bytes
from tests.shop import TABLE
from tests.stack import Stack, run_worker, until

READ = "GetRecords"
CALLS = ("throttle", "error", "drop", "lose_answer", "cut_in_answer", "expire_iterator")
SCRIPT = (
    Fault(kind="equal_instant", share=0.02, count=3),
    Fault(kind="ttl", share=0.05),
    *(Fault(kind=kind, operation=READ, calls=(4 + 7 * n, 60)) for n, kind in enumerate(CALLS)),
    Fault(kind="empty_page", operation=READ, share=0.2),
    Fault(kind="small_page", operation=READ, share=0.1),
    Fault(kind="error", operation="DescribeStream", calls=(3,)),
    Fault(kind="rotate", at_seconds=(2.0, 5.0)),
    Fault(kind="split", at_seconds=(3.0, 6.0)),
)
SECONDS = 7


async def test_the_table_is_the_clouds_after_all_of_it(postgres_dsn: str, tmp_path: Path) -> None:
    async with StreamsCloud(seed=11, script=SCRIPT, rate=200, name=TABLE) as cloud:
        stack = Stack(cloud.url, postgres_dsn, tmp_path, None)
        sink = {"name": "w", "kind": "postgres", "dsn": postgres_dsn}
        source = {"kind": "streams", "idle_seconds_max": 0.5}
        pipeline = {"name": "p", "tables": [TABLE], "source": source, "sinks": [sink]}
        config = stack.config(pipelines=[pipeline])
        async with run_worker(config, tmp_path / "killed") as worker:
            await asyncio.sleep(SECONDS / 2)
            assert await worker.stop(signal.SIGKILL) == -signal.SIGKILL
        async with run_worker(config, tmp_path / "log") as worker:
            await asyncio.sleep(SECONDS / 2)

            async def is_all_done() -> bool:
                return cloud.journal.counts.keys() >= {*CALLS, "rotate", "split", "ttl"}

            await until(is_all_done)
            cloud.pause_workload()
            truth = {
                key: plain_item({name: with_bytes(value) for name, value in item.items()})
                for key, item in cloud.workload.history.items.items()
            }
            assert len(truth) > 100

            async def is_all_there() -> bool:
                rows = await stack.fetch(f'SELECT id, item::text FROM "{TABLE}_live"')
                return compare(truth, {row["id"]: plain_row(row["item"]) for row in rows}).is_equal

            async def is_finished() -> bool:
                at = await stack.fetch("SELECT shard, position FROM replicator_positions")
                ended = {row["shard"] for row in at if row["position"] == "SHARD_END"}
                return {shard.id for shard in cloud.stream.shards() if not shard.is_open} <= ended

            await until(is_all_there)
            await until(is_finished)
            assert await worker.stop() == 0
    assert await stack.fetch("SELECT 1 FROM replicator_dead_letters") == []
