"""Iceberg sinks over a catalog in SQLite, and what a reader finds in their tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table

from replicator.model import Batching, Pending, TableSchema, WriteResult
from replicator.sink.clocks import Clocks
from replicator.sink.iceberg import IcebergSink
from replicator.sink.iceberg_settings import IcebergSettings

PRODUCTS = TableSchema("products", (("id", "S"),))
ORDERS = TableSchema("orders", (("customer", "S"), ("number", "N")))
NOON_US = 1_700_049_600_000_000  # 2023-11-15T12:00:00Z
DAY_US = 86_400_000_000
LETTERS = ("lake", "replicator_dead_letters")


def settings(place: Path, **changes: Any) -> IcebergSettings:
    catalog = {
        "type": "sql",
        "uri": f"sqlite:///{place}/catalog.db",
        "warehouse": f"file://{place}/warehouse",
    }
    made = IcebergSettings(
        name="lake",
        pipeline="shop",
        catalog=catalog,
        table="lake.changes",
        letters=LETTERS,
        tables=("orders", "products"),
        batching=Batching(1_000_000, 5_242_880, 0.2),
        idle_position_seconds=0.0,
    )
    return replace(made, **changes)


async def opened(place: Path, **changes: Any) -> IcebergSink:
    """A worker; `close` it."""
    sink = IcebergSink(settings(place, **changes), clocks=Clocks(monotonic=lambda: 0.0))
    await sink.open([PRODUCTS, ORDERS])
    return sink


async def write(sink: IcebergSink, *several: Pending) -> WriteResult:
    writer: Any = sink.writer(several[0].fence)
    result: WriteResult = await writer.write(writer.encode(several))
    return result


def loaded(place: Path, name: tuple[str, ...] = ("lake", "changes"), **more: str) -> Table:
    """The table, as another program sees it."""
    catalog = load_catalog("default", **{**settings(place).catalog, **more})
    try:
        return catalog.load_table(name)
    finally:
        catalog.close()


def rows(place: Path, name: tuple[str, ...] = ("lake", "changes")) -> pa.Table:
    """All that is in it."""
    return loaded(place, name).scan().to_arrow()


def in_order(place: Path) -> list[dict[str, Any]]:
    """The rows of the changes in the order in which they were added."""
    table = loaded(place)
    found: list[dict[str, Any]] = []
    for snapshot in table.snapshots():
        for manifest in snapshot.manifests(table.io):
            for entry in manifest.fetch_manifest_entry(table.io):
                if entry.snapshot_id == snapshot.snapshot_id:
                    path = entry.data_file.file_path.removeprefix("file://")
                    found += pq.ParquetFile(path).read().to_pylist()
    return found


def times_each(place: Path) -> Counter[str]:
    """How often each change is there, by its event's id."""
    return Counter(rows(place)["event_id"].to_pylist())
