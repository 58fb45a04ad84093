"""The Iceberg sink over a catalog in SQLite and files: what a reader finds, and who may write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import LongType

from replicator.aws import AWSSettings, aws_client
from replicator.errors import FatalError, LeaseLost, TransientError
from replicator.model import (
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    Fence,
    WriteResult,
    after,
    at_timestamp,
)
from replicator.sink.iceberg import IcebergSink
from replicator.sink.log_shard import LogPosition
from tests.changes import STREAM, number, pending, put, remove
from tests.lake import (
    DAY_US,
    LETTERS,
    NOON_US,
    ORDERS,
    PRODUCTS,
    loaded,
    opened,
    rows,
    settings,
    times_each,
    write,
)

Worker = Callable[..., Awaitable[IcebergSink]]
APPLE: Any = {"id": {"S": "apple"}}
RECREATED = replace(STREAM, created_at_s=STREAM.created_at_s + 1)


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    async with AsyncExitStack() as stack:

        async def make(**changes: Any) -> IcebergSink:
            sink = await opened(tmp_path, **changes)
            stack.push_async_callback(sink.close)
            return sink

        yield make


# ---- the stream's beginning, fences and positions: as the contract has it


async def test_a_start_is_stored_once(worker: Worker) -> None:
    sink = await worker()
    assert not await sink.is_known(STREAM)
    assert await sink.begun() == []
    starts = {"shard-1": at_timestamp(1_700_000_000_000_000), "shard-2": TRIM_HORIZON}
    assert await sink.begin(STREAM, starts)
    other = await worker()
    assert await other.is_known(STREAM)
    assert not await other.begin(STREAM, {"shard-1": LATEST, "shard-3": LATEST})
    assert await other.positions(STREAM) == starts


async def test_two_workers_begin_together_and_one_of_them_does(worker: Worker) -> None:
    sinks = [await worker() for _ in range(2)]
    done = await asyncio.gather(
        *(
            sink.begin(STREAM, {"shard-1": at_timestamp(start)})
            for start, sink in enumerate(sinks, 1)
        )
    )
    assert sorted(done) == [False, True]
    assert await sinks[0].positions(STREAM) == {"shard-1": at_timestamp(done.index(True) + 1)}


async def test_a_stream_created_again_is_another_stream(worker: Worker) -> None:
    sink = await worker()
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
    assert not await sink.is_known(RECREATED)
    assert await sink.begun() == [STREAM.arn]
    assert await sink.positions(RECREATED) == {}
    assert (await sink.fence(RECREATED, "shard-1", "me")).epoch == 1


async def test_streams_of_another_pipeline_into_the_same_table_are_known(worker: Worker) -> None:
    mine = await worker()
    await mine.begin(STREAM, {"shard-1": TRIM_HORIZON})
    theirs = await worker(pipeline="other")
    assert not await theirs.is_known(STREAM)
    assert await theirs.begun() == [STREAM.arn]
    newer = replace(STREAM, arn=STREAM.arn + "-newer")
    await theirs.begin(newer, {"shard-1": TRIM_HORIZON})
    assert await mine.begun() == [STREAM.arn, newer.arn]


async def test_a_raised_fence_kills_the_older_one(worker: Worker) -> None:
    mine, others = await worker(), await worker()
    await mine.begin(STREAM, {"shard-1": at_timestamp(5)})
    old = await mine.fence(STREAM, "shard-1", "me")
    assert await mine.position(old) == at_timestamp(5)
    new = await others.fence(STREAM, "shard-1", "another")
    assert new.epoch > old.epoch
    with pytest.raises(LeaseLost):
        await mine.position(old)
    assert await others.position(new) == at_timestamp(5)


async def test_fences_raised_at_once_are_all_different_and_share_commits(
    worker: Worker, tmp_path: Path
) -> None:
    sinks = [await worker() for _ in range(3)]
    fences = await asyncio.gather(
        *(sink.fence(STREAM, "shard-1", f"worker-{n}") for n in range(4) for sink in sinks)
    )
    assert sorted(fence.epoch for fence in fences) == list(range(1, 13))
    newest = max(fences, key=lambda fence: fence.epoch)
    assert await sinks[0].position(newest) is None
    assert len(loaded(tmp_path).snapshots()) < 12


async def test_what_fails_on_the_way_moves_no_position(worker: Worker, tmp_path: Path) -> None:
    """Regression: the position of a write whose files couldn't be made was committed by another."""
    sink = await worker(mode="state", table="lake.{table}", tables=())
    failing, _ = (await sink._ready()).commits, await sink.fence(STREAM, "shard-1", "me")

    def unmakeable(_: object) -> Any:
        raise FatalError("iceberg_refused", "no files")

    log = {(STREAM, "shard-1"): LogPosition(SHARD_END)}
    first = failing.change(lambda state: (state.moved(log, {}, 1), None), build=unmakeable)
    second = sink.fence(STREAM, "shard-2", "me")
    done = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(done[0], FatalError)
    assert await sink.positions(STREAM) == {}


