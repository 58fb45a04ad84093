"""Record batches hold what was decoded: each change, whole, in order, where Java looks for it."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import pairwise
from typing import Any, Literal

from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import ChangeBatch, Records, decode
from tests.kafka_records import Record, records
from tests.property.test_decode import exact, items, number_texts, payload, spellings

Form = Literal["plain", "dynamodb", "debezium", "change"]
FORMS: tuple[Form, ...] = ("plain", "dynamodb", "debezium", "change")
CODECS: tuple[Literal["none", "gzip", "lz4", "zstd"], ...] = ("none", "gzip", "lz4", "zstd")
FIRST_US = 1_706_542_773_915_835

# What follows decoding is looked at here; decoding itself has more examples in test_decode.
brief = settings(max_examples=40)
forms = st.sampled_from(FORMS)
identities = st.sampled_from(
    [None, {"type": "Service", "principalId": "dynamodb.amazonaws.com"}, {"a": [1, "é\n"]}]
)


@st.composite
def changes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Payloads of a few keys and two tables, at different instants of either precision."""
    made = []
    for n in range(draw(st.integers(1, 12))):
        event = draw(st.sampled_from(["INSERT", "MODIFY", "REMOVE"]))
        document = payload(
            None if event == "REMOVE" else draw(items),
            None if event == "INSERT" else draw(items),
            draw(st.sampled_from(["a", "é", 'q"\\\n', "21"])),
        )
        document |= {
            "eventID": draw(st.sampled_from([f"id-{n}", f'i"{n}'])),
            "eventName": event,
            "tableName": draw(st.sampled_from(["orders", "products"])),
            "userIdentity": draw(identities),
        }
        if draw(st.booleans()):
            document["dynamodb"]["ApproximateCreationDateTime"] = FIRST_US // 1000 + n
            document["dynamodb"]["ApproximateCreationDateTimePrecision"] = "MILLISECOND"
        else:
            document["dynamodb"]["ApproximateCreationDateTime"] = FIRST_US + 1000 * n
        made.append(document)
    return made


def decoded(documents: list[dict[str, Any]]) -> ChangeBatch:
    batch = decode(
        Records.pack(
            [json.dumps(document).encode() for document in documents],
            [f"4960{n}" for n in range(len(documents))],
        )
    )
    assert not batch.rejections
    return batch


