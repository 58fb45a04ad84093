from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from replicator.demo.bridge import (
    DELAY_SECONDS,
    PATIENCE_SECONDS,
    PUT_BYTES_MAX,
    PUT_RECORDS_MAX,
    Disturber,
    Entry,
    Instants,
    batches,
    shape,
)

STREAMS_RECORD = {
    "eventID": "5938778f-5dd2-4be0-9693-5c190fec8917",
    "eventName": "MODIFY",
    "eventVersion": "1.1",
    "eventSource": "aws:dynamodb",
    "awsRegion": "eu-north-1",
    "dynamodb": {
        "ApproximateCreationDateTime": 1_706_542_773,
        "Keys": {"id": {"S": "6d3296ab"}},
        "NewImage": {"id": {"S": "6d3296ab"}, "Stock": {"N": "120"}, "Code": {"B": b"\x00\xff"}},
        "OldImage": {"id": {"S": "6d3296ab"}, "Stock": {"N": "100"}, "Code": {"B": b"\x00\xff"}},
        "SequenceNumber": "1",
        "SizeBytes": 0,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    },
}


def test_instants_rise_always() -> None:
    instants = Instants()
    assert [instants.next(us) for us in (5, 5, 4, 10, 10)] == [5, 6, 7, 10, 11]


def test_the_shape_is_that_of_the_real_service() -> None:
    entry = shape(STREAMS_RECORD, 1_706_542_773_915_835)
    made = json.loads(entry.data)
    assert set(made) == {
        "awsRegion",
        "eventID",
        "eventName",
        "userIdentity",
        "recordFormat",
        "tableName",
        "dynamodb",
        "eventSource",
    }
    assert made["userIdentity"] is None
    assert made["tableName"] == "products"
    change = made["dynamodb"]
    assert change["ApproximateCreationDateTime"] == 1_706_542_773_915_835
    assert change["ApproximateCreationDateTimePrecision"] == "MICROSECOND"
    assert change["NewImage"]["Code"] == {"B": "AP8="}
    assert change["OldImage"]["Stock"] == {"N": "100"}
    assert "SequenceNumber" not in change
    assert "StreamViewType" not in change


def test_one_item_has_one_partition_key_whatever_the_change() -> None:
    removal = {
        **STREAMS_RECORD,
        "eventName": "REMOVE",
        "dynamodb": {
            "Keys": {"id": {"S": "6d3296ab"}},
            "OldImage": {"id": {"S": "6d3296ab"}},
        },
    }
    entry = shape(removal, 7)
    assert entry.partition_key == shape(STREAMS_RECORD, 6).partition_key
    assert len(entry.partition_key) == 32
    assert "NewImage" not in json.loads(entry.data)["dynamodb"]


@pytest.mark.parametrize("seed", range(5))
def test_every_record_arrives_and_what_is_counted_is_what_happened(seed: int) -> None:
    chance = random.Random(seed)
    disturber = Disturber(random.Random(seed), duplicate_share=0.1, late_share=0.1)
    disturber.is_calm = False
    fed = [Entry(str(chance.randrange(50)), str(n).encode()) for n in range(5_000)]
    out: list[Entry] = []
    for n, entry in enumerate(fed):
        now = n / 1_000
        out += disturber.feed(entry, now)
        out += disturber.due(now)
    disturber.is_calm = True
    out += disturber.due(5.0)
    assert disturber.waiting == 0

    counts = Counter(out)
    assert set(counts) == set(fed)
    assert sum(count - 1 for count in counts.values()) == disturber.duplicates
    assert 0.05 < disturber.duplicates / len(fed) < 0.15

    late, newest = 0, dict[str, int]()
    for entry in dict.fromkeys(out):
        number = int(entry.data)
        late += number < newest.get(entry.partition_key, -1)
        newest[entry.partition_key] = max(number, newest.get(entry.partition_key, -1))
    assert late == disturber.late
    assert late > 100


def test_calm_means_untouched() -> None:
    disturber = Disturber(random.Random(1), duplicate_share=1, late_share=1)
    entry = Entry("a", b"1")
    assert disturber.feed(entry, 0.0) == [entry]
    assert disturber.due(100.0) == []


def test_a_held_record_that_nothing_overtakes_is_let_go_and_not_called_late() -> None:
    disturber = Disturber(random.Random(1), duplicate_share=0, late_share=1)
    disturber.is_calm = False
    entry = Entry("a", b"1")
    assert disturber.feed(entry, 0.0) == []
    assert disturber.due(DELAY_SECONDS[0]) == []
    assert disturber.due(DELAY_SECONDS[1] + PATIENCE_SECONDS) == [entry]
    assert (disturber.late, disturber.waiting) == (0, 0)


def test_batches_keep_order_and_limits() -> None:
    entries = [Entry("k", b"x" * (n % 3 * 500_000)) for n in range(1_300)]
    made = list(batches(entries))
    assert [entry for batch in made for entry in batch] == entries
    assert all(len(batch) <= PUT_RECORDS_MAX for batch in made)
    assert all(sum(len(e.data) for e in batch) <= PUT_BYTES_MAX for batch in made)
    assert list(batches([])) == []
