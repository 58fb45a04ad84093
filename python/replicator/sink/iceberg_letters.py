"""The dead letters of one pipeline in a table of Iceberg, read back. It blocks, and runs in a
thread."""

from __future__ import annotations

from pyiceberg.expressions import EqualTo
from pyiceberg.table import Table

from replicator.model import StoredLetter
from replicator.sink.iceberg_errors import mapped
from replicator.sink.iceberg_table import named
from replicator.sink.letters import in_order, stored_letter


def letters(table: Table, pipeline: str) -> list[StoredLetter]:
    """All of them, of a shard in order; one that was stored twice, once. Raises TransientError and
    FatalError."""
    with mapped(f"reading {named(table)}"):
        rows = (
            table.scan(row_filter=EqualTo(term="pipeline", value=pipeline)).to_arrow().to_pylist()
        )
    found = (
        stored_letter(
            row["stream_arn"],
            row["shard"],
            row["sequence_number"],
            row["record_index"],
            row["code"],
            row["message"],
            row["table"],
            row["at"].isoformat(),
            row["raw"],
        )
        for row in rows
    )
    return in_order(list({(one.stream, one.id): one for one in found}.values()))
