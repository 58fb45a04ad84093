"""Kafka's record batches as aiokafka reads them: the oracle of what the core writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.record.memory_records import MemoryRecords

from replicator._core import KafkaBatch
from replicator.testing.kafka_server import KafkaServer
from tests.stack import PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Record:
    """One record, and the partition that its batch is for."""

    partition: int
    timestamp: int
    key: bytes
    value: bytes | None
    headers: dict[str, bytes]


def records(batches: Iterable[KafkaBatch]) -> list[Record]:
    """All records in order, after every batch's checksum and counts were checked."""
    return [record for batch in batches for record in read(batch.bytes(), batch)]


def read(data: bytes, batch: KafkaBatch) -> list[Record]:
    """The records of one batch, whoever signed its bytes."""
    memory = MemoryRecords(data)
    parsed = memory.next_batch()
    assert parsed is not None
    assert memory.next_batch() is None
    assert parsed.validate_crc()
    found = list(parsed)
    assert [record.offset for record in found] == list(range(batch.count))
    assert found[0].timestamp == batch.base_timestamp
    assert max(record.timestamp for record in found) == batch.max_timestamp == parsed.max_timestamp
    return [
        Record(batch.partition, record.timestamp, record.key, record.value, dict(record.headers))
        for record in found
    ]


async def committed(server: KafkaServer, topic: str, *, is_patient: bool = True) -> list[Record]:
    """All that a careful consumer sees, by partition, in order. A commit is answered before it
    shows: a patient one waits until everything that is there now is decided."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=server.address,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    # Its ends are those of the log; a careful consumer's are of what is decided.
    careless = AIOKafkaConsumer(bootstrap_servers=server.address, enable_auto_commit=False)
    await consumer.start()
    await careless.start()
    try:
        partitions = [
            TopicPartition(topic, number) for number in range(await _count(server, topic))
        ]
        consumer.assign(partitions)
        ends = await (careless if is_patient else consumer).end_offsets(partitions)
        found: list[Record] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
                for messages in (await consumer.getmany(timeout_ms=100)).values():
                    found += [
                        Record(m.partition, m.timestamp, m.key, m.value, dict(m.headers))
                        for m in messages
                    ]
    finally:
        await consumer.stop()
        await careless.stop()
    return sorted(found, key=lambda record: record.partition)


async def _count(server: KafkaServer, topic: str) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()
    try:
        (found,) = await admin.describe_topics([topic])
        return len(found["partitions"])
    finally:
        await admin.close()
