"""`replicator run` into Postgres while the fault cloud does its worst: disorder, broken
connections, throttles, a split, a merge and a SIGKILL. In the end the table is the cloud's."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp

from replicator.demo.compare import plain_item, plain_row
from replicator.testing.cloud import SCRIPTS, Fault, FaultCloud
from replicator.testing.items import with_bytes
from tests.shop import TABLE
from tests.stack import Stack, run_worker, until

# Each broken subscription may cost five seconds, the least time between two of a shard: here
# each kind comes at one event, and never soon after another.
BROKEN = ("cut_in_frame", "bad_crc", "end", "cut", "end_in_frame", "exception")
SCRIPT = (
    *SCRIPTS["disorder"],
    Fault(kind="poison", share=0.005),
    Fault(kind="large", share=0.002),
    Fault(kind="empty_event", share=0.05),
    Fault(kind="small_event", share=0.05),
    Fault(kind="lag", share=0.01, seconds=3_600.0),
    Fault(kind="no_initial_response", share=0.3),
    *(Fault(kind=kind, calls=(10 + 15 * place,)) for place, kind in enumerate(BROKEN)),
    Fault(kind="throttle", operation="SubscribeToShard", calls=(2,)),
    Fault(kind="throttle", operation="DescribeStreamSummary", calls=(1,)),
    Fault(kind="error", operation="ListShards", calls=(1, 4)),
    Fault(kind="lose_answer", operation="RegisterStreamConsumer", calls=(1,)),
    Fault(kind="drop", operation="DescribeTable", calls=(1,)),
    Fault(kind="split", at_seconds=(4.0, 9.0)),
    Fault(kind="merge", at_seconds=(6.5, 9.0)),
)
SECONDS = 16


async def test_the_table_is_the_clouds_after_all_of_it(postgres_dsn: str, tmp_path: Path) -> None:
    async with (
        FaultCloud(seed=11, script=SCRIPT, rate=200, name=TABLE, heartbeat_seconds=1.0) as cloud,
        aiohttp.ClientSession(cloud.url) as control,
    ):
        stack = Stack(cloud.url, postgres_dsn, tmp_path, None)
        config = stack.config(limits={"batch_delay_ms_max": 20})
        async with run_worker(config, tmp_path / "killed") as worker:
            await asyncio.sleep(SECONDS / 2)
            assert await worker.stop(signal.SIGKILL) == -signal.SIGKILL
        async with run_worker(config, tmp_path / "log") as worker:
            await asyncio.sleep(SECONDS / 2)
            await control.post("/_control/workload", json={"rate": 0})
            async with control.get("/_control/oracle") as answer:
                oracle = (await answer.json())["items"]
            truth = {
                key: plain_item({name: with_bytes(value) for name, value in item.items()})
                for key, item in oracle.items()
            }
            assert len(truth) > 100

            async def is_all_there() -> bool:
                rows = await stack.fetch(f'SELECT id, item::text FROM "{TABLE}_live"')
                return {row["id"]: plain_row(row["item"]) for row in rows} == truth

            async def is_finished() -> bool:
                at = await stack.fetch("SELECT shard, position FROM replicator_positions")
                ended = {row["shard"] for row in at if row["position"] == "SHARD_END"}
                closed = {shard.id for shard in cloud.stream.shards() if not shard.is_open}
                return closed <= ended

            async def is_all_done() -> bool:
                return cloud.journal.counts.keys() >= {*BROKEN}

            await until(is_all_done)
            await until(is_finished, seconds=90)
            await until(is_all_there)
            assert await worker.stop() == 0
        async with control.get("/_control/state") as answer:
            done = (await answer.json())["faults"]
    assert {*BROKEN, "split", "merge", "throttle", "error", "drop", "lose_answer"} <= done.keys()
    (letters,) = await stack.fetch("SELECT count(*) AS n FROM replicator_dead_letters")
    assert letters["n"] == done["poison"]
