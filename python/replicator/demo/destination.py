"""Where the demo's changes go: Postgres, or an archive in S3. Each tells what it holds in the
same plain form, and the demo compares that with the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import asyncpg

from replicator import archive
from replicator.config import Config
from replicator.demo import compare, stage
from replicator.demo.child import REGION, TABLE, client
from replicator.testing.servers import PostgresServer

_BUCKET = "demo-archive"
# The newest change of each key, and copies of a change, if there are any.
_NEWEST = """
SELECT id, arg_max(item, rank) FROM (
    SELECT key->>'id' AS id, coalesce(item::VARCHAR, '') AS item,
        lpad(version, 40, '0') || lpad(position, 64, '0') AS rank
    FROM changes
) GROUP BY id
"""
_COPIES = "SELECT event_id, count(*) FROM changes GROUP BY event_id HAVING count(*) > 1"
_STOCK = """
SELECT key->>'id' AS id, any_value(item->>'name') AS name, count(*) AS changes,
    min((item->>'Stock')::INTEGER) AS lowest_stock, max((item->>'Stock')::INTEGER) AS highest_stock,
    max(time) AS last_change
FROM changes GROUP BY id ORDER BY changes DESC, id LIMIT 5
"""
Row = tuple[str, str, str, str]


class Destination(Protocol):
    """What the demo asks of a sink's other side."""

    place: str
    """Its name in sentences."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The sink, as a configuration file would say it."""
        ...

    async def open(self) -> None:
        """Makes it ready for the service."""
        ...

    async def items(self) -> Mapping[str, Any]:
        """What it says the table holds now, plain, by key."""
        ...

    async def flaws(self) -> Sequence[str]:
        """What is wrong with it besides, as sentences."""
        ...

    async def count(self) -> int | None:
        """How many items it holds, where that is quick to say."""
        ...

    async def chosen(self, count: int) -> list[str]:
        """Some keys, to be looked at before and after."""
        ...

    async def rows(self, ids: list[str]) -> list[Row]:
        """These items: id, name, stock, price."""
        ...

    async def ending(self) -> Sequence[str]:
        """What it can show at the end, line by line."""
        ...

    def way_in(self) -> str:
        """A command for a shell that looks into it."""
        ...

    async def close(self) -> None:
        """May be called without `open`."""
        ...


class Warehouse:
    """A table in Postgres."""

    place = "Postgres"

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._connection: Any = None

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"name": "warehouse", "kind": "postgres", "dsn": self._server.dsn}

    async def open(self) -> None:
        self._connection = await asyncpg.connect(self._server.dsn)

    async def items(self) -> Mapping[str, Any]:
        return await compare.select(self._connection, TABLE)

    async def flaws(self) -> Sequence[str]:
        return ()

    async def count(self) -> int | None:
        sql = f"SELECT count(*) FROM {TABLE} WHERE NOT deleted"  # noqa: S608 our own name
        found: int = await self._connection.fetchval(sql)
        return found

    async def chosen(self, count: int) -> list[str]:
        found = await self._connection.fetch(
            "SELECT DISTINCT ON (item->>'name') id"  # noqa: S608 our own name
            f" FROM {TABLE} ORDER BY item->>'name', id LIMIT {count}"
        )
        return [row["id"] for row in found]

    async def rows(self, ids: list[str]) -> list[Row]:
        found = await self._connection.fetch(
            "SELECT id, item->>'name' AS name, item->>'Stock' AS stock, item->>'Price' AS price"  # noqa: S608 our own name
            f" FROM {TABLE} WHERE id = ANY($1) ORDER BY array_position($1, id)",
            ids,
        )
        return [
            (row["id"], row["name"] or "(delisted)", row["stock"] or "", row["price"] or "")
            for row in found
        ]

    async def ending(self) -> Sequence[str]:
        return ()

    def way_in(self) -> str:
        return stage.way_into_postgres(self._server)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


class Bucket:
    """An archive in S3, read back by `archive query`."""

    place = "the archive"

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "name": "archive",
            "kind": "s3",
            "bucket": _BUCKET,
            "prefix": "{table}/",
            "buffering": {"size_mb": 5, "interval_seconds": 2},
        }

    async def open(self) -> None:
        async with client("s3") as s3:
            where = {"LocationConstraint": REGION}
            await s3.create_bucket(Bucket=_BUCKET, CreateBucketConfiguration=where)

    async def items(self) -> Mapping[str, Any]:
        found = (await self._asked(_NEWEST)).rows
        return {key: compare.plain_row(text) for key, text in found if text}

    async def flaws(self) -> Sequence[str]:
        copies = Counter(dict((await self._asked(_COPIES)).rows))
        return [f"change {each} is there {times} times" for each, times in copies.items()]

    async def count(self) -> int | None:
        return None

    async def chosen(self, count: int) -> list[str]:
        return []

    async def rows(self, ids: list[str]) -> list[Row]:
        return []

    async def ending(self) -> Sequence[str]:
        answer = await self._asked(_STOCK)
        return ["", f'$ replicator archive query "{_STOCK.strip()}"', *answer.as_text().split("\n")]

    def way_in(self) -> str:
        return f"{stage.settings(self._url)} aws s3 ls --recursive s3://{_BUCKET}/{TABLE}/"

    async def close(self) -> None:
        """Nothing is held."""

    async def _asked(self, sql: str) -> archive.Answer:
        return await archive.queried(self._config(), archive.Asked(), sql)

    def _config(self) -> Config:
        pipeline = {
            "name": "products",
            "tables": [TABLE],
            "source": {"kind": "streams"},
            "sinks": [self.settings],
        }
        aws = {"region": REGION, "endpoint_url": self._url}
        return Config.model_validate({"name": "demo", "aws": aws, "pipelines": [pipeline]})
