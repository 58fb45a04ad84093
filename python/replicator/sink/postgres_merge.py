"""Brings one table's rows into Postgres, inside a transaction that the caller holds.

Many rows go by binary COPY into a staging table of the connection and from there
by one statement into the table, newer versions over older ones; few go as arrays
with that statement. Rows that the server refuses are found by halving.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import asyncpg

from replicator._core import Rejection, Rows
from replicator.errors import FatalError
from replicator.sink.postgres_errors import refusal_code, refusal_message
from replicator.sink.postgres_layout import DocumentTable
from replicator.sink.postgres_payload import TablePayload, encoded
from replicator.sink.postgres_poison import find_poison
from replicator.sink.statements import fill, statements

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection

_CHUNK_BYTES: Final = 1 << 18
_STATEMENTS: Final = {"merge": 1, "count_equal": 1, "tied": 1, "settle": 4}
"""Those that read a write's rows, and how many other parameters each has."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of one table's rows; see `WriteResult`."""

    rows: int = 0
    duplicates: int = 0
    superseded: int = 0
    ambiguous: int = 0
    rejections: tuple[Rejection, ...] = ()


_SETTLED: Final = "it or a change of its instant that came before it"


def document_merges(
    tables: Sequence[DocumentTable], *, generation: int, has_lz4: bool, came_first: bool = False
) -> Mapping[int, DocumentMerge]:
    """That of each table, by its number."""
    return {
        table.number: DocumentMerge(
            table, generation=generation, has_lz4=has_lz4, came_first=came_first
        )
        for table in tables
    }


class DocumentMerge:
    """The statements of one table, filled in."""

    def __init__(
        self, table: DocumentTable, *, generation: int, has_lz4: bool, came_first: bool = False
    ) -> None:
        """`came_first`: what is written arrived before all that is stored, as dead letters did."""
        identifiers = table.identifiers(has_lz4=has_lz4)
        document = statements("document")
        self._create_staging = fill(document["create_staging"], identifiers)
        self._staged = {
            name: fill(document[name], {**identifiers, "rows": identifiers["staging"]})
            for name in _STATEMENTS
        }
        # The parameters before the rows' own: the generation, or what was settled.
        self._sent = {
            name: fill(document[name], {**identifiers, "rows": table.unnested(before + 1)})
            for name, before in _STATEMENTS.items()
        }
        self._session_sql = statements("session")
        self._table = table
        self._generation = generation
        self._came_first = came_first

    @property
    def create_staging(self) -> str:
        """The statement that a connection runs once before its first merge."""
        return self._create_staging

    async def merge(self, connection: Connection, part: TablePayload) -> Merged:
        """Writes the rows that are newer than what is stored. Raises the driver's error
        when the server refuses a row; the transaction is broken then."""
        return await self._merge(connection, part.rows, 0, len(part.rows), part.copy, part.arrays)

    async def _merge(
        self,
        connection: Connection,
        all_rows: Rows,
        lo: int,
        hi: int,
        copy: bytes,
        arrays: Sequence[bytes],
    ) -> Merged:
        """As `merge`, of rows lo..hi, which are encoded already."""
        rows = hi - lo
        if not rows:
            return Merged()
        written = await self._write(connection, copy, arrays)
        if written == rows:
            return Merged(rows=written)
        # The slow path: redelivered and late changes, and other changes of the same instant.
        sql, sent = (self._sent, arrays) if arrays else (self._staged, ())
        counted = await connection.fetchrow(sql["count_equal"], self._generation, *sent)
        assert counted is not None
        equal, tied = counted
        merged = Merged(
            rows=written,
            # Equal are those just written and those that the table held before.
            duplicates=equal - written,
            superseded=rows - equal - tied,
        )
        if not tied:
            return merged
        # Law 3 across writes: changes of one instant, some of them stored already.
        found = await connection.fetch(sql["tied"], self._generation, *sent)
        settle = partial(all_rows.settle, came_first=self._came_first)
        settled = await asyncio.to_thread(settle, [tuple(row) for row in found], lo)
        if settled.rows:
            try:
                await connection.execute(
                    sql["settle"],
                    settled.rows,
                    settled.items,
                    settled.versions,
                    settled.chains,
                    *sent,
                )
            except asyncpg.PostgresError as error:
                error.detail = _SETTLED if error.detail is None else f"{error.detail} ({_SETTLED})"
                raise
        return replace(
            merged,
            rows=merged.rows + settled.later,
            duplicates=merged.duplicates + settled.duplicates,
            superseded=merged.superseded + settled.superseded,
            ambiguous=settled.ambiguous,
        )

    async def _write(self, connection: Connection, copy: bytes, arrays: Sequence[bytes]) -> int:
        """How many of the rows were newer than what the table held."""
        if arrays:
            status = await connection.execute(self._sent["merge"], self._generation, *arrays)
        else:
            await self._copy(connection, self._table.staging, copy)
            status = await connection.execute(self._staged["merge"], self._generation)
        return int(status.rsplit(" ", 1)[-1])  # such as `INSERT 0 12`

    async def merge_carefully(self, connection: Connection, part: TablePayload) -> Merged:
        """As `merge`, but rows that the server refuses become rejections. In place of a
        refused change comes the key's next newest one, which may be refused as well."""
        rejections: list[Rejection] = []
        while True:
            await connection.execute(self._session_sql["savepoint"])
            try:
                merged = await self.merge(connection, part)
            except asyncpg.PostgresError as error:
                if refusal_code(error) is None:
                    raise
                refusal = error
            else:
                await connection.execute(self._session_sql["release"])
                return replace(merged, rejections=tuple(rejections))
            await connection.execute(self._session_sql["back"])
            probe = partial(self._probe, connection, part)
            poison = await find_poison(len(part.rows), probe)
            if not poison:
                raise FatalError(
                    "postgres_refused",
                    f"table {self._table.source.name!r}: {refusal_message(refusal)}; no row of the"
                    " batch is refused alone: look at the table's triggers and constraints",
                ) from refusal
            rejections += [
                part.rows.record(row, refusal_code(error) or "", refusal_message(error))
                for row, error in poison
            ]
            part = await asyncio.to_thread(_without, part, [row for row, _ in poison])

    async def _probe(
        self, connection: Connection, part: TablePayload, lo: int, hi: int
    ) -> asyncpg.PostgresError | None:
        """Tries rows lo..hi and undoes it: the server's refusal, or None."""
        copy, arrays = await asyncio.to_thread(encoded, part.rows, lo, hi)
        await connection.execute(self._session_sql["savepoint"])
        refusal: asyncpg.PostgresError | None = None
        try:
            # All of it: what only settles an instant may be refused as well.
            await self._merge(connection, part.rows, lo, hi, copy, arrays)
        except asyncpg.PostgresError as error:
            if refusal_code(error) is None:
                raise
            refusal = error
        await connection.execute(self._session_sql["back"])
        return refusal

    async def _copy(self, connection: Connection, table: str, rows: bytes) -> None:
        # asyncpg takes `bytes` for a file's path. A large payload goes in chunks, so that a
        # server that doesn't read fills a window, not our memory a second time.
        view = memoryview(rows)
        await connection.copy_to_table(
            table,
            schema_name="pg_temp",
            # Buffers are taken too, whatever the driver's types say.
            source=cast(Any, view if len(view) <= _CHUNK_BYTES else _chunks(view)),
            format="binary",
        )


def _without(part: TablePayload, rows: list[int]) -> TablePayload:
    return TablePayload.of(part.table, part.rows.without(rows))


async def _chunks(view: memoryview) -> AsyncIterator[memoryview]:
    for start in range(0, len(view), _CHUNK_BYTES):
        yield view[start : start + _CHUNK_BYTES]
