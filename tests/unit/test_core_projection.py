"""Attributes left out, masked or hashed: what is refused, and what stands in a value's place."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest

from replicator._core import ChangeBatch, Pattern, Projection, Records, decode
from tests.changes import put, remove

KEY: list[tuple[str, Any]] = [("id", "S")]
SECRET = b"0123456789abcdef"


def decoded(*payloads: bytes) -> ChangeBatch:
    return decode(Records.pack(payloads))


def item(batch: ChangeBatch) -> Any:
    (line,) = batch.json_lines("dynamodb").splitlines()
    return json.loads(line)["item"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"include": []}, "include: it names nothing"),
        ({"include": ["a", "a.b"]}, 'include: "a.b" is named already, or lies in something'),
        ({"include": ["a.b", "a"]}, 'include: "a" holds something that is named already'),
        ({"include": ["a"], "mask": ["b"]}, 'mask: "b" is not included'),
        ({"include": ["a"], "exclude": ["a"]}, 'exclude: "a" is included, too'),
        ({"exclude": ["a"], "mask": ["a"]}, 'mask: "a" is named already'),
        ({"exclude": ["a"], "mask": ["a.b"]}, 'mask: "a.b" is named already, or lies in something'),
        ({"exclude": ["a.b"], "hash": ["a"], "key": SECRET}, 'hash: "a" holds something'),
        ({"exclude": ["a..b"]}, 'exclude: "a..b" has an empty name'),
        ({"exclude": [""]}, 'exclude: "" has an empty name'),
        ({"exclude": ["a\\b"]}, "has a backslash before something else"),
        ({"exclude": [".".join("a" * 33)]}, "goes deeper than DynamoDB nests"),
        ({"hash": ["a"]}, "hash: the key has 0 bytes, at least 16 are needed"),
    ],
)
def test_a_projection_that_makes_no_sense_is_refused(
    arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError) as caught:
        Projection(**arguments)
    assert problem in str(caught.value)
    assert SECRET.decode() not in str(caught.value)


@pytest.mark.parametrize("list_name", ["exclude", "mask", "hash"])
def test_the_key_stays_as_it_is(list_name: str) -> None:
    arguments: dict[str, Any] = {list_name: ["id"], "key": SECRET}
    projection = Projection(**arguments)
    with pytest.raises(ValueError, match='"id" is an attribute of the key'):
        projection.check(["id"])
    projection.check(["other"])
    with pytest.raises(ValueError, match='"id" is an attribute of the key'):
        decoded(put("t", {"id": {"S": "a"}}, 1)).newest("t", KEY, None, projection)
    # Should a table have another key than was looked up, nothing is shown and nothing is lost.
    payload = put("t", {"id": {"S": "secret"}}, 1)
    batch = decoded(payload).project(projection)
    assert len(batch) == 0
    assert [(r.code, r.raw) for r in batch.rejections] == [("projected_key", payload)]
    assert batch.records == 1


def test_the_key_is_included_without_being_named() -> None:
    batch = decoded(put("t", {"id": {"S": "k"}}, 1, a={"S": "x"}, b={"S": "y"}))
    assert item(batch.project(Projection(include=["b"]))) == {"id": {"S": "k"}, "b": {"S": "y"}}


def test_a_hash_is_the_keyed_hash_of_the_value_in_any_spelling() -> None:
    text = "ä\n"
    projection = Projection(hash=["s", "n", "set", "map"], key=SECRET)
    spellings: list[dict[str, Any]] = [
        {
            "s": {"S": text},
            "n": {"N": "1"},
            "set": {"NS": ["1", "20"]},
            "map": {"M": {"a": {"N": "5"}, "b": {"S": "x"}}},
        },
        {
            "s": {"S": text},
            "n": {"N": "10E-1"},
            "set": {"NS": ["2E1", "1.0"]},
            "map": {"M": {"b": {"S": "x"}, "a": {"N": "5.0"}}},
        },
    ]
    found = [
        item(decoded(put("t", {"id": {"S": "k"}}, 1, **one)).project(projection))
        for one in spellings
    ]
    assert found[0] == found[1]
    # A text's canonical form: its type, its length, its bytes.
    canonical = b"\0" + len(text.encode()).to_bytes(8, "little") + text.encode()
    assert found[0]["s"] == {"S": hmac.new(SECRET, canonical, hashlib.sha256).hexdigest()}
    assert len({value["S"] for name, value in found[0].items() if name != "id"}) == 4
    other = Projection(hash=["s"], key=b"another key of 24 bytes.")
    rehashed = item(decoded(put("t", {"id": {"S": "k"}}, 1, **spellings[0])).project(other))
    assert rehashed["s"] not in found[0].values()


def test_a_filter_sees_what_the_sink_does_not() -> None:
    batch = decoded(
        put("t", {"id": {"S": "a"}}, 1, price={"N": "11"}),
        put("t", {"id": {"S": "b"}}, 2, price={"N": "9"}),
        remove("t", {"id": {"S": "c"}}, 3),
    )
    projection = Projection(exclude=["price"])
    shown = batch.project(projection)
    pattern = Pattern('{"dynamodb": {"NewImage": {"price": {"N": [{"numeric": [">", 10]}]}}}}')
    rows = batch.newest("t", KEY, pattern, projection)
    assert (len(rows), rows.deletes, rows.filtered) == (3, 2, 1)
    assert b"price" not in rows.copy()
    assert b"price" not in rows.without([1]).copy()
    kept = shown.filter(pattern)
    assert (len(kept), kept.filtered) == (1, 2)


def test_a_dead_letter_keeps_the_records_own_bytes() -> None:
    payload = put("t", {"id": {"S": "k"}}, 1, card={"S": "4711"})
    batch = decoded(payload).project(Projection(mask=["card"]))
    assert batch.newest("t", KEY).record(0, "code", "message").raw == payload


def test_a_projection_twice_is_both() -> None:
    batch = decoded(put("t", {"id": {"S": "k"}}, 1, a={"S": "x"}, b={"S": "y"}))
    twice = batch.project(Projection(exclude=["a"])).project(Projection(mask=["b"]))
    assert item(twice) == {"id": {"S": "k"}, "b": {"S": "***"}}
