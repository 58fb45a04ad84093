"""The S3 sink against a small S3 over the wire: what it writes, and what it makes of answers."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from replicator.core.plan import Encoding
from replicator.core.prefix import Prefix
from replicator.errors import FatalError, LeaseLost, TransientError
from replicator.model import (
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    Fence,
    Reached,
    Stream,
    TableSchema,
    WriteResult,
    after,
    at_timestamp,
)
from replicator.sink.s3 import S3Sink
from replicator.sink.s3_archive import S3Archive, Span
from replicator.sink.s3_objects import ObjectOptions
from replicator.testing.json_server import Refusal
from replicator.testing.s3_server import Cut, Request, S3Server
from tests.archive import (
    HOUR_US,
    NOON_US,
    PRODUCTS,
    lines,
    opened,
    plans,
    settings,
    times_each,
    write,
)
from tests.changes import STREAM, number, pending, put, remove

RECREATED = Stream(STREAM.name, STREAM.arn, STREAM.created_at_s + 1)


@pytest.fixture
async def server(credentials: None) -> AsyncIterator[S3Server]:
    async with S3Server() as running:
        yield running


def product(name: str, us: int = NOON_US, **attributes: Any) -> bytes:
    return put("products", {"id": {"S": name}}, us, **attributes)


async def refuse_data(request: Request) -> None:
    if request.operation == "PutObject" and request.key.startswith("data/"):
        raise Refusal("AccessDenied", "no", 403)


async def test_changes_lie_in_the_hour_of_their_creation(server: S3Server) -> None:
    sink = await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    hours = [NOON_US, NOON_US + 1, NOON_US + HOUR_US, NOON_US + 25 * HOUR_US]
    changes = [product(f"item-{n}", us) for n, us in enumerate(hours)]
    result = await write(sink, pending(fence, changes, then=SHARD_END))
    assert result == WriteResult(rows=4)
    found = {key.rsplit("/", 1)[0]: changes for key, changes in lines(server).items()}
    names = {
        folder: [change["dynamodb"]["Keys"]["id"]["S"] for change in changes]
        for folder, changes in found.items()
    }
    assert names == {
        "data/2023/11/15/12": ["item-0", "item-1"],
        "data/2023/11/15/13": ["item-2"],
        "data/2023/11/16/13": ["item-3"],
    }
    change = found["data/2023/11/15/12"][0]
    assert change["version"]
    assert change["position"] == number(1)
    assert await sink.position(fence) == SHARD_END
    (plan,) = plans(server)
    assert [each["count"] for each in plan["objects"]] == [2, 1, 1]
    assert {each["key"] for each in plan["objects"]} == set(lines(server))
    await sink.close()


async def test_what_is_held_comes_with_the_next_cut_and_after_a_restart(server: S3Server) -> None:
    first = await opened(server)
    fence = await first.fence(STREAM, "shard-1", "me")
    early = [product(f"early-{n}", NOON_US + n) for n in range(3)]
    late = [product(f"late-{n}", NOON_US + 2_000_000 + n) for n in range(3)]
    assert (await write(first, pending(fence, early))).rows == 0, "they may still be out of order"
    assert (await write(first, pending(fence, late, first=4))).rows == 3
    await first.close()
    second = await opened(server)
    fence = await second.fence(STREAM, "shard-1", "another")
    assert await second.position(fence) == TRIM_HORIZON, "where what is held is read again"
    again = pending(fence, [*early, *late], then=after(number(6)))
    end = pending(fence, [product("end", NOON_US + 2_500_000)], first=7, then=SHARD_END)
    assert (await write(second, again, end)).rows == 4
    assert set(times_each(server).values()) == {1}
    assert len(times_each(server)) == 7
    await second.close()


async def test_duplicates_are_known_across_cuts_and_a_restart(server: S3Server) -> None:
    sink = await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    changes = [product(f"item-{n}", NOON_US + n * 3_000_000) for n in range(4)]
    await write(sink, pending(fence, changes))
    result = await write(sink, pending(fence, changes[:2], first=5))
    assert (result.rows, result.duplicates) == (0, 2)
    await sink.close()
    other = await opened(server)
    fence = await other.fence(STREAM, "shard-1", "another")
    again = pending(fence, [*changes, *changes[:2], changes[1]], then=SHARD_END)
    result = await write(other, again)
    assert set(times_each(server).values()) == {1}
    assert len(times_each(server)) == 4
    await other.close()


@pytest.mark.parametrize("prefix", ["data/", "data/{table}/"])
async def test_changes_of_other_tables_are_left_out(server: S3Server, prefix: str) -> None:
    sink = await opened(server, prefix=Prefix.parse(prefix))
    fence = await sink.fence(STREAM, "shard-1", "me")
    stranger = put("strangers", {"id": {"S": "x"}}, NOON_US)
    order = put("orders", {"customer": {"S": "ann"}, "number": {"N": "7"}}, NOON_US)
    changes = [stranger, product("a"), order, product("b", NOON_US + HOUR_US)]
    result = await write(sink, pending(fence, changes, then=SHARD_END))
    assert result.rows == 3
    found = sorted(change["tableName"] for each in lines(server).values() for change in each)
    assert found == ["orders", "products", "products"]
    assert await sink.position(fence) == SHARD_END
    await sink.close()


async def test_refused_records_are_letters_of_the_same_plan(server: S3Server) -> None:
    sink = await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    result = await write(sink, pending(fence, [product("a"), b"broken"], then=SHARD_END))
    assert (result.rows, result.rejected_by_code) == (1, {"malformed_json": 1})
    ((key, body),) = server.objects(prefix="errors/").items()
    assert key.startswith("errors/processing-failed/2023/11/14/22/")
    letter = json.loads(body)
    assert base64.b64decode(letter["rawData"]) == b"broken"
    assert (letter["errorCode"], letter["sequenceNumber"]) == ("malformed_json", number(2))
    puts = [r.key for r in server.requests if r.operation == "PutObject"]
    assert puts.index(key) < puts.index(next(iter(lines(server)))), "before its neighbours"
    await sink.close()


async def test_a_prefix_with_tables_has_a_place_for_each(server: S3Server) -> None:
    prefix = Prefix.parse("data/{table}/!{timestamp:yyyy-MM-dd}/")
    sink = await opened(server, prefix=prefix)
    fence = await sink.fence(STREAM, "shard-1", "me")
    order = put("orders", {"customer": {"S": "ann"}, "number": {"N": "7"}}, NOON_US)
    await write(sink, pending(fence, [product("a"), order], then=SHARD_END))
    folders = [key.rsplit("/", 1)[0] for key in lines(server)]
    assert folders == ["data/orders/2023-11-15", "data/products/2023-11-15"]
    await sink.close()


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("form", ["plain", "raw", "change"])
async def test_forms_and_compressions(server: S3Server, form: Any, compression: Any) -> None:
    sink = await opened(server, encoding=Encoding(form, compression))
    fence = await sink.fence(STREAM, "shard-1", "me")
    records = [product("a"), remove("products", {"id": {"S": "b"}}, NOON_US)]
    await write(sink, pending(fence, records, then=SHARD_END))
    ((key, body),) = server.objects(prefix="data/").items()
    assert key.endswith(Encoding(form, compression).suffix)
    if compression == "none" and form == "raw":
        assert body == b"".join(records)
    elif compression == "none":
        assert [json.loads(line) for line in body.splitlines()]
    else:
        assert body.startswith(b"\x28\xb5\x2f\xfd")
    await sink.close()


async def test_objects_are_stored_as_told(server: S3Server) -> None:
    server.owner = "1" * 12
    options = ObjectOptions("key-1", "1" * 12, "GLACIER_IR")
    sink = await opened(server, options=options)
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [product("a")], then=SHARD_END))
    stored = server.buckets["archive"]
    for key, each in stored.items():
        headers = {name.lower(): value for name, value in each.headers.items()}
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
        assert headers["x-amz-expected-bucket-owner"] == "1" * 12
        assert headers["if-none-match"] == "*"
        assert ("x-amz-storage-class" in headers) == key.startswith("data/")
    await sink.close()


async def test_a_foreign_bucket_and_a_missing_one_are_said(server: S3Server) -> None:
    with pytest.raises(FatalError) as denied:
        await opened(server, options=ObjectOptions(owner="2" * 12))
    assert denied.value.code == "access_denied"
    with pytest.raises(FatalError) as missing:
        await opened(server, bucket="elsewhere")
    assert missing.value.code == "resource_missing"


# ---- the contract of sinks, as far as it is about positions


async def test_a_start_is_stored_once(server: S3Server) -> None:
    sink, other = await opened(server), await opened(server)
    assert not await sink.is_known(STREAM)
    assert await sink.begun() == []
    starts = {"shard-1": at_timestamp(NOON_US), "shard-2": TRIM_HORIZON}
    done = await asyncio.gather(sink.begin(STREAM, starts), other.begin(STREAM, starts))
    assert sorted(done) == [False, True]
    assert await other.is_known(STREAM)
    assert not await other.begin(STREAM, {"shard-1": LATEST})
    assert await other.positions(STREAM) == starts
    assert not await sink.is_known(RECREATED)
    theirs = await opened(server, pipeline="test/other")
    assert not await theirs.is_known(STREAM)
    assert await theirs.begun() == [STREAM.arn], "they write to the same place"
    elsewhere = await opened(server, pipeline="test/third", prefix=Prefix.parse("elsewhere/"))
    assert await elsewhere.begun() == []
    for each in (sink, other, theirs, elsewhere):
        await each.close()


async def test_fences(server: S3Server) -> None:
    sinks = [await opened(server) for _ in range(2)]
    await sinks[0].begin(STREAM, {"shard-1": at_timestamp(NOON_US)})
    with pytest.raises(LeaseLost):
        await sinks[0].position(Fence(STREAM, "shard-1", 1))
    raised = [sink.fence(STREAM, "shard-1", f"w-{n}") for n in range(4) for sink in sinks]
    fences = await asyncio.gather(*raised)
    assert sorted(fence.epoch for fence in fences) == list(range(1, 9))
    newest = max(fences, key=lambda fence: fence.epoch)
    assert await sinks[0].position(newest) == at_timestamp(NOON_US)
    for fence in fences:
        if fence != newest:
            with pytest.raises(LeaseLost):
                await sinks[1].position(fence)
    assert (await sinks[0].fence(RECREATED, "shard-1", "me")).epoch == 1
    for sink in sinks:
        await sink.close()


async def test_a_lost_shard_is_returned_and_nothing_of_it_written(server: S3Server) -> None:
    mine, others = await opened(server), await opened(server)
    fence = await mine.fence(STREAM, "shard-1", "me")
    other = await others.fence(STREAM, "shard-1", "another")
    lost = WriteResult(lost=frozenset({"shard-1"}))
    assert await write(mine, pending(fence, [product("a")], then=SHARD_END)) == lost
    assert await write(others, pending(other, []), pending(fence, [])) == lost
    assert lines(server) == {}
    assert plans(server) == []
    await mine.close()
    await others.close()


async def test_a_position_never_goes_back_and_moves_without_changes(server: S3Server) -> None:
    sink = await opened(server)
    await sink.begin(STREAM, {"shard-1": at_timestamp(7)})
    fence = await sink.fence(STREAM, "shard-1", "me")
    for then, expected in [
        (TRIM_HORIZON, at_timestamp(7)),
        (after(number(100)), after(number(100))),
        (after(number(20)), after(number(100))),
        (SHARD_END, SHARD_END),
        (after(number(200)), SHARD_END),
    ]:
        assert await write(sink, pending(fence, [], then=then)) == WriteResult()
        assert await sink.position(fence) == expected
    await sink.close()


async def test_writing_twice_is_writing_once(server: S3Server) -> None:
    sink = await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    writer = sink.writer(fence)
    payload = writer.encode([pending(fence, [product("a"), b"broken"], then=SHARD_END)])
    assert (await writer.write(payload)).rows == 1
    content = server.objects()
    assert (await writer.write(payload)).rows == 0
    assert server.objects() == content
    await sink.close()


async def test_a_moved_position_is_obeyed_and_kills_the_fence(server: S3Server) -> None:
    sink, operator = await opened(server), await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [product("a")], then=after(number(1))))
    await operator.close()
    moved = await operator.move(STREAM, {"shard-1": after(number(50)), "shard-2": LATEST}, "op")
    assert set(moved) == {"shard-1", "shard-2"}
    assert moved["shard-2"] is None
    assert (await write(sink, pending(fence, []))).lost == {"shard-1"}
    again = await sink.fence(STREAM, "shard-1", "me")
    assert await sink.position(again) == after(number(50))
    reached = (await sink.reached(STREAM, ["shard-1", "shard-9"]))["shard-1"]
    assert isinstance(reached, Reached)
    assert reached.begun_us
    await sink.close()


async def test_data_without_a_position_is_seen(server: S3Server) -> None:
    sink = await opened(server, prefix=Prefix.parse(""))
    await sink.begin(STREAM, {})
    assert not await sink.holds_data(), "plans and letters are no data"
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [b"broken"], then=after(number(1))))
    assert not await sink.holds_data()
    await write(sink, pending(fence, [product("a")], first=2, then=SHARD_END))
    assert await sink.holds_data()
    await sink.close()


# ---- what the service answers


async def test_a_copy_that_was_forgotten_then_and_is_known_now_stops_nothing(
    server: S3Server,
) -> None:
    """What is remembered of a shard depends on how it came in fetches."""
    sink = await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    old, then = product("old"), product("then", NOON_US + 3_000_000)
    new = [product(f"new-{n}", NOON_US + 70_000_000 + n) for n in range(2)]
    await write(sink, pending(fence, [old, then], then=after(number(2))))
    passes, server.before = server.before, refuse_data
    with pytest.raises(FatalError):
        await write(
            sink,
            pending(fence, new, first=3, then=after(number(4))),
            pending(fence, [old], first=5, then=after(number(5))),
        )
    await sink.close()
    server.before = passes
    assert sum(each["count"] for each in plans(server)[0]["objects"]) == 2, "then, and the copy"
    other = await opened(server)
    fence = await other.fence(STREAM, "shard-1", "another")
    assert await other.position(fence) == TRIM_HORIZON
    await write(other, pending(fence, [old, then, *new, old], then=SHARD_END))
    assert set(times_each(server).values()) == {1}
    assert len(times_each(server)) == 4
    await other.close()


async def test_a_plan_is_completed_by_who_sorts_within_a_shorter_time(server: S3Server) -> None:
    sink = await opened(server, reorder_us=10_000_000)
    fence = await sink.fence(STREAM, "shard-1", "me")
    changes = [product(f"item-{n}", NOON_US + n * 4_000_000) for n in range(6)]
    passes, server.before = server.before, refuse_data
    with pytest.raises(FatalError):
        await write(sink, pending(fence, changes[:5], then=after(number(5))))
    await sink.close()
    server.before = passes
    assert sum(each["count"] for each in plans(server)[0]["objects"]) == 2, "the others are held"
    other = await opened(server, reorder_us=1_000_000)
    fence = await other.fence(STREAM, "shard-1", "another")
    await write(other, pending(fence, changes, then=SHARD_END))
    assert set(times_each(server).values()) == {1}
    assert len(times_each(server)) == 6
    await other.close()


async def test_a_plan_that_ends_behind_the_last_record_is_completed_though_nothing_more_comes(
    server: S3Server,
) -> None:
    """Regression: it was for a fetch that reaches the plan's end, and a shard that is polled stays
    at its last record."""
    sink = await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    changes = [product(f"item-{n}", NOON_US + n * 2_000_000) for n in range(3)]
    passes, server.before = server.before, refuse_data
    with pytest.raises(FatalError):
        await write(sink, pending(fence, changes, then=after(number(50)), behind_ms=1_000))
    await sink.close()
    server.before = passes
    other = await opened(server)
    fence = await other.fence(STREAM, "shard-1", "another")
    assert await other.position(fence) is None
    assert (await write(other, pending(fence, changes[:2]))).rows == 0
    read = await write(other, pending(fence, changes[2:], first=3))
    assert (read.rows, set(read.holding)) == (2, {"shard-1"})
    idle = pending(fence, [], then=after(number(3)))
    assert (await write(other, replace(idle, received_at=5.0))).rows == 1, "which was held"
    assert set(times_each(server).values()) == {1}
    assert len(times_each(server)) == 3
    later = pending(fence, [product("later", NOON_US + 9_000_000)], first=60, then=SHARD_END)
    assert (await write(other, later)).rows == 1
    await other.close()


async def test_a_conflict_is_tried_again(server: S3Server) -> None:
    sink = await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    seen: Counter[str] = Counter()

    async def twice(request: Request) -> None:
        seen[request.key] += request.operation == "PutObject"
        if request.operation == "PutObject" and seen[request.key] < 3:
            raise Refusal("ConditionalRequestConflict", "at once", 409)

    server.before = twice
    assert (await write(sink, pending(fence, [product("a")], then=SHARD_END))).rows == 1
    assert set(times_each(server).values()) == {1}
    await sink.close()


@pytest.mark.parametrize("how", [Refusal("SlowDown", "slowly", 503), Cut()])
async def test_a_lost_answer_is_found_done(server: S3Server, how: Exception) -> None:
    """The driver asks again after its answer was lost, and is told that the name is taken."""
    sink = await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    seen: Counter[str] = Counter()

    async def once(request: Request) -> None:
        seen[request.key] += request.operation == "PutObject"
        if request.operation == "PutObject" and seen[request.key] == 1:
            raise how

    server.after = once
    assert (await write(sink, pending(fence, [product("a")], then=SHARD_END))).rows == 1
    assert len(times_each(server)) == 1
    await sink.close()


async def test_after_a_failure_the_position_is_read_before_anything_is_written(
    server: S3Server,
) -> None:
    sink = await opened(server)
    fence = await sink.fence(STREAM, "shard-1", "me")
    server.before = refuse_data
    end = pending(fence, [product("a")], then=SHARD_END)
    with pytest.raises(FatalError) as denied:
        await write(sink, end)
    assert denied.value.code == "access_denied"
    server.before = server.after
    with pytest.raises(TransientError) as unsure:
        await write(sink, end)
    assert unsure.value.code == "position_moved"
    assert await sink.position(fence) is None
    assert (await write(sink, end)).rows == 1
    assert await sink.position(fence) == SHARD_END
    assert set(times_each(server).values()) == {1}
    assert len(plans(server)) == 1, "the plan that was made is the one that was completed"
    await sink.close()


async def test_a_look_from_outside_tells_where_each_shard_stands(server: S3Server) -> None:
    sink = await opened(server)
    looking = S3Sink(settings(server.url))
    assert (await looking.report()).positions == ()
    assert not (await looking.held(STREAM, [PRODUCTS])).is_known
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON, "shard-2": TRIM_HORIZON})
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [product("a"), b"broken"], then=SHARD_END))
    await sink.close()
    report = await looking.report()
    assert [(row["shard"], row["position"]) for row in report.positions] == [
        ("shard-1", "SHARD_END"),
        ("shard-2", "TRIM_HORIZON"),
    ]
    assert report.positions[0]["last_arrival_at"] == "2023-11-14T22:13:20.002000+00:00"
    assert report.dead_letters == {"objects": 1}
    held = await looking.held(STREAM, [PRODUCTS])
    assert (held.is_known, held.begun, held.holds_data) == (True, (STREAM.arn,), True)


async def test_listings_go_on_behind_their_first_page(server: S3Server) -> None:
    server.page_size = 2
    sink = await opened(server, prefix=Prefix.parse("{table}/"))
    shards = [f"shard-{n}" for n in range(5)]
    await sink.open([TableSchema(f"table-{n}", (("id", "S"),)) for n in range(5)])
    for n, shard in enumerate(shards):
        fence = await sink.fence(STREAM, shard, "me")
        item = put(f"table-{n}", {"id": {"S": "x"}}, NOON_US)
        await write(sink, pending(fence, [item], then=SHARD_END))
    other = await opened(server, prefix=Prefix.parse("{table}/"))
    assert await other.positions(STREAM) == dict.fromkeys(shards, SHARD_END)
    async with S3Archive.open(settings(server.url, prefix=Prefix.parse("{table}/"))) as archive:
        found = await archive.objects(Span())
    assert [each.table for each in found] == [f"table-{n}" for n in range(5)]
    await sink.close()
    await other.close()
