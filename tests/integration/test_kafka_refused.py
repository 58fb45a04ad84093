"""The Kafka sink where something can't be written, or nobody answers; and at least once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import NodeNotReadyError

from replicator.errors import FatalError, LeaseLost, TransientError
from replicator.model import (
    TRIM_HORIZON,
    after,
)
from replicator.testing.kafka_server import KafkaServer, start_kafka
from tests.changes import STREAM, number, pending, put
from tests.kafka_rig import (
    BASE_US,
    PRODUCTS,
    Rig,
    configured,
    fenced,
    kafka_rig,
    product,
    write,
)

HOUR_US = 3_600_000_000


@pytest.fixture
async def rig(kafka_server: KafkaServer) -> AsyncIterator[Rig]:
    async with kafka_rig(kafka_server) as made:
        yield made


# ---- what can't be written


async def test_a_change_older_than_the_topic_takes_stops_the_shard(rig: Rig) -> None:
    settings = {"retention.ms": "-1", "message.timestamp.before.max.ms": "3600000"}
    sink = await rig.worker(tables=[PRODUCTS], topic_settings=settings)
    fence = await fenced(sink)
    with pytest.raises(FatalError) as refused:
        await write(sink, pending(fence, [product(0)]))
    assert refused.value.code == "kafka_time_refused"
    assert "message.timestamp.before.max.ms" in refused.value.message
    assert await rig.records() == []
    assert (await sink.positions(STREAM)).get("shard-1") is None

    await configured(rig, f"{rig.prefix}.products", {"retention.ms": "-1"})
    fence = await fenced(sink)
    await write(sink, pending(fence, [product(0)]))
    assert await rig.seen() == [0]


async def test_what_a_broker_will_not_keep_in_a_topic_that_it_makes_is_told() -> None:
    with start_kafka() as own:
        broker = ConfigResource(ConfigResourceType.BROKER, "1", {"log.retention.ms": "7200000"})
        admin = AIOKafkaAdminClient(bootstrap_servers=own.address)
        await admin.start()
        await admin.alter_configs([broker])
        await admin.close()
        async with kafka_rig(own) as rig:
            sink = await rig.worker(tables=[], topic_settings={})
            found = await sink.expiring([PRODUCTS], 3 * HOUR_US)
            assert [each.code for each in found] == ["kafka_retention"]
            assert not await sink.expiring([PRODUCTS], 2 * HOUR_US)


async def test_a_broker_that_says_nothing_of_itself_keeps_nobody_from_looking(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that only speaks Kafka's protocol, or a broker that can't be reached from here."""
    sink = await rig.worker(tables=[], topic_settings={})
    ask = AIOKafkaAdminClient.describe_configs

    async def refused(client: AIOKafkaAdminClient, asked: list[ConfigResource]) -> Any:
        if asked[0].resource_type == ConfigResourceType.BROKER:
            raise NodeNotReadyError
        return await ask(client, asked)

    async def alone(_: AIOKafkaAdminClient) -> dict[str, Any]:
        return {"brokers": []}

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_configs", refused)
    assert await sink.expiring([PRODUCTS], 3 * HOUR_US) == []
    monkeypatch.setattr(AIOKafkaAdminClient, "describe_cluster", alone)
    assert await sink.expiring([PRODUCTS], 3 * HOUR_US) == []


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({"retention.ms": "7200000"}, ["kafka_retention"]),
        ({"retention.ms": "7200000", "cleanup.policy": "compact,delete"}, ["kafka_retention"]),
        ({"retention.ms": "7200000", "message.timestamp.type": "LogAppendTime"}, []),
        ({"retention.ms": "10800000"}, []),
        (
            {"retention.ms": "-1", "message.timestamp.before.max.ms": "7200000"},
            ["kafka_time_refused"],
        ),
    ],
)
async def test_what_a_topic_wont_keep_is_told_before_and_after_it_is_made(
    rig: Rig, settings: dict[str, str], codes: list[str]
) -> None:
    """Of changes that are up to three hours old."""
    cleanup = "compact" if "cleanup.policy" in settings else "delete"
    sink = await rig.worker(tables=[], topic_settings=settings, cleanup=cleanup)
    for _ in range(2):
        found = await sink.expiring([PRODUCTS], 3 * HOUR_US)
        assert [each.code for each in found] == codes
        assert all(f"{rig.prefix}.products" in each.message for each in found)
        assert all(each.is_warning for each in found)
        assert not await sink.expiring([PRODUCTS], 2 * HOUR_US)
        await sink.open([PRODUCTS])


