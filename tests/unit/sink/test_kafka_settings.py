from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from replicator.aws import AWSSettings
from replicator.errors import FatalError
from replicator.sink.kafka_client import options
from replicator.sink.kafka_settings import KafkaConfig


def config(**settings: Any) -> KafkaConfig:
    return KafkaConfig.model_validate({"name": "bus", **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"topic": "a b"}, "names no topic"),
        ({"topic": "{tabel}"}, "names no topic"),
        ({"topic": "all", "cleanup": "compact"}, "each table needs a topic of its own"),
        ({"cleanup": "compact", "delivery": "at_least_once"}, "needs delivery: exactly_once"),
        ({"positions_topic": "a/b"}, "pattern"),
        ({"brokers": "x"}, "unknown key 'brokers'"),
        ({"sasl": {"mechanism": "PLAIN", "username": "u"}}, "needs username and password"),
        ({"sasl": {"mechanism": "OAUTHBEARER", "username": "u"}}, "takes no username"),
        ({"reorder_window_seconds": 5, "duplicate_window_seconds": 1}, "must not be less"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**settings)


def test_a_topic_is_named_after_its_table() -> None:
    assert config(topic="cdc.{table}.v1").topic_of("orders") == "cdc.orders.v1"
    assert config(topic="all").topic_of("orders") == "all"


def test_servers_come_from_the_file_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "c:1")
    assert config(bootstrap_servers="a:1, b:2").servers == ["a:1", "b:2"]
    assert config().servers == ["c:1"]
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS")
    with pytest.raises(FatalError) as missing:
        options(config(), AWSSettings())
    assert missing.value.code == "kafka_settings"


def test_secrets_are_masked_and_reach_the_driver() -> None:
    sasl = {"mechanism": "SCRAM-SHA-512", "username": "u", "password": "hush"}
    made = config(bootstrap_servers="a:1", sasl=sasl, tls={})
    assert "hush" not in repr(made) + str(made.model_dump(mode="json"))
    given = options(made, AWSSettings())
    assert (given["security_protocol"], given["sasl_plain_password"]) == ("SASL_SSL", "hush")
    assert options(config(bootstrap_servers="a:1"), AWSSettings())["security_protocol"] == (
        "PLAINTEXT"
    )
