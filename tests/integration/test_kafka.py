"""The core's record batches through a real broker: produced by aiokafka, checked by Kafka itself,
read back by a consumer that sees committed records only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import ConcurrentTransactions, ProducerFenced
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest

from replicator._core import ChangeBatch, KafkaBatch, Records, decode
from replicator.sink.kafka_batch import FinishedBatch
from replicator.sink.kafka_sender import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    REQUESTS_MAX,
    hastened,
)
from replicator.testing.kafka_server import KafkaServer
from tests.changes import number, put, remove
from tests.kafka_records import committed, records

PARTITIONS = 3
KEYS = 20
FIRST_US = 1_706_542_773_915_835
FORMS: Sequence[Literal["plain", "dynamodb", "debezium", "change"]] = (
    "plain",
    "dynamodb",
    "debezium",
    "change",
)
CODECS: Sequence[Literal["none", "gzip", "lz4", "zstd"]] = ("none", "gzip", "lz4", "zstd")
# `acks` is what aiokafka asks for beside them.
PRODUCERS: dict[str, dict[str, Any]] = {
    "plain": {"acks": "all"},
    "idempotent": {"enable_idempotence": True},
    "transactional": {"transactional_id": "writer"},
}


def history(count: int = 300) -> ChangeBatch:
    """Every key is written, changed, deleted and written again; versions rise with each change."""
    payloads = []
    for n in range(count):
        key = {"id": {"S": f"key é {n % KEYS}"}, "n": {"N": f"{n % KEYS}.50"}}
        step, us = n // KEYS % 4, FIRST_US + 1000 * n
        text = {"text": {"S": f"{n} 東京 " * 20}}
        if step == 3:
            payloads.append(remove("orders", key, us))
        else:
            payloads.append(put("orders", key, us, None if step == 0 else key, **text))
    batch = decode(Records.pack(payloads, [number(n) for n in range(count)]))
    assert (len(batch), batch.rejections) == (count, [])
    return batch


async def topics(server: KafkaServer, *names: str, partitions: int = PARTITIONS) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
    finally:
        await admin.close()


@pytest.fixture
async def topic(kafka_server: KafkaServer) -> str:
    """An empty topic of this test's own."""
    name = f"test-{secrets.token_hex(6)}"
    await topics(kafka_server, name)
    return name