def expected(batch: ChangeBatch, documents: list[dict[str, Any]], form: Form) -> list[Record]:
    """The records by partition 0, key, value and headers made here, in the batch's order."""
    of_id = {document["eventID"]: (n, document) for n, document in enumerate(documents)}
    made = []
    wholes = [json.loads(line) for line in batch.json_lines("change").splitlines()]
    for whole, value in zip(wholes, batch.json_lines(form).split(b"\n"), strict=False):
        n, document = of_id[whole["eventID"]]
        change = document["dynamodb"]
        us = change["ApproximateCreationDateTime"]
        if change["ApproximateCreationDateTimePrecision"] == "MILLISECOND":
            us *= 1000
        key: Any = change["Keys"]
        if form in {"plain", "debezium"}:
            key = {name: text for name, typed in key.items() for text in typed.values()}
        headers = {
            "table": document["tableName"].encode(),
            "event": document["eventName"].encode(),
            "version": str(us).encode(),
            "position": f"4960{n}".encode(),
            "event_id": document["eventID"].encode(),
        }
        record = Record(0, us // 1000, json.dumps(key).encode(), value, headers)
        made.append(record)
        if document["eventName"] == "REMOVE":
            made.append(Record(0, us // 1000, record.key, None, headers))
    return made


def comparable(record: Record) -> tuple[Any, ...]:
    value = None if record.value is None else exact(record.value)
    return record.timestamp, json.loads(record.key), value, record.headers


@brief
@given(changes(), forms, st.sampled_from(CODECS), st.integers(1, 7), st.integers(0, 3000))
def test_batches_give_back_every_change(
    documents: list[dict[str, Any]],
    form: Form,
    codec: Literal["none", "gzip", "lz4", "zstd"],
    partitions: int,
    bytes_max: int,
) -> None:
    batch = decoded(documents)
    made = batch.kafka(
        partitions, form=form, compression=codec, batch_bytes_max=bytes_max or 1_000_000
    )
    assert all(a.partition <= b.partition for a, b in pairwise(made))
    found = records(made)
    wanted = expected(batch, documents, form)
    # In a partition the order is the batch's, and so is that of each key.
    choose = DefaultPartitioner()
    for partition in range(partitions):
        inside = [record for record in found if record.partition == partition]
        for record in inside:
            assert choose(record.key, list(range(partitions)), []) == partition
        keys = {json.dumps(json.loads(record.key)) for record in inside}
        assert [comparable(record) for record in inside] == [
            comparable(record) for record in wanted if json.dumps(json.loads(record.key)) in keys
        ]
    assert len(found) == len(wanted)


@brief
@given(changes())
def test_the_whole_change_decodes_to_itself(documents: list[dict[str, Any]]) -> None:
    batch = decoded(documents)
    lines = batch.json_lines("change")
    again = decode(Records.document(lines))
    assert (len(again), again.rejections) == (len(batch), [])
    for form in ("plain", "dynamodb"):
        assert again.json_lines(form) == batch.json_lines(form)
    assert (again.first_event_us, again.last_event_us) == (
        batch.first_event_us,
        batch.last_event_us,
    )
    # All but the position, which is the record's, not the payload's.
    for line, second in zip(
        lines.splitlines(), again.json_lines("change").splitlines(), strict=True
    ):
        whole = json.loads(line)
        assert whole.pop("position").startswith("4960")
        assert json.loads(second) == whole
        origin = next(d for d in documents if d["eventID"] == whole["eventID"])
        assert whole.get("userIdentity") == origin["userIdentity"]


@brief
@given(changes())
def test_debezium_envelopes_hold_both_images(documents: list[dict[str, Any]]) -> None:
    batch = decoded(documents)
    pairs = zip(
        batch.json_lines("debezium").splitlines(), batch.json_lines().splitlines(), strict=True
    )
    for envelope, plain in ((exact(a), exact(b)) for a, b in pairs):
        assert envelope["before"] == plain["old"]
        assert envelope["after"] == plain["item"]
        assert envelope["op"] == {"INSERT": "c", "MODIFY": "u", "REMOVE": "d"}[plain["event"]]
        source = envelope["source"]
        assert source["table"] == plain["table"]
        assert source["ts_us"] == int(plain["version"])
        for times in (source, envelope):
            assert times["ts_ms"] == source["ts_us"] // 1000
            assert times["ts_ns"] == source["ts_us"] * 1000


@st.composite
def spelt_keys(draw: st.DrawFn) -> tuple[list[bytes], Decimal]:
    """One key of a text, a number or bytes, and a number, in several spellings."""
    number = draw(number_texts())
    value = Decimal(number)
    made = []
    for text in draw(st.permutations([number, f"{value:f}", f"{value:E}"])):
        key = [("sk", {"N": text}), ("pk", {"S": "é"})]
        document = payload({}, None)
        document["dynamodb"]["Keys"] = dict(draw(st.permutations(key)))
        made.append(draw(spellings(document)).encode())
    return made, value


@brief
@given(spelt_keys(), forms)
def test_every_spelling_of_a_key_is_one_key(spelt: tuple[list[bytes], Decimal], form: Form) -> None:
    payloads, value = spelt
    batch = decode(Records.pack(payloads), keep_all=True)
    assert not batch.rejections
    found = records(batch.kafka(50, form=form))
    (key,) = {record.key for record in found}
    parsed = exact(key)
    assert list(parsed) == ["pk", "sk"]
    number = parsed["sk"] if form in {"plain", "debezium"} else Decimal(parsed["sk"]["N"])
    assert number == value
    assert parsed["pk"] == ("é" if form in {"plain", "debezium"} else {"S": "é"})
