"""A worker that writes Avro and is killed, while the items get another attribute: other people's
readers see each change once, as it was."""

from __future__ import annotations

import json
import secrets
import signal
from pathlib import Path
from typing import Any

import fastavro

from replicator.testing.kafka_server import KafkaServer
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.registry_server import RegistryServer
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES
from tests.fault.test_kill import Feeder
from tests.integration.test_check import findings
from tests.kafka_stack import check, kafka_config, made, seen
from tests.registered import avro_document, avro_value, document, number_of
from tests.shop import TABLE, Shop
from tests.stack import run_worker, until


def images(stream: ScriptedStream) -> dict[str, tuple[Any, Any]]:
    """By event id, the plain items after and before each change."""
    found = {}
    for shard in stream.shards():
        for record in stream.records(shard.id, 0, stream.count(shard.id)):
            body = json.loads(record.payload)
            both = (body["dynamodb"].get(name) for name in ("NewImage", "OldImage"))
            new, old = (None if image is None else document(image) for image in both)
            found[body["eventID"]] = (new, old)
    return found


async def test_a_killed_worker_goes_on_with_its_schema(
    kafka_server: KafkaServer, tmp_path: Path
) -> None:
    prefix = f"t{secrets.token_hex(5)}"
    subject = f"{prefix}.{TABLE}-value"
    stream = ScriptedStream(2)
    shop = Shop(seed=31)
    feeder = Feeder(shop, stream)
    kinesis = KinesisServer(
        stream, name=TABLE, tables=TABLES, heartbeat_seconds=0.3, subscribe_interval_seconds=0.01
    )
    registry = RegistryServer(user="k", password="geheim", compatibility="FULL_TRANSITIVE")
    async with kinesis as server, registry:
        sink: dict[str, Any] = {
            "format": "avro",
            "registry": {"url": registry.url, "username": "k", "password": "geheim"},
        }
        config = kafka_config(tmp_path, server.url, kafka_server, prefix, **sink)
        code, found = await findings(config)
        assert code == 0
        assert any(f"subject {subject} has no version" in each["message"] for each in found["ok"])

        async def complete() -> bool:
            # Asked for before it is there, the topic would be an error.
            return "subscribed" in worker.log and len(
                await seen(kafka_server, prefix, is_patient=False)
            ) >= len(made(stream))

        for end, shop.filler in ((signal.SIGKILL, 0), (signal.SIGTERM, 40)):
            feeder.feed(60)
            async with run_worker(config, tmp_path / "log") as worker:
                await until(complete)
                await worker.stop(end)
        code, found = await findings(config)
        assert code == 0
        assert any(f"subject {subject}: version 2" in each["message"] for each in found["ok"])
    records = await seen(kafka_server, prefix)
    check(records, made(stream))
    assert "geheim" not in (tmp_path / "log").read_text()
    assert [len(json.loads(v.schema)["fields"]) for v in registry.versions[subject]] == [7, 7]
    expected = images(stream)
    for record in records:
        assert record.value is not None
        schema = registry.schema(number_of(record.value))
        value = avro_value(record.value, fastavro.parse_schema(schema))
        both = tuple(avro_document(value[name], schema) for name in ("item", "old"))
        assert both == expected[record.headers["event_id"].decode()]
    assert {number_of(record.value or b"") for record in records} == {1, 2}
