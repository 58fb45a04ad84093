"""What a topic keeps, by its settings, or by those of the broker that will make it."""

from __future__ import annotations

import pytest

from replicator.sink.kafka_kept import Kept, of_new


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, Kept()),
        ({"retention.ms": "-1", "message.timestamp.before.max.ms": "-1"}, Kept()),
        ({"retention.ms": "5", "cleanup.policy": "compact"}, Kept()),
        ({"retention.ms": "5", "cleanup.policy": "compact,delete"}, Kept(5)),
        ({"retention.ms": "5", "message.timestamp.type": "LogAppendTime"}, Kept()),
        (
            {
                "message.timestamp.before.max.ms": "9223372036854775807",
                "message.timestamp.difference.max.ms": "7",
            },
            Kept(None, 7, "message.timestamp.difference.max.ms"),
        ),
        ({"message.timestamp.before.max.ms": "7"}, Kept(None, 7)),
        # Of what only speaks Kafka's protocol.
        ({"retention.ms": "", "message.timestamp.before.max.ms": "none"}, Kept()),
        ({"retention.ms": "1e9"}, Kept()),
    ],
)
def test_what_a_topic_keeps(settings: dict[str, str], kept: Kept) -> None:
    assert Kept.by(settings) == kept


@pytest.mark.parametrize(
    ("broker", "retention"),
    [
        ({"log.retention.hours": "168"}, "604800000"),
        ({"log.retention.hours": "168", "log.retention.minutes": "1"}, "60000"),
        ({"log.retention.hours": "168", "log.retention.ms": "-1"}, "-1"),
        ({"log.retention.hours": "-1"}, "-1"),
        ({"log.retention.hours": "168", "log.retention.ms": "none"}, "-1"),
        ({}, None),
    ],
)
def test_a_new_topic_has_its_brokers_retention(
    broker: dict[str, str], retention: str | None
) -> None:
    assert of_new({}, broker).get("retention.ms") == retention
    assert of_new({"retention.ms": "3"}, broker)["retention.ms"] == "3"


def test_the_setting_that_refuses_is_named() -> None:
    """Brokers that have both go by the older one as long as the newer isn't set."""
    kept = Kept.by({"message.timestamp.difference.max.ms": "7200000"})
    (found,) = kept.warnings("products", 3 * 3_600_000_000)
    assert "message.timestamp.difference.max.ms=7200000" in found.message
