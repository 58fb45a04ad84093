"""Avro and Parquet by a column plan, read back by their own libraries."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow.parquet
from boto3.dynamodb.types import TypeDeserializer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replicator._core import Columns
from replicator.testing.items import with_bytes
from tests.columns import COLUMNS, PLAN, TABLE, avro_records, batch_of, exact, expected, items
from tests.property.test_decode import plain

patient = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
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


@patient
@given(st.lists(items(), min_size=1, max_size=4))
def test_avro_equals_the_items(found: list[dict[str, Any]]) -> None:
    file = batch_of(found).avro(COLUMNS, name="shop.Product")
    for line, item in zip(avro_records(file), keyed(found), strict=True):
        assert (line["table"], line["event"], line["old"]) == (TABLE, "INSERT", None)
        *_, rest = line["item"].values()
        assert list(line["item"]) == [*FIELDS, "extra"]
        assert (held(dict(list(line["item"].items())[:-1])), exact(rest)) == expected(item)
    schema = json.loads(COLUMNS.avro_schema("shop.Product"))
    fastavro.parse_schema(schema)
    written: Any = fastavro.reader(io.BytesIO(file)).writer_schema
    assert written["fields"][4]["type"][1]["fields"] == schema["fields"]


@patient
@given(st.lists(items(), min_size=1, max_size=4))
def test_avro_documents_equal_the_lines(found: list[dict[str, Any]]) -> None:
    batch = batch_of(found)
    for form in ("plain", "dynamodb"):
        file = batch.avro(form=form)
        assert file == batch_of(found).avro(form=form), "the same batch gives the same bytes"
        lines = [exact(line) for line in batch.json_lines(form).splitlines()]
        read = avro_records(file)
        for line in read:
            for name in ("key", "item", "old"):
                line[name] = None if line[name] is None else exact(line[name])
        assert read == lines


@patient
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


@patient
@given(st.lists(items(), min_size=1, max_size=4))
def test_parquet_documents_equal_the_items(found: list[dict[str, Any]]) -> None:
    rows = pyarrow.parquet.read_table(io.BytesIO(batch_of(found).parquet())).to_pylist()
    assert [exact(row["item"]) for row in rows] == [document(item) for item in keyed(found)]
    assert [exact(row["key"]) for row in rows] == [{"id": str(i)} for i in range(len(found))]


@patient
@given(items())
def test_a_plan_of_nothing_keeps_everything(item: dict[str, Any]) -> None:
    (line,) = avro_records(batch_of([item]).avro(Columns([])))
    assert exact(line["item"]["extra"]) == document({"id": {"S": "0"}, **item})
