"""Avro and Parquet by a column plan, read back by their own libraries."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import fastavro
import jsonschema
import pyarrow.parquet
from boto3.dynamodb.types import TypeDeserializer
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import Columns, Schema
from replicator.core.schemas import Format, Value, written
from replicator.testing.items import with_bytes
from tests.columns import COLUMNS, PLAN, TABLE, batch_of, exact, expected, items
from tests.kafka_records import records
from tests.property.test_decode import plain

fewer = settings(max_examples=60)
# Avro's names have letters, digits and `_` only.
FIELDS = [
    "name",
    "Price",
    "amount__kr_",
    "Stock",
    "is_open",
    "blob",
    "seen",
    "doc",
    "tags",
    "_1st",
    "na_ve",
]


def held(values: Mapping[str, Any]) -> list[Any]:
    """Per column its value as the oracle has it: numbers from text, documents from JSON."""
    found = list(values.values())
    for i, kind in enumerate(PLAN.values()):
        if found[i] is not None:
            match kind:
                case "numeric":
                    found[i] = Decimal(found[i])
                case "numeric[]":
                    found[i] = [Decimal(text) for text in found[i]]
                case "jsonb":
                    found[i] = exact(found[i])
    return found


def document(item: Mapping[str, Any]) -> Any:
    deserialize = TypeDeserializer().deserialize
    return {name: plain(deserialize(with_bytes(value))) for name, value in item.items()}


def keyed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": {"S": str(i)}, **item} for i, item in enumerate(found)]


def registered(found: list[dict[str, Any]], columns: Columns, **more: Any) -> list[bytes]:
    """Each item's value by a schema, unframed."""
    batches = batch_of(found).kafka(1, form=Schema(7, columns, **more))
    values = [record.value or b"" for record in records(batches)]
    assert {value[:5] for value in values} == {b"\0\0\0\0\7"}
    return [value[5:] for value in values]


def schema(columns: Columns, format_: Format, value: Value) -> Any:
    return written(format_, value, tuple(columns.columns), "shop.products")


@fewer
@given(st.lists(items(), min_size=1, max_size=4))
def test_avro_equals_the_items(found: list[dict[str, Any]]) -> None:
    parsed = fastavro.parse_schema(schema(COLUMNS, "avro", "change"))
    for value, item in zip(registered(found, COLUMNS), keyed(found), strict=True):
        line: Any = fastavro.schemaless_reader(io.BytesIO(value), parsed, None)
        assert (line["table"], line["event"], line["old"]) == (TABLE, "INSERT", None)
        *_, rest = line["item"].values()
        assert list(line["item"]) == [*FIELDS, "extra"]
        assert (held(dict(list(line["item"].items())[:-1])), exact(rest)) == expected(item)
    alone = fastavro.parse_schema(schema(COLUMNS, "avro", "item"))
    for value, item in zip(registered(found, COLUMNS, value="item"), keyed(found), strict=True):
        read: Any = fastavro.schemaless_reader(io.BytesIO(value), alone, None)
        assert exact(read.pop("extra")) == expected(item)[1]
        assert held(read) == expected(item)[0]


@fewer
@given(st.lists(items(), min_size=1, max_size=4))
def test_json_by_a_schema_equals_the_items(found: list[dict[str, Any]]) -> None:
    kinds: tuple[Value, ...] = ("change", "item")
    for kind in kinds:
        validator = jsonschema.Draft7Validator(schema(COLUMNS, "json_schema", kind))
        values = registered(found, COLUMNS, format="json_schema", value=kind)
        for value, item in zip(values, keyed(found), strict=True):
            validator.validate(json.loads(value))
            read = exact(value) if kind == "item" else exact(value)["item"]
            rest = read.pop("extra", {})
            assert read | rest == document(item)
            assert rest.keys() == expected(item)[1].keys()


@fewer
@given(st.lists(items(), min_size=1, max_size=4))
def test_parquet_equals_the_items(found: list[dict[str, Any]]) -> None:
    file = batch_of(found).parquet(COLUMNS)
    assert file == batch_of(found).parquet(COLUMNS), "the same batch gives the same bytes"
    rows = pyarrow.parquet.read_table(io.BytesIO(file)).to_pylist()
    for row, item in zip(rows, keyed(found), strict=True):
        values = {name: row[name] for name in PLAN}
        assert (held(values), exact(row["extra"])) == expected(item)
        assert json.loads(row["item"]) == item
        assert row["old"] is None


@fewer
@given(st.lists(items(), min_size=1, max_size=4))
def test_parquet_documents_equal_the_items(found: list[dict[str, Any]]) -> None:
    rows = pyarrow.parquet.read_table(io.BytesIO(batch_of(found).parquet())).to_pylist()
    assert [exact(row["item"]) for row in rows] == [document(item) for item in keyed(found)]
    assert [exact(row["key"]) for row in rows] == [{"id": str(i)} for i in range(len(found))]


@fewer
@given(items())
def test_a_plan_of_nothing_keeps_everything(item: dict[str, Any]) -> None:
    (value,) = registered([item], Columns([]), format="json_schema", value="item")
    assert exact(value) == {"extra": document({"id": {"S": "0"}, **item})}
