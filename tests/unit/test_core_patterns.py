"""Event patterns: AWS's documented examples, what is refused and how it says so, and what a
filter does to a batch.

In `tests/vectors/patterns.json`, `aws` is what EventBridge's own engine (aws/event-ruler 1.7.3)
answers, null where it refuses the pattern; where we answer something else, `note` says why.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from replicator._core import ChangeBatch, Pattern, Records, decode
from tests.changes import put, remove

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/patterns.json").read_text("utf-8"))
KEY: list[tuple[str, Any]] = [("id", "S")]


def vectors(kind: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in VECTORS[kind]]


def decoded(*payloads: bytes) -> ChangeBatch:
    batch = decode(Records.pack(payloads))
    assert not batch.rejections
    return batch


@pytest.mark.parametrize("vector", vectors("patterns"))
def test_documented_examples(vector: dict[str, Any]) -> None:
    pattern = Pattern([json.dumps(one) for one in vector["patterns"]])
    batch = decoded(json.dumps(VECTORS["records"][vector["record"]]).encode()).filter(pattern)
    assert bool(len(batch)) is vector["matches"]
    assert (vector["aws"] is not vector["matches"]) == ("note" in vector)


@pytest.mark.parametrize("vector", vectors("errors"))
def test_a_bad_pattern_is_refused_with_its_place(vector: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(vector["error"])):
        Pattern(vector["pattern"])


def test_limits() -> None:
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        Pattern('{"tableName": ["' + "x" * 70_000 + '"]}')
    with pytest.raises(ValueError, match="nested"):
        Pattern('{"a":' * 10_000 + "1" + "}" * 1_000)
    with pytest.raises(ValueError, match="there is no pattern"):
        Pattern([])


def test_of_several_the_broken_one_is_named() -> None:
    with pytest.raises(ValueError, match=r"^pattern 1, eventName: "):
        Pattern(['{"eventName": ["INSERT"]}', '{"eventName": "INSERT"}'])


def test_a_hostile_wildcard_takes_no_longer() -> None:
    wildcard = {"wildcard": "*a" * 200 + "b"}
    pattern = Pattern(json.dumps({"dynamodb": {"NewImage": {"a": {"S": [wildcard]}}}}))
    batch = decoded(put("t", {"id": {"S": "k"}}, 1, a={"S": "a" * 390_000}))
    assert batch.filter(pattern).filtered == 1


PAID = Pattern('{"dynamodb": {"NewImage": {"state": {"S": ["paid"]}}}}')


def key(name: str) -> dict[str, dict[str, str]]:
    return {"id": {"S": name}}


def test_a_log_loses_single_changes_and_counts_them() -> None:
    batch = decoded(
        put("t", key("a"), 1, state={"S": "paid"}),
        put("t", key("b"), 2, state={"S": "new"}),
        remove("t", key("a"), 3),
    )
    kept = batch.filter(PAID)
    assert (len(kept), kept.filtered, kept.records, kept.tables) == (1, 2, 3, {"t": 1})
    assert b'"a"' in kept.json_lines()
    assert b'"b"' not in kept.json_lines()
    assert (len(batch), batch.filtered) == (3, 0), "the batch itself stays as it is"


def test_in_a_state_what_does_not_match_is_deleted_with_its_version() -> None:
    batch = decoded(
        put("t", key("stays"), 1, state={"S": "paid"}),
        put("t", key("leaves"), 2, state={"S": "paid"}),
        put("t", key("leaves"), 3, key("leaves"), state={"S": "returned"}),
        put("t", key("never"), 4, state={"S": "new"}),
        put("t", key("gone"), 5, state={"S": "paid"}),
        remove("t", key("gone"), 6),
    )
    rows = batch.newest("t", KEY, PAID)
    assert (len(rows), rows.deletes, rows.filtered, rows.folded) == (4, 3, 2, 2)
    without = rows.without([1])
    assert (len(without), without.deletes, without.filtered) == (4, 2, 1), "the older one belonged"
    raw = rows.record(1, "code", "message").raw
    assert b"returned" in raw, "a dead letter has all its bytes"
    assert len(batch.newest("t", KEY)) == 4


@pytest.mark.parametrize(
    "identity",
    [
        {"type": "Service", "principalId": "dynamodb.amazonaws.com"},
        {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"},
        {"Type": "Service"},
        {"type": "User", "principalId": "dynamodb.amazonaws.com"},
        None,
    ],
)
def test_who_did_it_is_found_in_either_spelling(identity: dict[str, str] | None) -> None:
    """Regression: the API of DynamoDB Streams writes `PrincipalId` and `Type`, so that a pattern
    for what TTL deletes found nothing there."""
    record = {**json.loads(remove("t", key("a"), 1)), "userIdentity": identity}
    batch = decoded(json.dumps(record).encode())
    by_lower = {name.lower(): value for name, value in (identity or {}).items()}
    is_service = by_lower.get("type") == "Service"
    has_name = "principalid" in by_lower
    for inner, expected in (
        ({"type": ["Service"]}, is_service),
        ({"type": ["Service"], "principalId": [{"prefix": "dynamodb"}]}, is_service and has_name),
        ({"type": ["Service"], "principalId": [{"exists": False}]}, is_service and not has_name),
        ({"type": [{"exists": False}]}, not by_lower),
    ):
        pattern = Pattern(json.dumps({"userIdentity": inner}))
        assert bool(len(batch.filter(pattern))) is expected, inner


def test_a_state_refuses_patterns_about_how_an_item_changed() -> None:
    batch = decoded(put("t", key("a"), 1))
    for text in (
        '{"eventName": ["INSERT"]}',
        '{"dynamodb": {"OldImage": {"a": {"S": ["x"]}}}}',
        '{"userIdentity": {"type": ["Service"]}}',
    ):
        pattern = Pattern(text)
        with pytest.raises(ValueError, match=pattern.names[0]):
            batch.newest("t", KEY, pattern)


def test_what_a_filter_leaves_out_still_decides_the_order() -> None:
    """Three changes of one instant in a chain; without the middle one it would be broken."""
    image = {name: {"id": {"S": "a"}, "state": {"S": name}} for name in ("x", "middle", "y")}
    changes = [
        put("t", key("a"), 7, image["middle"], state={"S": "y"}),
        put("t", key("a"), 7, image["x"], state={"S": "middle"}),
        put("t", key("a"), 7, state={"S": "x"}),
    ]
    pattern = Pattern('{"dynamodb": {"NewImage": {"state": {"S": [{"anything-but": "middle"}]}}}}')
    parts = [decoded(change).filter(pattern) for change in changes]
    batch = ChangeBatch.concat(parts)
    assert (len(batch), batch.filtered, batch.ambiguous, batch.records) == (2, 1, 0, 3)
    states = [json.loads(line)["item"]["state"] for line in batch.json_lines().splitlines()]
    assert states == ["x", "y"]
    again = ChangeBatch.concat([batch])
    assert again.json_lines() == batch.json_lines()


def test_a_pattern_tells_what_it_speaks_of() -> None:
    pattern = Pattern('{"eventName": ["INSERT"], "dynamodb": {"Keys": {"a": {"S": ["x"]}}}}')
    assert pattern.names == ["dynamodb.Keys", "eventName"]
