"""Items at DynamoDB's limits, compared with boto3's deserializer. (rust/tests/hardest.rs has more.)"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from boto3.dynamodb.types import TypeDeserializer

from replicator._core import ChangeBatch, Records, decode
from tests.property.test_decode import exact, expected, payload

KB = 1024

ITEMS: dict[str, Callable[[], dict[str, Any]]] = {
    "a text of 400 KB": lambda: {"a": {"S": 'x"\\\n\u0000é😀' * (40 * KB)}},
    "a binary of 400 KB": lambda: {"a": {"B": base64.b64encode(bytes(range(256)) * 1600).decode()}},
    "20,000 attributes": lambda: {f"attribute {i}": {"N": str(i)} for i in range(20_000)},
    "a set of 30,000 texts": lambda: {"a": {"SS": [f"é{i}" for i in range(30_000, 0, -1)]}},
    "a set of 30,000 numbers": lambda: {"a": {"NS": [f"{i}E-5" for i in range(30_000, 0, -1)]}},
    "a set of 30,000 binaries": lambda: {
        "a": {"BS": [base64.b64encode(b"%d" % i).decode() for i in range(30_000, 0, -1)]}
    },
    "a name of 64 KB": lambda: {"n" * (64 * KB - 1): {"M": {"é" * (32 * KB - 1): {"S": ""}}}},
    "32 levels": lambda: {"a": nested(32)},
    "nothing": dict,
}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"N": "-0"}
    for level in range(depth):
        value = {"L": [value]} if level % 2 else {"M": {"": value}}
    return value


def decoded(item: dict[str, Any], *, ascii_only: bool) -> ChangeBatch:
    text = json.dumps(payload(item, item), ensure_ascii=ascii_only)
    return decode(Records.pack([text.encode()]))


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "utf-8"])
@pytest.mark.parametrize("name", ITEMS)
def test_the_hardest_items(name: str, ascii_only: bool) -> None:
    item = ITEMS[name]()
    batch = decoded(item, ascii_only=ascii_only)
    assert batch.rejections == []
    line = exact(batch.json_lines())
    assert line["item"] == line["old"] == expected(item)
    assert json.loads(batch.json_lines("dynamodb"))["item"] == item


def test_a_level_too_deep_is_refused() -> None:
    (rejection,) = decoded({"a": nested(33)}, ascii_only=True).rejections
    assert rejection.code == "too_deep"


def test_binary_is_base64_text_on_the_wire() -> None:
    """boto3's deserializer raises on such a record: it wants the bytes."""
    item = {"a": {"B": "AAEC"}, "b": {"BS": ["/w==", "AA=="]}}
    with pytest.raises(TypeError):
        TypeDeserializer().deserialize({"M": item})
    line = json.loads(decoded(item, ascii_only=True).json_lines())
    assert line["item"] == {"a": "AAEC", "b": ["AA==", "/w=="]}


def test_a_large_record_costs_no_neighbour() -> None:
    large = json.dumps(payload(ITEMS["a text of 400 KB"](), None, "large")).encode()
    small = json.dumps(payload({"a": {"N": "1"}}, None, "small")).encode()
    payloads = [small, large, large[:-1], small.replace(b'"1"', b'"2"', 1)]
    batch = decode(Records.pack(payloads), keep_all=True)
    assert [rejection.index for rejection in batch.rejections] == [2]
    assert [json.loads(line)["key"]["id"] for line in batch.json_lines().splitlines()] == [
        "small",
        "large",
        "small",
    ]
