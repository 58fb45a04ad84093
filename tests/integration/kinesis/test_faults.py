"""Broken connections, refusals and exceptions."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from structlog.testing import capture_logs

from replicator.errors import FatalError, LeaseLost, PositionLost, TransientError
from replicator.model import TRIM_HORIZON, after
from replicator.testing import frames
from replicator.testing.clock import VirtualClock
from replicator.testing.kinesis_server import Cut, KinesisServer, Mute, Send, Serve, Stall
from tests.integration.kinesis.rig import (
    SHARD,
    MakeSource,
    numbered,
    payloads,
    starts,
    take,
    until,
)

# --- broken connections ---


def whole_event(server: KinesisServer, lo: int, hi: int) -> bytes:
    records = list(server.stream.records(SHARD, lo, hi - lo))
    return frames.shard_event(records, records[-1].sequence_number)


@pytest.mark.parametrize("fault", ["cut", "cut_in_frame", "end_in_frame", "bad_crc", "silence"])
async def test_a_broken_subscription_loses_and_repeats_nothing(
    server: KinesisServer, make_source: MakeSource, fault: str
) -> None:
    server.stream.append(SHARD, numbered(0, 6))
    whole = whole_event(server, 2, 4)
    reason = {
        "cut": "cut",
        "cut_in_frame": "cut",
        "end_in_frame": "cut",
        "bad_crc": "corrupt",
        "silence": "silent",
    }[fault]
    match fault:
        case "cut":
            server.script(SHARD, Serve(1), Cut())
        case "cut_in_frame":
            server.script(SHARD, Serve(1), Send(whole[:-7]), Cut())
        case "end_in_frame":
            server.script(SHARD, Serve(1), Send(whole[:-7]))
        case "bad_crc":
            server.script(SHARD, Serve(1), Send(frames.with_bad_crc(whole)), Stall())
        case _:
            server.script(SHARD, Serve(1), Stall())
    source = make_source(silence_seconds=1.5 if fault == "silence" else 35.0)
    await source.open()
    with capture_logs() as logs:
        fetches = await take(source, 6)
    assert payloads(fetches) == numbered(0, 6)
    assert source.renewals == {reason: 1}
    (said,) = [line for line in logs if line["event"] == "subscription renewed early"]
    assert (said["reason"], said["shard"], said["log_level"]) == (reason, SHARD, "warning")


async def test_a_broken_frame_at_the_very_end_is_noticed(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.stream.append(SHARD, numbered(0, 4))
    good, bad = whole_event(server, 0, 2), whole_event(server, 2, 4)
    server.script(SHARD, Send(good + frames.with_bad_crc(bad)))
    source = make_source()
    await source.open()
    assert payloads(await take(source, 4)) == numbered(0, 4)
    assert source.renewals == {"corrupt": 1}


async def test_a_frame_in_many_pieces_is_put_together(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.stream.append(SHARD, numbered(0, 2))
    whole = whole_event(server, 0, 2)
    server.script(SHARD, *(Send(whole[at : at + 5]) for at in range(0, len(whole), 5)), Stall())
    source = make_source()
    await source.open()
    assert payloads(await take(source, 2)) == numbered(0, 2)


async def test_silence_counts_only_while_the_consumer_waits(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.stream.append(SHARD, numbered(0, 2))
    server.script(SHARD, Serve(3), Stall())
    source = make_source(silence_seconds=1.0)
    await source.open()
    async with asyncio.timeout(60), aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        # Two further events wait in the socket meanwhile.
        await asyncio.sleep(1.5)
        await anext(reading)
        await anext(reading)
        assert not source.renewals


async def test_a_subscription_that_never_gives_anything_is_raised_in_the_end(
    server: KinesisServer, make_source: MakeSource, clock: VirtualClock
) -> None:
    for _ in range(3):
        server.script(SHARD, Cut())
    source = make_source(failures_max=3)
    await source.open()
    with pytest.raises(TransientError) as caught:
        await take(source, 1)
    assert caught.value.code == "subscription_cut"
    assert source.renewals == {"cut": 3}


@pytest.mark.parametrize("option", ["answer_seconds", "silence_seconds"])
async def test_a_subscribe_without_an_answer_is_repeated(
    server: KinesisServer, make_source: MakeSource, option: str
) -> None:
    # A half-open connection was waited for until the driver's deadline, four times over.
    server.stream.append(SHARD, numbered(0, 2))
    server.script(SHARD, Mute())
    source = make_source(**{option: 1.5})
    await source.open()
    with capture_logs() as logs:
        assert payloads(await take(source, 2)) == numbered(0, 2)
    assert source.renewals == {"silent": 1}
    # The call had succeeded, for the service: the next one kept its distance.
    assert source.subscribe_conflicts == 0
    assert starts(server) == [{"Type": "TRIM_HORIZON"}] * 2
    (said,) = [line for line in logs if line["log_level"] == "warning"]
    assert (said["event"], said["reason"]) == ("subscription renewed early", "silent")
    assert said["detail"] == "no answer to the subscribe in 1.5 s"
    debug = [line for line in logs if line["log_level"] == "debug"]
    assert [line["event"] for line in debug] == ["subscribing", "subscribing", "subscribed"]
    assert {(line["shard"], line["position"]) for line in debug} == {(SHARD, "TRIM_HORIZON")}
    await until(lambda: server.subscriptions[SHARD] == 0)


async def test_subscribes_that_are_never_answered_are_raised_in_the_end(
    server: KinesisServer, make_source: MakeSource, clock: VirtualClock
) -> None:
    for _ in range(3):
        server.script(SHARD, Mute())
    source = make_source(failures_max=3, silence_seconds=0.1, backoff_seconds=8.0)
    await source.open()
    clock.slept.clear()
    with pytest.raises(TransientError) as caught:
        await take(source, 1)
    assert caught.value.code == "subscription_silent"
    assert "no answer" in caught.value.message
    assert source.renewals == {"silent": 3}
    assert clock.slept == [pytest.approx(6.0), pytest.approx(12.0)]


async def test_a_progressing_subscription_may_break_for_ever(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.stream.append(SHARD, numbered(0, 40))
    for _ in range(20):
        server.script(SHARD, Serve(1), Cut())
    source = make_source(failures_max=2)
    await source.open()
    assert payloads(await take(source, 40)) == numbered(0, 40)


async def test_failures_without_progress_wait_longer_each_time(
    server: KinesisServer, make_source: MakeSource, clock: VirtualClock
) -> None:
    server.stream.append(SHARD, numbered(0, 1))
    for _ in range(4):
        server.script(SHARD, Cut())
    source = make_source(failures_max=9, subscribe_interval_seconds=0.0, backoff_seconds=8.0)
    server._subscribe_interval_seconds = 0.0
    await source.open()
    clock.slept.clear()
    await take(source, 1)
    assert [round(seconds, 1) for seconds in clock.slept] == [6.0, 12.0, 22.5, 22.5]


async def test_the_socket_is_not_read_while_the_consumer_does_not_ask(
    server: KinesisServer, make_source: MakeSource
) -> None:
    made = 0

    def payload(index: int) -> bytes:
        nonlocal made
        made = max(made, index)
        return b"%d" % index + bytes(500_000)

    server._event_records = 1
    server.stream.generate(SHARD, 100, payload)
    source = make_source()
    await source.open()
    async with asyncio.timeout(60), aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        seen = len((await anext(reading)).records)
        before = -1
        # Until the sockets' buffers are full and the server stands still.
        while made != before:
            before = made
            await asyncio.sleep(0.1)
        assert made < 50
        while seen < 100:
            seen += len((await anext(reading)).records)
    assert not source.renewals


# --- refusals and exceptions ---


async def test_a_conflict_waits_at_least_five_seconds_and_is_counted(
    server: KinesisServer, make_source: MakeSource, clock: VirtualClock
) -> None:
    server.refuse("SubscribeToShard", "ResourceInUseException")
    source = make_source()
    await source.open()
    clock.slept.clear()
    await take(source, 0)
    assert source.subscribe_conflicts == 1
    assert clock.slept == [pytest.approx(6.0)]


async def test_a_lasting_conflict_is_raised(server: KinesisServer, make_source: MakeSource) -> None:
    for _ in range(4):
        server.refuse("SubscribeToShard", "ResourceInUseException")
    source = make_source()
    await source.open()
    with pytest.raises(TransientError) as caught:
        await take(source, 0)
    assert caught.value.code == "subscribe_conflict"
    assert caught.value.retry_after_seconds is not None
    assert caught.value.retry_after_seconds >= 5
    assert source.subscribe_conflicts == 4


async def test_who_takes_the_subscription_over_holds_the_lease(
    server: KinesisServer, make_source: MakeSource, clock: VirtualClock
) -> None:
    first, second = make_source(), make_source()
    await first.open()
    await second.open()
    async with asyncio.timeout(60), aclosing(first.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        clock.advance(6)
        await take(second, 0)
        with pytest.raises(LeaseLost) as caught:
            async for _ in reading:
                pass
    assert caught.value.code == "subscription_taken"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("InternalFailureException", "service_error"),
        ("KMSThrottlingException", "kms_throttled"),
        ("KMSDisabledException", "kms_disabled"),
        ("BrandNewException", "request_refused"),
    ],
)
async def test_an_exception_inside_the_stream_is_tried_again(
    server: KinesisServer, make_source: MakeSource, kind: str, code: str
) -> None:
    server.stream.append(SHARD, numbered(0, 4))
    server.script(SHARD, Serve(1), Send(frames.exception(kind, "why")))
    source = make_source()
    await source.open()
    async with asyncio.timeout(60), aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        seen = [await anext(reading)]
        with pytest.raises(TransientError) as caught:
            await anext(reading)
    assert caught.value.code == code
    assert payloads(seen + await take(source, 2, seen[-1].next)) == numbered(0, 4)


async def test_an_error_frame_is_tried_again(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.script(SHARD, Send(frames.error("InternalError", "why")))
    source = make_source()
    await source.open()
    with pytest.raises(TransientError) as caught:
        await take(source, 1)
    assert caught.value.code == "service_error"


async def test_a_disabled_key_at_the_call_itself_is_fatal(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.refuse("SubscribeToShard", "KMSDisabledException")
    source = make_source()
    await source.open()
    with pytest.raises(FatalError) as caught:
        await take(source, 0)
    assert caught.value.code == "kms_disabled"


async def test_an_error_answer_keeps_the_stock_parser(
    server: KinesisServer, make_source: MakeSource
) -> None:
    # A 500 would be repeated by the driver first.
    server.refuse("SubscribeToShard", "InternalFailureException", status=400)
    source = make_source()
    await source.open()
    with pytest.raises(TransientError) as caught:
        await take(source, 0)
    assert caught.value.code == "service_error"
    assert "InternalFailureException" in caught.value.message


async def test_a_throttled_call_is_repeated_by_the_driver(
    server: KinesisServer, make_source: MakeSource
) -> None:
    server.refuse("SubscribeToShard", "LimitExceededException")
    source = make_source()
    await source.open()
    await take(source, 0)
    assert len(server.called("SubscribeToShard")) == 2


async def test_a_deleted_stream_is_fatal(server: KinesisServer, make_source: MakeSource) -> None:
    source = make_source()
    await source.open()
    async with asyncio.timeout(60), aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        server.delete()
        with pytest.raises(FatalError) as caught:
            async for _ in reading:
                pass
    assert caught.value.code == "resource_missing"


async def test_a_recreated_stream_is_another_one(
    server: KinesisServer, make_source: MakeSource
) -> None:
    source = make_source()
    before = await source.open()
    server.delete()
    server.recreate()
    with pytest.raises(FatalError) as caught:
        await take(source, 0)
    assert caught.value.code == "stream_recreated"
    again = await source.open()
    assert again != before
    await take(source, 0)


async def test_a_conflict_notices_a_recreated_stream(
    server: KinesisServer, make_source: MakeSource
) -> None:
    # Another worker had already registered the consumer there: reading went on with it.
    source = make_source()
    await source.open()
    server.delete()
    server.recreate()
    await make_source().open()
    server.refuse("SubscribeToShard", "ResourceInUseException")
    for _ in range(2):  # the consumer that was found there isn't believed later either
        with pytest.raises(FatalError) as caught:
            await take(source, 0)
        assert caught.value.code == "stream_recreated"


async def test_an_unknown_number_is_a_gap(server: KinesisServer, make_source: MakeSource) -> None:
    source = make_source()
    await source.open()
    with pytest.raises(PositionLost) as caught:
        await take(source, 0, after("1"))
    assert caught.value.code == "position_invalid"
