"""A place to write to, as the contract of sinks needs it: one for each kind of sink."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from replicator.model import Fence, Pending, Stream, TableSchema, WriteResult
from replicator.sink.crate import CrateSink
from replicator.sink.iceberg import IcebergSink
from replicator.sink.kafka import KafkaSink
from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_settings import PostgresSettings
from replicator.sink.s3 import S3Sink
from replicator.testing.s3_server import S3Server
from replicator.testing.servers import PostgresServer
from replicator.testing.sink import MemorySink, MemoryStore
from tests import archive
from tests.changes import STREAM
from tests.crate_database import CrateDatabase, version_us
from tests.kafka_rig import Rig as KafkaRig
from tests.lake_rig import LakeRig
from tests.warehouse import connected

ORDERS = TableSchema("orders", (("customer", "S"), ("number", "N")))
PRODUCTS = TableSchema("products", (("id", "S"),))
RECREATED = Stream(STREAM.name, STREAM.arn, STREAM.created_at_s + 1)

# What they hold: the newest item of each key, or every change.
STATE_SINKS = ("memory", "postgres", "cratedb", "iceberg")
LOG_SINKS = ("s3", "kafka", "iceberg log")

AnySink: TypeAlias = PostgresSink | MemorySink | CrateSink | S3Sink | KafkaSink | IcebergSink
Worker: TypeAlias = Callable[..., Awaitable[AnySink]]
Content: TypeAlias = dict[tuple[Any, ...], tuple[dict[str, Any] | None, Decimal]]
Refused: TypeAlias = dict[tuple[str, str, int], tuple[str, bytes]]


class Rig(Protocol):
    """One destination of any kind; `worker()` is another process at it."""

    @property
    def worker(self) -> Worker:
        """Opens a sink for ORDERS and PRODUCTS (but for S3's, others by `tables`); `pipeline`
        names another one."""
        ...

    async def keys(self, table: TableSchema) -> list[str]:
        """The first key attribute of what is there, sorted: of a log, once for each change."""
        ...

    async def refused(self) -> Refused:
        """Dead letters by shard, sequence number and place in it: code and bytes."""
        ...


@dataclass(frozen=True, slots=True)
class StateRig:
    """The newest items; `content` is what a reader sees. `copied` makes a replica that then
    falls behind, `failed_over` puts it in the place of the destination, which is gone; both cut
    all connections."""

    worker: Worker
    content: Callable[[TableSchema], Awaitable[Content]]
    dead_letters: Callable[[], Awaitable[dict[tuple[str, str, int], tuple[str, bytes, int]]]]
    copied: Callable[[], Awaitable[None]]
    failed_over: Callable[[], Awaitable[None]]

    async def keys(self, table: TableSchema) -> list[str]:
        return sorted(str(key[0]) for key in await self.content(table))

    async def refused(self) -> Refused:
        return {at: (code, raw) for at, (code, raw, _) in (await self.dead_letters()).items()}


@dataclass(frozen=True, slots=True)
class LogRig:
    """Every change. `worker` also takes `reorder_window_seconds` (0) and `filter`, as a file has
    them; `changes` gives the times of a table's changes (microseconds) by their first key
    attribute, in the order that readers see."""

    worker: Worker
    changes: Callable[[TableSchema], Awaitable[dict[str, list[int]]]]
    letters: Callable[[], Awaitable[Refused]]

    async def refused(self) -> Refused:
        return await self.letters()

    async def keys(self, table: TableSchema) -> list[str]:
        found = await self.changes(table)
        return sorted(key for key, times in found.items() for _ in times)


async def fenced(sink: AnySink, shard: str) -> Fence:
    """A fence with its position read, as a reader takes a shard (law 6)."""
    fence = await sink.fence(STREAM, shard, "me")
    await sink.position(fence)
    return fence


async def write(sink: AnySink, *several: Pending) -> WriteResult:
    writer: Any = sink.writer(several[0].fence)
    result: WriteResult = await writer.write(writer.encode(several))
    return result


def memory_rig(stack: AsyncExitStack) -> StateRig:
    store = MemoryStore()

    async def worker(
        pipeline: str = "shop", tables: Sequence[TableSchema] = (ORDERS, PRODUCTS)
    ) -> AnySink:
        sink = MemorySink(pipeline, store)
        stack.push_async_callback(sink.close)
        await sink.open(tables)
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

    return StateRig(worker, content, dead_letters, copied, failed_over)


def postgres_rig(stack: AsyncExitStack, server: PostgresServer, dsn: str) -> StateRig:
    name = dsn.partition("?")[0].rpartition("/")[2]

    async def worker(
        pipeline: str = "shop", tables: Sequence[TableSchema] = (ORDERS, PRODUCTS)
    ) -> AnySink:
        sink = PostgresSink(PostgresSettings("warehouse", pipeline, dsn))
        stack.push_async_callback(sink.close)
        await sink.open(tables)
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

    return StateRig(worker, content, dead_letters, copied, failed_over)


def crate_rig(stack: AsyncExitStack, database: CrateDatabase) -> StateRig:
    async def worker(
        pipeline: str = "shop", tables: Sequence[TableSchema] = (ORDERS, PRODUCTS)
    ) -> AnySink:
        sink = CrateSink(database.settings(pipeline=pipeline))
        stack.push_async_callback(sink.close)
        await sink.open(tables)
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

    return StateRig(worker, content, dead_letters, database.copied, database.failed_over)


def s3_rig(stack: AsyncExitStack, server: S3Server) -> LogRig:
    async def worker(
        pipeline: str = "shop", *, reorder_window_seconds: float = 0, **more: Any
    ) -> AnySink:
        reorder_us = round(reorder_window_seconds * 1_000_000)
        given = {"reorder_us": reorder_us, "filters": more.get("filter", ())}
        sink = S3Sink(archive.settings(server.url, pipeline=pipeline, **given))
        stack.push_async_callback(sink.close)
        await sink.open([ORDERS, PRODUCTS])
        return sink

    async def changes(table: TableSchema) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        # The end of an object's name counts a shard's plans.
        for _, some in sorted(archive.lines(server).items(), key=lambda at: at[0].split("/")[-1]):
            for change in some:
                if change["tableName"] == table.name:
                    image = change["dynamodb"]
                    (key,) = image["Keys"][table.keys[0][0]].values()
                    found.setdefault(key, []).append(image["ApproximateCreationDateTime"])
        return found

    async def letters() -> Refused:
        return {
            (letter["shardId"], letter["sequenceNumber"], letter["subSequenceNumber"]): (
                letter["errorCode"],
                base64.b64decode(letter["rawData"]),
            )
            for body in server.objects(prefix="errors/").values()
            for letter in map(json.loads, body.splitlines())
        }

    return LogRig(worker, changes, letters)


def topics_rig(rig: KafkaRig) -> LogRig:
    async def worker(
        pipeline: str = "shop", *, reorder_window_seconds: float = 0, **more: Any
    ) -> AnySink:
        more["reorder_window_seconds"] = reorder_window_seconds
        return await rig.worker(pipeline, more.pop("tables", (ORDERS, PRODUCTS)), **more)

    async def changes(table: TableSchema) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for record in await rig.records(table.name):
            if record.value is not None:  # not a tombstone
                key = json.loads(record.key)[table.keys[0][0]]
                found.setdefault(key, []).append(int(record.headers["version"]))
        return found

    async def letters() -> Refused:
        found: Refused = {}
        for letter in await rig.letters():
            shard, position, index, code = (
                letter.headers[name].decode() for name in ("shard", "position", "index", "code")
            )
            found[shard, position, int(index)] = (code, letter.value or b"")
        return found

    return LogRig(worker, changes, letters)


def lake_rig(stack: AsyncExitStack, place: Path) -> StateRig:
    lake = LakeRig(stack, place)
    return StateRig(lake.worker, lake.content, lake.dead_letters, lake.copied, lake.failed_over)


def lake_log_rig(stack: AsyncExitStack, place: Path) -> LogRig:
    lake = LakeRig(stack, place)

    async def letters() -> Refused:
        return {at: (code, raw) for at, (code, raw, _) in (await lake.dead_letters()).items()}

    return LogRig(lake.log_worker, lake.changes, letters)
