"""trustpilot's kafka-connect-dynamodb.

https://github.com/trustpilot/kafka-connect-dynamodb/blob/master/docs/options.md
"""

from __future__ import annotations

from typing import Any, Final

from replicator.importing import aws, connect, sinks
from replicator.importing.draft import Draft, Kind, NoEqual, Table, listed
from replicator.importing.dynamodb_connector import NO_SNAPSHOT

TABLE: Final[Table] = {
    "dynamodb.service.endpoint": aws.ENDPOINT,
    "resource.tagging.service.endpoint": NoEqual("the tags' service is asked at its own address"),
    "kcl.table.billing.mode": NoEqual("no table of checkpoints is made"),
    "init.sync.delay.period": NoEqual(NO_SNAPSHOT),
    "connect.dynamodb.rediscovery.period": NoEqual("tags are looked at every 60 s"),
}


def recognises(content: Any) -> bool:
    """By the connector's class."""
    return connect.class_of(content) == "dynamodbsource"


def drafts(content: Any) -> list[Draft]:
    """A pipeline whose tables are found by tag, or one for each table that is listed.

    What isn't said is as the connector takes it: Region eu-west-1, the tags `datalake-ingest` and
    `environment: dev`, topics `dynamodb-<table>`."""
    draft = connect.begun(content)
    draft.source = {"kind": "streams"}
    draft.put("aws.region", aws.region(draft.take("aws.region", "aws.region") or "eu-west-1"))
    aws.take_own_endpoint(draft, "dynamodb.service.endpoint")
    ingestion = draft.take("dynamodb.table.ingestion.tag.key", "tables.tags") or "datalake-ingest"
    key = draft.take("dynamodb.table.env.tag.key", "tables.tags") or "environment"
    value = draft.take("dynamodb.table.env.tag.value", "tables.tags") or "dev"
    listing = listed(draft.take("dynamodb.table.whitelist", "tables"))
    draft.tables = listing or {"tags": {ingestion: None, key: value}}
    prefix = draft.take("kafka.topic.prefix", sinks.KAFKA_TOPIC) or "dynamodb-"
    draft.put(sinks.KAFKA_TOPIC, f"{prefix}{{table}}")
    if not draft.get("init.sync.delay.period"):
        draft.note(Kind.NO_EQUAL, NO_SNAPSHOT)
    connect.take_format(
        draft,
        "debezium",
        "format: the connector's own envelope (version, document as text, source, op, ts_ms) is "
        "Debezium's here (before, after, op, source, ts_ms): readers take `after` for `document`",
    )
    return connect.settle(draft, TABLE)
