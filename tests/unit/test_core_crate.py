"""Rows as CrateDB's bulk arguments, byte by byte."""

from __future__ import annotations

import json

from replicator._core import Records, decode
from tests.changes import put, remove


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
