"""`StreamsSource` against our own small server: many shards, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from structlog.testing import capture_logs

from replicator.aws import AWSSettings
from replicator.core.pace import PaceLimits
from replicator.core.retry import Backoff
from replicator.errors import FatalError, PositionLost, TransientError
from replicator.model import LATEST, SHARD_END, TRIM_HORIZON, Fetch, Position, after, at_timestamp
from replicator.source import StreamsOptions, StreamsSource
from replicator.source.polling import PollOptions
from replicator.testing.clock import VirtualClock
from replicator.testing.streams_server import StreamsServer, ViewType, table_stream

pytestmark = pytest.mark.usefixtures("credentials")

PACE = PaceLimits(
    reads_per_second=200.0, records_max=1_000, busy_seconds=0.005, idle_seconds_max=0.02
)
OPTIONS = StreamsOptions(
    poll=PollOptions(pace=PACE, backoff=Backoff(0.01, 0.02)),
    page_seconds=0.001,
    backoff=Backoff(0.01, 0.02),
)


def source(server: StreamsServer, named: str | None = None, **more: Any) -> StreamsSource:
    settings = AWSSettings(region="eu-north-1", endpoint_url=server.url)
    return StreamsSource(
        settings, named or server.table.name, VirtualClock(), **{"options": OPTIONS, **more}
    )


@pytest.fixture
async def server() -> AsyncIterator[StreamsServer]:
    async with StreamsServer(table_stream(1)) as running:
        yield running


@pytest.fixture
async def opened(server: StreamsServer) -> AsyncIterator[StreamsSource]:
    made = source(server)
    await made.open()
    yield made
    await made.close()


async def read(of: StreamsSource, shard_id: str, position: Position, count: int) -> list[Fetch]:
    """Fetches until so many records came, or the shard's end."""
    fetches: list[Fetch] = []
    async with asyncio.timeout(60), aclosing(of.read(shard_id, position)) as reading:
        async for fetch in reading:
            fetches.append(fetch)
            if sum(len(each.records) for each in fetches) >= count:
                break
    return fetches


def first(server: StreamsServer) -> str:
    return server.stream.shards()[0].id


# ---- the stream


async def test_the_identity_is_the_arn_and_its_label_the_time_of_its_creation(
    server: StreamsServer,
) -> None:
    by_name = source(server)
    by_table_arn = source(server, server.arn.partition("/stream/")[0])
    by_stream_arn = source(server, server.arn)
    for each in (by_name, by_table_arn, by_stream_arn):
        stream = await each.open()
        assert (stream.name, stream.arn) == (server.table.name, server.arn)
        assert stream.created_at_s == 1_700_000_000
        await each.close()


async def test_a_table_without_a_stream_is_told_how_to_get_one(server: StreamsServer) -> None:
    server.delete()
    made = source(server)
    with pytest.raises(FatalError, match="aws dynamodb update-table --table-name products") as told:
        await made.open()
    assert told.value.code == "stream_disabled"
    await made.close()


async def test_a_disabled_stream_is_read_to_its_end(server: StreamsServer) -> None:
    shard_id = first(server)
    server.stream.append(shard_id, [b"1", b"2"])
    server.disable()
    made = source(server)
    with capture_logs() as logs:
        await made.open()
    assert [entry["event"] for entry in logs] == ["stream_disabled"]
    fetches = await read(made, shard_id, TRIM_HORIZON, 3)
    assert sum(len(fetch.records) for fetch in fetches) == 2
    assert fetches[-1].next == SHARD_END
    await made.close()


@pytest.mark.parametrize("view_type", ["KEYS_ONLY", "OLD_IMAGE"])
async def test_a_view_type_without_new_images_is_refused(view_type: ViewType) -> None:
    async with StreamsServer(view_type=view_type) as server:
        made = source(server)
        with pytest.raises(FatalError, match="enable it again") as refused:
            await made.open()
        assert refused.value.code == "view_type_unusable"
        await made.close()


