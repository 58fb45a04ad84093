"""What a cluster says of its topics, where it says less than Kafka does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from replicator.model import TableSchema
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.kafka_topics import MESSAGE_BYTES_MAX, look, wanted


class Cluster:
    """Its topics, by the driver's answers."""

    def __init__(self, partitions: list[dict[str, Any]], settings: dict[str, str | None]) -> None:
        self._partitions, self._settings = partitions, settings

    async def describe_topics(self) -> list[dict[str, Any]]:
        return [{"topic": "t", "partitions": self._partitions}]

    async def describe_configs(self, _: Any) -> list[Any]:
        return [SimpleNamespace(resources=[(0, "", 2, "t", list(self._settings.items()))])]


@pytest.mark.parametrize(
    ("settings", "bytes_max"),
    [
        ({"retention.ms": "1"}, MESSAGE_BYTES_MAX),
        ({"segment.bytes": "104857600"}, MESSAGE_BYTES_MAX),
        ({"segment.bytes": "1000"}, 1000),
        ({"max.message.bytes": "2000", "segment.bytes": None}, 2000),
        ({"max.message.bytes": "2000", "segment.bytes": "3000"}, 2000),
    ],
)
async def test_a_service_may_tell_few_settings(
    settings: dict[str, str | None], bytes_max: int
) -> None:
    """Regression: services that only speak Kafka's protocol have no segments, for one."""
    config = KafkaConfig.model_validate({"name": "bus", "bootstrap_servers": "a:1"})
    needs = wanted(config, [TableSchema("t", (("id", "S"),))])
    client: Any = Cluster([{"replicas": [1, 2]}], settings)
    assert (await look(client, needs))["t"].bytes_max == bytes_max


async def test_a_topic_that_was_made_a_moment_ago_has_no_partitions_yet() -> None:
    config = KafkaConfig.model_validate({"name": "bus", "bootstrap_servers": "a:1"})
    needs = wanted(config, [TableSchema("t", (("id", "S"),))])
    client: Any = Cluster([], {"max.message.bytes": "2000"})
    found = (await look(client, needs))["t"]
    assert (found.partitions, found.risk) == (0, "")
