"""Kafka's record batches as aiokafka reads them: the oracle of what the core writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aiokafka.record.memory_records import MemoryRecords

from replicator._core import KafkaBatch


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
