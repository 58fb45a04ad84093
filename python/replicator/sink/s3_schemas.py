"""Which typed columns the objects of each table have: those of its newest schema in the bucket,
grown by what the changes bring, before the plan that uses them.

    <state>schemas/<pipeline>!<sink>/<table>/<n>.json    one a growth, the newest first

A version is created once, under a name that nobody else can create again, has all columns of the
one before, and never changes. So workers come to one schema without a word: whoever is second at
a name reads it, and adds what it lacks. A plan keeps the columns that it was decided with: what
grows meanwhile is nothing to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import structlog

from replicator._core import ChangeBatch
from replicator._core import Columns as ColumnPlan
from replicator.core import schemas
from replicator.core.plan import TOGETHER, numbered, ordinal_of
from replicator.core.schemas import REST, Columns
from replicator.model import SinkFinding, TableSchema
from replicator.sink.s3_objects import Bucket
from replicator.sink.s3_settings import S3Settings

log = structlog.get_logger()

_VERSION: Final = 1
# Each time somebody else added something, and that is there for good.
_TRIES_MAX: Final = 12
_OWN: Final = (
    *("table", "event", "event_id", "key", "version", "event_time", "sequence_number"),
    *("item", "old", REST),
)
"""What every object's columns are called, `_core.ChangeBatch.parquet`."""
# No table is called so.
_ALL: Final = "!"


class S3Schemas:
    """The schemas of one sink of one pipeline. `current` may be called by several shards at once;
    it raises TransientError and FatalError."""

    def __init__(self, bucket: Bucket, settings: S3Settings) -> None:
        self._bucket = bucket
        self._settings = settings
        self._told: Columns = settings.encoding.columns
        whose = f"{settings.pipeline}!{settings.name}".replace("/", "!")
        self._root = f"{settings.state_prefix}schemas/{whose}/"
        self._known: dict[str, Columns] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def current(
        self, parts: Sequence[tuple[str | None, int, ChangeBatch]]
    ) -> Mapping[str, Columns]:
        """By table (`TOGETHER`: of all), the columns that have all that can be said of these
        changes; nothing when columns don't follow the items."""
        if not self._settings.follows_items:
            return {}
        batches: dict[str, list[ChangeBatch]] = {}
        for table, _, batch in parts:
            batches.setdefault(table or TOGETHER, []).append(batch)
        return {table: await self._of(table, some) for table, some in batches.items()}

    async def findings(self, tables: Sequence[TableSchema]) -> list[SinkFinding]:
        """What a check says of the tables' columns. Raises TransientError and FatalError."""
        if not self._settings.follows_items:
            return []
        is_apart = self._settings.prefix.by_table
        found = []
        for table in [each.name for each in tables] if is_apart else [TOGETHER]:
            number, columns = await self._newest(self._folder(table))
            whose = f"objects of {table or 'all tables'}"
            said = f"version {number}, with {len(columns)} columns" if number else "no columns yet"
            found.append(SinkFinding("schema", f"{whose}: {said}"))
        return found

    async def _of(self, table: str, batches: Sequence[ChangeBatch]) -> Columns:
        known = self._known.get(table)
        if known is not None and await self._is_enough(known, table, batches):
            return known
        async with self._locks.setdefault(table, asyncio.Lock()):
            known = self._known.get(table)  # another shard may have been quicker
            if known is None or not await self._is_enough(known, table, batches):
                known = self._known[table] = await self._resolved(table, batches)
            return known

    async def _is_enough(
        self, columns: Columns, table: str, batches: Sequence[ChangeBatch]
    ) -> bool:
        return await self._grown(columns, table, batches) == columns

    async def _resolved(self, table: str, batches: Sequence[ChangeBatch]) -> Columns:
        """The newest version, or the next one when that lacks something."""
        folder = self._folder(table)
        for attempt in range(_TRIES_MAX):
            number, newest = await self._newest(folder)
            base = schemas.joined(newest, self._told, dict(self._told))
            columns = await self._grown(base, table, batches)
            if columns == newest:
                return columns
            body = {"schema": _VERSION, "table": table or None, "columns": columns}
            key = f"{folder}{numbered(number + 1)}.json"
            if await self._bucket.create(
                key, orjson.dumps(body), content_type="application/json", is_data=False
            ):
                log.info(
                    "schema_grown", table=table or None, version=number + 1, columns=len(columns)
                )
                return columns
            await self._bucket.pause(attempt)
        raise self._bucket.conflict(folder)

    async def _newest(self, folder: str) -> tuple[int, Columns]:
        """Its number and columns; 0 and none when there is none."""
        newest = await self._bucket.first(folder)
        if newest is None:
            return 0, ()
        key = newest.key
        data = await self._bucket.read(key)
        with self._bucket.reading(key):
            body: Mapping[str, Any] = orjson.loads(data or b"")
            if body["schema"] != _VERSION:
                raise ValueError(f"version {body['schema']!r} of schemas is not known here")
            columns = tuple((str(name), str(kind)) for name, kind in body["columns"])
            ColumnPlan(columns, REST)
            return ordinal_of(key), columns

    async def _grown(self, columns: Columns, table: str, batches: Sequence[ChangeBatch]) -> Columns:
        limit = self._settings.columns_max
        if len(columns) >= limit:
            return columns
        return await asyncio.to_thread(_grown, columns, table, batches, limit)

    def _folder(self, table: str) -> str:
        return f"{self._root}{table.replace('/', '!') or _ALL}/"


def _grown(
    columns: Columns, table: str, batches: Sequence[ChangeBatch], columns_max: int
) -> Columns:
    plan = ColumnPlan(columns, REST)
    unplanned = [
        each
        for batch in batches
        for name in ([table] if table else sorted(filter(None, batch.tables)))
        for each in batch.unplanned(plan, name)
    ]
    if not unplanned:
        return columns
    return schemas.grown(columns, schemas.distinct(columns, unplanned, _OWN), columns_max)
