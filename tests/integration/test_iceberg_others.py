"""The Iceberg sink at a table that somebody else changes while it writes (its columns, how it is
partitioned), or where very many shards have positions."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pyiceberg.table.update import update_table_metadata
from pyiceberg.table.update.spec import UpdateSpec
from pyiceberg.transforms import BucketTransform, DayTransform, IdentityTransform, MonthTransform

from replicator.aws import AWSSettings
from replicator.errors import FatalError
from replicator.model import SHARD_END
from replicator.sink.clocks import Clocks
from replicator.sink.iceberg import IcebergSink
from replicator.sink.iceberg_shards import Room
from replicator.sink.iceberg_state import SinkState
from replicator.sink.iceberg_table import Staged
from tests.changes import STREAM, pending, put
from tests.lake import LETTERS, NOON_US, PRODUCTS, loaded, rows, settings, write

LOG, ITEMS = ("lake", "changes"), ("lake", "items")
MODES: dict[str, dict[str, Any]] = {
    "log": {"tables": ("products",)},
    "state": {"mode": "state", "table": "lake.items", "buckets": 2},
}
APPLE: Any = {"id": {"S": "apple"}}


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def made(mode: str, **changes: Any) -> IcebergSink:
            told = settings(tmp_path, **MODES[mode], **changes)
            sink = IcebergSink(told, clocks=Clocks(monotonic=lambda: 0.0))
            stack.push_async_callback(sink.close)
            await sink.open([PRODUCTS])
            return sink

        yield made


def _by_month(update: UpdateSpec) -> None:
    update.remove_field("event_day")
    update.add_field("event_time", MonthTransform(), "event_month")


def _by_day_and_event(update: UpdateSpec) -> None:
    update.add_field("event", IdentityTransform(), "event_name")


def _by_another(update: UpdateSpec) -> None:
    update.remove_field("bucket")
    update.add_field("version", BucketTransform(4), "other_bucket")


def _letters_by_day(update: UpdateSpec) -> None:
    update.add_field("at", DayTransform(), "at_day")


@pytest.mark.parametrize(
    ("mode", "name", "change"),
    [
        ("log", LOG, _by_month),
        ("log", LOG, _by_day_and_event),
        ("state", ITEMS, _by_another),
        ("log", LETTERS, _letters_by_day),
    ],
)
async def test_no_file_is_filed_under_a_value_that_its_partition_is_not_about(
    mode: str,
    name: tuple[str, ...],
    change: Callable[[UpdateSpec], None],
    make: Any,
    tmp_path: Path,
) -> None:
    """Regression: a month got a day's number, so whoever asked for the month found nothing."""
    sink = await make(mode)
    with loaded(tmp_path, name).update_spec() as update:
        change(update)
    fence = await sink.fence(STREAM, "shard-1", "me")
    records = [put("products", APPLE, NOON_US), b"broken"]
    with pytest.raises(FatalError) as raised:
        await write(sink, pending(fence, records, then=SHARD_END))
    assert raised.value.code == "iceberg_partitions"
    assert len(rows(tmp_path, name)) == 0
    assert await sink.positions(STREAM) == {}


@pytest.mark.parametrize(
    ("mode", "name", "change"),
    [("log", LOG, _by_month), ("state", ITEMS, _by_another), ("log", LETTERS, _letters_by_day)],
)
async def test_a_partitioning_that_cannot_be_written_is_planned_as_a_problem(
    mode: str,
    name: tuple[str, ...],
    change: Callable[[UpdateSpec], None],
    make: Any,
    tmp_path: Path,
) -> None:
    """Regression: `check` said that the table is there, and `run` refused it."""
    sink = await make(mode)
    with loaded(tmp_path, name).update_spec() as update:
        change(update)
    (problem,) = (await sink.plan([PRODUCTS])).problems
    assert (problem.subject, problem.code) == (f"table {'.'.join(name)}", "iceberg_partitions")
    with pytest.raises(FatalError) as raised:
        await make(mode)
    assert raised.value.code == "iceberg_partitions"


@pytest.mark.parametrize(("mode", "name"), [("log", LOG), ("state", ITEMS)])
async def test_a_column_that_is_taken_away_is_named(
    mode: str, name: tuple[str, ...], make: Any, tmp_path: Path
) -> None:
    """Regression: it came through as the driver's own ValueError."""
    sink = await make(mode)
    with loaded(tmp_path, name).update_schema() as update:
        update.delete_column("item")
    fence = await sink.fence(STREAM, "shard-1", "me")
    with pytest.raises(FatalError, match="item") as raised:
        await write(sink, pending(fence, [put("products", APPLE, NOON_US)], then=SHARD_END))
    assert raised.value.code == "iceberg_columns_missing"
    again = await make(mode)
    fence = await again.fence(STREAM, "shard-1", "me")
    await write(again, pending(fence, [put("products", APPLE, NOON_US)], then=SHARD_END))
    assert len(rows(tmp_path, name)) == 1, "who begins anew makes it again"


