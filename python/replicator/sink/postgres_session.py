"""One connection to Postgres that is opened when first used and again after an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from replicator.errors import FatalError, TransientError
from replicator.sink.postgres_errors import mapped
from replicator.sink.postgres_settings import PostgresSettings
from replicator.sink.statements import statements

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]


class PostgresSession:
    """A connection with one user at a time.

    Whatever ends a use early (an error, a deadline, cancellation) leaves the
    connection in a state nobody knows: it is thrown away, not repaired, and what
    it held (transaction, locks, staging tables) goes with it.
    """

    def __init__(
        self, settings: PostgresSettings, greeting: Sequence[tuple[str, object]] = ()
    ) -> None:
        """`greeting`: statements, with a value each, that every new connection begins with."""
        self._settings = settings
        self._greeting = tuple(greeting)
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._prepared: set[str] = set()

    @asynccontextmanager
    async def use(self, doing: str) -> AsyncIterator[Connection]:
        """The connection, for the length of the block. Errors of the driver leave it
        as TransientError or FatalError, beginning with `doing`."""
        with mapped(doing):
            # Waiting for another user's stalled statement has the statement's own deadline.
            async with asyncio.timeout(self._settings.command_timeout_seconds):
                await self._turn.acquire()
            try:
                yield await self._open()
            except BaseException:
                self.discard()
                raise
            finally:
                self._turn.release()

    async def once(self, statement: str) -> None:
        """Runs a statement whose effect lasts as long as the connection, if it has not
        run on this connection yet. Only inside `use`."""
        assert self._connection is not None
        if statement not in self._prepared:
            await self._connection.execute(statement)
            self._prepared.add(statement)

    def discard(self) -> None:
        """Drops the connection at once; the next use opens another."""
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None
        self._prepared.clear()

    async def close(self) -> None:
        """Ends the connection in order, or at once when it is in use or doesn't answer."""
        connection, self._connection = self._connection, None
        self._prepared.clear()
        if connection is None:
            return
        if self._turn.locked():
            connection.terminate()
            return
        # It goes either way, so how it went interests nobody.
        with suppress(TransientError, FatalError), mapped("closing a connection"):
            await connection.close(timeout=self._settings.connect_timeout_seconds)

    async def _open(self) -> Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        self._prepared.clear()
        settings = self._settings
        label = " ".join(filter(None, ("replicator", settings.pipeline, settings.owner)))
        connection: Connection = await asyncpg.connect(
            settings.dsn or None,
            timeout=settings.connect_timeout_seconds,
            command_timeout=settings.command_timeout_seconds,
            server_settings={"application_name": label[:63]},
        )
        try:
            await connection.execute(
                statements("session")["configure"],
                _milliseconds(settings.command_timeout_seconds),
                _milliseconds(settings.lock_timeout_seconds),
            )
            for statement, value in self._greeting:
                await connection.execute(statement, value)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        return connection


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
