"""The demo's table as a table of Iceberg in a folder, with every change, asked by DuckDB."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from replicator.demo.asked import AskedPlace
from replicator.demo.child import TABLE

_NEWEST = """
SELECT id, arg_max(item, rank) FROM (
    SELECT key->>'id' AS id, coalesce(extra, '') AS item,
        lpad(version, 40, '0') || lpad(sequence_number, 64, '0') AS rank
    FROM changes
) GROUP BY id
"""
_STOCK = """
SELECT key->>'id' AS id, count(*) AS changes, min((extra->>'Stock')::INTEGER) AS lowest_stock,
    max(event_time::TIMESTAMP) AS last_change
FROM changes GROUP BY id ORDER BY changes DESC, id LIMIT 5
"""


class LakePlace(AskedPlace):
    """Every change is a row; the newest of each key is its item."""

    name = "Iceberg"
    newest = _NEWEST

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._catalog = {
            "type": "sql",
            "uri": f"sqlite:///{folder}/catalog.db",
            "warehouse": f"file://{folder}/warehouse",
        }
        self.sink: Mapping[str, Any] = {
            "name": "lake",
            "kind": "iceberg",
            "catalog": self._catalog,
            "table": f"demo.{TABLE}",
            "commit": {"seconds": 1},
        }

    async def make(self) -> None:
        """The sink does."""

    async def ending(self) -> list[str]:
        rows = await self.rows(_STOCK)
        return ["", "the products that changed most (id, changes, lowest stock, last change):"] + [
            "  ".join(map(str, row)) for row in rows
        ]

    def way_in(self) -> str:
        catalog = self._catalog
        return (
            f"pyiceberg --uri {catalog['uri']} --warehouse {catalog['warehouse']}"
            f" describe demo.{TABLE}"
        )

    async def rows(self, sql: str) -> Sequence[tuple[Any, ...]]:
        return await asyncio.to_thread(self._answer, sql)

    def _answer(self, sql: str) -> Sequence[tuple[Any, ...]]:
        from pyiceberg.catalog import load_catalog  # noqa: PLC0415 - an extra of the package
        from pyiceberg.exceptions import NoSuchTableError  # noqa: PLC0415

        catalog = load_catalog("default", **self._catalog)
        try:
            changes = catalog.load_table(("demo", TABLE)).scan().to_arrow()
        except NoSuchTableError:
            return []
        finally:
            catalog.close()
        with duckdb.connect() as connection:
            connection.register("changes", changes)
            return connection.execute(sql).fetchall()
