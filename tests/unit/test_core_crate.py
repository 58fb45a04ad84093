"""Rows as CrateDB's bulk arguments, byte by byte, and as a Parquet file with the same in it."""

from __future__ import annotations

import io
import json

import pyarrow.parquet as pq
import pytest

from replicator._core import Records, Rows, decode
from tests.changes import Image, number, put, remove


def columns(rows: Rows) -> list[list[object]]:
    """What a Parquet file of the rows must hold, by their bulk arguments; `item` as CrateDB's
    object is left out."""
    found = [list(column) for column in zip(*json.loads(rows.crate_args()), strict=True)]
    found[-1] = [bytes.fromhex(str(chain)) for chain in found[-1]]
    return [*found[:-5], *found[-4:]]


def test_a_parquet_file_holds_the_same() -> None:
    """Batches apart, so that items lie in several arenas; one instant of two changes; a delete."""
    payloads = []
    for n in range(400):
        key: Image = {"n": {"N": f"{n % 70}.50"}, "id": {"S": f'é "{n % 70}'}}
        us = 1_700_000_000_000_000 + 400 * (n // 2)
        changed: Image = {"v": {"N": "1E+3"}, "t": {"S": f"東京\n{n}" * (n % 7)}}
        is_delete = n % 9 == 0
        payloads.append(remove("t", key, us) if is_delete else put("t", key, us, **changed))
    parts = [
        decode(Records.pack(payloads[i::3], [number(n) for n in range(len(payloads[i::3]))]))
        for i in range(3)
    ]
    rows = type(parts[0]).concat(parts).newest("t", [("id", "S"), ("n", "N")])
    assert len(rows) == 70
    assert 0 < rows.deletes < 70
    table = pq.read_table(io.BytesIO(rows.parquet(["id", "item_"])))
    assert table.column_names == ["id", "item_", "item", "version", "deleted", "chain"]
    assert [column.to_pylist() for column in table.columns] == columns(rows)


def test_a_parquet_file_wants_a_name_for_each_key_attribute() -> None:
    rows = decode(Records.pack([put("t", {"id": {"S": "a"}}, 1)])).newest("t", [("id", "S")])
    with pytest.raises(ValueError, match="each key attribute"):
        rows.parquet([])


def test_no_rows_are_a_file_without_rows() -> None:
    rows = decode(Records.pack([])).newest("t", [("id", "S")])
    table = pq.read_table(io.BytesIO(rows.parquet(["id"])))
    assert (table.num_rows, table.num_columns) == (0, 5)


def test_rows_as_bulk_arguments() -> None:
    key = {"id": {"S": 'a"b'}, "n": {"N": "1.20E+3"}}
    other = {"id": {"S": "z"}, "n": {"N": "-0.50"}}
    payloads = [
        put("t", key, 1_700_000_000_123_456, v={"N": "5"}, s={"S": "é\n"}),
        remove("t", other, 7),
    ]
    rows = decode(Records.pack(payloads)).newest("t", [("n", "N"), ("id", "S")])
    args = rows.crate_args(generation=3)
    deleted, written = sorted(json.loads(args), key=lambda row: row[-2], reverse=True)
    chain = written.pop()
    assert len(chain) == 34
    plain = '{"id":"a\\"b","n":1.20E+3,"v":5,"s":"é\\n"}'
    zeros = "0" * 27
    assert written == [
        "1200",
        'a"b',
        {"id": 'a"b', "n": 1200.0, "v": 5.0, "s": "é\n"},
        plain,
        f"0000000003-{zeros}1700000000123.456",
        False,
    ]
    assert b'"v":5.0' in args
    assert deleted[:-1] == ["-0.5", "z", None, None, f"0000000003-{'0' * 40}.007", True]
    assert json.loads(rows.crate_args(0, 1)) + json.loads(rows.crate_args(1)) == json.loads(
        rows.crate_args()
    )
    assert rows.crate_args(2) == b"[]"
    assert b'"v":5,' in rows.crate_args(dynamic=False)


def test_binary_keys_are_base64() -> None:
    change = put("t", {"id": {"B": "AAECAw=="}}, 1)
    rows = decode(Records.pack([change])).newest("t", [("id", "B")])
    ((key, *_),) = json.loads(rows.crate_args())
    assert key == "AAECAw=="
    assert pq.read_table(io.BytesIO(rows.parquet(["id"])))["id"].to_pylist() == [key]
