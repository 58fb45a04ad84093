"""What a batch says about itself, and what becomes of its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

import replicator._core as core
from replicator._core import ChangeBatch, Records, decode


def record(
    key: str = "k",
    us: int = 1000,
    value: int = 0,
    event: str = "MODIFY",
    id: str | None = None,  # noqa: A002
    table: str | None = "t",
) -> bytes:
    image = {"id": {"S": key}, "n": {"N": str(value)}}
    return json.dumps(
        {
            "eventID": id,
            "eventName": event,
            "tableName": table,
            "dynamodb": {
                "ApproximateCreationDateTime": us,
                "ApproximateCreationDateTimePrecision": "MICROSECOND",
                "Keys": {"id": {"S": key}},
                "NewImage": None if event == "REMOVE" else image,
                "OldImage": None if event == "INSERT" else {"id": {"S": key}, "n": {"N": "-1"}},
            },
        }
    ).encode()


def items(batch: ChangeBatch) -> list[Any]:
    return [json.loads(line)["item"]["n"] for line in batch.json_lines().splitlines()]


KEYS: list[tuple[str, Literal["S", "N", "B"]]] = [("id", "S")]


def test_the_version_is_the_crates() -> None:
    manifest = (Path(__file__).parents[2] / "rust" / "Cargo.toml").read_text("utf-8")
    assert f'version = "{core.__version__}"' in manifest


def test_every_code_is_a_slug_with_one_sentence() -> None:
    for code, meaning in core.REJECTION_CODES.items():
        assert code.replace("_", "").isalnum()
        assert code == code.lower()
        assert meaning.endswith(".")


def test_a_frame_error_is_a_value_error_with_a_code() -> None:
    assert issubclass(core.BodyError, ValueError)
    with pytest.raises(core.BodyError, match="checksum") as caught:
        core.EventStream().feed(b"x" * 20)
    assert caught.value.code == "prelude_checksum"


def test_pack_wants_one_length() -> None:
    with pytest.raises(ValueError, match="one length"):
        Records.pack([b"a"], ["1", "2"])
    with pytest.raises(ValueError, match="one length"):
        Records.pack([b"a"], None, [])


def test_records_know_their_ends() -> None:
    records = Records.pack([b"a", b"b"], ["1", "2"], [10, 20])
    assert (records.first_sequence_number, records.last_sequence_number) == ("1", "2")
    assert records.last_arrival_ms == 20
    assert records.nbytes >= 2
    empty = Records.pack([])
    assert (empty.first_sequence_number, empty.last_arrival_ms, len(empty)) == (None, None, 0)


def test_a_batch_counts_everything() -> None:
    payloads = [
        record(us=5, id="a"),
        record(us=3, id="b", table="u"),
        record(us=5, id="a"),
        b"nonsense",
        record(us=9, table=None),
    ]
    batch = decode(Records.pack(payloads, ["1", "2", "3", "4", "5"], [1, 2, 3, 4, 5]))
    assert (len(batch), batch.duplicates, len(batch.rejections), batch.records) == (3, 1, 1, 5)
    assert batch.tables == {None: 1, "t": 1, "u": 1}
    assert (batch.first_event_us, batch.last_event_us) == (3, 9)
    assert (batch.first_sequence_number, batch.last_sequence_number) == ("1", "5")
    assert batch.last_arrival_ms == 5
    assert batch.nbytes > sum(map(len, payloads))


def test_an_empty_batch_is_a_batch() -> None:
    for batch in (decode(Records.pack([])), ChangeBatch.concat([])):
        assert (len(batch), batch.records, batch.tables, batch.json_lines()) == (0, 0, {}, b"")
        assert batch.first_event_us is None
        assert batch.first_sequence_number is None
        rows = batch.newest("t", KEYS)
        assert (len(rows), rows.folded, rows.deletes) == (0, 0, 0)
        assert rows.copy().endswith(b"\xff\xff")


def test_keep_all_keeps_the_order_of_arrival_and_duplicates() -> None:
    payloads = [record(us=3, id="x", value=3), record(us=1, value=1), record(us=3, id="x", value=3)]
    batch = decode(Records.pack(payloads), keep_all=True)
    assert items(batch) == [3, 1, 3]
    assert batch.duplicates == 0
    rows = batch.newest("t", KEYS)
    assert json.loads(rows.record(0, "c", "m").raw)["dynamodb"]["ApproximateCreationDateTime"] == 3


def test_a_table_is_named_by_the_caller_only_where_the_record_names_none() -> None:
    batch = decode(Records.pack([record(table=None), record("j")]), table="given")
    assert batch.tables == {"given": 1, "t": 1}
    (rejection,) = decode(Records.pack([b"{}"]), table="given").rejections
    assert rejection.table == "given"
    (rejection,) = decode(Records.pack([b'{"tableName":"own"}']), table="given").rejections
    assert rejection.table == "own"


def test_concat_orders_and_dedupes_across_parts() -> None:
    first = decode(Records.pack([record(us=2, value=2, id="b"), b"bad"]))
    second = decode(Records.pack([record(us=1, value=1, id="a"), record(us=2, value=2, id="b")]))
    third = decode(Records.pack([b"{}", record("j", us=3, value=3)]))
    batch = ChangeBatch.concat([first, second, third])
    assert items(batch) == [1, 2, 3]
    assert (batch.duplicates, batch.records) == (1, 6)
    assert [(r.part, r.index) for r in batch.rejections] == [(0, 1), (2, 0)]
    assert batch.tables == {"t": 3}
    again = ChangeBatch.concat([batch])
    assert again.json_lines() == batch.json_lines()
    assert batch.nbytes >= first.nbytes


def test_parts_are_those_of_the_outermost_concat() -> None:
    bad_key = record("k", id="x").replace(b'"Keys"', b'"Old"')
    one, two = (decode(Records.pack([record(k, id=k), bad_key])) for k in "ab")
    batch = ChangeBatch.concat([ChangeBatch.concat([one, two]), decode(Records.pack([b"{}"]))])
    assert [r.part for r in batch.rejections] == [0, 0, 1]
    rows = batch.newest("t", KEYS)
    assert [rows.record(row, "c", "m").part for row in range(len(rows))] == [0, 0]
    assert [r.part for r in batch.newest("t", [("id", "N")]).rejections] == [0, 0]


def test_concat_maps_tables_by_name() -> None:
    parts = [
        decode(Records.pack([record("a", table="x"), record("b", table="y")])),
        decode(Records.pack([record("c", table="y"), record("d", table=None)])),
        decode(Records.pack([record("e", table="x")])),
    ]
    batch = ChangeBatch.concat(parts)
    assert batch.tables == {"x": 2, "y": 2, None: 1}
    assert len(batch.newest("y", KEYS)) == 2
    assert len(batch.newest("z", KEYS)) == 0


def test_a_poison_row_gives_way_to_the_next_newest() -> None:
    payloads = [record("a", us, us) for us in (1, 2, 3)] + [record("b", 1)]
    rows = decode(Records.pack(payloads, list("1234"))).newest("t", KEYS)

    def newest_of_a() -> tuple[int, int]:
        found = [rows.record(i, "c", "m") for i in range(len(rows))]
        return next((i, r.index) for i, r in enumerate(found) if b'"a"' in r.raw)

    for index in (2, 1, 0):
        row, found = newest_of_a()
        assert found == index
        rejection = rows.record(row, "some_code", "some message")
        assert (rejection.code, rejection.message) == ("some_code", "some message")
        assert (rejection.sequence_number, rejection.table) == (str(index + 1), "t")
        assert rejection.raw == payloads[index]
        rows = rows.without([row])
    assert len(rows) == 1
    assert rows.folded == 0


def test_rows_that_are_not_there() -> None:
    rows = decode(Records.pack([record()])).newest("t", KEYS)
    with pytest.raises(IndexError):
        rows.record(1, "c", "m")
    with pytest.raises(IndexError):
        rows.without([1])
    assert rows.copy(1) == rows.copy(0, 0)
    assert rows.copy(0, 100) == rows.copy()


def test_earlier_rejections_are_kept() -> None:
    payloads = [record("a", 1), record("a", 2).replace(b'"NewImage"', b'"Other"')]
    rows = decode(Records.pack(payloads)).newest("t", KEYS)
    assert [r.code for r in rows.rejections] == ["missing_new_image"]
    assert len(rows) == 1
    assert [r.code for r in rows.without([0]).rejections] == ["missing_new_image"]
    assert len(rows.without([0])) == 0


def test_a_form_or_type_that_is_none_is_refused() -> None:
    batch = decode(Records.pack([record()]))
    with pytest.raises(ValueError, match="plain"):
        batch.json_lines("other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="type"):
        batch.newest("t", [("id", "BOOL")])  # type: ignore[list-item]


def test_a_rejection_keeps_only_what_it_says() -> None:
    records = Records.document(b"\n" + record() + b"\n{\n")
    (rejection,) = decode(records).rejections
    assert (rejection.line, rejection.index, rejection.part) == (3, 1, 0)
    assert rejection.raw == b"{"
    assert rejection.sequence_number == ""
    assert "byte 1" in rejection.message


def test_a_character_cut_between_two_records_is_valid_in_neither() -> None:
    whole = record("é").replace(b"\\u00e9", "é".encode())
    cut = whole.index("é".encode()) + 1
    batch = decode(Records.pack([whole[:cut], whole[cut:], whole]))
    assert [(r.index, r.code) for r in batch.rejections] == [
        (0, "invalid_utf8"),
        (1, "invalid_utf8"),
    ]
    assert len(batch) == 1


def test_key_types_that_differ_are_no_rows() -> None:
    batch = decode(Records.pack([record()]))
    for keys in ([("id", "N")], [("other", "S")], [("id", "S"), ("range", "S")], []):
        rows = batch.newest("t", keys)  # type: ignore[arg-type]
        assert len(rows) == 0
        assert [r.code for r in rows.rejections] == ["key_mismatch"]
