"""What one write to Postgres carries. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from replicator._core import ChangeBatch, Pattern, Projection, Rejection, Rows
from replicator.model import Pending
from replicator.sink.joined import Joined, newest_rows
from replicator.sink.postgres_layout import DocumentTable

ARRAYS_BYTES_MAX: Final = 1 << 18
"""Rows of up to so many bytes go as arrays with a prepared statement, more by COPY: some 900
small items or 170 of 1.5 KB (`python -m bench.run small-batches`)."""


@dataclass(frozen=True, slots=True)
class TablePayload:
    """The newest change per key of one table, and the same as COPY bytes or as arrays."""

    table: DocumentTable
    rows: Rows
    copy: bytes
    arrays: Sequence[bytes]

    @classmethod
    def of(cls, table: DocumentTable, rows: Rows) -> TablePayload:
        return cls(table, rows, *encoded(rows, 0, len(rows)))


def encoded(rows: Rows, lo: int, hi: int) -> tuple[bytes, Sequence[bytes]]:
    """Rows lo..hi as COPY bytes or as arrays; the other is empty."""
    if not len(rows):
        return b"", ()
    if rows.nbytes <= ARRAYS_BYTES_MAX:
        return b"", rows.arrays(lo, hi)
    return rows.copy(lo, hi), ()


@dataclass(frozen=True, slots=True)
class PostgresPayload:
    """One write. It keeps what it was made of: should a shard turn out lost, the rest
    is encoded again, since a lost shard's change may have hidden another's."""

    pending: tuple[Pending, ...]
    tables: tuple[TablePayload, ...]
    rejections: tuple[Rejection, ...]
    """Refused before the server saw them; `part` is the index in `pending`."""
    duplicates: int
    ambiguous: int
    """Both between the fetches: see `Joined`."""

    @property
    def nbytes(self) -> int:
        """Bytes of the encoded rows."""
        return sum(len(table.copy) + sum(map(len, table.arrays)) for table in self.tables)

    @property
    def filtered(self) -> int:
        """Rows that delete an item because it doesn't match the sink's filter."""
        return sum(table.rows.filtered for table in self.tables)


def encode(
    tables: Sequence[DocumentTable],
    pending: Sequence[Pending],
    pattern: Pattern | None = None,
    projection: Projection | None = None,
) -> PostgresPayload:
    """The bytes of each table's newest changes. Changes of other tables are left
    out here; the pipeline counts them. What doesn't match the pattern is deleted, and
    only what the projection shows is written."""
    joined = Joined.of(pending, [table.source.name for table in tables])
    parts, rejections = table_payloads(joined.batch, tables, pattern, projection)
    return PostgresPayload(tuple(pending), parts, rejections, joined.duplicates, joined.ambiguous)


def table_payloads(
    batch: ChangeBatch,
    tables: Sequence[DocumentTable],
    pattern: Pattern | None,
    projection: Projection | None,
) -> tuple[tuple[TablePayload, ...], tuple[Rejection, ...]]:
    """The batch's changes by table, and what of it was refused before the server saw it."""
    found, rejections = newest_rows(batch, [table.source for table in tables], pattern, projection)
    there = [table for table in tables if table.source.name in found]
    return tuple(TablePayload.of(table, found[table.source.name]) for table in there), rejections
