"""The Iceberg sink's newest items, beside what the contract of sinks asks of them: which files a
commit touches, and who else may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import StringType

from replicator.errors import FatalError
from replicator.model import SHARD_END, TableSchema, after
from replicator.sink.clocks import Clocks
from replicator.sink.iceberg import IcebergSink
from tests.changes import STREAM, number, pending, put, remove
from tests.lake import NOON_US, ORDERS, PRODUCTS, loaded, rows, settings, write

Worker = Callable[..., Awaitable[IcebergSink]]
ITEMS = ("lake", "items")


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    async with AsyncExitStack() as stack:

        async def make(tables: Sequence[TableSchema] = (PRODUCTS,), **changes: Any) -> IcebergSink:
            told = {"mode": "state", "table": "lake.items", "tables": (), **changes}
            sink = IcebergSink(settings(tmp_path, **told), clocks=Clocks(monotonic=lambda: 0.0))
            stack.push_async_callback(sink.close)
            await sink.open(tables)
            return sink

        yield make


def _files(place: Path) -> set[str]:
    return {task.file.file_path for task in loaded(place, ITEMS).scan().plan_files()}


async def test_a_commit_rewrites_the_buckets_of_its_keys_and_no_others(
    worker: Worker, tmp_path: Path
) -> None:
    sink = await worker(buckets=8)
    fence = await sink.fence(STREAM, "shard-1", "me")
    many = [put("products", {"id": {"S": f"item-{n}"}}, NOON_US, n={"N": "1"}) for n in range(60)]
    await write(sink, pending(fence, many))
    before = _files(tmp_path)
    assert len(before) == 8
    snapshots = len(loaded(tmp_path, ITEMS).snapshots())
    change = put("products", {"id": {"S": "item-7"}}, NOON_US + 1, n={"N": "2.5"})
    again = put("products", {"id": {"S": "item-8"}}, NOON_US - 1)
    result = await write(sink, pending(fence, [change, again], first=61))
    assert (result.rows, result.superseded) == (1, 1)
    assert len(before & _files(tmp_path)) in {6, 7}, "at most the buckets of two keys"
    table = loaded(tmp_path, ITEMS)
    assert len(table.snapshots()) == snapshots + 1, "data and position"
    connection = duckdb.connect()
    connection.register("items", table.scan(row_filter="id = 'item-7'").to_arrow())
    (found,) = connection.execute("SELECT id, item ->> 'n', deleted FROM items").fetchall()
    assert found == ("item-7", "2.5", False)
    assert len(list(table.scan(row_filter="id = 'item-7'").plan_files())) == 1
    assert len(rows(tmp_path, ITEMS)) == 60


async def test_what_is_known_already_writes_no_file(worker: Worker, tmp_path: Path) -> None:
    sink = await worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    change = put("products", {"id": {"S": "apple"}}, NOON_US)
    await write(sink, pending(fence, [change]))
    before = _files(tmp_path)
    assert (await write(sink, pending(fence, [change], first=2))).duplicates == 1
    assert _files(tmp_path) == before
    assert await sink.positions(STREAM) == {"shard-1": after(number(2))}


async def test_a_commit_holds_one_bucket_at_a_time_and_rewrites_none_in_vain(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: all buckets of a commit, which may be the whole table, were read at once, and all
    of them written for one newer row."""
    sink = await worker(buckets=8)
    fence = await sink.fence(STREAM, "shard-1", "me")
    keys = [{"id": {"S": f"item-{n}"}} for n in range(200)]
    await write(sink, pending(fence, [put("products", key, NOON_US) for key in keys]))
    before, read = _files(tmp_path), []
    to_table = ArrowScan.to_table

    def noted(scan: ArrowScan, tasks: Any) -> Any:
        found = to_table(scan, tasks)
        read.append(len(found))
        return found

    monkeypatch.setattr(ArrowScan, "to_table", noted)
    older = [put("products", key, NOON_US - 1) for key in keys[1:]]
    newer = put("products", keys[0], NOON_US + 1)
    result = await write(sink, pending(fence, [*older, newer], first=201))
    assert (result.rows, result.superseded) == (1, 199)
    monkeypatch.undo()
    assert (sum(read), len(read)) == (200, 8)
    assert max(read) < 100
    assert len(before & _files(tmp_path)) == 7


async def test_what_others_keep_beside_an_item_stays_while_it_doesnt_change(
    worker: Worker, tmp_path: Path
) -> None:
    """Regression: a rewrite of its bucket emptied their columns."""
    sink = await worker(buckets=1)
    fence = await sink.fence(STREAM, "shard-1", "me")
    keys = [{"id": {"S": str(n)}} for n in range(3)]
    await write(sink, pending(fence, [put("products", key, NOON_US) for key in keys]))
    with loaded(tmp_path, ITEMS).update_schema() as update:
        update.add_column("note", StringType())
    table = loaded(tmp_path, ITEMS)
    items = table.scan().to_arrow().drop_columns("note")
    table.overwrite(items.append_column("note", pa.array(["theirs"] * 3)))
    change = put("products", keys[1], NOON_US + 1, n={"N": "2"})
    assert (await write(sink, pending(fence, [change], first=4))).rows == 1
    found = {row["id"]: row["note"] for row in rows(tmp_path, ITEMS).to_pylist()}
    assert found == {"0": "theirs", "1": None, "2": "theirs"}


