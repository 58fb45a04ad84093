"""`replicator run` into Kafka, a compacted topic and S3 while shards split and merge, and copies
and late changes come in children of the shard that had the change, and a SIGKILL: each change is
there once, and the compacted topic ends with the table."""

from __future__ import annotations

import asyncio
import gzip
import json
import secrets
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from replicator.testing.cloud import Fault, FaultCloud
from replicator.testing.kafka_server import KafkaServer
from replicator.testing.s3_server import S3Server
from tests.kafka_records import Record, committed
from tests.kafka_stack import kafka_config
from tests.shop import TABLE
from tests.stack import run_worker, until

SCRIPT = (
    Fault(kind="duplicate", share=0.5, count=400),
    Fault(kind="redeliver", share=0.05, count=400),
    Fault(kind="reorder", share=0.05, count=50),
    Fault(kind="equal_instant", share=0.02, count=3),
    Fault(kind="milliseconds", share=0.1),
    Fault(kind="poison", share=0.005),
    Fault(kind="split", at_seconds=(3.0, 5.0, 7.0, 10.0)),
    Fault(kind="merge", at_seconds=(6.0, 9.0, 11.0)),
)
SECONDS = 14


async def test_each_change_is_there_once_across_reshards(
    kafka_server: KafkaServer, tmp_path: Path
) -> None:
    prefix = f"t{secrets.token_hex(5)}"
    cloud = FaultCloud(seed=8, script=SCRIPT, rate=200, name=TABLE, heartbeat_seconds=0.5)
    async with S3Server() as bucket, cloud:
        config = kafka_config(
            tmp_path, cloud.url, kafka_server, prefix, beside(bucket, kafka_server, prefix),
            format="change",
        )  # fmt: skip
        async with run_worker(config, tmp_path / "killed") as worker:
            await asyncio.sleep(SECONDS / 2)
            await worker.stop(signal.SIGKILL)
        async with run_worker(config, tmp_path / "log") as worker:
            await asyncio.sleep(SECONDS / 2)
            cloud.pause_workload()
            last = [shard.id for shard in cloud.stream.shards() if shard.is_open]
            for shard_id in last:
                cloud.stream.close(shard_id)

            async def is_finished() -> bool:
                """At every sink."""
                events = [json.loads(line) for line in worker.log.splitlines() if "finis" in line]
                return {*last} <= {event["shard"] for event in events}

            await until(is_finished, seconds=90)
            assert await worker.stop() == 0
    assert crossed(cloud) > 20, "copies come in children"
    made = Counter(dict.fromkeys(map(fact, changes(cloud)), 1))
    assert len(made) == cloud.workload.history.made
    found = await kafka(kafka_server, f"{prefix}.{TABLE}")
    assert Counter(fact(change) for _, change in found) == made
    assert Counter(map(fact, objects(bucket))) == made
    in_order([(key, change) for key, change in found if not change.get("late")])
    compacted = await kafka(kafka_server, f"{prefix}.compact.{TABLE}")
    in_order(compacted)
    assert Counter(fact(change) for _, change in compacted) <= made
    newest = {key: change["dynamodb"].get("NewImage") for key, change in compacted}
    items = [item for item in newest.values() if item is not None]
    assert {item["id"]["S"]: item for item in items} == cloud.workload.history.items


def beside(bucket: S3Server, server: KafkaServer, prefix: str) -> list[dict[str, Any]]:
    return [
        {
            "name": "newest",
            "kind": "kafka",
            "bootstrap_servers": server.address,
            "topic": f"{prefix}.compact.{{table}}",
            "positions_topic": f"{prefix}.positions",
            "dead_letters_topic": f"{prefix}.dead",
            "cleanup": "compact",
            "format": "change",
            "transaction_timeout_seconds": 5,
        },
        {
            "name": "archive",
            "kind": "s3",
            "bucket": "archive",
            "prefix": "data/",
            "buffering": {"interval_seconds": 0.3},
            "aws": {"endpoint_url": bucket.url, "region": "us-east-1"},
        },
    ]


def fact(change: dict[str, Any]) -> str:
    """What a change says, which every copy of it says, too."""
    body = change["dynamodb"]
    said = [body.get(name) for name in ("Keys", "NewImage", "OldImage")]
    return json.dumps([change["eventName"], *said], sort_keys=True)


def changes(cloud: FaultCloud) -> Iterable[dict[str, Any]]:
    for shard in cloud.stream.shards():
        for record in cloud.stream.records(shard.id, 0, cloud.stream.count(shard.id)):
            if record.payload.startswith(b'{"awsRegion'):
                yield json.loads(record.payload)


def crossed(cloud: FaultCloud) -> int:
    """Changes of which copies lie in several shards."""
    places: dict[str, set[str]] = {}
    for shard in cloud.stream.shards():
        for record in cloud.stream.records(shard.id, 0, cloud.stream.count(shard.id)):
            if record.payload.startswith(b'{"awsRegion'):
                places.setdefault(fact(json.loads(record.payload)), set()).add(shard.id)
    return sum(len(shards) > 1 for shards in places.values())


async def kafka(server: KafkaServer, topic: str) -> list[tuple[bytes, dict[str, Any]]]:
    found: list[Record] = await committed(server, topic)
    return [(record.key, json.loads(record.value)) for record in found if record.value is not None]


def objects(bucket: S3Server) -> Iterable[dict[str, Any]]:
    for body in bucket.objects(prefix="data/").values():
        yield from map(json.loads, gzip.decompress(body).splitlines())


def in_order(found: list[tuple[bytes, dict[str, Any]]]) -> None:
    """Those of a key, one after the other."""
    last: dict[bytes, int] = {}
    for key, change in found:
        body = change["dynamodb"]
        is_exact = body["ApproximateCreationDateTimePrecision"] == "MICROSECOND"
        ms = body["ApproximateCreationDateTime"] // (1_000 if is_exact else 1)
        assert ms >= last.get(key, 0), f"{key!r} goes back"
        last[key] = ms
