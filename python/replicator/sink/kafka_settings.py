"""What the Kafka sink is told in the file. Never changed."""

from __future__ import annotations

import os
import re
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from replicator._core import Columns
from replicator.core.schemas import REST, Value
from replicator.settings import AWSConfig, Settings, SinkConfig
from replicator.sink.registry_settings import RegistryConfig
from replicator.sink.tls import TLSConfig

# https://github.com/apache/kafka/blob/trunk/clients/src/main/java/org/apache/kafka/common/internals/Topic.java
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_PLACE = "{table}"
TOPIC_PATTERN = r"^[a-zA-Z0-9._-]{1,249}$"


class SASLConfig(Settings):
    """Who we are. OAUTHBEARER signs in by a token of `token_endpoint`, and without one by MSK's
    IAM, with the credentials of `aws`."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
    username: str = Field("", description="Of PLAIN and SCRAM.")
    password: SecretStr = Field(SecretStr(""), description="Best from PASSWORD_FILE.")
    aws: AWSConfig | None = Field(None, description="Of MSK's IAM: Region, profile or role.")
    token_endpoint: str = Field(
        "", description="URL of an OAuth 2.0 server that gives tokens to clients."
    )
    client_id: str = Field("", description="Our name there.")
    client_secret: SecretStr = Field(SecretStr(""), description="Best from CLIENT_SECRET_FILE.")
    scope: str = Field("", description="What the token is for, where the server asks for it.")
    extensions: dict[str, str] = Field(
        default_factory=dict,
        description="SASL extensions; Confluent Cloud wants logicalCluster and identityPoolId.",
    )

    @field_validator("token_endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/@]+(/.*)?", value):
            raise ValueError(
                "https://host/path is wanted; a name and a password stand in client_id and "
                "client_secret"
            )
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> SASLConfig:
        named = bool(self.username or self.password.get_secret_value())
        client = (self.token_endpoint, self.client_id, self.client_secret.get_secret_value())
        if self.mechanism != "OAUTHBEARER":
            if not (self.username and self.password.get_secret_value()):
                raise ValueError(f"{self.mechanism} needs username and password")
            if any(client):
                raise ValueError(f"{self.mechanism} takes no token_endpoint: OAUTHBEARER does")
        elif named:
            raise ValueError(
                "OAUTHBEARER takes no username and password: it has aws or token_endpoint"
            )
        elif any(client) and not all(client):
            raise ValueError("token_endpoint, client_id and client_secret belong together")
        elif self.aws is not None and any(client):
            raise ValueError("OAUTHBEARER signs in by aws or by token_endpoint, not by both")
        return self


class KafkaConfig(SinkConfig):
    """Topics of a Kafka cluster (2.5 or newer)."""

    kind: Literal["kafka"] = "kafka"
    bootstrap_servers: str = Field(
        "", description="host:port, several by commas; default KAFKA_BOOTSTRAP_SERVERS."
    )
    topic: str = Field(
        _PLACE, description="Topic of a table; {table} is its name: cdc.{table} is a prefix."
    )
    format: Literal["plain", "dynamodb", "debezium", "change", "avro", "json_schema"] = Field(
        "plain",
        description="Of keys and values: JSON as `replicator inspect` shows it; or of values, by a "
        "schema of `registry`, while keys are as with plain.",
    )
    value: Value = Field(
        "change",
        description="Of avro and json_schema: change is the whole change, item the new item alone.",
    )
    columns: dict[str, str] = Field(
        {},
        description="Of avro and json_schema: attributes and their types, where they aren't to be "
        "told by the items: text, numeric, numeric(P,S), bigint, boolean, bytea, timestamptz, "
        "jsonb, text[], numeric[], bytea[].",
    )
    registry: RegistryConfig | None = Field(
        None, description="The schema registry of avro and json_schema."
    )
    compression: Literal["none", "gzip", "lz4", "zstd"] = Field(
        "zstd", description="Of record batches."
    )
    delivery: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once",
        description="exactly_once: records and position in one transaction. at_least_once: "
        "only the position is; a restart may repeat some records.",
    )
    headers: bool = Field(
        default=True, description="table, event, version, position, event_id of each record."
    )
    tombstones: bool = Field(
        default=True, description="A delete is followed by a record without a value."
    )
    create: bool = Field(default=True, description="Create missing topics; else refuse.")
    partitions: int | None = Field(
        None, ge=1, le=100_000, description="Of created topics; default the broker's."
    )
    replication_factor: int | None = Field(
        None, ge=1, le=100, description="Of created topics; default the broker's."
    )
    cleanup: Literal["delete", "compact"] = Field(
        "delete",
        description="cleanup.policy of the tables' topics. In a compacted one a change that is "
        "older than one written before is left out and counted; else it is marked late.",
    )
    topic_settings: dict[str, str] = Field(
        default_factory=dict,
        description="More settings of created topics, by Kafka's names. Records bear the time of "
        "their change, and retention.ms counts from there.",
    )
    positions_topic: str = Field(
        "replicator-positions",
        pattern=TOPIC_PATTERN,
        description="Compacted topic of one partition with the position of every shard.",
    )
    dead_letters_topic: str = Field(
        "replicator-dead-letters",
        pattern=TOPIC_PATTERN,
        description="Topic of records that can't be written, with their full bytes.",
    )
    quarantine_max: int = Field(
        100,
        ge=0,
        le=10_000,
        description="Keys of a shard whose changes go to the dead letters because an earlier one "
        "did; at one more the shard stops.",
    )
    reorder_window_seconds: float = Field(
        1.0, ge=0, le=60, description="Changes are sorted within this time; it delays them."
    )
    duplicate_window_seconds: float = Field(
        60.0, ge=0, le=3_600, description="Copies of a change are known for this long."
    )
    transaction_timeout_seconds: float = Field(
        15.0, ge=1, le=900, description="Longest write; then the broker aborts it."
    )
    producers_max: int = Field(
        64, ge=1, le=10_000, description="Producers open at once: one for each busy shard."
    )
    tls: TLSConfig | None = Field(None, description="Encrypt: {} for the machine's authorities.")
    sasl: SASLConfig | None = Field(None, description="Sign in.")

    @field_validator("topic")
    @classmethod
    def _names_a_topic(cls, value: str) -> str:
        if not _TOPIC.fullmatch(value.replace(_PLACE, "t")):
            raise ValueError(
                f"{value!r} names no topic: letters, digits, dot, underscore and dash are allowed, "
                "and {table} for the table's name"
            )
        return value

    @model_validator(mode="after")
    def _can_work(self) -> KafkaConfig:
        if self.duplicate_window_seconds < self.reorder_window_seconds:
            raise ValueError(
                "duplicate_window_seconds must not be less than reorder_window_seconds"
            )
        if self.cleanup == "compact" and _PLACE not in self.topic:
            raise ValueError(
                "cleanup: compact keeps one record of each key, so each table needs a topic of "
                "its own: put {table} into topic"
            )
        policy = self.topic_settings.get("cleanup.policy", self.cleanup)
        if ("compact" in policy) != (self.cleanup == "compact"):
            raise ValueError(
                f"topic_settings has cleanup.policy: {policy} and the sink cleanup: "
                f"{self.cleanup}: in a compacted topic a late change would undo a newer one, so "
                "cleanup has to say it"
            )
        if self.cleanup == "compact" and self.delivery != "exactly_once":
            raise ValueError(
                "cleanup: compact needs delivery: exactly_once: a worker that is paused amid a "
                "write could put an old change behind newer ones of its key, which then stays"
            )
        if self.is_registered:
            self._can_be_registered()
        elif self.registry is not None or self.columns or self.value != "change":
            raise ValueError(
                "registry, columns and value belong to format: avro and json_schema: write one of "
                "them, or leave them out"
            )
        return self

    def _can_be_registered(self) -> None:
        if self.registry is None:
            raise ValueError(f"format: {self.format} needs a registry: registry: {{url: …}}")
        if self.value == "item" and not self.tombstones:
            raise ValueError("value: item tells a delete by its tombstone: leave tombstones on")
        if self.columns and not self.registry.auto_register:
            raise ValueError(
                "columns say types of schemas that are registered here: leave them out, or set "
                "auto_register: true"
            )
        Columns(tuple(self.columns.items()), REST)

    @property
    def is_registered(self) -> bool:
        """True when values are by schemas of a registry."""
        return self.format in {"avro", "json_schema"}

    def topic_of(self, table: str) -> str:
        """The topic that a table's changes go to."""
        return self.topic.replace(_PLACE, table)

    @property
    def servers(self) -> list[str]:
        """host:port of the brokers that are asked first."""
        text = self.bootstrap_servers or os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "")
        return [server.strip() for server in text.split(",") if server.strip()]
