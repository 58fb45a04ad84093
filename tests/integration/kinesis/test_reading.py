"""Starts, the consumer, renewal and the end of a shard."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from replicator.errors import FatalError, TransientError
from replicator.model import LATEST, SHARD_END, TRIM_HORIZON, Position, after, at_timestamp
from replicator.testing import frames
from replicator.testing.clock import VirtualClock
from replicator.testing.kinesis_server import Cut, KinesisServer, Mute, Send, Serve, Stall
from replicator.testing.stream import ScriptedStream
from tests.integration.kinesis.rig import (
    CONSUMER,
    SHARD,
    MakeSource,
    numbered,
    payloads,
    starts,
    take,
    until,
)

# --- where reading starts ---


@pytest.mark.parametrize(
    ("position", "sent"),
    [
        (TRIM_HORIZON, {"Type": "TRIM_HORIZON"}),
        (LATEST, {"Type": "LATEST"}),
        (
            at_timestamp(1_700_000_000_123_999),
            {"Type": "AT_TIMESTAMP", "Timestamp": 1_700_000_000.123},
        ),
        (at_timestamp(1_700_000_000_000_000), {"Type": "AT_TIMESTAMP", "Timestamp": 1_700_000_000}),
    ],
)
async def test_the_start_is_sent_as_the_api_wants_it(
    server: KinesisServer, make_source: MakeSource, position: Position, sent: dict[str, Any]
) -> None:
    source = make_source()
    await source.open()
    await take(source, 0, position)
    assert starts(server) == [sent]


async def test_a_stream_may_be_named_by_its_arn(
    server: KinesisServer, make_source: MakeSource
) -> None:
    source = make_source(server.arn)
    stream = await source.open()
    assert (stream.name, stream.arn) == (server.name, server.arn)
    assert len(await source.shards()) == 1


@pytest.mark.parametrize("count", [101, 1_001])
async def test_every_page_of_the_listing_is_read(
    server: KinesisServer, make_source: MakeSource, count: int
) -> None:
    server.stream = ScriptedStream(count)
    server._page_size = 100
    source = make_source()
    await source.open()
    assert len({shard.id for shard in await source.shards()}) == count
    calls = server.called("ListShards")
    assert calls[0] == {"StreamName": server.name}
    # The API refuses a name beside a token.
    assert all(set(call) == {"NextToken"} for call in calls[1:])
    assert len(calls) == -(-count // 100) == source.listing_calls()


# --- the consumer ---


async def test_a_consumer_is_registered_and_waited_for(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.creating_answers = 3
    source = make_source()
    await source.open()
    await make_source().open()
    assert len(server.called("RegisterStreamConsumer")) == 1
    await take(source, 0)


async def test_a_consumer_being_deleted_is_waited_for_and_registered_again(
    server: KinesisServer, make_source: MakeSource
) -> None:
    await make_source().open()
    server.delete_consumer(CONSUMER, deleting_answers=2)
    source = make_source()
    await source.open()
    assert len(server.called("RegisterStreamConsumer")) == 2
    await take(source, 0)


async def test_a_consumer_deleted_later_is_registered_again(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.stream.append(SHARD, numbered(0, 2))
    source = make_source()
    await source.open()
    first = await take(source, 2)
    server.delete_consumer(CONSUMER, deleting_answers=0)
    server.stream.append(SHARD, numbered(2, 4))
    assert payloads(await take(source, 2, first[-1].next)) == numbered(2, 4)
    assert len(server.called("RegisterStreamConsumer")) == 2


async def test_a_consumer_that_another_worker_registers_first_is_reused(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.refuse("DescribeStreamConsumer", "ResourceNotFoundException")
    server.refuse("RegisterStreamConsumer", "ResourceInUseException")
    await make_source().open()


async def test_too_many_consumers_says_what_to_do(
    server: KinesisServer, make_source: MakeSource
) -> None:
    for _ in range(4):
        server.refuse("RegisterStreamConsumer", "LimitExceededException")
    with pytest.raises(TransientError) as caught:
        await make_source().open()
    assert caught.value.code == "consumer_limit"
    assert "deregister" in caught.value.message


async def test_a_consumer_that_never_gets_active_is_given_up(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.creating_answers = 1_000
    with pytest.raises(TransientError) as caught:
        await make_source(consumer_wait_seconds=30.0).open()
    assert caught.value.code == "consumer_not_active"


async def test_denied_access_is_fatal(server: KinesisServer, make_source: MakeSource) -> None:
    server.refuse("DescribeStreamConsumer", "AccessDeniedException", "not you")
    with pytest.raises(FatalError) as caught:
        await make_source().open()
    assert caught.value.code == "access_denied"
    assert CONSUMER in caught.value.message


# --- renewal ---


async def test_a_subscription_is_renewed_before_five_minutes(
    server: KinesisServer, make_source: MakeSource, clock: VirtualClock
) -> None:
    server.stream.append(SHARD, numbered(0, 2))
    source = make_source()
    await source.open()
    async with asyncio.timeout(60), aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        first = await anext(reading)
        clock.advance(290)
        server.stream.append(SHARD, numbered(2, 4))
        second = await anext(reading)
    assert payloads([first, second]) == numbered(0, 4)
    assert first.next == after(starts(server)[1]["SequenceNumber"])
    assert starts(server)[1]["Type"] == "AFTER_SEQUENCE_NUMBER"
    assert source.renewals == {"due": 1}
    await until(lambda: server.subscriptions[SHARD] == 0)


async def test_an_ended_subscription_is_renewed_five_seconds_after_the_last_success(
    server: KinesisServer, make_source: MakeSource, clock: VirtualClock
) -> None:
    server.stream.append(SHARD, numbered(0, 6))
    for _ in range(2):
        server.script(SHARD, Serve(1))
    source = make_source()
    await source.open()
    clock.slept.clear()
    assert payloads(await take(source, 6)) == numbered(0, 6)
    assert source.renewals == {"finished": 2}
    # The server refuses earlier ones, by the same clock.
    assert source.subscribe_conflicts == 0
    assert clock.slept == [pytest.approx(5.0), pytest.approx(5.0)]


async def test_the_five_seconds_hold_over_readers(
    server: KinesisServer, make_source: MakeSource, clock: VirtualClock
) -> None:
    source = make_source()
    await source.open()
    first = await take(source, 0)
    clock.slept.clear()
    clock.advance(2)
    await take(source, 0, first[-1].next)
    assert clock.slept == [pytest.approx(3.0)]


async def test_a_renewal_before_any_continuation_keeps_its_start(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.script(SHARD, Cut())
    server.stream.append(SHARD, numbered(0, 2))
    source = make_source()
    await source.open()
    assert payloads(await take(source, 2)) == numbered(0, 2)
    assert starts(server) == [{"Type": "TRIM_HORIZON"}] * 2


async def test_the_initial_response_may_be_missing(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server._has_initial_response = False
    server.stream.append(SHARD, numbered(0, 2))
    source = make_source()
    await source.open()
    assert payloads(await take(source, 2)) == numbered(0, 2)


async def test_closing_the_generator_closes_the_connection(
    server: KinesisServer, make_source: MakeSource
) -> None:
    source = make_source()
    await source.open()
    reading = source.read(SHARD, TRIM_HORIZON)
    await anext(reading)
    assert server.subscriptions[SHARD] == 1
    await reading.aclose()
    await until(lambda: server.subscriptions[SHARD] == 0)


@pytest.mark.parametrize("step", [Stall(), Mute()], ids=["events", "answer"])
async def test_a_reader_that_waits_can_be_cancelled_and_closes_the_connection(
    server: KinesisServer, make_source: MakeSource, step: Stall | Mute
) -> None:
    server.script(SHARD, step)
    source = make_source()
    await source.open()
    reader = asyncio.ensure_future(take(source, 1))
    await until(lambda: server.subscriptions[SHARD] == 1)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert not source.renewals
    await until(lambda: server.subscriptions[SHARD] == 0)


# --- the end of a shard ---


async def test_children_end_a_shard_even_beside_a_continuation(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.stream.append(SHARD, numbered(0, 2))
    records = list(server.stream.records(SHARD, 0, 2))
    server.stream.split(SHARD)
    end = frames.shard_event(
        records, records[-1].sequence_number, children=server.stream.children(SHARD)
    )
    server.script(SHARD, Send(end))
    source = make_source()
    await source.open()
    (last,) = [fetch async for fetch in source.read(SHARD, TRIM_HORIZON)]
    assert last.next == SHARD_END
    assert len(last.children) == 2
    assert len(server.called("SubscribeToShard")) == 1


async def test_a_missing_continuation_ends_only_a_closed_shard(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.stream.append(SHARD, numbered(0, 4))
    server.script(SHARD, Send(frames.shard_event(server.stream.records(SHARD, 0, 2), None)))
    source = make_source()
    await source.open()
    fetches = await take(source, 4)
    assert payloads(fetches) == numbered(0, 4)
    assert all(fetch.next != SHARD_END for fetch in fetches)


async def test_a_missing_continuation_ends_a_closed_shard_without_children(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.stream.append(SHARD, numbered(0, 2))
    server.script(SHARD, Send(frames.shard_event(server.stream.records(SHARD, 0, 2), None)))
    server.stream.split(SHARD)
    source = make_source()
    await source.open()
    (last,) = [fetch async for fetch in source.read(SHARD, TRIM_HORIZON)]
    assert last.next == SHARD_END
