"""Polling over the wire, against a server of ours that keeps the service's rules (iterators of
five minutes, five reads and 2 MB a second) by the very clock that the source sleeps on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from replicator.aws import AWSSettings
from replicator.errors import FatalError, PositionLost, TransientError
from replicator.model import LATEST, SHARD_END, TRIM_HORIZON, after, at_timestamp
from replicator.source import KinesisPollingSource
from replicator.source.polling import PollOptions
from replicator.testing.clock import VirtualClock
from replicator.testing.kinesis_server import KinesisServer
from tests.integration.kinesis.rig import SHARD, numbered, payloads

THROTTLED = "ProvisionedThroughputExceededException"


def make_source(
    server: KinesisServer, clock: VirtualClock, stream: str | None = None, **options: Any
) -> KinesisPollingSource:
    return KinesisPollingSource(
        AWSSettings(region="eu-north-1", endpoint_url=server.url),
        stream or server.name,
        clock,
        options=PollOptions(**options),
        jitter=lambda: 0.5,
    )


@pytest.fixture
async def source(server: KinesisServer, clock: VirtualClock) -> AsyncIterator[KinesisPollingSource]:
    made = make_source(server, clock)
    await made.open()
    yield made
    await made.close()


async def read_all(source: KinesisPollingSource) -> list[bytes]:
    """The payloads to the end of the shard."""
    async with asyncio.timeout(60):
        return payloads([fetch async for fetch in source.read(SHARD, TRIM_HORIZON)])


async def test_neither_a_consumer_nor_a_subscription_is_asked_for(
    server: KinesisServer, source: KinesisPollingSource
) -> None:
    server.stream.append(SHARD, numbered(0, 5))
    server.stream.split(SHARD)
    assert await read_all(source) == numbered(0, 5)
    asked = {operation for operation, _ in server.calls}
    assert asked == {"DescribeStreamSummary", "GetShardIterator", "GetRecords"}


async def test_a_stream_may_be_named_by_its_arn(server: KinesisServer, clock: VirtualClock) -> None:
    source = make_source(server, clock, server.arn)
    await source.open()
    server.stream.split(SHARD)
    assert await read_all(source) == []
    assert server.called("GetShardIterator")[0]["StreamARN"] == server.arn
    await source.close()


async def test_the_limits_are_kept_to_while_thirty_megabytes_are_caught_up(
    clock: VirtualClock,
) -> None:
    megabyte = bytes(1_000_000)
    async with KinesisServer(event_records=10_000, monotonic=clock.monotonic) as server:
        server.stream.generate(SHARD, 30, lambda _: megabyte, arrival_ms=1)
        server.stream.split(SHARD)
        source = make_source(server, clock)
        await source.open()
        began = clock.now
        async with asyncio.timeout(60):
            sizes = [len(f.records) async for f in source.read(SHARD, TRIM_HORIZON)]
        await source.close()
    assert sum(sizes) == 30
    assert sizes[0] == 10, "the service's own limit, as long as the size of records isn't known"
    assert max(sizes[1:]) == 1, "then a second's worth is not passed"
    assert source.poller.throttles == {}
    assert 14 <= clock.now - began <= 20, "2 MB a second, no slower"


async def test_five_reads_a_second_are_kept_to_with_small_records(
    server: KinesisServer, source: KinesisPollingSource, clock: VirtualClock
) -> None:
    server.stream.append(SHARD, numbered(0, 40), arrival_ms=1)
    server.stream.split(SHARD)
    began = clock.now
    assert await read_all(source) == numbered(0, 40)
    assert source.poller.throttles == {}
    assert clock.now - began == pytest.approx(20 / 5, abs=0.5)


async def test_a_throttle_is_one_call_and_no_error(
    server: KinesisServer, source: KinesisPollingSource, clock: VirtualClock
) -> None:
    """The driver would repeat it three times on its own, and quickly."""
    server.stream.append(SHARD, numbered(0, 2))
    server.stream.split(SHARD)
    server.refuse("GetShardIterator", "LimitExceededException")
    for _ in range(7):
        server.refuse("GetRecords", THROTTLED)
    began = clock.now
    assert await read_all(source) == numbered(0, 2)
    assert len(server.called("GetShardIterator")) == 2
    assert len(server.called("GetRecords")) == 8
    throttles = {"throttle_limit_exceeded": 1, "throttle_throttled": 7}
    assert source.counters() == {**throttles, "shard_ended": 1}
    assert clock.now - began >= 7.0


async def test_two_readers_of_a_shard_share_what_it_gives(
    server: KinesisServer, source: KinesisPollingSource, clock: VirtualClock
) -> None:
    server.stream.append(SHARD, numbered(0, 60), arrival_ms=1)
    server.stream.split(SHARD)
    other = make_source(server, clock)
    await other.open()
    both = await asyncio.gather(read_all(source), read_all(other))
    assert list(both) == [numbered(0, 60)] * 2
    await other.close()


async def test_an_iterator_is_renewed_from_the_last_position_after_a_long_pause(
    server: KinesisServer, source: KinesisPollingSource, clock: VirtualClock
) -> None:
    (_, second, *_) = server.stream.append(SHARD, numbered(0, 4))
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        clock.advance(3_600)
        assert payloads([await anext(reading)]) == numbered(2, 4)
    renewed = server.called("GetShardIterator")[-1]
    assert renewed["ShardIteratorType"] == "AFTER_SEQUENCE_NUMBER"
    assert renewed["StartingSequenceNumber"] == second
    assert source.counters() == {"renewal_stale": 1}


async def test_the_service_may_end_an_iterator_early(
    server: KinesisServer, source: KinesisPollingSource
) -> None:
    server.stream.append(SHARD, numbered(0, 4))
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        server.refuse("GetRecords", "ExpiredIteratorException")
        assert payloads([await anext(reading)]) == numbered(2, 4)
    assert source.counters() == {"renewal_iterator_expired": 1}


async def test_a_trimmed_position_and_a_shard_that_went_are_told_apart(
    server: KinesisServer, source: KinesisPollingSource, clock: VirtualClock
) -> None:
    """Elsewhere a shard that was deleted while its iterator was expired was retried for ever."""
    numbers = server.stream.append(SHARD, numbered(0, 10))
    async with aclosing(source.read(SHARD, after(numbers[1]))) as reading:
        await anext(reading)
        server.stream.trim(SHARD, 8)
        clock.advance(400)
        with pytest.raises(PositionLost) as trimmed:
            await anext(reading)
    assert trimmed.value.code == "position_invalid"
    assert numbers[3] in trimmed.value.message
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        server.stream.remove_shard(SHARD)
        clock.advance(400)
        with pytest.raises(PositionLost) as gone:
            await anext(reading)
    assert gone.value.code == "shard_gone"
    assert SHARD in gone.value.message


async def test_a_shard_that_goes_under_a_fresh_iterator_is_lost_too(
    server: KinesisServer, source: KinesisPollingSource
) -> None:
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        server.stream.remove_shard(SHARD)
        with pytest.raises(PositionLost) as gone:
            await anext(reading)
    assert gone.value.code == "shard_gone"


@pytest.mark.parametrize("is_pausing", [True, False])
async def test_a_stream_made_again_is_not_read_at_the_old_ones_positions(
    server: KinesisServer, source: KinesisPollingSource, clock: VirtualClock, is_pausing: bool
) -> None:
    server.stream.append(SHARD, numbered(0, 1))
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        server.recreate()
        if is_pausing:
            clock.advance(400)
        with pytest.raises(FatalError) as caught:
            await anext(reading)
    assert caught.value.code == "stream_recreated"


@pytest.mark.parametrize("position", [TRIM_HORIZON, after("7"), at_timestamp(5_000_000)])
async def test_no_first_iterator_of_another_stream_is_believed(
    server: KinesisServer, source: KinesisPollingSource, position: Any
) -> None:
    server.recreate()
    with pytest.raises(FatalError) as caught:
        await anext(source.read(SHARD, position))
    assert caught.value.code == "stream_recreated"


async def test_one_look_at_the_stream_serves_all_shards_that_begin(
    clock: VirtualClock, server: KinesisServer, source: KinesisPollingSource
) -> None:
    shards = [SHARD] + [server.stream.add_shard() for _ in range(30)]
    looked = len(server.called("DescribeStreamSummary"))
    readings = [source.read(shard, TRIM_HORIZON) for shard in shards]
    await asyncio.gather(*(anext(reading) for reading in readings))
    for reading in readings:
        await reading.aclose()
    assert len(server.called("DescribeStreamSummary")) - looked < 10


async def test_a_missing_stream_is_fatal(server: KinesisServer, clock: VirtualClock) -> None:
    source = make_source(server, clock, "another")
    with pytest.raises(FatalError) as caught:
        await source.open()
    assert caught.value.code == "resource_missing"
    await source.close()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AccessDeniedException", "access_denied"),
        ("KMSAccessDeniedException", "kms_denied"),
        ("KMSDisabledException", "kms_disabled"),
        ("KMSNotFoundException", "kms_missing"),
    ],
)
async def test_denials_are_the_operators_to_mend(
    server: KinesisServer, source: KinesisPollingSource, code: str, expected: str
) -> None:
    server.refuse("GetRecords", code)
    with pytest.raises(FatalError) as caught:
        await anext(source.read(SHARD, TRIM_HORIZON))
    assert caught.value.code == expected
    assert len(server.called("GetRecords")) == 1


async def test_a_key_that_is_throttled_is_waited_for(
    server: KinesisServer, source: KinesisPollingSource
) -> None:
    server.refuse("GetRecords", "KMSThrottlingException")
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
    assert source.counters() == {"throttle_kms_throttled": 1}


async def test_what_fails_on_and_on_is_raised(
    server: KinesisServer, source: KinesisPollingSource
) -> None:
    for _ in range(5):
        server.refuse("GetRecords", "InternalFailureException", status=500)
    with pytest.raises(TransientError) as caught:
        await anext(source.read(SHARD, TRIM_HORIZON))
    assert caught.value.code == "service_error"
    assert len(server.called("GetRecords")) == 5


async def test_latest_can_be_stored_though_nothing_came(
    server: KinesisServer, source: KinesisPollingSource
) -> None:
    server.stream.append(SHARD, numbered(0, 3))
    async with aclosing(source.read(SHARD, LATEST)) as reading:
        idle = await anext(reading)
    assert len(idle.records) == 0
    server.stream.append(SHARD, numbered(3, 5))
    server.stream.split(SHARD)
    fetches = [fetch async for fetch in source.read(SHARD, idle.next)]
    assert payloads(fetches) == numbered(3, 5)


async def test_latest_of_a_shard_that_ended_is_its_end(
    server: KinesisServer, source: KinesisPollingSource
) -> None:
    server.stream.append(SHARD, numbered(0, 3))
    children = server.stream.split(SHARD)
    (fetch,) = [fetch async for fetch in source.read(SHARD, LATEST)]
    assert (len(fetch.records), fetch.next) == (0, SHARD_END)
    assert tuple(child.id for child in fetch.children) == children


async def test_calls_are_counted_for_each_shard(
    server: KinesisServer, source: KinesisPollingSource
) -> None:
    other = server.stream.add_shard()
    for shard, count in ((SHARD, 3), (other, 5)):
        async with aclosing(source.read(shard, TRIM_HORIZON)) as reading:
            for _ in range(count):
                await anext(reading)
    assert (source.calls(SHARD), source.calls(other)) == (3, 5)
    assert source.calls("shardId-of-nobody") == 0
