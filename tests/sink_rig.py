"""A place to write to, in memory or in a real store, as the contract of sinks needs it."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

from replicator.model import Pending, Stream, TableSchema, WriteResult
from replicator.sink.crate import CrateSink
from replicator.sink.iceberg import IcebergSink
from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_settings import PostgresSettings
from replicator.testing.servers import PostgresServer
from replicator.testing.sink import MemorySink, MemoryStore
from tests.changes import STREAM
from tests.crate_database import CrateDatabase, version_us
from tests.lake_rig import LakeRig
from tests.warehouse import connected

ORDERS = TableSchema("orders", (("customer", "S"), ("number", "N")))
PRODUCTS = TableSchema("products", (("id", "S"),))
RECREATED = Stream(STREAM.name, STREAM.arn, STREAM.created_at_s + 1)

AnySink: TypeAlias = PostgresSink | MemorySink | CrateSink | IcebergSink
Content: TypeAlias = dict[tuple[Any, ...], tuple[dict[str, Any] | None, Decimal]]


@dataclass(frozen=True, slots=True)
class Rig:
    """One destination; `worker()` is another process at it, `content` what a reader sees.
    `copied` makes a replica that then falls behind, `failed_over` puts it in the place of
    the destination, which is gone; both cut all connections."""

    worker: Callable[..., Awaitable[AnySink]]
    content: Callable[[TableSchema], Awaitable[Content]]
    dead_letters: Callable[[], Awaitable[dict[tuple[str, str, int], tuple[str, bytes, int]]]]
    copied: Callable[[], Awaitable[None]]
    failed_over: Callable[[], Awaitable[None]]


async def write(sink: AnySink, *several: Pending) -> WriteResult:
    writer: Any = sink.writer(several[0].fence)
    result: WriteResult = await writer.write(writer.encode(several))
    return result


def memory_rig(stack: AsyncExitStack) -> Rig:
    store = MemoryStore()

    async def worker(pipeline: str = "shop") -> AnySink:
        sink = MemorySink(pipeline, store)
        stack.push_async_callback(sink.close)
        await sink.open([ORDERS, PRODUCTS])
        return sink

    async def content(table: TableSchema) -> Content:
        return {
            key: (None if stored.item is None else dict(stored.item), stored.version)
            for (name, key), stored in store.items.items()
            if name == table.name
        }

    async def dead_letters() -> dict[tuple[str, str, int], tuple[str, bytes, int]]:
        return {
            at[2:]: (letter.rejection.code, letter.rejection.raw, store.attempts[at])
            for at, letter in store.dead_letters.items()
        }

    replica = MemoryStore()

    async def copied() -> None:
        nonlocal replica
        replica = copy.deepcopy(store)

    async def failed_over() -> None:
        for field in fields(store):
            setattr(store, field.name, getattr(replica, field.name))

    return Rig(worker, content, dead_letters, copied, failed_over)


def postgres_rig(stack: AsyncExitStack, server: PostgresServer, dsn: str) -> Rig:
    name = dsn.partition("?")[0].rpartition("/")[2]

    async def worker(pipeline: str = "shop") -> AnySink:
        sink = PostgresSink(PostgresSettings("warehouse", pipeline, dsn))
        stack.push_async_callback(sink.close)
        await sink.open([ORDERS, PRODUCTS])
        return sink

    async def content(table: TableSchema) -> Content:
        async with connected(dsn) as reader:
            rows = await reader.fetch(f'SELECT * FROM "{table.name}"')
        found: Content = {}
        for row in rows:
            item = None if row["item"] is None else json.loads(row["item"], parse_int=Decimal)
            assert row["deleted"] == (item is None)
            found[tuple(row[name] for name, _ in table.keys)] = (item, row["version"])
        return found

    async def dead_letters() -> dict[tuple[str, str, int], tuple[str, bytes, int]]:
        async with connected(dsn) as reader:
            rows = await reader.fetch("SELECT * FROM replicator_dead_letters")
        return {
            (row["shard"], row["sequence_number"], row["record_index"]): (
                row["code"],
                row["raw"],
                row["attempts"],
            )
            for row in rows
        }

    async def execute(*statements: str) -> None:
        for sql in statements:  # each on its own: none of them can be part of a transaction
            await asyncio.to_thread(server.execute, sql)

    async def copied() -> None:
        await execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
            f'CREATE DATABASE "{name}_replica" TEMPLATE "{name}"',
        )

    async def failed_over() -> None:
        await execute(
            f'DROP DATABASE "{name}" WITH (FORCE)',
            f'ALTER DATABASE "{name}_replica" RENAME TO "{name}"',
        )

    return Rig(worker, content, dead_letters, copied, failed_over)


def crate_rig(stack: AsyncExitStack, database: CrateDatabase) -> Rig:
    async def worker(pipeline: str = "shop") -> AnySink:
        sink = CrateSink(database.settings(pipeline=pipeline))
        stack.push_async_callback(sink.close)
        await sink.open([ORDERS, PRODUCTS])
        return sink

    async def content(table: TableSchema) -> Content:
        found: Content = {}
        for row in await database.rows(table.name):
            exact = row["exact"]
            item = None if exact is None else json.loads(exact, parse_int=Decimal)
            assert row["deleted"] == (item is None)
            key = (Decimal(row[name]) if kind == "N" else row[name] for name, kind in table.keys)
            found[tuple(key)] = (item, version_us(row["version"]))
        return found

    async def dead_letters() -> dict[tuple[str, str, int], tuple[str, bytes, int]]:
        return {
            (row["shard"], row["sequence_number"], row["record_index"]): (
                row["code"],
                base64.b64decode(row["raw"]),
                row["attempts"],
            )
            for row in await database.rows("replicator_dead_letters")
        }

    return Rig(worker, content, dead_letters, database.copied, database.failed_over)


def lake_rig(stack: AsyncExitStack, place: Path) -> Rig:
    lake = LakeRig(stack, place)
    return Rig(lake.worker, lake.content, lake.dead_letters, lake.copied, lake.failed_over)