@asynccontextmanager
async def producer(server: KafkaServer, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    made = AIOKafkaProducer(bootstrap_servers=server.address, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def send(
    made: AIOKafkaProducer,
    topic: str,
    batches: Sequence[KafkaBatch],
    *,
    transactional: bool = False,
) -> None:
    """Sends all and waits until all are durable."""
    sent = [
        await made.send_batch(
            FinishedBatch(batch, transactional=transactional), topic, partition=batch.partition
        )
        for batch in batches
    ]
    await asyncio.gather(*sent)


@pytest.mark.parametrize("kind", PRODUCERS)
async def test_every_change_arrives_once_in_order(kafka_server: KafkaServer, kind: str) -> None:
    """Every codec and form, several batches a partition, by all three kinds of producer."""
    changes = history()
    name = {(form, codec): f"{kind}-{form}-{codec}" for form in FORMS for codec in CODECS}
    await topics(kafka_server, *name.values())
    async with producer(kafka_server, **PRODUCERS[kind]) as made:
        for (form, codec), topic in name.items():
            batches = changes.kafka(
                PARTITIONS, form=form, compression=codec, batch_bytes_max=20_000
            )
            assert len(batches) > PARTITIONS
            if kind == "transactional":
                async with made.transaction():
                    await send(made, topic, batches, transactional=True)
            else:
                await send(made, topic, batches)

    choose = DefaultPartitioner()
    for (form, _), topic in name.items():
        found = await committed(kafka_server, topic)
        assert found == records(changes.kafka(PARTITIONS, form=form))
        for record in found:
            assert choose(record.key, list(range(PARTITIONS)), []) == record.partition
        # 3 of 15 changes of a key delete it, and each is followed by its tombstone.
        assert len(found) == 300 + 3 * KEYS
        assert len({record.key for record in found}) == KEYS
        versions = [int(r.headers["version"]) for r in found if r.value is not None]
        assert sorted(versions) == [FIRST_US + 1000 * n for n in range(300)]
        for key in {record.key for record in found}:
            times = [record.timestamp for record in found if record.key == key]
            assert times == sorted(times)


async def test_what_is_aborted_is_not_seen(kafka_server: KafkaServer, topic: str) -> None:
    batches = history(40).kafka(PARTITIONS, compression="zstd")
    async with producer(kafka_server, transactional_id=topic) as made:
        await made.begin_transaction()
        await send(made, topic, batches, transactional=True)
        await made.abort_transaction()
        assert await committed(kafka_server, topic) == []
        async with made.transaction():
            await send(made, topic, batches, transactional=True)
    assert await committed(kafka_server, topic) == records(batches)


async def test_the_next_owner_fences_the_one_before(kafka_server: KafkaServer, topic: str) -> None:
    batches = history(40).kafka(PARTITIONS, compression="lz4")
    async with producer(kafka_server, transactional_id=topic) as stale:
        await stale.begin_transaction()
        await send(stale, topic, batches, transactional=True)
        async with producer(kafka_server, transactional_id=topic) as owner:
            with pytest.raises(ProducerFenced):
                await send(stale, topic, batches, transactional=True)
            async with owner.transaction():
                await send(owner, topic, batches[:1], transactional=True)
    assert await committed(kafka_server, topic) == records(batches[:1])


class Counted(FinishedBatch):
    """A batch that knows how often it was put into a request."""

    tries = 0

    def _build(self) -> bytes:
        self.tries += 1
        return super()._build()


async def test_a_retry_after_a_stall_doubles_nothing(kafka_server: KafkaServer, topic: str) -> None:
    """The first request is read late, the retry as well: their sequence numbers are the same."""
    batches = history(40).kafka(PARTITIONS, compression="zstd")
    async with producer(
        kafka_server, enable_idempotence=True, request_timeout_ms=1500, retry_backoff_ms=50
    ) as made:
        await send(made, topic, batches[:1])
        rest = [Counted(batch) for batch in batches[1:]]
        with kafka_server.stalled():
            sending = [
                await made.send_batch(batch, topic, partition=batch.partition) for batch in rest
            ]
            async with asyncio.timeout(60):
                while any(batch.tries < 2 for batch in rest):
                    await asyncio.sleep(0.05)
            assert not any(each.done() for each in sending)
        await asyncio.gather(*sending)
    assert await committed(kafka_server, topic) == records(batches)


class Built(FinishedBatch):
    """Says that it was put into a request."""

    is_asked = False

    def _build(self) -> bytes:
        self.is_asked = True
        return super()._build()


async def test_requests_dont_wait_for_each_other(kafka_server: KafkaServer) -> None:
    """As many as a broker keeps in mind, one a partition; the next waits for an answer."""
    topic, partitions = f"test-{secrets.token_hex(6)}", 2 * REQUESTS_MAX
    await topics(kafka_server, topic, partitions=partitions)
    batches = history().kafka(partitions)
    assert {batch.partition for batch in batches} == set(range(partitions))
    made = hastened(
        AIOKafkaProducer(bootstrap_servers=kafka_server.address, enable_idempotence=True)
    )
    await made.start()
    try:
        await made.partitions_for(topic)
        with kafka_server.stalled():
            built, sending = [Built(batch) for batch in batches], []
            for n, batch in enumerate(built):
                sending.append(await made.send_batch(batch, topic, partition=batch.partition))
                async with asyncio.timeout(60):
                    while not batch.is_asked and n < REQUESTS_MAX:
                        await asyncio.sleep(0)
            assert [batch.is_asked for batch in built] == [
                n < REQUESTS_MAX for n in range(partitions)
            ]
        await asyncio.gather(*sending)
    finally:
        await made.stop()
    assert await committed(kafka_server, topic) == records(batches)


async def test_a_transaction_behind_another_is_tried_again_soon(
    kafka_server: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator refuses it until the markers of the one before it are written."""
    batches = history(40).kafka(PARTITIONS)
    made = hastened(
        AIOKafkaProducer(bootstrap_servers=kafka_server.address, transactional_id=topic)
    )
    await made.start()
    ask, sleep = made.client.send, asyncio.sleep
    refusals = [0, 0]
    waits: list[float] = []

    async def refused(node_id: int, request: Any, **group: Any) -> Any:
        answer = await ask(node_id, request, **group)
        if isinstance(request, AddPartitionsToTxnRequest) and refusals[0]:
            refusals[0] -= 1
            answer.errors = [
                (name, [(number, ConcurrentTransactions.errno) for number, _ in numbers])
                for name, numbers in answer.errors
            ]
        return answer

    async def slept(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(made.client, "send", refused)
    monkeypatch.setattr("aiokafka.producer.sender.asyncio.sleep", slept)
    try:
        for refusals[0] in (7, 2):
            async with made.transaction():
                await send(made, topic, batches, transactional=True)
            # (The broker itself may refuse it as well.)
            assert waits[:2] == [FIRST_WAIT_SECONDS, 2 * FIRST_WAIT_SECONDS]
            assert waits == sorted(waits)
            assert max(waits) <= LONGEST_WAIT_SECONDS
            waits.clear()
    finally:
        await made.stop()
    twice = records([*batches, *batches])
    assert await committed(kafka_server, topic) == sorted(twice, key=lambda one: one.partition)
