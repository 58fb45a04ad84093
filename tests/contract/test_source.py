"""What every source owes the engine, over the fake in memory, our own small servers (one of them
misbehaving) and the emulators."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import pytest

from replicator import _core
from replicator.aws import AWSSettings, aws_client
from replicator.core.pace import PaceLimits
from replicator.core.retry import Backoff
from replicator.errors import FatalError, PositionLost
from replicator.model import (
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    Fetch,
    Position,
    PositionKind,
    after,
    at_timestamp,
)
from replicator.protocols import Source
from replicator.source import (
    KinesisOptions,
    KinesisPollingSource,
    KinesisSource,
    StreamsOptions,
    StreamsSource,
)
from replicator.source.polling import PollOptions
from replicator.testing.clock import LoopClock
from replicator.testing.cloud import Fault, FaultCloud, StreamsCloud
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from replicator.testing.streams_server import StreamsServer, table_stream

# The emulator sends an event to an idle subscriber every five seconds.
DEADLINE_SECONDS = 90.0
QUICK_POLLS = PollOptions(
    PaceLimits(reads_per_second=100.0, busy_seconds=0.01, idle_seconds_max=0.05)
)


def numbered(lo: int, hi: int) -> list[bytes]:
    return [f"record {number}".encode() for number in range(lo, hi)]


def refused(fetch: Fetch) -> list[bytes]:
    """The payloads, seen through the core: none of them is a change, so each is refused
    with its own bytes."""
    return [rejection.raw for rejection in _core.decode(fetch.records, keep_all=True).rejections]


def wrapped(fetch: Fetch) -> list[bytes]:
    """The payloads in the records that our server of DynamoDB Streams makes of them."""
    return [json.loads(raw)["payload"].encode() for raw in refused(fetch)]


def keys(fetch: Fetch) -> list[bytes]:
    """The payloads that were written as the keys of items."""
    lines = _core.decode(fetch.records, table=fetch.table, keep_all=True).json_lines().splitlines()
    return [json.loads(line)["key"]["id"].encode() for line in lines]


@dataclass
class Rig:
    """A source, and hands on the other end of its stream."""

    source: Source
    append: Callable[[Sequence[bytes]], Awaitable[None]]
    shard_id: str
    # The emulator can't keep a closed shard readable.
    stream: ScriptedStream | None = None
    missing: Source | None = None
    seen: Callable[[Fetch], list[bytes]] = refused
    has_merges: bool = True
    # Else the end of a shard names none, and the listing has to.
    has_children: bool = True

    def payloads(self, fetches: Sequence[Fetch]) -> list[bytes]:
        return [payload for fetch in fetches for payload in self.seen(fetch)]


async def take(
    rig: Rig, position: Position, count: int, *, shard_id: str | None = None
) -> list[Fetch]:
    """Fetches until `count` records have come; the generator is closed then."""
    fetches: list[Fetch] = []
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        aclosing(rig.source.read(shard_id or rig.shard_id, position)) as reading,
    ):
        async for fetch in reading:
            fetches.append(fetch)
            if sum(len(each.records) for each in fetches) >= count:
                break
    return fetches


async def take_all(rig: Rig, position: Position) -> list[Fetch]:
    """Fetches to the end of the shard."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [fetch async for fetch in rig.source.read(rig.shard_id, position)]


async def scripted_rig(stack: AsyncExitStack) -> Rig:
    stream = ScriptedStream(1)
    (shard,) = stream.shards()

    async def append(records: Sequence[bytes]) -> None:
        stream.append(shard.id, records)

    source = ScriptedSource(LoopClock(), stream, fetch_records=4, heartbeat_seconds=0.05)
    missing = ScriptedSource(LoopClock(), stream)
    missing.fail("open", 1, FatalError("resource_missing", "scripted"))
    return Rig(source, append, shard.id, stream, missing)


async def server_rig(stack: AsyncExitStack, *, is_polled: bool = False) -> Rig:
    stream = ScriptedStream(1)
    (shard,) = stream.shards()
    server = await stack.enter_async_context(
        KinesisServer(
            stream,
            event_records=4,
            heartbeat_seconds=0.05,
            subscribe_interval_seconds=0.05,
            reads_per_second=1_000,
        )
    )

    server.creating_answers = 0

    async def append(records: Sequence[bytes]) -> None:
        stream.append(shard.id, records)

    settings = AWSSettings(region="eu-north-1", endpoint_url=server.url)
    options = KinesisOptions(subscribe_interval_seconds=0.06, backoff_seconds=0.01)

    def source(name: str) -> Source:
        if is_polled:
            return KinesisPollingSource(settings, name, LoopClock(), options=QUICK_POLLS)
        return KinesisSource(settings, name, "shop-products", LoopClock(), options=options)

    return Rig(source(server.name), append, shard.id, stream, source("another"))


