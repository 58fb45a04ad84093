"""The Kafka sink over the wire: what committed readers see, whoever fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiokafka.errors import ProducerFenced

from replicator.errors import FatalError
from replicator.model import (
    SHARD_END,
    Position,
    WriteResult,
    after,
)
from replicator.testing.kafka_server import KafkaServer
from tests.changes import STREAM, number, pending, put, remove
from tests.kafka_rig import (
    BASE_US,
    ORDERS,
    PRODUCTS,
    Rig,
    fenced,
    kafka_rig,
    product,
    write,
)


@pytest.fixture
async def rig(kafka_server: KafkaServer) -> AsyncIterator[Rig]:
    async with kafka_rig(kafka_server) as made:
        yield made


# ---- writing


async def test_changes_dead_letters_and_position_are_one_transaction(rig: Rig) -> None:
    sink = await rig.worker()
    fence = await fenced(sink)
    result = await write(
        sink,
        pending(
            fence,
            [
                product(1),
                put("orders", {"customer": {"S": "a"}, "number": {"N": "7"}}, BASE_US + 2_000_000),
                b"broken",
                remove("products", {"id": {"S": "p1"}}, BASE_US + 3_000_000),
                put("elsewhere", {"id": {"S": "x"}}, BASE_US + 4_000_000),
            ],
            then=SHARD_END,
        ),
    )
    assert (result.rows, len(result.dead_letters), result.lost) == (3, 1, frozenset())
    first, deleted, tombstone = await rig.records()
    assert json.loads(first.value or b"")["item"] == {"id": "p1", "n": 1}
    assert json.loads(deleted.value or b"")["event"] == "REMOVE"
    assert (tombstone.value, tombstone.key) == (None, b'{"id":"p1"}')
    assert first.headers["table"] == b"products"
    assert [record.key for record in await rig.records("orders")] == [
        b'{"customer":"a","number":7}'
    ]
    (letter,) = await rig.letters()
    assert letter.value == b"broken"
    assert letter.headers["code"] == b"malformed_json"
    assert letter.headers["position"] == number(3).encode()
    assert await sink.positions(STREAM) == {"shard-1": SHARD_END}
    assert (await sink.report()).dead_letters == {"malformed_json": 1}


async def test_an_idle_position_is_stored_at_first_and_then_seldom(rig: Rig) -> None:
    now = 0.0
    sink = await rig.worker()
    sink._monotonic = lambda: now
    fence = await fenced(sink)

    async def idle(n: int) -> Position:
        result = await write(sink, pending(fence, [], then=after(number(n))))
        assert result.is_asked is (n != 20), "what wasn't written tells nothing of the brokers"
        return (await sink.positions(STREAM))["shard-1"]

    assert await idle(10) == after(number(10))
    now = 599.0
    assert await idle(20) == after(number(10))
    now = 601.0
    assert await idle(30) == after(number(30))
    await write(sink, pending(fence, [], then=SHARD_END))
    assert await sink.positions(STREAM) == {"shard-1": SHARD_END}


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_zombie_writes_nothing_though_it_has_not_noticed(rig: Rig, delivery: str) -> None:
    zombie, owner = [await rig.worker(delivery=delivery) for _ in range(2)]
    stale = await fenced(zombie)
    await write(zombie, pending(stale, [product(1)]))
    fence = await fenced(owner, owner="other")
    lost = await write(zombie, pending(stale, [product(2), b"broken"], first=2))
    assert lost == WriteResult(lost=frozenset({"shard-1"}))
    result = await write(owner, pending(fence, [product(1), product(2)]))
    assert result.rows == 1
    assert await rig.seen() == [1_000_000, 2_000_000]
    assert await rig.letters() == []


async def test_who_was_fenced_between_two_records_is_told_so(rig: Rig) -> None:
    """Regression: once its sending had ended the driver said only that no transaction was open,
    and that error left the sink."""
    zombie, owner = await rig.worker(), await rig.worker()
    await fenced(zombie)
    producer = zombie._shards[STREAM, "shard-1"].producer
    await fenced(owner, owner="other")
    topic = f"{rig.prefix}.products"

    async def send_two() -> None:
        async with zombie._producers.use(producer) as driver:
            await driver.begin_transaction()
            await asyncio.wait({await driver.send(topic, b"1", b"key", partition=0)})
            await driver.send(topic, b"2", b"key", partition=0)

    with pytest.raises(ProducerFenced):
        await send_two()
    assert producer.is_broken


async def test_a_transaction_that_a_zombie_left_open_is_over_before_the_position_is_read(
    rig: Rig,
) -> None:
    zombie, owner = await rig.worker(), await rig.worker()
    await fenced(zombie)
    shard = zombie._shards[STREAM, "shard-1"]
    driver = await shard.producer.opened()
    await driver.begin_transaction()
    topic = f"{rig.prefix}.products"
    await (await driver.send(topic, b"never", b"key", partition=0))
    await (await driver.send(f"{rig.prefix}.positions", b"{}", b"{}", partition=0))
    fence = await owner.fence(STREAM, "shard-1", "other")
    assert await owner.position(fence) is None
    assert (await write(owner, pending(fence, [product(1)]))).rows == 1
    assert await rig.seen() == [1_000_000]
    with pytest.raises(ProducerFenced):
        await driver.commit_transaction()
    assert await rig.seen() == [1_000_000]


async def test_a_position_behind_anothers_open_transaction_is_waited_for(rig: Rig) -> None:
    """What is committed behind it is hidden from careful readers until it is decided."""
    owner, dead, other = [await rig.worker() for _ in range(3)]
    fence = await fenced(owner)
    await fenced(dead, "shard-2")
    driver = await dead._shards[STREAM, "shard-2"].producer.opened()
    await driver.begin_transaction()
    await (await driver.send(f"{rig.prefix}.positions", b"{}", b"{}", partition=0))
    await write(owner, pending(fence, [product(1)], then=after(number(7))))
    taken = await other.fence(STREAM, "shard-1", "other")
    looking = asyncio.ensure_future(other.position(taken))
    await asyncio.wait({looking}, timeout=1)
    assert not looking.done()
    await driver.abort_transaction()
    await looking
    assert (await other.positions(STREAM))["shard-1"] == after(number(7))
    assert (await write(other, pending(taken, [product(1)], then=after(number(7))))).rows == 0
    assert await rig.seen() == [1_000_000]


async def test_a_closed_producer_goes_on_under_its_fence_and_no_other(rig: Rig) -> None:
    """Few may be open: the shards close each other's, and a zombie's stays closed for good."""
    sink, other = await rig.worker(producers_max=1), await rig.worker()
    fences = [await fenced(sink, f"shard-{n}") for n in range(3)]
    for n in range(3):
        for place, fence in enumerate(fences):
            at = 1 + 3 * n + place
            assert (await write(sink, pending(fence, [product(at)], first=at))).rows == 1
    assert sum(shard.producer.is_open for shard in sink._shards.values()) <= 1
    await fenced(other, "shard-0", "other")
    assert (await write(sink, pending(fences[0], [product(20)], first=20))).lost == {"shard-0"}
    assert (await write(sink, pending(fences[1], [product(21)], first=21))).rows == 1
    assert await rig.seen() == [n * 1_000_000 for n in (*range(1, 10), 21)]


# ---- topics


async def test_topics_are_made_or_refused_with_what_to_do(rig: Rig) -> None:
    with pytest.raises(FatalError) as missing:
        await rig.worker(create=False)
    assert missing.value.code == "kafka_topic_missing"
    assert f"--create --topic {rig.prefix}.products --partitions 2" in missing.value.message
    sink = await rig.worker(tables=[PRODUCTS])
    await rig.worker(tables=[PRODUCTS], create=False)
    planned = await sink.plan([PRODUCTS, ORDERS])
    *found, risk = planned.findings
    assert (risk.code, risk.is_warning) == ("kafka_topic_unsafe", True)
    assert risk.message.startswith("one replica: ")
    assert [finding.message for finding in found] == [
        f"topic {rig.prefix}.positions: 1 partition, cleanup.policy=compact",
        f"topic {rig.prefix}.dead: 1 partition, cleanup.policy=delete",
        f"topic {rig.prefix}.products: 2 partitions, cleanup.policy=delete",
        f"topic {rig.prefix}.orders is missing",
    ]
    for wrong, said in (
        ({"partitions": 3}, "has 2 partitions and the sink has partitions: 3"),
        ({"cleanup": "compact"}, "the sink has cleanup: compact"),
        ({"positions_topic": f"{rig.prefix}.products"}, "it needs compact"),
        ({"dead_letters_topic": f"{rig.prefix}.products"}, "max.message.bytes"),
    ):
        with pytest.raises(FatalError) as refused:
            await rig.worker(tables=[PRODUCTS], **wrong)
        assert refused.value.code == "kafka_topic_shape"
        assert said in refused.value.message


async def test_a_late_change_is_left_out_of_a_compacted_topic_and_marked_elsewhere(
    rig: Rig,
) -> None:
    for cleanup in ("delete", "compact"):
        sink = await rig.worker(
            cleanup, topic=f"{rig.prefix}.{cleanup}.{{table}}", cleanup=cleanup, tables=[PRODUCTS]
        )
        fence = await fenced(sink)
        newer = put("products", {"id": {"S": "p"}}, BASE_US + 5_000_000, v={"N": "2"})
        older = put("products", {"id": {"S": "p"}}, BASE_US, v={"N": "1"})
        await write(sink, pending(fence, [newer]))
        result = await write(sink, pending(fence, [older], first=2))
        found = await rig.records(f"{cleanup}.products")
        marks = [json.loads(record.value or b"{}").get("late") for record in found]
        expected = ([None, True], 0) if cleanup == "delete" else ([None], 1)
        assert (marks, result.superseded) == expected