async def test_a_shard_found_later_has_no_position(worker: Worker) -> None:
    sink = await worker()
    await sink.begin(STREAM, {"shard-1": LATEST})
    fence = await sink.fence(STREAM, "shard-2", "me")
    assert await sink.position(fence) is None
    assert await sink.positions(STREAM) == {"shard-1": LATEST}
    with pytest.raises(LeaseLost):
        await sink.position(Fence(STREAM, "shard-9", 1))


async def test_a_position_moves_and_never_goes_back(worker: Worker) -> None:
    sink = await worker()
    await sink.begin(STREAM, {"shard-1": at_timestamp(7)})
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [], then=TRIM_HORIZON))
    assert await sink.position(fence) == at_timestamp(7)
    await write(sink, pending(fence, [], then=after(number(100))))
    await write(sink, pending(fence, [], then=after(number(20))))
    assert await sink.position(fence) == after(number(100))
    await write(sink, pending(fence, [], then=SHARD_END))
    assert await sink.position(fence) == SHARD_END
    assert (await write(sink, pending(fence, [], then=after(number(200))))).lost


async def test_a_quiet_table_is_not_drowned_in_snapshots(worker: Worker, tmp_path: Path) -> None:
    sink = await worker(idle_position_seconds=600.0)
    fence = await sink.fence(STREAM, "shard-1", "me")
    for n in range(1, 6):
        await write(sink, pending(fence, [], then=after(number(n))))
    assert len(loaded(tmp_path).snapshots()) == 2, "the fence, and the first position"
    await write(sink, pending(fence, [put("products", APPLE, NOON_US)], first=6))
    # It waits for others that belong before it.
    await write(sink, pending(fence, [put("products", APPLE, NOON_US + 2_000_000)], first=7))
    (row,) = (await sink.report()).positions
    assert row["position"] == str(after(number(7)))


async def test_a_position_is_moved_by_hand(worker: Worker, tmp_path: Path) -> None:
    sink = await worker()
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
    fence = await sink.fence(STREAM, "shard-1", "me")
    looking = IcebergSink(settings(tmp_path))
    moved = await looking.move(STREAM, {"shard-1": after(number(7))}, "positions:me")
    assert moved == {"shard-1": TRIM_HORIZON}
    with pytest.raises(LeaseLost):
        await sink.position(fence)
    (row,) = (await looking.report()).positions
    assert (row["position"], row["epoch"]) == (str(after(number(7))), 2)


# ---- changes


