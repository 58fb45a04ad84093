from __future__ import annotations

import json
from decimal import Decimal

import pytest

from replicator.demo.compare import compare, plain, plain_item, plain_row
from replicator.demo.report import verdict


def test_the_ten_types_become_plain() -> None:
    item = {
        "s": {"S": ""},
        "n": {"N": "-1.2345678901234567890123456789012345678E-20"},
        "b": {"B": b"\x00\x01"},
        "yes": {"BOOL": True},
        "none": {"NULL": True},
        "m": {"M": {"a": {"L": [{"N": "1"}, {"M": {}}]}}},
        "ss": {"SS": ["b", "a"]},
        "ns": {"NS": ["10", "2.50"]},
        "bs": {"BS": [b"\xff", b"\x00"]},
    }
    assert plain_item(item) == {
        "s": "",
        "n": Decimal("-1.2345678901234567890123456789012345678E-20"),
        "b": "AAE=",
        "yes": True,
        "none": None,
        "m": {"a": [1, {}]},
        "ss": ["a", "b"],
        "ns": [Decimal("2.5"), 10],
        "bs": ["AA==", "/w=="],
    }
    with pytest.raises(ValueError, match="'X'"):
        plain({"X": "1"})


def test_rows_keep_every_digit() -> None:
    digits = "99999999999999999999999999999999999999"
    assert plain_row(json.dumps({"n": 0}).replace("0", digits)) == {"n": Decimal(digits)}
    assert plain_row('{"n": 0.30}') == plain_item({"n": {"N": "0.3"}})


def test_equal_sides_are_equal() -> None:
    same = {"a": {"id": "a", "Stock": Decimal(1)}}
    result = compare(same, {"a": {"Stock": Decimal("1.0"), "id": "a"}})
    assert result.is_equal
    assert (result.items, result.rows) == (1, 1)


def test_each_kind_of_difference_is_named() -> None:
    result = compare(
        {"a": {"Stock": Decimal(1)}, "b": {}, "c": {"x": None}},
        {"a": {"Stock": Decimal(2)}, "c": {}, "d": {}},
    )
    assert not result.is_equal
    missing_row, extra = "no row", "no item"
    a, b, c, d = result.differences
    assert a == "a: Stock is 1 in the table and 2 in Postgres"
    assert missing_row in b
    assert c == "c: x is None in the table and absent in Postgres"
    assert extra in d


def test_the_last_line_says_whether_they_are_equal_and_after_how_many_changes() -> None:
    item = {"a": {"Stock": Decimal(1)}}
    said = verdict(compare(item, item, "the archive"), 70)
    assert said == "equal: 1 items in the table, 1 rows in the archive, 70 changes"
    many: dict[str, object] = {str(n): {} for n in range(30)}
    *differences, more, last = verdict(compare(many, {}), 70).splitlines()
    assert len(differences) == 10
    assert more == "  and 20 more"
    assert last == "DIFFERENT: 30 items in the table, 0 rows in Postgres, 70 changes"
