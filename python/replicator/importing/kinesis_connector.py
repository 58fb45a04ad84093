"""Confluent's Kinesis source connector, self-managed and of Confluent Cloud, and the one it came
from.

https://docs.confluent.io/kafka-connectors/kinesis/current/kinesis_source_connector_config.html
https://docs.confluent.io/cloud/current/connectors/cc-kinesis-source.html
https://github.com/jcustenborder/kafka-connect-kinesis
"""

from __future__ import annotations

from typing import Any, Final

from replicator.importing import aws, connect
from replicator.importing.draft import Draft, Kind, NoEqual, Secret, Table, To, number

_PACE: Final = NoEqual("throttling is flow control: fetching paces itself")
_PROXY: Final = NoEqual("a proxy is told by the environment: HTTPS_PROXY, NO_PROXY")

TABLE: Final[Table] = {
    "kinesis.stream": To("source.stream"),
    "kinesis.region": To("aws.region", aws.region),
    "kinesis.base.url": aws.ENDPOINT,
    "kinesis.endpoint": aws.ENDPOINT,
    "kinesis.record.limit": NoEqual(
        "a call asks for all it can get; what is held is bounded by limits.memory_bytes_max"
    ),
    "kinesis.empty.records.backoff.ms": To(
        "source.idle_seconds_max",
        lambda value: number(value, 0.25, 60, divisor=1_000),
        differs="the longest pause of an idle shard (0.25 to 60 s); with changes there is none",
    ),
    "kinesis.throughput.exceeded.backoff.ms": _PACE,
    "kinesis.credentials.provider.*": NoEqual(aws.CREDENTIALS),
    "kinesis.proxy.url": _PROXY,
    "kinesis.non.proxy.hosts": _PROXY,
    "kinesis.proxy.username": Secret(_PROXY.why),
    "kinesis.proxy.password": Secret(_PROXY.why),
    "shard.ids": NoEqual("all shards are read, and processes share them"),
}


def recognises(content: Any) -> bool:
    """By the connector's class."""
    return connect.class_of(content) == "kinesissource"


def drafts(content: Any) -> list[Draft]:
    """The pipeline that reads what the connector reads, by polling as it does."""
    draft = connect.begun(content)
    draft.source = {"kind": "kinesis", "stream": "", "mode": "polling"}
    draft.note(Kind.FILL_IN, aws.TABLES)
    draft.note(Kind.FILL_IN, f"source.start: {aws.POSITION}")
    _start(draft)
    for option in ("kinesis.base.url", "kinesis.endpoint"):
        aws.take_own_endpoint(draft, option)
    if draft.take("kinesis.shard.id", "source") not in {"", ".*"}:
        draft.note(Kind.NO_EQUAL, "all shards are read: one alone can't be", "kinesis.shard.id")
    connect.take_format(
        draft,
        "change",
        "format: the connector writes the stream's records as they are; here they are decoded, and "
        "`change` is the form that keeps most of them. One topic takes all tables, unless {table} "
        "stands in its name",
    )
    return connect.settle(draft, TABLE)


def _start(draft: Draft) -> None:
    position = draft.take("kinesis.position", "source.start").upper() or "TRIM_HORIZON"
    moment = draft.take("kinesis.shard.timestamp", "source.start") or draft.take(
        "kinesis.shard.timestamp.ms", "source.start"
    )
    try:
        draft.put("source.start", aws.start(position, moment))
    except ValueError as error:
        draft.note(Kind.FILL_IN, f"source.start: {error}", "kinesis.position")