async def test_another_stream_of_the_table_is_told_and_the_old_one_goes_on(
    server: StreamsServer, opened: StreamsSource
) -> None:
    old, shard_id = server.arn, first(server)
    server.stream.append(shard_id, [b"1"])
    server.disable()
    new = server.enable(table_stream(1))
    with capture_logs() as logs:
        assert [shard.id for shard in await opened.shards()] == [shard_id]
        await opened.shards()
    assert [(entry["event"], entry["stream"], entry["newest"]) for entry in logs] == [
        ("stream_replaced", old, new)
    ]
    assert (await read(opened, shard_id, TRIM_HORIZON, 2))[-1].next == SHARD_END


async def test_a_stream_that_is_gone_names_its_successor(
    server: StreamsServer, opened: StreamsSource
) -> None:
    old = server.arn
    new = server.enable(table_stream(1))
    server.delete(old)
    with pytest.raises(FatalError) as gone:
        await read(opened, first(server), TRIM_HORIZON, 1)
    assert gone.value.code == "stream_gone"
    assert old in gone.value.message
    assert new in gone.value.message


# ---- shards


@pytest.mark.parametrize("count", [101, 1_001, 10_001])
async def test_every_page_is_listed(count: int) -> None:
    async with StreamsServer(table_stream(count)) as server:
        settings, clock = AWSSettings(region="eu-north-1", endpoint_url=server.url), VirtualClock()
        made = StreamsSource(settings, server.table.name, clock)
        await made.open()
        server.calls.clear()
        shards = await made.shards()
        assert {shard.id for shard in shards} == {shard.id for shard in server.stream.shards()}
        pages = server.called("DescribeStream")
        assert len(pages) == count // 100 + 1 == made.listing_calls()
        assert all(page["Limit"] == 100 for page in pages)
        # Half of the ten pages a second that all callers may have together.
        assert sum(clock.slept) == pytest.approx(0.2 * (len(pages) - 1))
        await made.close()


async def test_ten_thousand_shards_are_found_though_one_call_in_twenty_fails() -> None:
    codes = ("LimitExceededException", "InternalServerError", "ThrottlingException")
    async with StreamsServer(table_stream(10_001)) as server:
        made = source(server)
        await made.open()
        server.calls.clear()
        for number in range(6):
            for _ in range(19):
                server.accept("DescribeStream")
            status = 500 if codes[number % 3] == "InternalServerError" else 400
            server.refuse("DescribeStream", codes[number % 3], status=status)
        assert {shard.id for shard in await made.shards()} == {
            shard.id for shard in server.stream.shards()
        }
        assert len(server.called("DescribeStream")) == 101 + 5
        await made.close()


async def test_a_page_that_fails_is_asked_for_again() -> None:
    async with StreamsServer(table_stream(350)) as server:
        made = source(server)
        await made.open()
        for _ in range(2):
            server.accept("DescribeStream")
        for _ in range(3):
            server.refuse("DescribeStream", "LimitExceededException")
        assert len(await made.shards()) == 350
        await made.close()


async def test_the_first_listing_goes_on_at_the_page_that_failed() -> None:
    async with StreamsServer(table_stream(350)) as server:
        made = source(server)
        await made.open()
        for _ in range(2):
            server.accept("DescribeStream")
        for _ in range(OPTIONS.page_failures_max):
            server.refuse("DescribeStream", "InternalServerError", status=500)
        with pytest.raises(TransientError):
            await made.shards()
        server.calls.clear()
        assert len(await made.shards()) == 350
        assert len(server.called("DescribeStream")) == 2, "two of four pages were there already"
        await made.close()


