"""What an end-to-end test into Kafka needs: the configuration, and what careful readers see."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from replicator.testing.kafka_server import KafkaServer
from replicator.testing.stream import ScriptedStream
from tests.kafka_records import Record, committed
from tests.shop import TABLE


def kafka_config(
    folder: Path,
    url: str,
    server: KafkaServer,
    prefix: str,
    beside: Sequence[Mapping[str, Any]] = (),
    **sink: Any,
) -> Path:
    """A file that reads the stream `products` at `url` into topics of this prefix, and into the
    sinks `beside`."""
    settings = {
        "name": "test",
        "aws": {"region": "us-east-1", "endpoint_url": url},
        "pipelines": [
            {
                "name": "p",
                "tables": [TABLE],
                "source": {"kind": "kinesis", "stream": TABLE},
                "sinks": [
                    {
                        "name": "bus",
                        "kind": "kafka",
                        "bootstrap_servers": server.address,
                        "topic": f"{prefix}.{{table}}",
                        "positions_topic": f"{prefix}.positions",
                        "dead_letters_topic": f"{prefix}.dead",
                        "partitions": 3,
                        # Records bear the time of their change, and retention counts from there.
                        "topic_settings": {"retention.ms": "-1"},
                        "transaction_timeout_seconds": 5,
                        **sink,
                    },
                    *beside,
                ],
            }
        ],
        "limits": {"batch_delay_ms_max": 5},
        "leases": {"kind": "sqlite", "duration_seconds": 1},
        "admin": {"port": 0},
        "state_directory": str(folder / "state"),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def made(stream: ScriptedStream) -> set[str]:
    """The eventID of every change that the stream ever held; copies have the same."""
    return {
        json.loads(record.payload)["eventID"]
        for shard in stream.shards()
        for record in stream.records(shard.id, 0, stream.count(shard.id))
    }


async def seen(server: KafkaServer, prefix: str, *, is_patient: bool = True) -> list[Record]:
    """What a careful reader sees of the table's topic, tombstones left out."""
    found = await committed(server, f"{prefix}.{TABLE}", is_patient=is_patient)
    return [record for record in found if record.value is not None]


def check(found: list[Record], expected: set[str]) -> None:
    """Each change once, those of a key in their order."""
    times = Counter(record.headers["event_id"].decode() for record in found)
    assert {one for one, count in times.items() if count > 1} == set(), "some came twice"
    assert times.keys() == expected
    newest: dict[bytes, int] = {}
    for record in found:
        version = int(record.headers["version"])
        assert version >= newest.get(record.key, 0), f"{record.key!r} goes back"
        newest[record.key] = version
