"""Confluent's DynamoDB CDC source connector of Confluent Cloud.

https://docs.confluent.io/cloud/current/connectors/cc-amazon-dynamodb-cdc-source/cc-amazon-dynamodb-cdc-source.html
"""

from __future__ import annotations

from typing import Any, Final

from replicator.importing import aws, connect, sinks
from replicator.importing.draft import Draft, Kind, NoEqual, Table, To, listed, number

_SNAPSHOT: Final = NoEqual("there is no snapshot yet, and so nothing to configure of one")
_CHECKPOINTS: Final = NoEqual(
    "no table of checkpoints is made: positions are kept with the data, leases in a file"
)
_FETCHING: Final = NoEqual(
    "a call asks for all it can get; what is held is bounded by limits.memory_bytes_max"
)
NO_SNAPSHOT: Final = (
    "items that are there already aren't copied: snapshots are not there yet. The changes of the "
    "last 24 hours are"
)

TABLE: Final[Table] = {
    "dynamodb.service.endpoint": aws.ENDPOINT,
    "aws.region": To("aws.region", aws.region),
    "aws.dynamodb.region": To("aws.region", aws.region),
    "resource.tagging.service.endpoint": NoEqual("the tags' service is asked at its own address"),
    "dynamodb.snapshot.*": _SNAPSHOT,
    "dynamodb.cdc.checkpointing.table.prefix": _CHECKPOINTS,
    "dynamodb.cdc.table.billing.mode": _CHECKPOINTS,
    "dynamodb.cdc.max.poll.records": _FETCHING,
    "max.batch.size": NoEqual("a write takes what has come, at most limits.batch_rows_max (5000)"),
    "poll.linger.ms": To("limits.batch_delay_ms_max", lambda value: number(value, 0, 60_000)),
}
_TAGS: Final = ("dynamodb.table.tag.filters", "dynamodb.table.tags.filters")


def recognises(content: Any) -> bool:
    """By the connector's class."""
    return connect.class_of(content) in {"dynamodbcdcsource", "dynamodbsourcecdc"}


def drafts(content: Any) -> list[Draft]:
    """A pipeline for each table, or one whose tables are found by tag."""
    draft = connect.begun(content)
    draft.source = {"kind": "streams"}
    aws.take_own_endpoint(draft, "dynamodb.service.endpoint")
    _tables(draft)
    _sync(draft)
    if not draft.get("kafka.topic"):
        draft.put(sinks.KAFKA_TOPIC, "{table}")
    connect.take_format(
        draft,
        "debezium",
        "format: the envelope is Debezium's (before, after, op, source, ts_ms), near the "
        "connector's; compare a few values before readers change over",
    )
    return connect.settle(draft, TABLE)


def _tables(draft: Draft) -> None:
    """The mode is INCLUDELIST unless it is told to be TAG."""
    mode = draft.take("dynamodb.table.discovery.mode", "tables").upper()
    tables = listed(draft.take("dynamodb.table.includelist", "tables"))
    tags: dict[str, list[str] | None] = {}
    for option in _TAGS:
        for pair in filter(None, draft.take(option, "tables").split(";")):
            key, _, values = pair.partition(":")
            tags[key.strip()] = listed(values) or None
    if mode == "TAG":
        draft.tables = {"tags": tags} if tags else {"tags": {"REPLACE-ME": None}}
        if not tags:
            draft.note(Kind.FILL_IN, "tables.tags: which tags the tables carry isn't said")
        return
    if tables:
        draft.tables = tables
    else:
        draft.note(Kind.FILL_IN, "tables: no table is named")


def _sync(draft: Draft) -> None:
    """SNAPSHOT_CDC when nothing is said."""
    option = "dynamodb.table.sync.mode"
    mode = draft.take(option, "snapshot").upper() or "SNAPSHOT_CDC"
    if mode == "SNAPSHOT":
        draft.note(
            Kind.NO_EQUAL, "items aren't copied once: their changes are followed instead", option
        )
    elif mode != "CDC":
        draft.note(Kind.NO_EQUAL, NO_SNAPSHOT, option if draft.get(option) else "")