async def test_a_page_that_stays_bad_costs_no_shard_that_is_known_or_shown() -> None:
    async with StreamsServer(table_stream(250)) as server:
        made = source(server)
        await made.open()
        before = {shard.id for shard in await made.shards()}
        child = server.stream.rotate(first(server))
        # What is hidden was missed by the page that came.
        server.hidden = set(sorted(before)[1:200])
        server.accept("DescribeStream")
        for _ in range(OPTIONS.page_failures_max):
            server.refuse("DescribeStream", "ThrottlingException")
        server.page_size = 30
        with capture_logs() as logs:
            listed = {shard.id for shard in await made.shards()}
        assert [entry["event"] for entry in logs] == ["listing_incomplete"]
        assert listed >= before
        assert child not in listed, "the page that shows it is the one that failed"
        server.hidden = set()
        assert {shard.id for shard in await made.shards()} == before | {child}
        await made.close()


async def test_a_shard_that_one_listing_misses_is_not_gone(
    server: StreamsServer, opened: StreamsSource
) -> None:
    shard_id = first(server)
    server.stream.add_shard()
    assert len(await opened.shards()) == 2
    server.hidden = {shard_id}
    assert len(await opened.shards()) == 2
    assert len(await opened.shards()) == 1


async def test_a_parent_that_a_page_missed_is_found_before_its_child_is_read(
    server: StreamsServer,
) -> None:
    parent = first(server)
    child = server.stream.rotate(parent)
    made = source(server)
    await made.open()

    server.hidden = {parent}
    listing = asyncio.ensure_future(made.shards())
    while len(server.called("DescribeStream")) < 2:
        await asyncio.sleep(0)
    server.hidden = set()
    assert {shard.id for shard in await listing} == {parent, child}
    await made.close()


async def test_the_shard_that_a_page_begins_behind_may_be_trimmed_meanwhile() -> None:
    async with StreamsServer(table_stream(250)) as server:
        made = source(server)
        await made.open()
        listing = asyncio.ensure_future(made.shards())
        while len(server.called("DescribeStream")) < 2:
            await asyncio.sleep(0)
        behind = server.stream.shards()[99].id
        server.stream.remove_shard(behind)
        assert len({shard.id for shard in await listing} - {behind}) == 249
        await made.close()


@pytest.mark.parametrize("failure", ["LimitExceededException", "ValidationException"])
async def test_children_that_cannot_be_asked_for_cost_the_shard_nothing(
    server: StreamsServer, opened: StreamsSource, failure: str
) -> None:
    shard_id = first(server)
    child = server.stream.rotate(shard_id)
    server.refuse("DescribeStream", failure)
    (end,) = await read(opened, shard_id, TRIM_HORIZON, 1)
    assert (end.next, end.children) == (SHARD_END, ())
    assert child in {shard.id for shard in await opened.shards()}


# ---- reading


async def test_an_iterator_that_expired_is_taken_again_behind_what_was_read(
    server: StreamsServer, opened: StreamsSource
) -> None:
    shard_id = first(server)
    server.stream.append(shard_id, [b"1", b"2"])
    seen = 0
    async with asyncio.timeout(60), aclosing(opened.read(shard_id, TRIM_HORIZON)) as reading:
        async for fetch in reading:
            seen += len(fetch.records)
            if seen == 2:
                server.expire_iterators()
                server.stream.append(shard_id, [b"3"])
            if seen == 3:
                break
    assert [call["ShardIteratorType"] for call in server.called("GetShardIterator")] == [
        "TRIM_HORIZON",
        "AFTER_SEQUENCE_NUMBER",
    ]


async def test_a_shard_that_goes_while_its_iterator_expires_is_not_asked_for_ever(
    server: StreamsServer, opened: StreamsSource
) -> None:
    shard_id = first(server)
    server.stream.append(shard_id, [b"1"])
    async with asyncio.timeout(60), aclosing(opened.read(shard_id, TRIM_HORIZON)) as reading:
        await anext(reading)
        server.expire_iterators()
        server.stream.remove_shard(shard_id)
        with pytest.raises(PositionLost) as gone:
            await anext(reading)
    assert gone.value.code == "shard_gone"


