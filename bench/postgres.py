"""The sink that the benches write to: one table of one stream on a Postgres of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from bench import records
from replicator.model import Stream, TableSchema
from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_settings import PostgresSettings
from replicator.testing.servers import PostgresServer

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection

TABLE = TableSchema(records.TABLE, (("id", "S"),))
STREAM = Stream("bench", "arn:aws:kinesis:eu-north-1:000000000001:stream/bench", 1_706_542_000)


@dataclass(frozen=True, slots=True)
class Result:
    """Records or rows a second, each variant by its middle turn; its spread up to the slow ones."""

    rates: dict[str, float]
    spreads: dict[str, float]


@asynccontextmanager
async def opened(server: PostgresServer) -> AsyncIterator[tuple[PostgresSink, Connection]]:
    """The sink on a database of its own, its table made, and a connection beside it."""
    dsn = server.database()
    settings = PostgresSettings(name="bench", pipeline="bench/bench", dsn=dsn, connections=1)
    sink = PostgresSink(settings)
    connection = await asyncpg.connect(dsn)
    try:
        await sink.open([TABLE])
        yield sink, connection
    finally:
        await connection.close()
        await sink.close()
