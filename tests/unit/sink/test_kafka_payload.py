"""What of a batch goes to the topics, and what to the dead letters."""

from __future__ import annotations

from typing import Any

import pytest

from replicator._core import ChangeBatch, Records, decode
from replicator.errors import FatalError
from replicator.sink.kafka_payload import Encoded, Values, encode
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.kafka_topics import Topic
from tests.changes import number, put
from tests.kafka_records import records

US = 1_700_000_000_000_000


def decoded(*payloads: bytes) -> ChangeBatch:
    return decode(Records.pack(payloads, [number(n) for n in range(len(payloads))]))


def change(key: str, n: int, size: int = 1, table: str = "products") -> bytes:
    return put(table, {"id": {"S": key}}, US + n, text={"S": "x" * size})


def encoded(changes: ChangeBatch, aside: Any = (), *, bytes_max: int = 2_000) -> Encoded:
    config = KafkaConfig(name="bus", compression="none", quarantine_max=2)
    topics = {"products": Topic("products", 2, bytes_max, "delete")}
    return encode(changes, Values(config, {}), topics, {"products": 2}, aside)


def test_no_batch_is_larger_than_its_topic_takes() -> None:
    made = encoded(decoded(*(change(f"k{n}", n, 100) for n in range(200))))
    assert made.rows == 200
    assert made.rejections == ()
    assert max(batch.nbytes for _, batch in made.batches) <= 2_000
    assert {topic for topic, _ in made.batches} == {"products"}


def test_other_tables_are_left_out() -> None:
    made = encoded(decoded(change("a", 1), change("a", 1, table="elsewhere")))
    assert (made.rows, len(made.batches), made.rejections) == (1, 1, ())


def test_a_key_is_set_aside_from_its_large_record_on() -> None:
    large = change("a", 2, 3_000)
    made = encoded(decoded(change("a", 1), change("b", 1), large, change("a", 3), change("b", 3)))
    assert made.rows == 3
    assert [one.code for one in made.rejections] == ["record_too_large", "key_quarantined"]
    assert made.rejections[0].raw == large
    assert made.aside == (("products", '{"id":{"S":"a"}}'),)
    keys = [record.key for record in records(batch for _, batch in made.batches)]
    assert sorted(keys) == [b'{"id":"a"}', b'{"id":"b"}', b'{"id":"b"}']
    assert [one.late for one in made.rejections] == [False, False]
    again = encoded(decoded(change("a", 4), change("b", 4)), made.aside)
    assert (again.rows, [one.code for one in again.rejections]) == (1, ["key_quarantined"])
    assert again.aside == made.aside


def test_what_is_set_aside_says_whether_it_was_late() -> None:
    both = ChangeBatch.concat(
        [decoded(change("a", 1, 3_000)).marked_late(), decoded(change("a", 2))]
    )
    assert both.late == 1
    assert [one.late for one in encoded(both).rejections] == [True, False]


def test_what_compresses_well_enough_is_not_too_large() -> None:
    changes = decoded(change("a", 1, 3_000))
    kept, keys = changes.set_aside("products", compression="zstd", record_bytes_max=2_000)
    assert (len(kept), keys, kept.rejections) == (1, [], [])
    kept, keys = changes.set_aside("products", compression="none", record_bytes_max=2_000)
    assert (len(kept), keys) == (0, [b'{"id":{"S":"a"}}'])


def test_too_many_keys_stop_the_shard() -> None:
    with pytest.raises(FatalError) as full:
        encoded(decoded(*(change(f"k{n}", n, 3_000) for n in range(3))))
    assert full.value.code == "quarantine_full"
