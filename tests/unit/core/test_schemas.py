"""Schemas of values: what grows them, how they are written, what is read of others'."""

from __future__ import annotations

import json
from typing import Any

import fastavro
import pytest

from replicator._core import Columns as Plan
from replicator.core.schemas import (
    Columns,
    columns_of,
    grown,
    is_written,
    joined,
    namespace_of,
    record_name,
    text_of,
    written,
)

PLAN: Columns = (("id", "text"), ("a b", "numeric"), ("a-b", "jsonb"), ("at", "timestamptz"))


def test_an_attribute_gets_the_type_that_it_mostly_came_with() -> None:
    unplanned = [
        ("price", "S", 2),
        ("price", "N", 3),
        ("gone", "NULL", 9),
        ("tree", "M", 1),
        ("tree", "L", 1),
        ("extra", "S", 1),
        ("x" * 129, "S", 1),
    ]
    assert grown((("id", "text"),), unplanned, 9) == (
        ("id", "text"),
        ("price", "numeric"),
        ("tree", "jsonb"),
    )


def test_a_limit_leaves_the_later_attributes_to_the_rest() -> None:
    found = [(name, "S", 1) for name in "bcd"]
    assert grown((("a", "text"),), found, 3) == (("a", "text"), ("b", "text"), ("c", "text"))
    assert grown(PLAN, found, 2) == PLAN, "what is there stays"


def test_another_workers_columns_stay_what_and_where_they_are() -> None:
    theirs: Columns = (("b", "text"), ("a", "numeric"))
    ours: Columns = (("a", "text"), ("c", "boolean"))
    assert joined(theirs, ours, {}) == (*theirs, ("c", "boolean"))
    told = {"a": "numeric(9,2)"}
    assert joined(theirs, ours, told) == (("b", "text"), ("a", "numeric(9,2)"), ("c", "boolean"))


def test_workers_that_join_keep_to_the_limit() -> None:
    theirs: Columns = (("b", "text"), ("a", "numeric"))
    ours: Columns = (("x", "text"), ("y", "boolean"), ("z", "text"))
    assert joined(theirs, ours, {}, 3) == (*theirs, ("x", "text"))
    assert joined(theirs, ours, {}, 1) == theirs, "what is there stays"
    assert joined(theirs, ours, {"z": "bigint"}, 2) == (*theirs, ("z", "bigint")), "as was told"
    many = tuple((f"a{n}", "text") for n in range(1_500))
    Plan(joined(many, ours, {"x": "text"}), "extra")


def test_names_are_what_avro_allows_and_distinct() -> None:
    attributes = ["a b", "a-b", "1st", "", "ï", "extra "]
    columns = tuple((name, "text") for name in attributes)
    schema = written("avro", "item", columns, namespace_of("my-table.1"))
    names = [field["name"] for field in schema["fields"]]
    assert names == ["a_b", "a_b_", "_1st", "_", "__", "extra_", "extra"]
    assert schema["namespace"] == "replicator.my_table_1"
    fastavro.parse_schema(schema)
    assert columns_of("avro", "item", schema) == columns


def test_a_column_that_is_added_renames_no_other() -> None:
    before = written("avro", "item", PLAN, "n")["fields"][:-1]
    after = written("avro", "item", (*PLAN, ("a_b", "text"), ("a_b_", "text")), "n")["fields"]
    assert after[: len(before)] == before


@pytest.mark.parametrize("value", ["change", "item"])
@pytest.mark.parametrize("format_", ["avro", "json_schema"])
def test_what_is_written_is_read_back(format_: Any, value: Any) -> None:
    schema = json.loads(text_of(written(format_, value, PLAN, "shop.products")))
    assert columns_of(format_, value, schema) == PLAN
    assert is_written(format_, value, schema, PLAN)
    assert not is_written(format_, value, schema, PLAN[:-1])
    assert record_name(value, "shop.products") in {
        f"{schema.get('namespace')}.{schema.get('name')}",
        schema.get("title"),
    }


def test_types_of_a_schema_by_hand_are_told_by_avros_own() -> None:
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    instant = {"type": "long", "logicalType": "timestamp-micros"}
    types: dict[str, Any] = {
        "text": "string",
        "numeric(9,2)": decimal,
        "bigint": "long",
        "timestamptz": instant,
        "bytea": {"type": "bytes"},
        "text[]": {"type": "array", "items": "string"},
    }
    fields = [{"name": f"f{n}", "type": ["null", kind]} for n, kind in enumerate(types.values())]
    schema = {
        "type": "record",
        "name": "P",
        "fields": [*fields, {"name": "extra", "type": "string"}],
    }
    found = columns_of("avro", "item", schema)
    assert found == tuple((f"f{n}", kind) for n, kind in enumerate(types))
    assert is_written("avro", "item", schema, found)


@pytest.mark.parametrize(
    "field",
    [
        {"name": "a", "type": "string"},
        {"name": "a", "type": ["string", "null"]},
        {"name": "a", "type": ["null", "int"]},
        {"name": "a", "type": ["null", "double"]},
        {"name": "a", "type": ["null", "string"], "column": "bigint"},
        {
            "name": "a",
            "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 50}],
        },
        {"name": "a", "type": ["null", {"type": "record", "name": "R", "fields": []}]},
    ],
)
def test_a_field_that_we_cannot_write_makes_the_schema_foreign(field: dict[str, Any]) -> None:
    rest = {"name": "extra", "type": "string"}
    schema = {"type": "record", "name": "P", "fields": [field, rest]}
    columns = columns_of("avro", "item", schema)
    is_text = field.get("column") == "bigint"
    assert columns == ((("a", "text"),) if is_text else ())
    assert is_written("avro", "item", schema, columns) == is_text


@pytest.mark.parametrize("schema", [None, 1, "string", [], {}, {"type": "record"}, {"fields": [1]}])
@pytest.mark.parametrize("value", ["change", "item"])
@pytest.mark.parametrize("format_", ["avro", "json_schema"])
def test_anything_may_stand_in_a_registry(format_: Any, value: Any, schema: Any) -> None:
    assert columns_of(format_, value, schema) == ()
    assert not is_written(format_, value, schema, ())


def test_members_named_like_words_of_json_schema_are_members() -> None:
    columns: Columns = tuple((name, "numeric") for name in ("title", "default", "type", "column"))
    schema = written("json_schema", "item", columns, "n")
    assert columns_of("json_schema", "item", schema) == columns
    assert not is_written("json_schema", "item", schema, columns[1:])