async def cloud_rig(stack: AsyncExitStack, *, is_polled: bool = False) -> Rig:
    """What a reader gets over by itself happens all the time."""
    script = (
        *(
            Fault(kind=kind, share=0.1)
            for kind in ("end", "cut", "cut_in_frame", "end_in_frame", "bad_crc")
        ),
        *(Fault(kind=kind, share=0.2) for kind in ("small_event", "empty_event")),
        Fault(kind="no_initial_response", share=0.5),
        Fault(kind="throttle", operation="SubscribeToShard", share=0.1),
        Fault(kind="throttle", operation="GetRecords", share=0.1),
        Fault(kind="expire_iterator", operation="GetRecords", share=0.1),
    )
    cloud = await stack.enter_async_context(
        FaultCloud(
            seed=5,
            script=script,
            shards=1,
            event_records=4,
            heartbeat_seconds=0.05,
            subscribe_interval_seconds=0.05,
            reads_per_second=1_000,
        )
    )
    cloud.creating_answers = 0
    (shard,) = cloud.stream.shards()

    async def append(records: Sequence[bytes]) -> None:
        cloud.stream.append(shard.id, records)

    settings = AWSSettings(region="eu-north-1", endpoint_url=cloud.url)
    options = KinesisOptions(subscribe_interval_seconds=0.06, backoff_seconds=0.01, failures_max=20)

    def source(name: str) -> Source:
        if is_polled:
            return KinesisPollingSource(settings, name, LoopClock(), options=QUICK_POLLS)
        return KinesisSource(settings, name, "shop-products", LoopClock(), options=options)

    return Rig(source(cloud.name), append, shard.id, cloud.stream, source("another"))


async def ministack_rig(stack: AsyncExitStack, url: str, *, is_polled: bool = False) -> Rig:
    name = f"stream-{secrets.token_hex(4)}"
    settings = AWSSettings(region="eu-north-1", endpoint_url=url)
    client: Any = await stack.enter_async_context(aws_client(settings, "kinesis"))
    await client.create_stream(StreamName=name, ShardCount=1)
    await client.get_waiter("stream_exists").wait(StreamName=name)
    (shard,) = (await client.list_shards(StreamName=name))["Shards"]

    async def append(records: Sequence[bytes]) -> None:
        await client.put_records(
            StreamName=name,
            Records=[{"Data": record, "PartitionKey": "0"} for record in records],
        )

    def source(stream: str) -> Source:
        if is_polled:
            return KinesisPollingSource(settings, stream, LoopClock())
        return KinesisSource(settings, stream, "shop-products", LoopClock())

    return Rig(source(name), append, shard["ShardId"], missing=source("another"))


# Quick, so that an idle shard is asked often.
PACE = PaceLimits(
    reads_per_second=200.0, records_max=1_000, busy_seconds=0.005, idle_seconds_max=0.02
)
STREAMS_OPTIONS = StreamsOptions(poll=PollOptions(pace=PACE), page_seconds=0.001)
# Failures come in rows by chance alone, and cost no time.
PATIENT = StreamsOptions(
    poll=PollOptions(pace=PACE, failures_max=20, backoff=Backoff(0.001, 0.01)), page_seconds=0.001
)


async def streams_server_rig(stack: AsyncExitStack, *, is_poor: bool = False) -> Rig:
    """`is_poor`: without what the service has served for a short time only."""
    stream = table_stream(1)
    (shard,) = stream.shards()
    server = await stack.enter_async_context(
        StreamsServer(stream, records_max=4, has_filter=not is_poor, has_timestamps=not is_poor)
    )

    async def append(records: Sequence[bytes]) -> None:
        stream.append(shard.id, records)

    settings = AWSSettings(region="eu-north-1", endpoint_url=server.url)

    def source(table: str) -> StreamsSource:
        return StreamsSource(settings, table, LoopClock(), options=STREAMS_OPTIONS)

    return Rig(
        source(server.table.name),
        append,
        shard.id,
        stream,
        source("another"),
        seen=wrapped,
        has_merges=False,
        has_children=not is_poor,
    )


