"""What `item` shows in CrateDB is exact or isn't shown; `exact` has it all."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from hypothesis import example, given
from hypothesis import strategies as st

from replicator._core import crate_item
from replicator.testing.crate_types import Types, cast, learn

numbers = st.builds(
    lambda digits, exponent: f"{digits}E{exponent}" if exponent else str(digits),
    st.integers(-(10**38) + 1, 10**38 - 1),
    st.integers(-130, 87),
) | st.decimals(-(10**20), 10**20, places=10).map(lambda value: f"{value:f}")
names = st.text("ab.[]%_ é\t\n\r", min_size=1, max_size=4)


def shown(plain: str, *, dynamic: bool) -> Any:
    return json.loads(crate_item(plain, dynamic=dynamic))


@given(numbers, st.booleans())
@example("9007199254740993", True)
@example("9223372036854775808", True)
@example("0.1", True)
@example("-0", False)
def test_a_number_keeps_every_digit(number: str, dynamic: bool) -> None:
    value = shown(f'{{"n":{number}}}', dynamic=dynamic)["n"]
    if isinstance(value, float):
        # The double is told by its shortest decimal, which is the number.
        assert Decimal(repr(value)) == Decimal(number)
    elif isinstance(value, int):
        assert value == Decimal(number)
        assert -(2**63) <= value < 2**63
    else:
        assert Decimal(value) == Decimal(number)


@given(st.lists(names, unique=True, max_size=6))
def test_names_stay_different_and_can_be_read_back(given_names: list[str]) -> None:
    plain = json.dumps(dict.fromkeys(given_names, "x"), ensure_ascii=False)
    columns = list(shown(plain, dynamic=True))
    assert [unquote(column) for column in columns] == given_names
    assert not any(c in column for column in columns for c in ".[\t\n\r")
    assert list(shown(plain, dynamic=False)) == given_names


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(names, values, max_size=5))
def test_a_fresh_table_takes_every_item(item: dict[str, Any]) -> None:
    """Only a type that another item has made a column of can stand against it."""
    types: Types = {}
    given_item = json.loads(crate_item(json.dumps(item)))
    one_kind = _lists_of_maps_apart(given_item)
    learn(one_kind, (), types)
    assert cast(one_kind, (), types | {(): "object"}) is not None


def _lists_of_maps_apart(value: Any) -> Any:
    """Without lists that hold maps or lists: the types in these may differ from each other."""
    if isinstance(value, dict):
        return {name: _lists_of_maps_apart(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [inner for inner in value if not isinstance(inner, dict | list)]
    return value
