"""Avro, Parquet and DynamoDB's requests: what surrounds the items."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from replicator._core import ChangeBatch, Columns, Records, decode
from tests.changes import number, put, remove

KEY = {"id": {"S": "ä\n"}}
US = 1_706_542_773_915_835


def batch() -> ChangeBatch:
    """An insert, its update, and a delete."""
    payloads = [
        put("t", KEY, US, n={"N": "1.50"}, tags={"SS": ["b", "a"]}),
        put("t", KEY, US + 1, {**KEY, "n": {"N": "1.50"}}, n={"N": "1E2"}, item={"S": "x"}),
        remove("t", KEY, US + 2),
    ]
    return decode(Records.pack(payloads, [number(n) for n in range(3)]))


def read(file: bytes) -> pa.Table:
    return pyarrow.parquet.read_table(io.BytesIO(file))


# ---- Parquet


def test_parquet_tells_where_each_change_is_from() -> None:
    table = read(batch().parquet())
    assert table.schema.names == (
        "table event event_id key version event_time sequence_number item old".split()
    )
    assert table.schema.field("event_time").type == pa.timestamp("us", "UTC")
    rows = table.to_pylist()
    assert [row["event"] for row in rows] == ["INSERT", "MODIFY", "REMOVE"]
    assert [row["sequence_number"] for row in rows] == [number(n) for n in range(3)]
    assert [row["version"] for row in rows] == [str(US + n) for n in range(3)]
    assert len({row["event_id"] for row in rows}) == 3
    assert rows[0] | {"event_id": ""} == {
        "table": "t",
        "event": "INSERT",
        "event_id": "",
        "key": '{"id":"ä\\n"}',
        "version": str(US),
        "event_time": datetime.fromtimestamp(US // 10**6, UTC).replace(microsecond=915835),
        "sequence_number": number(0),
        "item": '{"id":"ä\\n","n":1.50,"tags":["a","b"]}',
        "old": None,
    }
    assert (rows[1]["old"], rows[2]["item"]) == ('{"id":"ä\\n","n":1.50}', None)


def test_parquet_columns_stand_beside_the_images() -> None:
    columns = Columns([("n", "numeric(30,2)"), ("item", "text"), ("tags", "text[]")], rest=None)
    table = read(batch().parquet(columns, compression="none"))
    assert table.schema.names[7:] == ["n", "item_", "tags", "item", "old"]
    assert table.schema.field("n").type == pa.decimal128(30, 2)
    rows = table.to_pylist()
    assert [row["n"] for row in rows] == [Decimal("1.50"), Decimal(100), None]
    assert [row["item_"] for row in rows] == [None, "x", None]
    assert [row["tags"] for row in rows] == [["a", "b"], None, None]
    assert json.loads(rows[1]["item"])["n"] == {"N": "1E2"}
    assert json.loads(rows[2]["old"]) == KEY


def test_parquet_compresses_as_told() -> None:
    found = decode(Records.pack([put("t", {"id": {"N": str(i)}}, US + i) for i in range(3000)]))
    plain, fast, slow = (
        found.parquet(compression="none"),
        found.parquet(level=1),
        found.parquet(level=19),
    )
    assert len(plain) > len(fast) > len(slow)
    assert read(plain) == read(fast) == read(slow)
    wrong: Any
    for wrong, level in (("zstd", 23), ("zstd", 0), ("gzip", 3)):
        with pytest.raises(ValueError, match="compression must be"):
            found.parquet(compression=wrong, level=level)


def test_an_empty_batch_is_a_file_without_rows() -> None:
    empty = decode(Records.pack([]))
    assert read(empty.parquet()).num_rows == 0
    assert read(empty.parquet(Columns([("a", "bytea[]"), ("b", "boolean")]))).num_rows == 0


# ---- DynamoDB


def test_items_are_the_wires_without_blanks() -> None:
    change: Any = json.loads(put("t", KEY, US, n={"N": "1.50"}, v={"S": "theirs"}))
    rows = decode(Records.pack([json.dumps(change, indent=2).encode()])).newest("t", [("id", "S")])
    ((key, item),) = rows.dynamodb_items()
    assert (key, item) == (
        b'{"id":{"S":"\\u00e4\\n"}}',
        b'{"id":{"S":"\\u00e4\\n"},"n":{"N":"1.50"},"v":{"S":"theirs"}}',
    )
    ((_, item),) = rows.dynamodb_items(version_attribute="v", generation=7)
    assert item is not None
    assert json.loads(item) == {
        **KEY,
        "n": {"N": "1.50"},
        "v": {"S": f"{7:010}-{US:040}"},
    }


def test_a_delete_has_no_item_and_no_put() -> None:
    rows = decode(Records.pack([remove("t", KEY, US)])).newest("t", [("id", "S")])
    ((key, item),) = rows.dynamodb_items(version_attribute="v")
    assert (json.loads(key), item) == (KEY, None)
    assert rows.dynamodb_puts("copy", version_attribute="v") == [None]


def test_a_transaction_takes_fifty_rows() -> None:
    payloads = [put("t", {"id": {"S": str(i)}}, US + i) for i in range(101)]
    rows = decode(Records.pack(payloads)).newest("t", [("id", "S")])
    bodies = rows.dynamodb_transactions("copy", "side", version_attribute="v", rows_max=50)
    assert [len(json.loads(body)["TransactItems"]) for body in bodies] == [100, 100, 2]
    assert len(rows.dynamodb_transactions("copy", "side", 1, 3, version_attribute="v")) == 2
    for wrong in (0, 51):
        with pytest.raises(ValueError, match="rows_max must be 1 to 50"):
            rows.dynamodb_transactions("copy", "side", version_attribute="v", rows_max=wrong)
