"""From fan-out to polling when fan-out can't be had, and back, over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from structlog.testing import capture_logs

from replicator.aws import ATTEMPTS_MAX, AWSSettings
from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END, TRIM_HORIZON, Fetch
from replicator.protocols import Measured
from replicator.source import KinesisPollingSource, KinesisSource
from replicator.source.fallback import FallbackSource
from replicator.testing.clock import VirtualClock
from replicator.testing.kinesis_server import KinesisServer, Serve
from tests.integration.kinesis.rig import CONSUMER, SHARD, numbered, payloads

LOOK_SECONDS = 300.0


def make_source(server: KinesisServer, clock: VirtualClock) -> FallbackSource:
    settings = AWSSettings(region="eu-north-1", endpoint_url=server.url)
    return FallbackSource(
        KinesisSource(settings, server.name, CONSUMER, clock, jitter=lambda: 0.5),
        KinesisPollingSource(settings, server.name, clock, jitter=lambda: 0.5),
        clock,
        look_seconds=LOOK_SECONDS,
    )


@pytest.fixture
async def source(server: KinesisServer, clock: VirtualClock) -> AsyncIterator[FallbackSource]:
    made = make_source(server, clock)
    yield made
    await made.close()


def mode(source: FallbackSource) -> str:
    """The way in force."""
    return "polling" if source.falls > source.returns else "fan_out"


def refuse_consumer(server: KinesisServer, times: int = 1) -> None:
    for _ in range(times):
        server.refuse("RegisterStreamConsumer", "AccessDeniedException")


async def test_where_fan_out_can_be_had_nothing_is_polled(
    server: KinesisServer, source: FallbackSource
) -> None:
    server.stream.append(SHARD, numbered(0, 3))
    server.stream.split(SHARD)
    with capture_logs() as logs:
        await source.open()
        fetches = [fetch async for fetch in source.read(SHARD, TRIM_HORIZON)]
    assert payloads(fetches) == numbered(0, 3)
    assert mode(source) == "fan_out"
    assert not server.called("GetRecords")
    assert {entry["event"] for entry in logs} <= {
        "consumer registered",
        "subscribing",
        "subscribed",
    }


@pytest.mark.parametrize(
    ("operation", "code", "expected"),
    [
        ("RegisterStreamConsumer", "AccessDeniedException", "access_denied"),
        ("DescribeStreamConsumer", "AccessDeniedException", "access_denied"),
        ("RegisterStreamConsumer", "LimitExceededException", "consumer_limit"),
    ],
)
async def test_without_a_consumer_the_stream_is_polled_and_that_is_said_once(
    server: KinesisServer, source: FallbackSource, operation: str, code: str, expected: str
) -> None:
    is_limit = code == "LimitExceededException"  # a throttle to the driver, which repeats it
    for _ in range(2 * ATTEMPTS_MAX if is_limit else 2):
        server.refuse(operation, code)
    other = server.stream.add_shard()
    server.stream.append(SHARD, numbered(0, 5))
    server.stream.append(other, numbered(5, 7))
    server.stream.merge(SHARD, other)
    with capture_logs() as logs:
        await source.open()
        await source.open()
        fetches = [fetch async for fetch in source.read(SHARD, TRIM_HORIZON)]
        fetches += [fetch async for fetch in source.read(other, TRIM_HORIZON)]
    assert payloads(fetches) == numbered(0, 7)
    assert not server.called("SubscribeToShard")
    assert mode(source) == "polling"
    (said,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert (said["event"], said["code"]) == ("fan_out_unavailable", expected)
    assert "What to do" in said["reason"]
    assert "polled" in said["action"]
    assert source.counters()["fall_back"] == 1


async def test_a_denied_subscribe_makes_all_shards_poll(
    server: KinesisServer, source: FallbackSource
) -> None:
    other = server.stream.add_shard()
    server.stream.append(SHARD, numbered(0, 3))
    server.stream.append(other, numbered(3, 5))
    server.stream.merge(SHARD, other)
    await source.open()
    server.refuse("SubscribeToShard", "AccessDeniedException")
    with capture_logs() as logs:
        fetches = [fetch async for fetch in source.read(SHARD, TRIM_HORIZON)]
        fetches += [fetch async for fetch in source.read(other, TRIM_HORIZON)]
    assert payloads(fetches) == numbered(0, 5)
    assert len(server.called("SubscribeToShard")) == 1
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "fan_out_unavailable"
    ]


async def test_permission_taken_away_while_reading_loses_and_repeats_nothing(
    server: KinesisServer, source: FallbackSource
) -> None:
    server.stream.append(SHARD, numbered(0, 6))
    server.stream.split(SHARD)
    await source.open()
    server.script(SHARD, Serve(1))
    server.accept("SubscribeToShard")
    server.refuse("SubscribeToShard", "AccessDeniedException")
    fetches = [fetch async for fetch in source.read(SHARD, TRIM_HORIZON)]
    assert payloads(fetches) == numbered(0, 6)
    assert mode(source) == "polling"
    assert fetches[-1].next == SHARD_END


async def until_mode(
    source: FallbackSource, reading: AsyncIterator[Fetch], wanted: str
) -> list[Fetch]:
    fetches: list[Fetch] = []
    async with asyncio.timeout(60):
        while mode(source) != wanted:
            fetches.append(await anext(reading))
    return fetches


async def test_fan_out_comes_back_by_itself_for_every_shard(
    server: KinesisServer, source: FallbackSource, clock: VirtualClock
) -> None:
    other = server.stream.add_shard()
    server.stream.append(SHARD, numbered(0, 3))
    refuse_consumer(server)
    await source.open()
    began = clock.now
    with capture_logs() as logs:
        async with (
            aclosing(source.read(SHARD, TRIM_HORIZON)) as first,
            aclosing(source.read(other, TRIM_HORIZON)) as second,
        ):
            await anext(second)
            seen = payloads(await until_mode(source, first, "fan_out"))
            assert clock.now - began >= LOOK_SECONDS
            server.stream.append(SHARD, numbered(3, 6))
            server.stream.append(other, numbered(6, 8))
            while len(seen) < 6:
                seen += payloads([await anext(first)])
            polled = len(server.called("GetRecords"))
            gone_on = [await anext(second)]
            while len(payloads(gone_on)) < 2:
                gone_on.append(await anext(second))
    assert seen == numbered(0, 6)
    assert payloads(gone_on) == numbered(6, 8)
    assert len(server.called("GetRecords")) - polled <= 1, "the other shard follows"
    assert {call["ShardId"] for call in server.called("SubscribeToShard")} == {SHARD, other}
    assert [e["event"] for e in logs if e["event"].startswith("fan_out")] == ["fan_out_available"]
    assert {"fall_back": 1, "fall_back_ended": 1}.items() <= source.counters().items()


async def test_a_trial_that_fails_changes_nothing_and_is_not_said_again(
    server: KinesisServer, source: FallbackSource, clock: VirtualClock
) -> None:
    refuse_consumer(server, times=4)
    await source.open()
    began = clock.now
    with capture_logs() as logs:
        async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
            while clock.now - began < 3.5 * LOOK_SECONDS:
                await anext(reading)
    assert len(server.called("RegisterStreamConsumer")) == 1 + 3
    assert [entry for entry in logs if entry["log_level"] == "warning"] == []
    assert mode(source) == "polling"


async def test_a_trial_that_meets_something_else_goes_on_polling(
    server: KinesisServer, source: FallbackSource, clock: VirtualClock
) -> None:
    refuse_consumer(server)
    await source.open()
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        clock.advance(LOOK_SECONDS)
        server.refuse("SubscribeToShard", "KMSDisabledException")
        server.stream.append(SHARD, numbered(0, 2))
        seen: list[bytes] = []
        while len(seen) < 2:
            seen += payloads([await anext(reading)])
    assert len(server.called("SubscribeToShard")) == 1
    assert mode(source) == "polling"


async def test_a_trial_meets_another_stream_under_the_name(
    server: KinesisServer, source: FallbackSource, clock: VirtualClock
) -> None:
    """Regression: fan-out was opened anew for a trial, and read whatever stream it found."""
    refuse_consumer(server)
    await source.open()
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        clock.advance(LOOK_SECONDS)
        server.recreate()
        server.stream.append(SHARD, numbered(0, 2))
        with pytest.raises(FatalError) as caught:
            await anext(reading)
    assert caught.value.code == "stream_recreated"
    assert not server.called("SubscribeToShard")


async def test_one_shard_at_a_time_tries(
    server: KinesisServer, source: FallbackSource, clock: VirtualClock
) -> None:
    shards = [SHARD] + [server.stream.add_shard() for _ in range(5)]
    refuse_consumer(server, times=2)
    await source.open()
    readings = [source.read(shard, TRIM_HORIZON) for shard in shards]
    for reading in readings:
        await anext(reading)
    clock.advance(LOOK_SECONDS + 1)
    for reading in readings:
        await anext(reading)
    assert len(server.called("RegisterStreamConsumer")) == 2
    for reading in readings:
        await reading.aclose()


async def test_a_denial_of_the_stream_itself_is_no_reason_to_poll(
    server: KinesisServer, source: FallbackSource
) -> None:
    server.refuse("DescribeStreamSummary", "AccessDeniedException")
    with pytest.raises(FatalError) as caught:
        await source.open()
    assert caught.value.code == "access_denied"
    assert mode(source) == "fan_out"


async def test_fan_out_that_may_come_in_a_moment_is_waited_for(
    server: KinesisServer, source: FallbackSource
) -> None:
    server.creating_answers = 10_000
    with pytest.raises(TransientError) as caught:
        await source.open()
    assert caught.value.code == "consumer_not_active"
    assert mode(source) == "fan_out"


async def test_what_both_ways_asked_is_counted_together(
    server: KinesisServer, source: FallbackSource, clock: VirtualClock
) -> None:
    assert isinstance(source, Measured)
    refuse_consumer(server)
    await source.open()
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        for _ in range(3):
            await anext(reading)
        assert source.calls(SHARD) == 3
        clock.advance(LOOK_SECONDS)
        await until_mode(source, reading, "fan_out")
    assert source.calls(SHARD) == len(server.called("GetRecords")) + len(
        server.called("SubscribeToShard")
    )


async def test_a_look_changes_nothing(server: KinesisServer, source: FallbackSource) -> None:
    stream, consumer = await source.look()
    assert (stream.name, consumer) == (server.name, None)
    server.refuse("DescribeStreamConsumer", "AccessDeniedException")
    _, denied = await source.look()
    assert isinstance(denied, FatalError)
    assert not server.called("RegisterStreamConsumer")
    assert mode(source) == "fan_out"
