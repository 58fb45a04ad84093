"""One connection to Postgres that is opened when first used and again after an error."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import asyncpg

from replicator.errors import FatalError, TransientError
from replicator.sink.postgres_errors import mapped
from replicator.sink.postgres_settings import PostgresSettings, check_dsn, dsn_error
from replicator.sink.statements import statements

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

_CLIENT_CHECK_SECONDS: Final = 5.0
# Connections opened together are replaced one after the other.
_AGE_JITTER: Final = 0.1


class PostgresSession:
    """A connection with one user at a time.

    Whatever ends a use early (an error, a deadline, cancellation) leaves the
    connection in a state nobody knows: it is thrown away, not repaired, and what
    it held (transaction, locks, staging tables) goes with it.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        greeting: Sequence[tuple[str, object]] = (),
        *,
        age_seconds_max: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`greeting`: statements, with a value each, that every new connection begins with.
        A connection older than `age_seconds_max` is replaced before its next use, and one
        that is idle that long is ended by the server (before 14: at its next use)."""
        self._settings = settings
        self._greeting = list(greeting)
        if age_seconds_max is not None:
            idle = (statements("session")["end_idle"], _milliseconds(age_seconds_max))
            self._greeting.append(idle)
        self._age_seconds_max = age_seconds_max
        self._monotonic = monotonic
        self._expires_at = float("inf")
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
        if self._turn.locked():
            self.discard()
        else:
            await self._end()

    async def _end(self) -> None:
        connection, self._connection = self._connection, None
        self._prepared.clear()
        if connection is None:
            return
        # It goes either way, so how it went interests nobody.
        with suppress(TransientError, FatalError), mapped("closing a connection"):
            await connection.close(timeout=self._settings.connect_timeout_seconds)

    async def _open(self) -> Connection:
        if self._monotonic() >= self._expires_at:
            await self._end()
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        self._prepared.clear()
        settings = self._settings
        connection = await self._connect()
        try:
            await connection.execute(
                statements("session")["configure"],
                _milliseconds(settings.command_timeout_seconds),
                _milliseconds(settings.lock_timeout_seconds),
            )
            with suppress(asyncpg.InvalidParameterValueError):
                await connection.execute(
                    statements("session")["watch_client"], _milliseconds(_CLIENT_CHECK_SECONDS)
                )
            for statement, value in self._greeting:
                await connection.execute(statement, value)
        except BaseException:
            connection.terminate()
            raise
        if self._age_seconds_max is not None:
            share = random.uniform(1 - _AGE_JITTER, 1)  # noqa: S311 jitter, no secret
            self._expires_at = self._monotonic() + share * self._age_seconds_max
        self._connection = connection
        return connection

    async def _connect(self) -> Connection:
        settings = self._settings
        check_dsn(settings.dsn)
        label = " ".join(filter(None, ("replicator", settings.pipeline, settings.owner)))
        try:
            connection: Connection = await asyncpg.connect(
                settings.dsn or None,
                timeout=settings.connect_timeout_seconds,
                command_timeout=settings.command_timeout_seconds,
                server_settings={"application_name": label[:63]},
            )
        except (OSError, asyncpg.InterfaceError):
            raise  # some of them are ValueErrors too
        except ValueError:
            pass
        else:
            return connection
        # Not inside `except`: the driver's message quotes the DSN, and a log that shows
        # the context of an error would show a piece of the password.
        raise dsn_error()


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
