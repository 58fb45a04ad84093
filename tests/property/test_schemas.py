"""Schemas that grow stay readable, by another library's rules and by the test registry's."""

from __future__ import annotations

import json
from typing import Any

import avro.compatibility
import avro.schema
import fastavro
import jsonschema
from avro.compatibility import SchemaCompatibilityType
from hypothesis import given
from hypothesis import strategies as st

from replicator._core import Columns as Plan
from replicator.core.schemas import (
    Columns,
    columns_of,
    distinct,
    grown,
    is_written,
    joined,
    text_of,
    written,
)
from replicator.testing.schema_rules import complaints

TYPES = [
    *("text", "numeric", "jsonb", "bigint", "boolean", "bytea", "timestamptz", "text[]"),
    *("numeric[]", "bytea[]", "numeric(12,2)"),
]
TAGS = ["S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS"]
names = st.text(max_size=6).filter(lambda name: name != "extra")
plans = st.dictionaries(names, st.sampled_from(TYPES), max_size=6).map(
    lambda found: tuple(found.items())
)
met = st.lists(st.tuples(st.text(max_size=6), st.sampled_from(TAGS), st.integers(1, 9)), max_size=6)
kinds = st.sampled_from(["change", "item"])
formats = st.sampled_from(["avro", "json_schema"])


def readable(reader: Any, writer: Any) -> bool:
    """What Apache's own library says."""
    checker = avro.compatibility.ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    of = avro.schema.parse
    found = checker.get_compatibility(of(json.dumps(reader)), of(json.dumps(writer)))
    return bool(found.compatibility is SchemaCompatibilityType.compatible)


def new(columns: Columns, found: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """What the core would give: nothing that has a column."""
    known = dict(columns)
    return [each for each in found if each[0] not in known]


@given(plans, met, kinds)
def test_avro_grows_both_ways_compatible(columns: Columns, found: Any, value: Any) -> None:
    more = grown(columns, new(columns, found), 100)
    old, following = (written("avro", value, each, "shop.t") for each in (columns, more))
    fastavro.parse_schema(following)
    assert readable(following, old)
    assert readable(old, following)
    assert not complaints("AVRO", reader=following, writer=old)
    assert not complaints("AVRO", reader=old, writer=following)


@given(plans, plans, kinds)
def test_the_test_registry_agrees_with_apaches_library(a: Columns, b: Columns, value: Any) -> None:
    reader, writer = (written("avro", value, each, "shop.t") for each in (a, b))
    assert readable(reader, writer) == (not complaints("AVRO", reader=reader, writer=writer))


@given(plans, met, kinds)
def test_json_schemas_grow_backward_compatible(columns: Columns, found: Any, value: Any) -> None:
    more = grown(columns, new(columns, found), 100)
    old, following = (written("json_schema", value, each, "shop.t") for each in (columns, more))
    jsonschema.Draft7Validator.check_schema(following)
    assert not complaints("JSON", reader=following, writer=old)
    if more != columns:
        assert complaints("JSON", reader=old, writer=following)


@given(plans, formats, kinds)
def test_a_schema_tells_its_columns(columns: Columns, format_: Any, value: Any) -> None:
    schema = json.loads(text_of(written(format_, value, columns, "shop.t")))
    assert columns_of(format_, value, schema) == columns
    assert is_written(format_, value, schema, columns)
    Plan(columns, "extra")


WORDS = ["type", "fields", "name", "item", "items", "properties", "definitions", "Item", "column"]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([*WORDS, *TYPES, "null", "string"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
        | inner.map(lambda each: {"name": "item", "type": ["null", each]})
        | inner.map(lambda each: {"type": "record", "fields": [each]})
    ),
    max_leaves=12,
)


@given(anything, formats, kinds)
def test_anything_may_stand_in_a_registry(schema: Any, format_: Any, value: Any) -> None:
    columns = columns_of(format_, value, schema)
    Plan(columns, "extra")
    is_written(format_, value, schema, columns)


@given(plans, plans, plans)
def test_joining_loses_nothing_and_settles(a: Columns, b: Columns, told: Columns) -> None:
    both = joined(a, b, dict(told))
    assert dict(both).keys() == dict(a).keys() | dict(b).keys()
    assert [name for name, _ in both[: len(a)]] == [name for name, _ in a]
    assert joined(both, b, dict(told)) == both == joined(both, a, dict(told))


@given(plans, met, st.lists(names, max_size=3))
def test_grown_columns_are_told_apart_without_capitals(
    columns: Columns, found: Any, taken: list[str]
) -> None:
    """By the names that the core gives them (`columns.rs`), of which those of before may not be."""
    kept = distinct(columns, found, taken)
    assert [each for each in found if each in kept] == kept
    more = grown(columns, kept, 300)
    made = list(taken)
    for attribute, _ in more:
        name = attribute
        while name in made:
            name += "_"
        made.append(name)
    before = {name.lower() for name in made[: len(taken) + len(columns)]}
    added = [name.lower() for name in made[len(taken) + len(columns) :]]
    assert len({*added} - before) == len(added)
    assert not distinct(more, kept, taken) or len(more) == 300


def test_capitals_alone_tell_no_columns_apart() -> None:
    found = [(name, "S", 1) for name in ("Stock", "stock", "STOCK", "item", "Item", "item_")]
    assert [name for name, *_ in distinct((("id", "text"),), found, ["item"])] == [
        *("Stock", "item", "item_"),
    ]
