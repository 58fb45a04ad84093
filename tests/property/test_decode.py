"""Decoding compared with boto3's own deserializer, and with the standard library's JSON."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

from boto3.dynamodb.types import Binary, TypeDeserializer
from hypothesis import given
from hypothesis import strategies as st

from replicator._core import REJECTION_CODES, BodyError, EventStream, Records, decode
from replicator.testing.items import with_bytes

type_deserializer = TypeDeserializer()

texts = st.text(max_size=20)


@st.composite
def number_texts(draw: st.DrawFn) -> str:
    """Numbers within DynamoDB's limits, in any spelling that JSON has."""
    digits = str(draw(st.one_of(st.integers(1, 999), st.integers(1, 10**38 - 1))))
    sign = draw(st.sampled_from(["", "-"]))
    match draw(st.integers(0, 3)):
        case 0:
            return sign + digits
        case 1:
            point = draw(st.integers(0, len(digits) - 1))
            return f"{sign}{digits[:point] or '0'}.{digits[point:]}"
        case 2:
            exponent = draw(st.integers(-130, 125 - len(digits) + 1))
            mark = draw(st.sampled_from(["E", "e", "E+", "e+"])) if exponent >= 0 else "E"
            return f"{sign}{digits}{mark}{exponent}"
        case _:
            return draw(st.sampled_from(["0", "-0", "0.0", "1.0", "10E-1", "1e0"]))


binaries = st.binary(max_size=12).map(lambda raw: base64.b64encode(raw).decode())


def decimal_value(text: str) -> Decimal:
    return Decimal(text)


scalars = st.one_of(
    texts.map(lambda text: {"S": text}),
    number_texts().map(lambda text: {"N": text}),
    binaries.map(lambda text: {"B": text}),
    st.booleans().map(lambda flag: {"BOOL": flag}),
    st.just({"NULL": True}),
    st.lists(texts, min_size=1, max_size=5, unique=True).map(lambda values: {"SS": values}),
    st.lists(number_texts(), min_size=1, max_size=5, unique_by=decimal_value).map(
        lambda values: {"NS": values}
    ),
    st.lists(binaries, min_size=1, max_size=5, unique=True).map(lambda values: {"BS": values}),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: {"L": items}),
        st.dictionaries(texts, inner, max_size=4).map(lambda items: {"M": items}),
    ),
    max_leaves=12,
)
items = st.dictionaries(texts, values, max_size=6)


def plain(value: Any) -> Any:
    """boto3's answer in the form that the core promises."""
    match value:
        case Binary():
            return base64.b64encode(bytes(value)).decode()
        case set():
            ordered = sorted(value, key=lambda x: bytes(x) if isinstance(x, Binary) else x)
            if all(isinstance(x, str) for x in ordered):
                ordered.sort(key=lambda text: text.encode())
            return [plain(x) for x in ordered]
        case list():
            return [plain(x) for x in value]
        case dict():
            return {name: plain(x) for name, x in value.items()}
        case _:
            return value


def expected(item: dict[str, Any]) -> Any:
    deserialize = type_deserializer.deserialize
    return {name: plain(deserialize(with_bytes(value))) for name, value in item.items()}


def exact(line: bytes) -> Any:
    return json.loads(line, parse_int=Decimal, parse_float=Decimal)