async def test_changes_are_read_back_as_they_were(worker: Worker, tmp_path: Path) -> None:
    columns = (("stock", "numeric(20,2)"), ("tags", "text[]"))
    sink = await worker(columns=columns)
    fence = await sink.fence(STREAM, "shard-1", "me")
    old = {**APPLE, "stock": {"N": "1.5"}}
    changes = [
        put("products", APPLE, NOON_US, stock={"N": "1.5"}, tags={"SS": ["b", "a"]}),
        put("products", APPLE, NOON_US + 5, old, stock={"S": "none"}, more={"BOOL": True}),
        put("orders", {"customer": {"S": "ann"}, "number": {"N": "7"}}, NOON_US + DAY_US),
        put("elsewhere", {"id": {"S": "x"}}, NOON_US + 6),
        remove("products", APPLE, NOON_US + 7, old),
    ]
    result = await write(sink, pending(fence, changes, then=SHARD_END))
    assert result == WriteResult(rows=4)
    changes_table = rows(tmp_path)
    connection = duckdb.connect()
    connection.register("changes", changes_table)
    found = connection.execute(
        "SELECT \"table\", event, key, version, stock, tags, extra::JSON ->> 'more',"
        " item::JSON -> 'stock' ->> 'N', old::JSON -> 'stock' ->> 'N', sequence_number"
        " FROM changes ORDER BY event_time"
    ).fetchall()
    key, us = '{"id":"apple"}', NOON_US
    one, two = Decimal("1.50"), "1.5"
    nothing, both = (None,) * 5, '{"customer":"ann","number":7}'
    assert found == [
        ("products", "INSERT", key, str(us), one, ["a", "b"], None, two, None, number(1)),
        ("products", "MODIFY", key, str(us + 5), None, None, "true", None, two, number(2)),
        ("products", "REMOVE", key, str(us + 7), None, None, None, None, two, number(5)),
        ("orders", "INSERT", both, str(us + DAY_US), *nothing, number(3)),
    ]
    table = loaded(tmp_path)
    days = {task.file.partition[0] for task in table.scan().plan_files()}
    assert days == {NOON_US // DAY_US, NOON_US // DAY_US + 1}
    by_day = table.scan(row_filter="event_time >= '2023-11-16T00:00:00+00:00'")
    assert len(list(by_day.plan_files())) == 1, "a reader of a day opens that day's files only"


async def test_the_position_is_in_the_summary_of_the_snapshot(
    worker: Worker, tmp_path: Path
) -> None:
    sink = await worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [put("products", APPLE, NOON_US)], then=SHARD_END))
    snapshot = loaded(tmp_path).current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    (stream,) = json.loads(snapshot.summary["replicator.shop"] or "")["streams"]
    assert stream["shards"]["shard-1"]["log"]["position"] == "SHARD_END"
    assert snapshot.summary["added-records"] == "1"


async def test_changes_of_several_shards_are_one_commit(worker: Worker, tmp_path: Path) -> None:
    sink = await worker()
    fences = [await sink.fence(STREAM, f"shard-{n}", "me") for n in range(3)]
    before = len(loaded(tmp_path).snapshots())
    several = [
        pending(fence, [put("products", APPLE, NOON_US + n)], then=SHARD_END)
        for n, fence in enumerate(fences)
    ]
    assert (await write(sink, *several)).rows == 3
    assert len(loaded(tmp_path).snapshots()) == before + 1
    assert set((await sink.positions(STREAM)).values()) == {SHARD_END}


async def test_a_lost_shard_is_returned_and_nothing_of_it_written(
    worker: Worker, tmp_path: Path
) -> None:
    mine, others = await worker(), await worker()
    lost = await mine.fence(STREAM, "shard-1", "me")
    kept = await mine.fence(STREAM, "shard-2", "me")
    taken = await others.fence(STREAM, "shard-1", "another")
    result = await write(
        mine,
        pending(lost, [put("products", APPLE, NOON_US), b"broken there"], then=SHARD_END),
        pending(kept, [put("products", APPLE, NOON_US + 1), b"broken here"], then=SHARD_END),
    )
    assert (result.lost, result.rows) == (frozenset({"shard-1"}), 1)
    assert rows(tmp_path)["version"].to_pylist() == [str(NOON_US + 1)]
    assert await mine.positions(STREAM) == {"shard-2": SHARD_END}
    assert await others.position(taken) is None
    assert rows(tmp_path, LETTERS)["raw"].to_pylist() == [b"broken here"]
    files = sorted((tmp_path / "warehouse/lake/changes/data").rglob("*.parquet"))
    assert len(files) == 1, "what was written in vain is gone"


async def test_a_write_under_a_dead_fence_is_lost(worker: Worker, tmp_path: Path) -> None:
    sink = await worker()
    older = await sink.fence(STREAM, "shard-1", "me")
    newer = await sink.fence(STREAM, "shard-1", "me")
    result = await write(
        sink,
        pending(older, [put("products", APPLE, 1)]),
        pending(newer, [put("products", APPLE, 2)], first=2),
    )
    assert result == WriteResult(lost=frozenset({"shard-1"}))
    assert len(rows(tmp_path)) == 0


async def test_refused_records_are_dead_letters_and_counted(worker: Worker, tmp_path: Path) -> None:
    sink = await worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    result = await write(
        sink,
        pending(fence, [b"broken", put("products", APPLE, NOON_US), b"{}"], then=SHARD_END),
    )
    assert len(result.dead_letters) == 2
    letters = rows(tmp_path, LETTERS).to_pylist()
    assert [(each["shard"], each["sequence_number"], each["raw"]) for each in letters] == [
        ("shard-1", number(1), b"broken"),
        ("shard-1", number(3), b"{}"),
    ]
    report = await sink.report()
    assert report.dead_letters["malformed_json"] == 1
    assert sum(report.dead_letters.values()) == 2