async def streams_cloud_rig(stack: AsyncExitStack) -> Rig:
    """What a reader gets over by itself happens all the time."""
    kinds = ("throttle", "expire_iterator", "empty_page", "small_page", "lose_answer")
    script = [Fault(kind=kind, operation="GetRecords", share=0.1) for kind in kinds]
    script.append(Fault(kind="cut_in_answer", operation="GetRecords", share=0.05))
    cloud = await stack.enter_async_context(
        StreamsCloud(seed=5, script=script, shards=1, records_max=4)
    )
    (shard,) = cloud.stream.shards()

    async def append(records: Sequence[bytes]) -> None:
        cloud.stream.append(shard.id, records)

    settings = AWSSettings(region="eu-north-1", endpoint_url=cloud.url)

    def source(table: str) -> StreamsSource:
        return StreamsSource(settings, table, LoopClock(), options=PATIENT)

    return Rig(
        source(cloud.name),
        append,
        shard.id,
        cloud.stream,
        source("another"),
        seen=wrapped,
        has_merges=False,
    )


async def streams_ministack_rig(stack: AsyncExitStack, url: str) -> Rig:
    table = f"table-{secrets.token_hex(4)}"
    settings = AWSSettings(region="eu-north-1", endpoint_url=url)
    client: Any = await stack.enter_async_context(aws_client(settings, "dynamodb"))
    await client.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
    )

    async def append(records: Sequence[bytes]) -> None:
        for record in records:
            await client.put_item(TableName=table, Item={"id": {"S": record.decode()}})

    def source(name: str) -> StreamsSource:
        return StreamsSource(settings, name, LoopClock(), options=STREAMS_OPTIONS)

    opened = source(table)
    await opened.open()
    (shard,) = await opened.shards()
    return Rig(opened, append, shard.id, missing=source("another"), seen=keys)


@pytest.fixture(
    params=[
        "scripted",
        *("server", "server-polled"),
        *("cloud", "cloud-polled"),
        *("ministack", "ministack-polled"),
        *("streams", "streams-poor", "streams-cloud", "streams-ministack"),
    ]
)
async def rig(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "000000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    async with AsyncExitStack() as stack:
        if request.param == "scripted":
            made = await scripted_rig(stack)
        elif request.param == "streams-cloud":
            made = await streams_cloud_rig(stack)
        elif request.param == "streams-ministack":
            url = request.getfixturevalue("ministack_url")
            made = await streams_ministack_rig(stack, url)
        elif request.param.startswith("streams"):
            made = await streams_server_rig(stack, is_poor=request.param == "streams-poor")
        else:
            name, _, way = request.param.partition("-")
            if name == "server":
                made = await server_rig(stack, is_polled=way == "polled")
            elif name == "cloud":
                made = await cloud_rig(stack, is_polled=way == "polled")
            else:
                url = request.getfixturevalue("ministack_url")
                made = await ministack_rig(stack, url, is_polled=way == "polled")
        stack.push_async_callback(made.source.close)
        yield made


async def test_open_gives_the_same_identity_twice(rig: Rig) -> None:
    first = await rig.source.open()
    assert first == await rig.source.open()
    assert first.name
    assert first.arn.startswith("arn:aws:")
    assert first.created_at_s > 0


async def test_open_refuses_a_missing_stream(rig: Rig) -> None:
    assert rig.missing is not None
    with pytest.raises(FatalError) as caught:
        await rig.missing.open()
    assert caught.value.code == "resource_missing"
    await rig.missing.close()


async def test_close_may_be_called_twice(rig: Rig) -> None:
    await rig.source.open()
    await rig.source.close()
    await rig.source.close()


async def test_the_services_clock_is_never_late(rig: Rig) -> None:
    import time

    await rig.source.open()
    before = time.time_ns() // 1_000
    seen = await rig.source.now_us()
    assert before - 3_000_000 < seen <= time.time_ns() // 1_000


async def test_the_listing_names_the_shard(rig: Rig) -> None:
    await rig.source.open()
    (shard,) = await rig.source.shards()
    assert shard.id == rig.shard_id
    assert shard.is_open
    assert shard.parents == ()


async def test_all_records_come_in_order_from_the_horizon(rig: Rig) -> None:
    await rig.source.open()
    await rig.append(numbered(0, 10))
    fetches = await take(rig, TRIM_HORIZON, 10)
    assert rig.payloads(fetches) == numbered(0, 10)
    assert all(fetch.shard_id == rig.shard_id for fetch in fetches)
    assert all(fetch.next.kind is PositionKind.AFTER_SEQUENCE_NUMBER for fetch in fetches)
    now = asyncio.get_running_loop().time()
    assert all(now - DEADLINE_SECONDS < fetch.received_at <= now for fetch in fetches)


async def test_reading_goes_on_where_it_stopped(rig: Rig) -> None:
    await rig.source.open()
    await rig.append(numbered(0, 6))
    first = await take(rig, TRIM_HORIZON, 6)
    await rig.append(numbered(6, 9))
    second = await take(rig, Position.parse(str(first[-1].next)), 3)
    assert rig.payloads(second) == numbered(6, 9)


async def test_records_that_come_while_reading_are_given(rig: Rig) -> None:
    await rig.source.open()
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        aclosing(rig.source.read(rig.shard_id, LATEST)) as reading,
    ):
        idle = await anext(reading)
        assert len(idle.records) == 0
        await rig.append(numbered(0, 3))
        seen: list[bytes] = []
        while len(seen) < 3:
            seen += rig.payloads([await anext(reading)])
    assert seen == numbered(0, 3)


