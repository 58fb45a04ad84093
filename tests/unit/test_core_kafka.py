"""Record batches at their edges: sizes, tables, tombstones, signatures, arguments."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from aiokafka.partitioner import murmur2
from aiokafka.record.default_records import DefaultRecordBatch

from replicator._core import ChangeBatch, Records, decode
from tests.changes import number, put, remove
from tests.kafka_records import read, records

KEY = {"id": {"S": "21"}}
FIRST_US = 1_706_542_773_915_835


def decoded(*payloads: bytes) -> ChangeBatch:
    numbers = [number(n) for n in range(len(payloads))]
    return decode(Records.pack(payloads, numbers))


def puts(count: int, nbytes: int = 10) -> ChangeBatch:
    made = [
        put("orders", {"id": {"N": str(n)}}, FIRST_US + 1000 * n, text={"S": "x" * nbytes})
        for n in range(count)
    ]
    return decoded(*made)


def test_nothing_makes_no_batch() -> None:
    assert decoded().kafka(3) == []
    assert puts(2).kafka(3, table="absent") == []


def test_a_batch_knows_itself() -> None:
    (batch,) = puts(5).kafka(1)
    assert (batch.partition, batch.count) == (0, 5)
    assert batch.base_timestamp == FIRST_US // 1000
    assert batch.max_timestamp == FIRST_US // 1000 + 4
    assert batch.nbytes == len(batch.bytes())
    assert repr(batch) == "<KafkaBatch of 5 records for partition 0>"


@pytest.mark.parametrize("partitions", [1, 2, 7, 1000])
def test_the_partition_is_that_of_the_key_as_it_is_sent(partitions: int) -> None:
    (batch,) = decoded(put("orders", KEY, FIRST_US)).kafka(partitions)
    (record,) = records([batch])
    assert record.key == b'{"id":"21"}'
    assert batch.partition == (murmur2(record.key) & 0x7FFFFFFF) % partitions


@pytest.mark.parametrize("bytes_max", [0, 400, 1000, 5000])
def test_no_batch_outgrows_its_limit_unless_one_record_does(bytes_max: int) -> None:
    made = puts(40, 20).kafka(2, batch_bytes_max=bytes_max)
    assert len(made) > 2
    for batch in made:
        assert batch.nbytes <= bytes_max or batch.count == 1
    times = [(record.partition, record.timestamp) for record in records(made)]
    assert times == sorted(times)
    assert sorted(time for _, time in times) == [FIRST_US // 1000 + n for n in range(40)]


def test_a_record_beyond_the_limit_has_a_batch_of_its_own() -> None:
    made = decoded(
        put("orders", KEY, FIRST_US),
        put("orders", KEY, FIRST_US + 1, text={"S": "x" * 5000}),
        put("orders", KEY, FIRST_US + 2),
    ).kafka(1, batch_bytes_max=1000)
    assert [batch.count for batch in made] == [1, 1, 1]
    assert made[1].nbytes > 5000
    assert [record.headers["version"] for record in records(made)] == [
        str(FIRST_US + n).encode() for n in range(3)
    ]


def test_a_delete_is_told_and_then_forgotten() -> None:
    changes = decoded(put("orders", KEY, FIRST_US), remove("orders", KEY, FIRST_US + 1))
    written, told, tombstone = records(changes.kafka(1))
    assert (written.headers["event"], told.headers["event"]) == (b"INSERT", b"REMOVE")
    assert told.value is not None
    assert tombstone.value is None
    assert (tombstone.key, tombstone.headers) == (told.key, told.headers)
    assert len(records(changes.kafka(1, tombstones=False))) == 2


def test_one_tables_changes_for_one_topic() -> None:
    changes = decoded(put("orders", KEY, FIRST_US), put("products", KEY, FIRST_US + 1))
    for table in ("orders", "products"):
        (record,) = records(changes.kafka(1, table=table))
        assert record.headers["table"] == table.encode()
    assert len(records(changes.kafka(1))) == 2


def test_headers_can_be_left_out_and_unknown_ones_are() -> None:
    assert records(puts(1).kafka(1, headers=False))[0].headers == {}
    nameless = decode(Records.pack([put("", KEY, FIRST_US)]))
    (record,) = records(nameless.kafka(1))
    assert sorted(record.headers) == ["event", "event_id", "version"]


def test_a_signature_changes_nothing_but_itself_and_the_checksum() -> None:
    (batch,) = puts(5).kafka(1, compression="zstd")
    plain = batch.bytes()
    signed = batch.bytes(2**40 + 7, 3, 2**31 - 1, transactional=True)
    assert struct.unpack_from(">qhi", plain, 43) == (-1, -1, -1)
    parsed = DefaultRecordBatch(signed)
    assert parsed.validate_crc()
    assert parsed.producer_id == 2**40 + 7
    assert parsed.producer_epoch == 3
    assert parsed.base_sequence == 2**31 - 1
    assert parsed.is_transactional
    assert not DefaultRecordBatch(plain).is_transactional
    assert read(signed, batch) == read(plain, batch)
    changed = {place for place in range(len(plain)) if plain[place] != signed[place]}
    assert changed <= {*range(17, 23), *range(43, 57)}


@pytest.mark.parametrize(
    ("codec", "attributes"), [("none", 0), ("gzip", 1), ("lz4", 3), ("zstd", 4)]
)
def test_codecs_by_their_numbers(codec: Any, attributes: int) -> None:
    changes = puts(50)
    (batch,) = changes.kafka(1, compression=codec)
    assert struct.unpack_from(">h", batch.bytes(), 21) == (attributes,)
    assert records([batch]) == records(changes.kafka(1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"partitions": 0}, "partitions"),
        ({"partitions": 2**31}, "partitions must be 1 to 100000"),
        ({"partitions": 1, "batch_bytes_max": 2**31}, "batch_bytes_max must be at most"),
        ({"partitions": 1, "form": "avro"}, "form"),
        ({"partitions": 1, "compression": "snappy"}, "compression"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        puts(1).kafka(**arguments)
    with pytest.raises(ValueError, match="form"):
        puts(1).json_lines("avro")  # type: ignore[arg-type]