async def test_others_may_rewrite_the_table_meanwhile(worker: Worker, tmp_path: Path) -> None:
    """A compaction of another program, and another count of buckets."""
    sink = await worker(buckets=2)
    fence = await sink.fence(STREAM, "shard-1", "me")
    items = [{"id": {"S": str(n)}} for n in range(9)]
    await write(sink, pending(fence, [put("products", key, NOON_US) for key in items]))
    table = loaded(tmp_path, ITEMS)
    table.overwrite(table.scan().to_arrow())
    with loaded(tmp_path, ITEMS).update_spec() as update:
        update.remove_field("bucket")
        update.add_field("id", BucketTransform(3), "more_buckets")
    newer = [put("products", key, NOON_US + 1, n={"N": "2"}) for key in items[:5]]
    gone = remove("products", items[0], NOON_US + 2)
    assert (await write(sink, pending(fence, [*newer, gone], first=10))).rows == 5
    found = {row["id"]: row["item"] for row in rows(tmp_path, ITEMS).to_pylist()}
    assert len(rows(tmp_path, ITEMS)) == len(found) == 9
    assert found["0"] is None
    assert found["1"] == '{"id":"1","n":2}'
    assert found["8"] == '{"id":"8"}'


async def test_two_pipelines_fill_one_table(worker: Worker, tmp_path: Path) -> None:
    sinks = [await worker(pipeline=f"p{n}") for n in range(2)]
    fences = [await sink.fence(STREAM, "shard-1", "me") for sink in sinks]
    for step in range(3):
        several = [
            [put("products", {"id": {"S": str(n)}}, NOON_US + 2 * step + m) for n in range(20)]
            for m in range(2)
        ]
        await asyncio.gather(
            *(
                write(sink, pending(fence, changes, first=1 + 20 * step))
                for sink, fence, changes in zip(sinks, fences, several, strict=True)
            )
        )
    versions = {row["version"][-12:] for row in rows(tmp_path, ITEMS).to_pylist()}
    assert len(rows(tmp_path, ITEMS)) == 20
    assert versions == {f"{(NOON_US + 5) // 1000 % 10**8}.{(NOON_US + 5) % 1000:03}"}
    for sink in sinks:
        assert await sink.positions(STREAM) == {"shard-1": after(number(60))}


async def test_keys_of_two_attributes_and_names_of_our_own(worker: Worker, tmp_path: Path) -> None:
    table = TableSchema("orders", (("item", "S"), ("number", "N")))
    sink = await worker([table])
    fence = await sink.fence(STREAM, "shard-1", "me")
    keys = [("a", "1"), ("a/1", "1"), ("a", "11"), ("a", "1.50")]
    changes = [put("orders", {"item": {"S": a}, "number": {"N": b}}, NOON_US) for a, b in keys]
    for _ in range(2):
        await write(sink, pending(fence, changes, then=after(number(4))))
    found = [(row["item_"], row["number"]) for row in rows(tmp_path, ITEMS).to_pylist()]
    assert sorted(found) == sorted([*keys[:3], ("a", "1.5")])


async def test_several_tables_have_names_of_their_own(worker: Worker) -> None:
    with pytest.raises(FatalError) as raised:
        await worker([PRODUCTS, ORDERS])
    assert raised.value.code == "iceberg_several_tables"
    sink = await worker([PRODUCTS, ORDERS], table="lake.{table}")
    fence = await sink.fence(STREAM, "shard-1", "me")
    order = put("orders", {"customer": {"S": "ann"}, "number": {"N": "7"}}, NOON_US)
    assert (await write(sink, pending(fence, [order], then=SHARD_END))).rows == 1
    assert await sink.holds_data()


async def test_manifests_of_files_that_are_gone_dont_pile_up(
    worker: Worker, tmp_path: Path
) -> None:
    """Regression: each commit left one behind, and read all of them."""
    sink = await worker(buckets=1)
    fence = await sink.fence(STREAM, "shard-1", "me")
    for n in range(6):
        change = put("products", {"id": {"S": str(n % 2)}}, NOON_US + n)
        await write(sink, pending(fence, [change], first=n + 1))
    table = loaded(tmp_path, ITEMS)
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert len(snapshot.manifests(table.io)) == 2, "what came, and what went, with the last one"
    assert len(rows(tmp_path, ITEMS)) == 2