async def test_trimmed_gone_and_unknown_positions_are_told_apart(
    server: StreamsServer, opened: StreamsSource
) -> None:
    shard_id = first(server)
    numbers = server.stream.append(shard_id, [b"1", b"2", b"3"])
    server.stream.trim(shard_id, 2)
    with pytest.raises(PositionLost) as trimmed:
        await read(opened, shard_id, after(numbers[0]), 1)
    with pytest.raises(PositionLost) as unknown:
        await read(opened, shard_id, after(str(int(numbers[2]) + 5)), 1)
    server.stream.remove_shard(shard_id)
    with pytest.raises(PositionLost) as gone:
        await read(opened, shard_id, after(numbers[2]), 1)
    codes = [each.value.code for each in (trimmed, unknown, gone)]
    assert codes == ["position_trimmed", "position_invalid", "shard_gone"]


async def test_who_wants_the_oldest_record_gets_the_one_that_is_the_oldest_by_now(
    server: StreamsServer, opened: StreamsSource
) -> None:
    shard_id = first(server)
    server.stream.append(shard_id, [b"1", b"2"])
    server.refuse("GetRecords", "TrimmedDataAccessException")
    with pytest.raises(TransientError) as moved:
        await read(opened, shard_id, TRIM_HORIZON, 1)
    assert moved.value.code == "horizon_moved"
    server.stream.trim(shard_id, 1)
    (fetch,) = await read(opened, shard_id, TRIM_HORIZON, 1)
    assert len(fetch.records) == 1


@pytest.mark.parametrize("has_timestamps", [True, False])
async def test_a_start_at_a_time_leaves_out_what_is_older_as_a_whole(
    has_timestamps: bool,
) -> None:
    stream = table_stream(1)
    async with StreamsServer(stream, records_max=2, has_timestamps=has_timestamps) as server:
        shard_id = first(server)
        for second in range(6):
            stream.append(shard_id, [b"a", b"b"], arrival_ms=1_700_000_000_000 + 10_000 * second)
        made = source(server)
        await made.open()
        fetches = await read(made, shard_id, at_timestamp(1_700_000_030_000_000), 6)
        with_records = [fetch for fetch in fetches if len(fetch.records)]
        assert len(with_records) == 3
        assert len(fetches) == (3 if has_timestamps else 6)
        start = at_timestamp(1_700_000_030_000_000)
        assert {fetch.next for fetch in fetches if not len(fetch.records)} <= {start}
        assert all(fetch.next.sequence_number for fetch in with_records)
        await made.close()


async def test_what_is_trimmed_before_a_start_at_a_time_is_no_loss() -> None:
    """Regression: a page from before the start moved the position to where the service trims
    next, and its old time was stored as what the shard was read up to."""
    stream = table_stream(1)
    async with StreamsServer(stream, records_max=2, has_timestamps=False) as server:
        shard_id = first(server)
        for second in range(4):
            stream.append(shard_id, [b"a", b"b"], arrival_ms=1_700_000_000_000 + 10_000 * second)
        start = at_timestamp(1_700_000_020_000_000)
        made = source(server)
        await made.open()
        async with asyncio.timeout(60), aclosing(made.read(shard_id, start)) as reading:
            old = await anext(reading)
            assert (old.next, len(old.records), old.behind_ms) == (start, 0, None)
            stream.trim(shard_id, 3)
            with pytest.raises(TransientError) as moved:
                await anext(reading)
        assert moved.value.code == "horizon_moved"
        fetches = await read(made, shard_id, old.next, 3)
        assert sum(len(fetch.records) for fetch in fetches) == 4
        await made.close()


