"""A Postgres sink for the tests: opening it, writing to it, looking at what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg

from replicator.errors import FatalError, TransientError
from replicator.model import Fence, TableSchema, WriteResult
from replicator.protocols import Sink
from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_settings import PostgresSettings
from tests.changes import STREAM, pending, put
from tests.stack import PATIENCE_SECONDS

PRODUCTS = TableSchema("products", (("id", "S"),))


def settings(dsn: str, **changes: Any) -> PostgresSettings:
    return replace(PostgresSettings("warehouse", "shop", dsn), **changes)


@asynccontextmanager
async def opened(
    dsn: str, tables: Sequence[TableSchema] = (PRODUCTS,), **changes: Any
) -> AsyncIterator[PostgresSink]:
    sink = PostgresSink(settings(dsn, **changes))
    try:
        await sink.open(tables)
        yield sink
    finally:
        await sink.close()


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def write(
    sink: Sink[Any], fence: Fence, payloads: Sequence[bytes], first: int = 1
) -> WriteResult:
    writer = sink.writer(fence)
    return await writer.write(writer.encode([pending(fence, payloads, first=first)]))


async def rows(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    async with connected(dsn) as connection:
        return [tuple(row) for row in await connection.fetch(sql)]


def product(id_: str, us: int, **attributes: Any) -> bytes:
    return put("products", {"id": {"S": id_}}, us, **attributes)


async def attempt(
    sink: PostgresSink, fence: Fence, payloads: Sequence[bytes], first: int = 1
) -> WriteResult | FatalError | TransientError:
    try:
        return await write(sink, fence, payloads, first)
    except (FatalError, TransientError) as error:
        return error


async def until_waiting(dsn: str, sessions: int = 1) -> None:
    """Returns when that many sessions of this database wait for a lock."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(PATIENCE_SECONDS), connected(dsn) as connection:
        while await connection.fetchval(waiting) < sessions:
            await asyncio.sleep(0.01)


async def until_fenced(sink: PostgresSink) -> Fence:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await sink.fence(STREAM, "shard-1", "me")
            except TransientError:
                await asyncio.sleep(0.05)
