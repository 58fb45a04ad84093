"""The dead letters of the Postgres sink, read back and ended.

One is written again in a transaction of its own that removes it: the row first and the letter then,
in the order of every write, so that no worker and this one wait for each other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from replicator._core import ChangeBatch
from replicator.model import EndedLetter, LetterOutcome, StoredLetter
from replicator.sink.letters import (
    gone,
    in_order,
    number_of,
    redriven,
    refused,
    stored_letter,
    written,
)
from replicator.sink.postgres_errors import refusal_code, refusal_message
from replicator.sink.postgres_merge import DocumentMerge, document_merges
from replicator.sink.postgres_payload import TablePayload, table_payloads
from replicator.sink.postgres_report import targets
from replicator.sink.postgres_schema import PostgresPlan
from replicator.sink.postgres_session import PostgresSession
from replicator.sink.postgres_settings import PostgresSettings
from replicator.sink.postgres_writer import storable
from replicator.sink.statements import fill, statements

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection


_Key: TypeAlias = tuple[str, str, str, int]


class PostgresLetters:
    """Those of one sink, by a connection that others use too. `state` are the quoted names of the
    state tables."""

    def __init__(
        self, settings: PostgresSettings, session: PostgresSession, state: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._session = session
        self._table = state["dead_letters"]
        self._sql = {name: fill(sql, state) for name, sql in statements("state").items()}
        self._session_sql = statements("session")

    async def waiting(self) -> Sequence[StoredLetter]:
        """All of them, of a shard in order; none before their table was made."""
        async with self._session.use("reading dead letters") as connection:
            exists = statements("catalog")["exists"]
            if not await connection.fetchval(exists, self._table):
                return ()
            rows = await connection.fetch(self._sql["dead_letters"], self._settings.pipeline)
        return in_order(
            [
                stored_letter(
                    row["stream"],
                    row["shard"],
                    row["sequence_number"],
                    row["record_index"],
                    row["code"],
                    row["message"],
                    row["table_name"],
                    row["created_at"].isoformat(),
                    row["raw"],
                )
                for row in rows
            ]
        )

    async def dropped(self, letters: Sequence[StoredLetter]) -> Sequence[EndedLetter]:
        """Removes them, all or none."""
        async with self._session.use("dropping dead letters") as connection:
            were_there = await self._end(connection, letters)
        return [
            EndedLetter(one, LetterOutcome.DROPPED) if _key(one) in were_there else gone(one)
            for one in letters
        ]

    async def redriven(
        self, letters: Sequence[StoredLetter], planned: PostgresPlan
    ) -> AsyncGenerator[EndedLetter, None]:
        """Writes them into the plan's tables, and gives what became of each once that is
        durable."""
        merges = document_merges(
            planned.tables,
            generation=self._settings.generation,
            has_lz4=planned.has_lz4,
            came_first=True,
        )
        newest: dict[str, str | None] = {}
        async with self._session.use("reading streams") as connection:
            for table, name in zip(planned.tables, targets(planned.tables), strict=True):
                newest[table.source.name] = await connection.fetchval(
                    self._sql["brought_last"], self._settings.pipeline, name
                )

        async def again(letter: StoredLetter, batch: ChangeBatch) -> EndedLetter:
            parts, rejections = table_payloads(
                batch, planned.tables, self._settings.pattern, self._settings.projection
            )
            async with self._session.use(f"redriving dead letter {letter.id}") as connection:
                if rejections:
                    first = rejections[0]
                    return await self._refused(connection, letter, first.code, first.message)
                (part,) = parts
                merge = merges[part.table.number]
                await self._session.once(merge.create_staging)
                try:
                    return await self._written(connection, letter, merge, part)
                except asyncpg.PostgresError as error:
                    if (code := refusal_code(error)) is None:
                        raise
                    refusal = error
                await connection.execute(self._session_sql["rollback"])
                return await self._refused(connection, letter, code, refusal_message(refusal))

        async for ended in redriven(letters, newest, again):
            yield ended

    async def _written(
        self,
        connection: Connection,
        letter: StoredLetter,
        merge: DocumentMerge,
        part: TablePayload,
    ) -> EndedLetter:
        """In one transaction with the letter's end. Raises the server's refusal."""
        await connection.execute(self._session_sql["begin"])
        merged = await merge.merge(connection, part)
        if not await self._end(connection, [letter]):
            await connection.execute(self._session_sql["rollback"])
            return gone(letter)
        await connection.execute(self._session_sql["commit"])
        return EndedLetter(letter, written(merged.duplicates, merged.superseded))

    async def _refused(
        self, connection: Connection, letter: StoredLetter, code: str, message: str
    ) -> EndedLetter:
        is_there = await connection.fetchval(
            self._sql["refuse_dead_letter"],
            self._settings.pipeline,
            *_key(letter),
            code,
            storable(message),
        )
        return refused(letter, code, message) if is_there else gone(letter)

    async def _end(self, connection: Connection, letters: Sequence[StoredLetter]) -> set[_Key]:
        """Removes them, and gives the keys of those that were there."""
        keys = [_key(one) for one in letters]
        columns = [[key[column] for key in keys] for column in range(4)]
        rows = await connection.fetch(
            self._sql["end_dead_letters"], self._settings.pipeline, *columns
        )
        return {tuple(row) for row in rows}


def _key(letter: StoredLetter) -> _Key:
    return (letter.stream, letter.shard, number_of(letter), letter.index)