async def test_a_record_too_large_takes_its_key_to_the_dead_letters_and_no_other(
    rig: Rig,
) -> None:
    sink = await rig.worker(compression="none", topic_settings={"max.message.bytes": "2000"})
    fence = await fenced(sink)
    small = {"n": {"S": "x"}}
    changes = [
        put("products", {"id": {"S": "a"}}, BASE_US, **small),
        put("products", {"id": {"S": "b"}}, BASE_US, **small),
        put("products", {"id": {"S": "a"}}, BASE_US + 1_000_000, small, n={"S": "x" * 3_000}),
        put("products", {"id": {"S": "b"}}, BASE_US + 1_000_000, **small),
        put("products", {"id": {"S": "a"}}, BASE_US + 2_000_000, **small),
    ]
    result = await write(sink, pending(fence, changes))
    assert result.rows == 3
    assert dict(result.rejected_by_code) == {"record_too_large": 1, "key_quarantined": 1}
    assert [record.key for record in await rig.records()].count(b'{"id":"a"}') == 1
    # The key stays aside, for the next worker too.
    other = await rig.worker(compression="none", topic_settings={"max.message.bytes": "2000"})
    fence = await other.fence(STREAM, "shard-1", "other")
    await other.position(fence)
    later = [
        put("products", {"id": {"S": "a"}}, BASE_US + 3_000_000, **small),
        put("products", {"id": {"S": "c"}}, BASE_US + 3_000_000, **small),
    ]
    result = await write(other, pending(fence, changes), pending(fence, later, first=6))
    assert (result.rows, dict(result.rejected_by_code)) == (1, {"key_quarantined": 1})
    letters = await rig.letters()
    assert [letter.value for letter in letters] == [changes[2], changes[4], later[0]]
    assert (await other.report()).dead_letters == {"record_too_large": 1, "key_quarantined": 2}


async def test_more_quarantined_keys_than_allowed_stop_the_shard(rig: Rig) -> None:
    settings = {"max.message.bytes": "2000"}
    sink = await rig.worker(compression="none", topic_settings=settings, quarantine_max=1)
    fence = await fenced(sink)
    large = [
        put("products", {"id": {"S": key}}, BASE_US, n={"S": "x" * 3_000}) for key in ("a", "b")
    ]
    await write(sink, pending(fence, large[:1]))
    with pytest.raises(FatalError) as full:
        await write(sink, pending(fence, large[1:], first=2))
    assert full.value.code == "quarantine_full"
    assert len(await rig.letters()) == 1
    assert (await sink.positions(STREAM))["shard-1"] == after(number(1))


async def test_a_dead_letter_that_does_not_fit_stops_the_shard(rig: Rig) -> None:
    sink = await rig.worker(tables=[PRODUCTS])
    fence = await fenced(sink)
    with pytest.raises(FatalError) as refused:
        await write(sink, pending(fence, [b"broken" * 400_000]))
    assert refused.value.code == "dead_letter_refused"
    assert "max.message.bytes" in refused.value.message
    await configured(rig, f"{rig.prefix}.dead", {"max.message.bytes": "4000000"})
    await sink.open([PRODUCTS])
    fence = await fenced(sink)
    await write(sink, pending(fence, [b"broken" * 400_000]))
    assert [len(letter.value or b"") for letter in await rig.letters()] == [2_400_000]


async def test_a_limit_that_was_lowered_is_asked_for_again(rig: Rig) -> None:
    sink = await rig.worker(compression="none", tables=[PRODUCTS])
    fence = await fenced(sink)
    large = put("products", {"id": {"S": "a"}}, BASE_US, n={"S": "x" * 3_000})
    await configured(rig, f"{rig.prefix}.products", {"max.message.bytes": "2000"})
    with pytest.raises(TransientError) as refused:
        await write(sink, pending(fence, [large]))
    assert refused.value.code == "kafka_limit_changed"
    fence = await fenced(sink)
    result = await write(sink, pending(fence, [large]))
    assert dict(result.rejected_by_code) == {"record_too_large": 1}


