"""The golden records of tests/vectors, which the Rust tests read too, seen from Python."""

from __future__ import annotations

import ast
import base64
import json
import struct
from collections.abc import Iterator
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import pytest

from replicator._core import (
    REJECTION_CODES,
    Answer,
    BodyError,
    EventStream,
    Records,
    Rows,
    decode,
)

FOLDER = Path(__file__).parents[1] / "vectors"
EXACT = Context(prec=400)


def vectors(name: str) -> list[Any]:
    rows = json.loads((FOLDER / name).read_text("utf-8"))
    return [pytest.param(row, id=row["name"]) for row in rows]


def payload_of(vector: dict[str, Any]) -> bytes:
    text = vector.get("payload")
    return base64.b64decode(vector["payload_base64"]) if text is None else text.encode()


@pytest.mark.parametrize("vector", vectors("changes.json"))
def test_change(vector: dict[str, Any]) -> None:
    batch = decode(Records.pack([payload_of(vector)]), table=vector.get("table"))
    assert batch.json_lines().decode() == vector["plain"]
    assert batch.json_lines("dynamodb").decode() == vector["dynamodb"]


@pytest.mark.parametrize("vector", vectors("rejections.json"))
def test_rejection(vector: dict[str, Any]) -> None:
    payload = payload_of(vector)
    batch = decode(Records.pack([payload], ["5"]))
    (rejection,) = batch.rejections
    assert (len(batch), batch.records) == (0, 1)
    assert rejection.code == vector["code"]
    assert rejection.code in REJECTION_CODES
    assert (rejection.raw, rejection.index, rejection.sequence_number) == (payload, 0, "5")


def numeric(field: bytes) -> Decimal:
    """PostgreSQL's binary numeric."""
    count, weight, sign, _ = struct.unpack_from(">HhHH", field)
    groups = struct.unpack_from(f">{count}H", field, 8)
    value = Decimal(0)
    for i, group in enumerate(groups):
        value = EXACT.add(value, Decimal(group).scaleb((weight - i) * 4, EXACT))
    return EXACT.minus(value) if sign == 0x4000 else value


def tuples(stream: bytes) -> Iterator[list[bytes | None]]:
    """The tuples of a binary COPY stream."""
    assert stream.startswith(b"PGCOPY\n\xff\r\n\x00" + bytes(8))
    at = 19
    while True:
        (count,) = struct.unpack_from(">h", stream, at)
        at += 2
        if count == -1:
            assert at == len(stream)
            return
        fields: list[bytes | None] = []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", stream, at)
            at += 4
            fields.append(None if length < 0 else stream[at : at + length])
            at += max(length, 0)
        yield fields


def newest(vector: dict[str, Any]) -> Rows:
    batch = decode(Records.pack([payload.encode() for payload in vector["payloads"]]))
    return batch.newest(vector["table"], [(name, kind) for name, kind in vector["keys"]])


@pytest.mark.parametrize("vector", vectors("copy.json"))
def test_copy(vector: dict[str, Any]) -> None:
    rows = newest(vector)
    assert rows.copy() == base64.b64decode(vector["copy_base64"])
    assert (len(rows), rows.deletes, rows.folded) == (
        vector["rows"],
        vector["deletes"],
        vector["folded"],
    )
    assert [rejection.code for rejection in rows.rejections] == vector["codes"]


@pytest.mark.parametrize("vector", vectors("copy.json"))
def test_copied_fields_hold_what_the_record_says(vector: dict[str, Any]) -> None:
    rows = newest(vector)
    keys = vector["keys"]
    for row, fields in enumerate(tuples(rows.copy())):
        raw = rows.record(row, "code", "message").raw
        change = json.loads(raw)["dynamodb"]
        assert len(fields) == len(keys) + 3
        for (name, kind), field in zip(keys, fields, strict=False):
            text = change["Keys"][name][kind]
            assert field is not None
            match kind:
                case "S":
                    assert field.decode() == text
                case "N":
                    assert EXACT.compare(numeric(field), Decimal(text)) == 0
                case _:
                    assert field == base64.b64decode(text)
        item, version, deleted = fields[-3:]
        line = json.loads(decode(Records.pack([raw])).json_lines())
        assert deleted == (b"\x01" if line["event"] == "REMOVE" else b"\x00")
        if item is None:
            assert line["event"] == "REMOVE"
        else:
            assert item[:1] == b"\x01"
            assert json.loads(item[1:]) == line["item"]
        assert version is not None
        assert numeric(version) == Decimal(line["version"])


@pytest.mark.parametrize("vector", vectors("frames.json"))
def test_frames(vector: dict[str, Any]) -> None:
    stream = EventStream(1 << 20)
    events = []
    code = None
    for chunk in (base64.b64decode(vector["body_base64"]), b""):
        try:
            events += stream.feed(chunk)
        except BodyError as error:
            code = error.code
    assert code == vector["error"]
    assert (stream.buffered_bytes > 0) == (code is not None)
    found = [
        {
            "continuation": event.continuation_sequence_number,
            "behind": event.millis_behind_latest,
            "children": [[shard, parents] for shard, parents in event.child_shards],
            "exception": None if event.exception is None else list(event.exception),
            "records": len(event.records),
            "last": event.records.last_sequence_number,
            "arrival_ms": event.records.last_arrival_ms,
        }
        for event in events
    ]
    assert found == [
        {
            **event,
            "records": len(event["records"]),
            "last": event["records"][-1]["sequence_number"] if event["records"] else None,
            "arrival_ms": event["records"][-1]["arrival_ms"] if event["records"] else None,
        }
        for event in vector["events"]
    ]


@pytest.mark.parametrize("vector", vectors("answers.json"))
def test_answer(vector: dict[str, Any]) -> None:
    text = vector.get("body")
    body = base64.b64decode(vector["body_base64"]) if text is None else text.encode()
    if wanted := vector["error"]:
        with pytest.raises(BodyError, match=f"byte {wanted['at']}$") as caught:
            Answer.read(body, vector["source"])
        assert caught.value.code == wanted["code"]
        return
    answer = Answer.read(body, vector["source"])
    assert answer.next_iterator == vector["next"]
    assert answer.millis_behind_latest == vector["behind"]
    assert [list(child) for child in answer.child_shards] == vector["children"]
    records = vector["records"]
    assert len(answer.records) == len(records)
    if records:
        assert answer.records.last_sequence_number == (records[-1]["sequence_number"] or None)
        assert answer.records.last_arrival_ms == records[-1]["arrival_ms"]
    for rejection in decode(answer.records).rejections:
        wanted = records[rejection.index]
        assert rejection.raw == ast.literal_eval(f"b'{wanted['payload']}'")
        assert rejection.sequence_number == wanted["sequence_number"]
        assert rejection.sub_sequence_number == wanted["sub_sequence_number"]


@pytest.mark.parametrize("vector", vectors("documents.json"))
def test_document(vector: dict[str, Any]) -> None:
    records = Records.document(vector["document"].encode())
    assert len(records) == len(vector["records"])
    refused = {rejection.index: rejection for rejection in decode(records).rejections}
    for index, wanted in enumerate(vector["records"]):
        if rejection := refused.get(index):
            assert rejection.line == wanted["line"]
            assert rejection.raw.decode() == wanted["payload"]
            assert rejection.sequence_number == wanted["sequence_number"]
        else:
            alone = decode(Records.pack([wanted["payload"].encode()]))
            assert len(alone) == 1
    numbers = [wanted["sequence_number"] or None for wanted in vector["records"]] or [None]
    assert records.first_sequence_number == numbers[0]
    assert records.last_sequence_number == numbers[-1]
