from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from replicator.aws import AWSSettings
from replicator.errors import FatalError
from replicator.sink.kafka_client import options
from replicator.sink.kafka_settings import KafkaConfig

REGISTRY = {"url": "https://registry:8081"}


def config(**settings: Any) -> KafkaConfig:
    return KafkaConfig.model_validate({"name": "bus", **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"topic": "a b"}, "names no topic"),
        ({"topic": "{tabel}"}, "names no topic"),
        ({"topic": "all", "cleanup": "compact"}, "each table needs a topic of its own"),
        ({"topic_settings": {"cleanup.policy": "compact"}}, "cleanup has to say it"),
        ({"cleanup": "compact", "delivery": "at_least_once"}, "needs delivery: exactly_once"),
        ({"positions_topic": "a/b"}, "pattern"),
        ({"brokers": "x"}, "unknown key 'brokers'"),
        ({"sasl": {"mechanism": "PLAIN", "username": "u"}}, "needs username and password"),
        ({"sasl": {"mechanism": "OAUTHBEARER", "username": "u"}}, "takes no username"),
        ({"reorder_window_seconds": 5, "duplicate_window_seconds": 1}, "must not be less"),
        ({"format": "avro"}, "needs a registry"),
        ({"registry": REGISTRY}, "belong to format: avro and json_schema"),
        ({"columns": {"a": "text"}}, "belong to format"),
        ({"value": "item"}, "belong to format"),
        (
            {"format": "avro", "value": "item", "tombstones": False, "registry": REGISTRY},
            "tells a delete by its tombstone",
        ),
        ({"format": "avro", "columns": {"a": "int"}, "registry": REGISTRY}, "it must be text"),
        ({"format": "avro", "columns": {"extra": "text"}, "registry": REGISTRY}, "another name"),
        ({"format": "avro", "registry": {"url": "registry:8081"}}, "https://host:port is wanted"),
        ({"format": "avro", "registry": {"url": "https://me:pw@r"}}, "stand in username"),
        ({"format": "avro", "registry": {**REGISTRY, "username": "u"}}, "go together"),
        ({"format": "avro", "registry": {**REGISTRY, "username": "a:b"}}, "match pattern"),
        (
            {
                "format": "avro",
                "registry": {**REGISTRY, "username": "u", "password": "p", "token": "t"},
            },
            "either username and password, or token",
        ),
        ({"format": "avro", "registry": {**REGISTRY, "namespace": "a-b"}}, "match pattern"),
        (
            {
                "format": "avro",
                "columns": {"a": "text"},
                "registry": {**REGISTRY, "auto_register": False},
            },
            "leave them out, or set auto_register: true",
        ),
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


@pytest.mark.parametrize(
    ("strategy", "subject"),
    [
        ("topic_name", "cdc.orders-value"),
        ("record_name", "shop.orders.Change"),
        ("topic_record_name", "cdc.orders-shop.orders.Change"),
    ],
)
def test_subjects_are_named_as_confluents_strategies_do(strategy: str, subject: str) -> None:
    registry = {**REGISTRY, "subject_name_strategy": strategy}
    made = config(format="avro", registry=registry).registry
    assert made is not None
    assert made.subject("cdc.orders", "shop.orders.Change") == subject


def test_a_registrys_secrets_are_masked() -> None:
    registry = {**REGISTRY, "username": "u", "password": "hush"}
    made = config(format="avro", registry=registry)
    assert "hush" not in repr(made) + str(made.model_dump(mode="json"))