async def test_only_what_matches_and_may_be_seen_is_written(rig: Rig) -> None:
    sink = await rig.worker(
        filter=[{"dynamodb": {"NewImage": {"kind": {"S": ["fruit"]}}}}],
        attributes={"exclude": ["secret"]},
    )
    fence = await fenced(sink)
    await write(
        sink,
        pending(
            fence,
            [
                put(
                    "products", {"id": {"S": "a"}}, BASE_US, kind={"S": "fruit"}, secret={"S": "s"}
                ),
                put("products", {"id": {"S": "b"}}, BASE_US, kind={"S": "soap"}),
            ],
        ),
    )
    (record,) = await rig.records()
    assert json.loads(record.value or b"")["item"] == {"id": "a", "kind": "fruit"}


async def test_a_strangers_record_among_the_positions_is_named(rig: Rig) -> None:
    """Regression: it ended the pipeline as if it were our own mistake."""
    sink = await rig.worker()
    producer = AIOKafkaProducer(bootstrap_servers=rig.server.address)
    await producer.start()
    try:
        await producer.send_and_wait(f"{rig.prefix}.positions", b"hello", b"key")
    finally:
        await producer.stop()
    with pytest.raises(FatalError) as unreadable:
        await sink.positions(STREAM)
    assert unreadable.value.code == "kafka_positions_unreadable"
    assert "offset 0" in unreadable.value.message


# ---- at least once


async def test_at_least_once_stores_the_position_behind_its_records(rig: Rig) -> None:
    sink = await rig.worker(delivery="at_least_once")
    fence = await fenced(sink)
    result = await write(sink, pending(fence, [product(1), b"broken", product(2)]))
    assert (result.rows, len(result.dead_letters)) == (2, 1)
    assert await rig.seen() == [1_000_000, 2_000_000]
    assert len(await rig.letters()) == 1
    assert await sink.positions(STREAM) == {"shard-1": after(number(3))}
    other = await rig.worker(delivery="at_least_once")
    await fenced(other, owner="other")
    with pytest.raises(LeaseLost):
        await sink.position(fence)


# ---- a broker that is away


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_write_into_a_stalled_broker_fails_and_is_done_again_under_a_new_fence(
    rig: Rig, delivery: str
) -> None:
    sink = await rig.worker(delivery=delivery, transaction_timeout_seconds=3)
    fence = await fenced(sink)
    await write(sink, pending(fence, [product(1)]))
    last = 1

    async def write_on() -> None:
        nonlocal last
        while last < 100:  # it may take a moment to stand still
            last += 1
            await write(sink, pending(fence, [product(last)], first=last))

    with rig.server.stalled(), pytest.raises(TransientError) as stalled:
        await write_on()
    assert stalled.value.code == "kafka_timeout"
    # That it answers again can be seen under the old fence, which nothing is written under.
    assert await sink.position(fence) == TRIM_HORIZON
    assert (await write(sink, pending(fence, [product(last)], first=last))).lost == {"shard-1"}
    fence = await fenced(sink)
    await write(sink, pending(fence, [product(n) for n in range(1, last + 2)]))
    found = await rig.seen()
    assert sorted(set(found)) == [n * 1_000_000 for n in range(1, last + 2)]
    if delivery == "exactly_once":
        assert len(found) == last + 1


@pytest.mark.parametrize("host", ["kafka..corp", "k" * 64])
async def test_a_host_that_is_no_name_is_the_operators(rig: Rig, host: str) -> None:
    with pytest.raises(FatalError, match="correct the hosts of bootstrap_servers") as wrong:
        await rig.worker(bootstrap_servers=f"{host}:9092")
    assert wrong.value.code == "kafka_settings"


async def test_no_broker_is_transient_and_says_where(rig: Rig) -> None:
    with pytest.raises(TransientError) as gone:
        await rig.worker(bootstrap_servers="127.0.0.1:1")
    assert gone.value.code == "kafka_unavailable"
    assert "127.0.0.1" in gone.value.message