async def test_nobody_knows_how_far_behind_an_answer_without_records_is(
    server: StreamsServer, opened: StreamsSource
) -> None:
    shard_id = first(server)
    server.stream.append(shard_id, [b"1"])
    async with asyncio.timeout(60), aclosing(opened.read(shard_id, TRIM_HORIZON)) as reading:
        some, none = [await anext(reading) for _ in range(2)]
    assert (len(some.records), len(none.records)) == (1, 0)
    assert some.behind_ms is not None
    assert some.behind_ms > 0
    assert none.behind_ms is None


async def test_a_shards_id_says_when_it_was_made(server: StreamsServer) -> None:
    made = source(server)
    assert made.made_us("shardId-00000001414576573621-f55eea83") == 1_414_576_573_621_000
    assert made.made_us("shardId-first") is None


@pytest.mark.parametrize("has_timestamps", [True, False])
async def test_latest_is_a_position_at_the_tip(has_timestamps: bool) -> None:
    stream = table_stream(1)
    async with StreamsServer(stream, records_max=2, has_timestamps=has_timestamps) as server:
        shard_id = first(server)
        made = source(server)
        await made.open()
        now_ms = await made.now_us() // 1_000
        for second in (20, 10, 0):
            stream.append(shard_id, [b"a", b"b"], arrival_ms=now_ms - second * 1_000)
        async with asyncio.timeout(60), aclosing(made.read(shard_id, LATEST)) as reading:
            tip = await anext(reading)
        assert len(tip.records) == 0
        stream.append(shard_id, [b"c"])
        fetches = await read(made, shard_id, tip.next, 1)
        assert sum(len(fetch.records) for fetch in fetches) == 1
        end = stream.continuation(shard_id, stream.count(shard_id))
        assert fetches[-1].next == end
        await made.close()


@pytest.mark.parametrize("has_timestamps", [True, False])
async def test_a_start_inside_a_second_repeats_rather_than_loses(has_timestamps: bool) -> None:
    """Records tell their time in whole seconds, and what was made after the start's fraction
    looks older than it."""
    stream = table_stream(1)
    async with StreamsServer(stream, records_max=1, has_timestamps=has_timestamps) as server:
        shard_id = first(server)
        second_ms = 1_700_000_030_000
        stream.append(shard_id, [b"before"], arrival_ms=second_ms - 1_000)
        stream.append(shard_id, [b"same second"], arrival_ms=second_ms)
        stream.append(shard_id, [b"after"], arrival_ms=second_ms + 1_000)
        made = source(server)
        await made.open()
        for fraction_us in (0, 700_000):
            start = at_timestamp(second_ms * 1_000 + fraction_us)
            fetches = await read(made, shard_id, start, 2)
            numbers = [fetch.records.first_sequence_number for fetch in fetches if fetch.records]
            assert stream.continuation(shard_id, 2).sequence_number in numbers
        await made.close()


async def test_a_page_that_fails_is_no_reason_to_look_for_another_stream(
    server: StreamsServer, opened: StreamsSource
) -> None:
    """Regression: without a page the stream's state wasn't known, which counted as disabled."""
    await opened.shards()
    asked = len(server.called("DescribeTable"))
    for _ in range(OPTIONS.page_failures_max):
        server.refuse("DescribeStream", "InternalServerError")
    assert [shard.id for shard in await opened.shards()] == [first(server)]
    assert len(server.called("DescribeTable")) == asked


async def test_a_start_in_the_future_is_refused(
    server: StreamsServer, opened: StreamsSource
) -> None:
    with pytest.raises(FatalError) as refused:
        await read(opened, first(server), at_timestamp(await opened.now_us() + 3_600_000_000), 1)
    assert refused.value.code == "start_in_future"


async def test_a_throttle_is_no_error(server: StreamsServer, opened: StreamsSource) -> None:
    shard_id = first(server)
    server.stream.append(shard_id, [b"1"])
    server.refuse("GetRecords", "LimitExceededException")
    (fetch,) = await read(opened, shard_id, TRIM_HORIZON, 1)
    assert len(fetch.records) == 1
    assert len(server.called("GetRecords")) == 2, "the driver repeats nothing behind our back"