async def test_what_thousands_of_shards_have_stored_is_read_beside_the_event_loop(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = await make("log")
    await sink.fence(STREAM, "shard-1", "me")
    readers: set[threading.Thread] = set()
    read = SinkState.from_text

    def noted(text: str | None) -> SinkState:
        readers.add(threading.current_thread())
        return read(text)

    monkeypatch.setattr(SinkState, "from_text", noted)
    assert await sink.positions(STREAM) == {}
    await sink.fence(STREAM, "shard-2", "me")
    assert readers
    assert threading.current_thread() not in readers


def test_the_view_in_the_readme_shows_the_newest_item() -> None:
    """Regression: numbers of DynamoDB Streams differ in length, and were compared as text."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (view,) = [sql for sql in readme.split("```sql\n") if "row_number()" in sql.split("```")[0]]
    nines, more = "9" * 21, "1" + "0" * 21
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE SCHEMA shop; CREATE TABLE shop.products AS SELECT * FROM (VALUES"
            f" ('a', TIMESTAMP '2026-11-21 08:00:00', 'MODIFY', '{nines}', '{nines}', 'older'),"
            f" ('a', TIMESTAMP '2026-11-21 08:00:00', 'MODIFY', '{more}', '{more}', 'newest'),"
            f" ('b', TIMESTAMP '2026-11-21 08:00:00', 'INSERT', '{nines}', '{nines}', 'gone'),"
            f" ('b', TIMESTAMP '2026-11-21 08:00:00', 'REMOVE', '{more}', '{more}', NULL)"
            ') AS rows("key", event_time, event, version, sequence_number, item)'
        )
        found = connection.execute(view.split("```")[0]).fetchall()
    assert [row[5] for row in found] == ["newest"]


async def test_a_bucket_that_isnt_there_is_not_waited_for(
    tmp_path: Path, ministack_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it was tried again for ever."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    aws = AWSSettings(region="eu-north-1", endpoint_url=ministack_url)
    catalog = {**settings(tmp_path).catalog, "warehouse": "s3://nobody-made-it/warehouse"}
    sink = IcebergSink(settings(tmp_path, catalog=catalog, aws=aws))
    with pytest.raises(FatalError, match="nobody-made-it") as raised:
        await sink.open([PRODUCTS])
    assert raised.value.code == "iceberg_warehouse_missing"
    await sink.close()


async def test_the_statements_quote_names_that_sql_would_take_apart(tmp_path: Path) -> None:
    """Regression: `CREATE TABLE lake.my-products` is no statement."""
    table = replace(PRODUCTS, name="my-products")
    told = settings(tmp_path, table="lake.{table}", tables=("my-products",), create=False)
    sink = IcebergSink(told)
    _, ddl = (await sink.plan([table])).ddl
    assert ddl.startswith("CREATE TABLE lake.`my-products` (`table` string")
    state = replace(told, mode="state", tables=("my-products",))
    table = replace(table, keys=(("product-id", "S"),))
    _, ddl = (await IcebergSink(state).plan([table])).ddl
    assert ddl.endswith("PARTITIONED BY (bucket(16, `product-id`))")


@pytest.mark.parametrize("mode", ["log", "state"])
async def test_a_fence_lost_meanwhile_repeats_no_dead_letter_of_other_shards(
    mode: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the write was tried without the lost shard, dead letters and all."""
    sink, other = await make(mode), await make(mode)
    lost, kept = [await sink.fence(STREAM, f"shard-{n}", "me") for n in (1, 2)]
    staged = Room.staged_letters

    async def overtaken(room: Room, refused: Any) -> Staged:
        files = await staged(room, refused)
        if room.shards is not other._shards:
            await other.fence(STREAM, "shard-1", "another")
        return files

    monkeypatch.setattr(Room, "staged_letters", overtaken)
    result = await write(sink, pending(lost, [b"one"]), pending(kept, [b"two"], then=SHARD_END))
    assert result.lost == {"shard-1"}
    assert await sink.positions(STREAM) == {"shard-2": SHARD_END}
    assert rows(tmp_path, LETTERS)["raw"].to_pylist().count(b"two") == 1
    assert (await sink.report()).dead_letters == {"malformed_json": 1}


async def test_a_commit_copies_the_tables_history_seldom(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: sixteen times, so that after a day of commits each took a second more."""
    sink, copies = await make("log"), 0
    fence = await sink.fence(STREAM, "shard-1", "me")

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal copies
        copies += 1
        return update_table_metadata(*arguments, **options)

    monkeypatch.setattr("pyiceberg.table.update_table_metadata", counted)
    await write(sink, pending(fence, [put("products", APPLE, NOON_US)], then=SHARD_END))
    assert 0 < copies <= 2
