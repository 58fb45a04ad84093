"""Brings one table's rows into Postgres, inside a transaction that the caller holds.

Rows go by binary COPY into a staging table of the connection and from there by
one statement into the table, newer versions over older ones. Rows that the
server refuses are found by halving.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import asyncpg

from replicator._core import Rejection
from replicator.errors import FatalError
from replicator.sink.postgres_errors import refusal_code, refusal_message
from replicator.sink.postgres_layout import DocumentTable
from replicator.sink.postgres_payload import TablePayload
from replicator.sink.postgres_poison import find_poison
from replicator.sink.statements import fill, statements

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection

_CHUNK_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of one table's rows; see `WriteResult`."""

    rows: int = 0
    duplicates: int = 0
    superseded: int = 0
    ambiguous: int = 0
    rejections: tuple[Rejection, ...] = ()


class DocumentMerge:
    """The statements of one table, filled in."""

    def __init__(self, table: DocumentTable, *, generation: int, has_lz4: bool) -> None:
        identifiers = table.identifiers(has_lz4=has_lz4)
        self._sql = {name: fill(sql, identifiers) for name, sql in statements("document").items()}
        self._session_sql = statements("session")
        self._table = table
        self._generation = generation

    @property
    def create_staging(self) -> str:
        """The statement that a connection runs once before its first merge."""
        return self._sql["create_staging"]

    async def merge(self, connection: Connection, part: TablePayload) -> Merged:
        """Writes the rows that are newer than what is stored. Raises the driver's error
        when the server refuses a row; the transaction is broken then."""
        staged = len(part.rows)
        if not staged:
            return Merged()
        await self._copy(connection, self._table.staging, part.copy)
        written = _affected(await connection.execute(self._sql["merge"], self._generation))
        if written == staged:
            return Merged(rows=written)
        # The slow path: redelivered and late changes, and other changes of the same instant.
        equal, tied = await self._counts(connection, "count_equal")
        later, ambiguous = await self._settle_ties(connection, part) if tied else (0, 0)
        return Merged(
            rows=written + later,
            # Equal are those just written and those that the table held before.
            duplicates=equal - written - tied,
            superseded=staged - equal + tied - later,
            ambiguous=ambiguous,
        )

    async def _settle_ties(self, connection: Connection, part: TablePayload) -> tuple[int, int]:
        """Law 3 across batches: how many of the changes that share an instant with the
        stored one came after it, and so replaced it; and of how many nobody can tell."""
        await connection.execute(self._sql["create_before"])
        await self._copy(connection, self._table.before, part.rows.copy_before())
        return await self._counts(connection, "settle_ties")

    async def _counts(self, connection: Connection, name: str) -> tuple[int, int]:
        row = await connection.fetchrow(self._sql[name], self._generation)
        assert row is not None
        return row[0], row[1]

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
        rows = await asyncio.to_thread(part.rows.copy, lo, hi)
        await connection.execute(self._session_sql["savepoint"])
        refusal: asyncpg.PostgresError | None = None
        try:
            await self._copy(connection, self._table.staging, rows)
            await connection.execute(self._sql["merge"], self._generation)
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


def _affected(status: str) -> int:
    """The row count of a command tag such as `INSERT 0 12`."""
    return int(status.rsplit(" ", 1)[-1])