async def test_copies_and_order_within_the_window(worker: Worker, tmp_path: Path) -> None:
    sink = await worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    first = put("products", APPLE, NOON_US)
    later = put("products", APPLE, NOON_US + 300_000)
    held = await write(sink, pending(fence, [later, first]))
    assert (held.rows, held.holding) == (0, frozenset({"shard-1"}))
    assert len(rows(tmp_path)) == 0
    again = await worker()
    fence = await again.fence(STREAM, "shard-1", "me")
    # It is read again from where its memory begins.
    assert await again.position(fence) == TRIM_HORIZON
    result = await write(again, pending(fence, [later, first, first], then=SHARD_END))
    assert result.rows == 2
    assert set(times_each(tmp_path).values()) == {1}


async def test_a_copy_in_a_child_is_known_by_what_its_parents_remembered(
    worker: Worker, tmp_path: Path
) -> None:
    changes = [put("products", {"id": {"S": str(n)}}, NOON_US + n) for n in range(6)]
    sink = await worker()
    for shard, some in (("left", changes[:3]), ("right", changes[3:])):
        fence = await sink.fence(STREAM, shard, "me")
        await sink.position(fence)
        await write(sink, pending(fence, some, then=SHARD_END))
    other = await worker()
    for behind in ([], [changes[1], changes[4]]):  # who begins it anew inherits again
        child = await other.fence(STREAM, "child", "me")
        other.inherit(child, ["left", "right", "unknown"])
        await other.position(child)
        result = await write(other, pending(child, [changes[0], changes[3], *behind]))
        assert result.duplicates == 2
    new = put("products", {"id": {"S": "new"}}, NOON_US + 10_000_000)
    await write(other, pending(child, [new], first=5, then=SHARD_END))
    grandchild = await other.fence(STREAM, "grandchild", "me")
    other.inherit(grandchild, ["child"])
    await other.position(grandchild)
    result = await write(other, pending(grandchild, [changes[5], new], then=SHARD_END))
    assert result.duplicates == 2
    assert set(times_each(tmp_path).values()) == {1}
    assert len(times_each(tmp_path)) == 7
    for place in (tmp_path / "warehouse").rglob("*.memory"):
        place.unlink()
    late = await other.fence(STREAM, "late", "me")
    other.inherit(late, ["left"])
    assert await other.position(late) is None, "what is gone is not waited for"


async def test_what_shards_remember_is_in_the_budget_and_given_back(worker: Worker) -> None:
    sink = await worker()
    windows = sink._windows
    fences = [await sink.fence(STREAM, f"shard-{n}", "me") for n in range(3)]
    for n, fence in enumerate(fences):
        await write(sink, pending(fence, [put("products", APPLE, NOON_US + n)]))
    held = windows.held
    assert held > 0
    await write(sink, pending(fences[0], [], first=2, then=SHARD_END))
    assert 0 < windows.held < held
    other = await worker()
    await other.fence(STREAM, "shard-1", "another")
    assert (await write(sink, pending(fences[1], [put("products", APPLE, 1)], first=2))).lost
    await sink.close()
    assert windows.held == 0


# ---- others at the same table


async def test_what_others_commit_doesnt_hide_the_positions(worker: Worker, tmp_path: Path) -> None:
    """A compaction's snapshot says nothing of us; then the older ones are expired."""
    sink = await worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [put("products", APPLE, NOON_US)], then=after(number(1))))
    stored = await sink.positions(STREAM)
    table = loaded(tmp_path)
    table.append(table.scan().to_arrow().slice(0, 0))
    table.append(table.scan().to_arrow().slice(0, 0))
    current = table.current_snapshot()
    assert current is not None
    assert current.summary is not None
    assert "replicator.shop" not in current.summary.additional_properties
    expiring = table.maintenance.expire_snapshots()
    protected = {ref.snapshot_id for ref in table.refs().values()}
    expiring.by_ids(
        [each.snapshot_id for each in table.snapshots() if each.snapshot_id not in protected]
    ).commit()
    assert len(loaded(tmp_path).snapshots()) == 2, "theirs, and the newest of ours, by its tag"
    assert await (await worker()).positions(STREAM) == stored
    more = pending(fence, [put("products", APPLE, NOON_US + 9)], first=2, then=SHARD_END)
    assert (await write(sink, more)).rows == 2
    assert await sink.positions(STREAM) == {"shard-1": SHARD_END}