async def test_latest_leaves_out_what_was_there(rig: Rig) -> None:
    await rig.source.open()
    await rig.append(numbered(0, 3))
    fetches = await take(rig, LATEST, 0)
    assert rig.payloads(fetches) == []
    await rig.append(numbered(3, 5))
    assert rig.payloads(await take(rig, fetches[-1].next, 2)) == numbered(3, 5)


async def test_a_sequence_number_can_be_included_or_not(rig: Rig) -> None:
    await rig.source.open()
    await rig.append(numbered(0, 1))
    (first,) = [fetch for fetch in await take(rig, TRIM_HORIZON, 1) if len(fetch.records)]
    number = first.records.first_sequence_number
    assert number is not None
    await rig.append(numbered(1, 2))
    at = Position(PositionKind.AT_SEQUENCE_NUMBER, sequence_number=number)
    assert rig.payloads(await take(rig, at, 2)) == numbered(0, 2)


async def test_after_a_sequence_number(rig: Rig) -> None:
    await rig.source.open()
    await rig.append(numbered(0, 1))
    (first,) = [fetch for fetch in await take(rig, TRIM_HORIZON, 1) if len(fetch.records)]
    number = first.records.last_sequence_number
    assert number is not None
    await rig.append(numbered(1, 2))
    assert rig.payloads(await take(rig, after(number), 1)) == numbered(1, 2)


async def test_a_start_at_the_services_clock_loses_nothing(rig: Rig) -> None:
    await rig.source.open()
    start = at_timestamp(await rig.source.now_us())
    await rig.append(numbered(0, 3))
    assert rig.payloads(await take(rig, start, 3)) == numbered(0, 3)


async def test_nothing_is_read_after_the_end(rig: Rig) -> None:
    await rig.source.open()
    assert await take_all(rig, SHARD_END) == []


async def test_a_closed_shard_is_read_to_its_end(rig: Rig) -> None:
    if rig.stream is None:
        pytest.skip("the emulator drops a shard's records when it closes it")
    await rig.source.open()
    await rig.append(numbered(0, 10))
    left, right = rig.stream.split(rig.shard_id)
    fetches = await take_all(rig, TRIM_HORIZON)
    assert rig.payloads(fetches) == numbered(0, 10)
    assert [fetch.next == SHARD_END for fetch in fetches] == [False] * (len(fetches) - 1) + [True]
    named = {child.id: child.parents for child in fetches[-1].children}
    assert named == ({left: (rig.shard_id,), right: (rig.shard_id,)} if rig.has_children else {})
    assert all(fetch.children == () for fetch in fetches[:-1])
    listed = {shard.id: shard for shard in await rig.source.shards()}
    assert not listed[rig.shard_id].is_open
    assert listed[left].parents == (rig.shard_id,)


async def test_a_merged_child_names_both_parents(rig: Rig) -> None:
    if not rig.has_merges:
        pytest.skip("a shard of this service has one parent")
    if rig.stream is None:
        pytest.skip("the emulator drops a shard's records when it closes it")
    other = rig.stream.add_shard()
    await rig.source.open()
    child = rig.stream.merge(rig.shard_id, other)
    (last,) = await take_all(rig, TRIM_HORIZON)
    assert [(each.id, each.parents) for each in last.children] == [(child, (rig.shard_id, other))]
    listed = {shard.id: shard for shard in await rig.source.shards()}
    assert listed[child].parents == (rig.shard_id, other)


async def test_a_position_that_is_no_longer_kept_is_lost(rig: Rig) -> None:
    if rig.stream is None:
        pytest.skip("the emulator takes any number")
    await rig.source.open()
    await rig.append(numbered(0, 10))
    fetches = await take(rig, TRIM_HORIZON, 4)
    rig.stream.trim(rig.shard_id, 8)
    with pytest.raises(PositionLost):
        await take(rig, fetches[0].next, 1)


async def test_a_shard_that_is_no_longer_listed_is_lost(rig: Rig) -> None:
    if rig.stream is None:
        pytest.skip("the emulator keeps its shards")
    await rig.source.open()
    rig.stream.remove_shard(rig.shard_id)
    with pytest.raises(PositionLost) as caught:
        await take(rig, TRIM_HORIZON, 1)
    assert caught.value.code == "shard_gone"