@st.composite
def spellings(draw: st.DrawFn, value: Any) -> str:
    """The value as JSON, formatted in one of many ways."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\r\n", "\t:\n ")]))
    ascii_only = draw(st.booleans())
    text = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    return draw(st.sampled_from([text, f" {text}\n"]))


def payload(new: Any, old: Any, key: str = "k") -> dict[str, Any]:
    return {
        "eventID": "1",
        "eventName": "MODIFY",
        "tableName": "t",
        "userIdentity": None,
        "dynamodb": {
            "ApproximateCreationDateTime": 1706542773915835,
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
            "Keys": {"id": {"S": key}},
            "NewImage": new,
            "OldImage": old,
        },
    }


@given(items, items, st.data())
def test_images_equal_those_of_boto3(
    new: dict[str, Any], old: dict[str, Any], data: st.DataObject
) -> None:
    text = data.draw(spellings(payload(new, old)))
    batch = decode(Records.pack([text.encode()]))
    assert [(r.code, r.message) for r in batch.rejections] == []
    line = exact(batch.json_lines())
    assert line["item"] == expected(new)
    assert line["old"] == expected(old)


@given(items, st.data())
def test_the_typed_form_is_the_wires(item: dict[str, Any], data: st.DataObject) -> None:
    text = data.draw(spellings(payload(item, None)))
    lines = decode(Records.pack([text.encode()])).json_lines("dynamodb")
    assert lines.count(b"\n") == 1
    assert json.loads(lines)["item"] == item


@given(items, st.data())
def test_members_may_come_in_any_order(item: dict[str, Any], data: st.DataObject) -> None:
    document = payload(item, None)
    document["unknown"] = {"a": [1, {"b": None}, True, "x"]}
    document["dynamodb"]["unknown"] = [1.5e-3]
    names = data.draw(st.permutations(sorted(document)))
    inner = data.draw(st.permutations(sorted(document["dynamodb"])))
    document["dynamodb"] = {name: document["dynamodb"][name] for name in inner}
    shuffled = json.dumps({name: document[name] for name in names}).encode()
    batch = decode(Records.pack([shuffled]))
    assert len(batch) == 1
    assert exact(batch.json_lines())["item"] == expected(item)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A good record with some of its bytes cut, replaced, repeated or swapped."""
    text = bytearray(draw(spellings(payload(draw(items), draw(items)))).encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                del text[at:]
            case 1:
                text[at] = draw(st.integers(0, 255))
            case 2:
                text[at:at] = draw(st.sampled_from([b'"', b"{", b"}", b",", b"\\", b"\xff", b"0"]))
            case _:
                del text[at]
        if not text:
            return b""
    return bytes(text)


def strict_json(raw: bytes) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(raw.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


@given(st.lists(st.one_of(broken(), st.binary(max_size=40)), max_size=6))
def test_a_broken_record_costs_no_neighbour(raws: list[bytes]) -> None:
    good = json.dumps(payload({"a": {"N": "1"}}, None, "good")).encode()
    good = good.replace(b'"eventID": "1"', b'"eventID": "good"')
    mixed = [good.replace(b'"good"', f'"good{i}"'.encode()) for i in range(len(raws) + 1)]
    records = [record for pair in zip(mixed, [*raws, b""], strict=True) for record in pair]
    batch = decode(Records.pack(records))
    assert batch.records == len(records)
    assert len(batch) + batch.duplicates + len(batch.rejections) == len(records)
    lines = [json.loads(line) for line in batch.json_lines().splitlines()]
    keys = {line["key"].get("id") for line in lines}
    assert {f"good{i}" for i in range(len(mixed))} <= keys
    for rejection in batch.rejections:
        assert rejection.code in REJECTION_CODES
        assert rejection.raw == records[rejection.index]
    refused = {rejection.index for rejection in batch.rejections}
    for index, record in enumerate(records):
        assert index in refused or strict_json(record), "what is no JSON must be refused"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document(data: bytes) -> None:
    batch = decode(Records.document(data))
    assert len(batch) == 0
    assert batch.records == len(Records.document(data))


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_are_a_body(chunks: list[bytes]) -> None:
    stream = EventStream()
    broken = False
    for chunk in chunks:
        try:
            events = stream.feed(chunk)
        except BodyError:
            broken = True
        else:
            assert events == []
            assert not broken, "a broken body stays broken"
    assert stream.buffered_bytes == 0 if not any(chunks) else stream.buffered_bytes > 0