async def test_who_rolls_the_table_back_rolls_the_position_back(
    worker: Worker, tmp_path: Path
) -> None:
    sink = await worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    first, second = put("products", APPLE, NOON_US), put("products", APPLE, NOON_US + 2_000_000)
    await write(sink, pending(fence, [first], then=after(number(1))))
    await write(sink, pending(fence, [second], first=2, then=after(number(2))))
    table = loaded(tmp_path)
    (_, before, _) = table.snapshots()
    table.manage_snapshots().rollback_to_snapshot(before.snapshot_id).commit()
    with pytest.raises(TransientError, match="rolled back"):
        await write(sink, pending(fence, [], first=3, then=SHARD_END))
    again = await sink.fence(STREAM, "shard-1", "me")
    assert await sink.position(again) == TRIM_HORIZON
    await write(sink, pending(again, [first, second], then=SHARD_END))
    assert set(times_each(tmp_path).values()) == {1}
    assert len(times_each(tmp_path)) == 2


async def test_nobody_guesses_positions_that_were_rolled_back_and_expired(
    worker: Worker, tmp_path: Path
) -> None:
    sink = await worker()
    table = loaded(tmp_path)
    table.append(table.scan().to_arrow())
    table.append(table.scan().to_arrow())
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [put("products", APPLE, NOON_US)], then=SHARD_END))
    table = loaded(tmp_path)
    (first, second, *_) = table.snapshots()
    table.manage_snapshots().rollback_to_snapshot(second.snapshot_id).commit()
    loaded(tmp_path).maintenance.expire_snapshots().by_id(first.snapshot_id).commit()
    with pytest.raises(FatalError) as raised:
        await (await worker()).positions(STREAM)
    assert raised.value.code == "iceberg_rolled_back"


# ---- tables


async def test_columns_are_added_and_widened(worker: Worker, tmp_path: Path) -> None:
    await worker()
    await worker(columns=(("stock", "numeric(10,2)"),))
    sink = await worker(columns=(("stock", "numeric(20,2)"), ("name", "text")))
    fence = await sink.fence(STREAM, "shard-1", "me")
    change = put("products", APPLE, NOON_US, stock={"N": "123456789012.5"}, name={"S": "x"})
    await write(sink, pending(fence, [change], then=SHARD_END))
    # A worker that knows fewer columns goes on.
    less = await worker(columns=())
    fence = await less.fence(STREAM, "shard-2", "me")
    await write(less, pending(fence, [put("products", APPLE, NOON_US + 1)], then=SHARD_END))
    assert sorted(rows(tmp_path).select(["stock", "name"]).to_pylist(), key=str) == [
        {"stock": Decimal("123456789012.50"), "name": "x"},
        {"stock": None, "name": None},
    ]
    with pytest.raises(FatalError) as raised:
        await worker(columns=(("stock", "text"),))
    assert raised.value.code == "iceberg_column_type"


async def test_what_is_missing_is_refused_with_ddl(tmp_path: Path, worker: Worker) -> None:
    looking = IcebergSink(settings(tmp_path, create=False))
    planned = await looking.plan([PRODUCTS, ORDERS])
    assert [each.code for each in planned.problems] == ["iceberg_table_missing"] * 2
    assert planned.ddl[1].startswith("CREATE TABLE lake.changes (`table` string, `event` string")
    assert planned.ddl[1].endswith("USING iceberg PARTITIONED BY (days(event_time))")
    with pytest.raises(FatalError) as raised:
        await looking.open([PRODUCTS, ORDERS])
    assert raised.value.code == "iceberg_table_missing"
    await looking.close()
    await worker()
    assert not (await looking.plan([PRODUCTS, ORDERS])).problems
    wider = IcebergSink(settings(tmp_path, create=False, columns=(("stock", "bigint"),)))
    planned = await wider.plan([PRODUCTS, ORDERS])
    assert planned.ddl == ("ALTER TABLE lake.changes ADD COLUMN `stock` bigint",)


