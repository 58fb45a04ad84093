"""What is due of a shard as the topics take it: record batches, and what has to go to the dead
letters instead (law 11).

A record that is larger than its topic takes is one, and from there on all that comes of its key:
its changes stay in order there until they are redriven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from replicator._core import ChangeBatch, KafkaBatch, Rejection, Schema
from replicator.errors import FatalError
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.kafka_topics import Topic

_BATCH_BYTES_MAX: Final = 1_000_000

Aside = tuple[tuple[str, str], ...]
"""Quarantined keys: table, and key in typed JSON."""


@dataclass(frozen=True, slots=True)
class Values:
    """How records are written: as the sink is told, or by the schema of their table."""

    config: KafkaConfig
    schemas: Mapping[str, Schema]

    def of(self, table: str) -> Literal["plain", "dynamodb", "debezium", "change"] | Schema:
        """The form of a table's records."""
        match self.config.format:
            case "avro" | "json_schema":
                return self.schemas[table]
            case form:
                return form


@dataclass(frozen=True, slots=True)
class Encoded:
    """`rows` changes as batches by topic; `rejections` that encoding added, and all keys that are
    quarantined from here on."""

    batches: tuple[tuple[str, KafkaBatch], ...]
    rejections: tuple[Rejection, ...]
    aside: Aside
    rows: int


def encode(
    changes: ChangeBatch,
    values: Values,
    topics: Mapping[str, Topic],
    partitions: Mapping[str, int],
    aside: Aside,
) -> Encoded:
    """`topics` by table, `partitions` by topic. Raises FatalError when more keys would be
    quarantined than the sink allows."""
    config = values.config
    before = len(changes.rejections)
    made: list[tuple[str, KafkaBatch]] = []
    rows = 0
    for table in changes.tables:
        if table is None or table not in topics:
            continue
        topic, form = topics[table], values.of(table)
        if keys := [key.encode() for name, key in aside if name == table]:
            changes, _ = changes.set_aside(table, keys)
        batches = _batches(changes, table, topic, partitions[topic.name], values)
        if any(batch.nbytes > topic.bytes_max for batch in batches):
            changes, joined = changes.set_aside(
                table,
                form=form,
                compression=config.compression,
                headers=config.headers,
                record_bytes_max=topic.bytes_max,
            )
            aside += tuple((table, key.decode()) for key in joined)
            batches = _batches(changes, table, topic, partitions[topic.name], values)
        rows += changes.tables.get(table, 0)
        made += ((topic.name, batch) for batch in batches)
    if len(aside) > config.quarantine_max:
        raise FatalError(
            "quarantine_full",
            f"more than {config.quarantine_max} keys of a shard have changes in the dead letters "
            f"of sink {config.name}: raise max.message.bytes of their topics or quarantine_max",
        )
    return Encoded(tuple(made), tuple(changes.rejections[before:]), aside, rows)


def _batches(
    changes: ChangeBatch, table: str, topic: Topic, partitions: int, values: Values
) -> Sequence[KafkaBatch]:
    config = values.config
    # What doesn't compress becomes a little larger.
    room = max(topic.bytes_max - topic.bytes_max // 64 - 512, 1)
    return changes.kafka(
        partitions,
        form=values.of(table),
        compression=config.compression,
        table=table,
        headers=config.headers,
        tombstones=config.tombstones,
        batch_bytes_max=min(_BATCH_BYTES_MAX, room),
    )
