"""Tables of Iceberg as the contract of sinks needs them: the newest items, a catalog in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

from replicator._core import Pattern
from replicator.model import TableSchema
from replicator.sink.clocks import Clocks
from replicator.sink.iceberg import IcebergSink
from tests.lake import LETTERS, ORDERS, PRODUCTS, in_order, rows, settings

Content = dict[tuple[Any, ...], tuple[dict[str, Any] | None, Decimal]]
Letters = dict[tuple[str, str, int], tuple[str, bytes, int]]


class LakeRig:
    """See `tests.sink_rig.Rig`."""

    def __init__(self, stack: AsyncExitStack, place: Path) -> None:
        self._stack = stack
        self._place = place

    async def worker(
        self, pipeline: str = "shop", tables: Sequence[TableSchema] = (ORDERS, PRODUCTS)
    ) -> IcebergSink:
        sink = IcebergSink(
            settings(self._place, pipeline=pipeline, mode="state", table="lake.{table}", buckets=4)
        )
        self._stack.push_async_callback(sink.close)
        await sink.open(tables)
        return sink

    async def log_worker(
        self, pipeline: str = "shop", *, reorder_window_seconds: float = 0, **more: Any
    ) -> IcebergSink:
        reorder_us = round(reorder_window_seconds * 1_000_000)
        filters = more.get("filter", ())
        sink = IcebergSink(
            settings(
                self._place,
                pipeline=pipeline,
                reorder_us=reorder_us,
                pattern=Pattern(filters) if filters else None,
            ),
            clocks=Clocks(monotonic=lambda: 0.0),
        )
        self._stack.push_async_callback(sink.close)
        await sink.open([ORDERS, PRODUCTS])
        return sink

    async def changes(self, table: TableSchema) -> dict[str, list[int]]:
        """In the order of commits, and of the rows of each."""
        found: dict[str, list[int]] = {}
        for row in in_order(self._place):
            if row["table"] == table.name:
                key = json.loads(row["key"])[table.keys[0][0]]
                found.setdefault(key, []).append(int(row["version"]))
        return found

    async def content(self, table: TableSchema) -> Content:
        found: Content = {}
        for row in rows(self._place, ("lake", table.name)).to_pylist():
            item = None if row["item"] is None else json.loads(row["item"], parse_int=Decimal)
            assert row["deleted"] == (item is None)
            key = (Decimal(row[name]) if kind == "N" else row[name] for name, kind in table.keys)
            number = row["version"].partition("-")[2].replace(".", "")
            at = tuple(key)
            assert at not in found, "each key once"
            found[at] = (item, Decimal(number))
        return found

    async def dead_letters(self) -> Letters:
        letters = rows(self._place, LETTERS).to_pylist()
        places = [(one["shard"], one["sequence_number"], one["record_index"]) for one in letters]
        times = Counter(places)
        return {
            at: (one["code"], one["raw"], times[at])
            for at, one in zip(places, letters, strict=True)
        }

    async def copied(self) -> None:
        """The catalog is what fails over: files are never changed."""
        self._copy("catalog.db", "replica.db")

    async def failed_over(self) -> None:
        self._copy("replica.db", "catalog.db")

    def _copy(self, source: str, target: str) -> None:
        with (
            closing(sqlite3.connect(self._place / source)) as read,
            closing(sqlite3.connect(self._place / target)) as written,
        ):
            read.backup(written)