async def test_a_table_that_cannot_be_written_is_refused(worker: Worker, tmp_path: Path) -> None:
    await worker()
    table = loaded(tmp_path)
    with table.update_spec() as update:
        update.add_field("event", IdentityTransform(), "event_name")
    with pytest.raises(FatalError) as raised:
        await worker()
    assert raised.value.code == "iceberg_partitions"
    with table.update_spec() as update:
        update.remove_field("event_name")
        update.remove_field("event_day")
    sink = await worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [put("products", APPLE, NOON_US)], then=SHARD_END))
    assert len(rows(tmp_path)) == 1, "not partitioned at all is good, too"
    with table.update_schema(allow_incompatible_changes=True) as schema:
        schema.add_column("more", LongType(), required=True, default_value=1)
    with pytest.raises(FatalError) as raised:
        await worker()
    assert raised.value.code == "iceberg_column_required"


async def test_tables_of_their_own(tmp_path: Path) -> None:
    changes = {"table": "lake.{table}", "tables": ()}
    several = IcebergSink(settings(tmp_path, **changes))
    with pytest.raises(FatalError) as raised:
        await several.open([PRODUCTS, ORDERS])
    assert raised.value.code == "iceberg_several_tables"
    mark = IcebergSink(settings(tmp_path, pipeline="shop/*", **changes))
    await mark.open([])
    assert await mark.begin(STREAM, {})
    assert not await mark.begin(STREAM, {})
    await mark.close()
    one = IcebergSink(settings(tmp_path, **changes))
    await one.open([replace(PRODUCTS, name="my.products")])
    assert not await one.holds_data()
    await one.close()
    loaded(tmp_path, ("lake", "my_products"))


async def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [each for each in sys.modules if each.startswith("replicator.sink.iceberg_")]:
        if name not in {"replicator.sink.iceberg_settings", "replicator.sink.iceberg_state"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyiceberg", None)
    with pytest.raises(FatalError, match=r"pip install 'replicator\[iceberg\]'") as raised:
        await IcebergSink(settings(tmp_path)).open([PRODUCTS, ORDERS])
    assert raised.value.code == "iceberg_missing"


async def test_a_catalog_that_is_wrong_or_away(tmp_path: Path) -> None:
    wrong = IcebergSink(settings(tmp_path, catalog={"type": "nothing"}))
    with pytest.raises(FatalError):
        await wrong.open([PRODUCTS, ORDERS])
    away = IcebergSink(
        settings(tmp_path, catalog={"type": "rest", "uri": "http://u:secret@127.0.0.1:9"})
    )
    with pytest.raises(TransientError) as raised:
        await away.open([PRODUCTS, ORDERS])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "role"), [("sql", None), ("glue", "arn:aws:iam::000000000000:role/lake")]
)
async def test_a_warehouse_in_s3(
    kind: str, role: str | None, tmp_path: Path, ministack_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyIceberg's own clients, by the sink's `aws`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    aws = AWSSettings(region="eu-north-1", endpoint_url=ministack_url, role_arn=role)
    async with aws_client(aws, "s3") as client:
        location = {"LocationConstraint": "eu-north-1"}
        await client.create_bucket(Bucket="lake", CreateBucketConfiguration=location)
    catalog = {**settings(tmp_path).catalog, "type": kind, "warehouse": "s3://lake/warehouse"}
    sink = await opened(tmp_path, catalog=catalog, aws=aws)
    fences = [await sink.fence(STREAM, f"shard-{n}", "me") for n in range(2)]
    for n, fence in enumerate(fences):
        await write(sink, pending(fence, [put("products", APPLE, NOON_US + n)], then=SHARD_END))
    await sink.close()
    again = await opened(tmp_path, catalog=catalog, aws=aws)
    assert set((await again.positions(STREAM)).values()) == {SHARD_END}
    await again.close()
    place = {"s3.endpoint": ministack_url, "glue.endpoint": ministack_url}
    place |= {"client.region": "eu-north-1"}

    def read() -> list[Any]:
        table = loaded(tmp_path, ("lake", "changes"), **{**catalog, **place})
        assert table.location().startswith("s3://lake/warehouse/lake")
        return list(table.scan().to_arrow()["version"].to_pylist())

    assert sorted(await asyncio.to_thread(read)) == [str(NOON_US), str(NOON_US + 1)]
