"""Column plans: what is refused, what is reported."""

from __future__ import annotations

import pytest

from replicator._core import Columns, Records, decode
from tests.changes import put, remove

KEY = {"id": {"S": "a"}}


def test_a_plan_tells_what_it_was_given() -> None:
    columns = Columns([("a", "text"), ("b", "numeric(12,2)")], rest=None)
    assert columns.columns == [("a", "text"), ("b", "numeric(12,2)")]
    assert columns.rest is None
    assert Columns([]).rest == "extra"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([("a", "float8")], '"a" has the type "float8"'),
        ([("a", "numeric(39,2)")], "P up to 38"),
        ([("a", "text"), ("a", "bigint")], 'attribute "a" has two columns'),
        ([("extra", "text")], "give the column for the rest another name"),
        ([(str(i), "text") for i in range(1501)], "at most 1500 columns"),
    ],
)
def test_what_is_no_plan_says_why(columns: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Columns(columns)


@pytest.mark.parametrize("columns", [Columns([("id", "text")]), Columns([], rest="id")])
def test_a_key_attribute_has_its_column_already(columns: Columns) -> None:
    rows = decode(Records.pack([put("t", KEY, 1)])).newest("t", [("id", "S")])
    with pytest.raises(ValueError, match='"id" has a column already'):
        rows.copy(columns=columns)
    with pytest.raises(ValueError, match='"id" has a column already'):
        rows.misses(columns)


def test_misses_are_counted_by_column_and_type() -> None:
    columns = Columns([("n", "bigint"), ("s", "text"), ("never", "boolean")])
    payloads = [
        put("t", {"id": {"S": "a"}}, 1, n={"N": "1"}, s={"S": "x"}),
        put("t", {"id": {"S": "b"}}, 2, n={"N": "1.5"}, s={"NULL": True}),
        put("t", {"id": {"S": "c"}}, 3, n={"N": "2.5"}, s={"S": "\0"}),
        put("t", {"id": {"S": "d"}}, 4, n={"S": "2.5"}),
        put("t", {"id": {"S": "e"}}, 5, n={"BOOL": True}),
        remove("t", {"id": {"S": "e"}}, 6, {"id": {"S": "e"}, "n": {"BOOL": True}}),
    ]
    batch = decode(Records.pack(payloads))
    of_rows = [("n", "S", 1), ("n", "N", 2), ("s", "S", 1), ("s", "NULL", 1)]
    assert batch.newest("t", [("id", "S")]).misses(columns) == of_rows
    assert batch.misses(columns) == [*of_rows[:2], ("n", "BOOL", 1), *of_rows[2:]]
