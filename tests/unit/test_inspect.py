from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from replicator import inspect
from replicator.errors import FatalError


def payload(number: int, *, sort: str = "INSERT", size: int = 0) -> bytes:
    record = {
        "eventID": f"event-{number}",
        "eventName": sort,
        "tableName": "products",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_706_542_773_915_835 + number,
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
            "Keys": {"id": {"S": str(number)}},
            "NewImage": {"id": {"S": str(number)}, "Price": {"N": "0.30"}, "t": {"S": "x" * size}},
        },
    }
    return json.dumps(record).encode()


def run(
    data: bytes, file: str = "-", filters: Sequence[str] = ()
) -> tuple[int, list[dict[str, object]], list[dict[str, object]]]:
    out, err = io.BytesIO(), io.BytesIO()
    code = inspect.main(file, io.BytesIO(data), out, err, filters)
    return (
        code,
        [json.loads(line) for line in out.getvalue().splitlines()],
        [json.loads(line) for line in err.getvalue().splitlines()],
    )


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(inspect, "PIECE_BYTES", 1_000)
    return 1_000


def test_one_line_a_change_in_input_order_duplicates_included() -> None:
    lines = [payload(2), payload(1), payload(2)]
    code, changes, rejections = run(b"\n\n".join(lines) + b"\n")
    assert code == 0
    assert [change["version"][-1:] for change in changes] == ["7", "6", "7"]  # type: ignore[index]
    assert changes[0] == {
        "table": "products",
        "event": "INSERT",
        "key": {"id": "2"},
        "version": "1706542773915837",
        "item": {"id": "2", "Price": 0.3, "t": ""},
        "old": None,
    }
    assert rejections == []


def test_only_changes_that_match_a_filter_are_shown() -> None:
    keys = [json.dumps({"dynamodb": {"Keys": {"id": {"S": [str(n)]}}}}) for n in (1, 3)]
    code, changes, rejections = run(b"\n".join([payload(n) for n in range(4)] + [b"{"]), "-", keys)
    assert [change["key"] for change in changes] == [{"id": "1"}, {"id": "3"}]
    assert (code, len(rejections)) == (1, 1), "a refused record is shown, whatever is asked"
    with pytest.raises(FatalError, match=r"--filter: eventName: values stand in a list"):
        run(b"", "-", ['{"eventName": "INSERT"}'])


def test_numbers_keep_all_their_digits() -> None:
    digits = "0.12345678901234567890123456789012345678"
    data = payload(1).replace(b"0.30", digits.encode())
    assert digits.encode() in inspect.inspect(data).lines


def test_a_rejection_names_its_line_and_leaves_its_neighbours_alone() -> None:
    code, changes, rejections = run(payload(1) + b"\n\nnot json\n" + payload(2))
    assert code == 1
    assert len(changes) == 2
    (rejection,) = rejections
    assert list(rejection) == ["line", "code", "message", "raw_base64"]
    assert rejection["line"] == 3
    assert rejection["code"] == "malformed_json"
    assert base64.b64decode(str(rejection["raw_base64"])) == b"not json"


@pytest.mark.parametrize("data", [b"", b"\n \n\r\n", gzip.compress(b"", mtime=0)])
def test_nothing_gives_nothing(data: bytes) -> None:
    assert run(data) == (0, [], [])


def test_gzip_is_recognised_several_members_too() -> None:
    data = gzip.compress(payload(1) + b"\n") + gzip.compress(payload(2) + b"\n")
    code, changes, _ = run(data)
    assert code == 0
    assert [change["key"] for change in changes] == [{"id": "1"}, {"id": "2"}]


@pytest.mark.parametrize("cut", [1, 4, 9, 40])
def test_truncated_gzip_is_an_error_of_its_own(cut: int) -> None:
    data = gzip.compress(b"\n".join(payload(n) for n in range(20)))
    with pytest.raises(FatalError, match="ends in the middle") as caught:
        run(data[:-cut])
    assert caught.value.code == "input_truncated"


def test_broken_gzip_is_an_error_of_its_own() -> None:
    data = bytearray(gzip.compress(payload(1)))
    data[-6] ^= 1  # in the checksum
    with pytest.raises(FatalError, match="broken") as caught:
        run(bytes(data))
    assert caught.value.code == "input_corrupt"


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path: Path) -> None:
    for file in (tmp_path / "absent", tmp_path):
        with pytest.raises(FatalError) as caught:
            run(b"", str(file))
        assert caught.value.code == "usage_input"
        assert str(file) in caught.value.message


def test_a_file_is_read_like_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl.gz"
    file.write_bytes(gzip.compress(payload(1)))
    assert run(b"", str(file)) == run(payload(1))


@pytest.mark.parametrize("compressed", [False, True])
def test_long_input_goes_in_pieces_and_keeps_its_line_numbers(
    small_pieces: int, compressed: bool
) -> None:
    lines = [b"bad" if n % 7 == 3 else payload(n, size=n * 13 % 300) for n in range(100)]
    data = b"\n".join(lines)
    code, changes, rejections = run(gzip.compress(data) if compressed else data)
    assert code == 1
    assert [r["line"] for r in rejections] == [n + 1 for n in range(100) if n % 7 == 3]
    assert [c["key"] for c in changes] == [{"id": str(n)} for n in range(100) if n % 7 != 3]
    assert len(list(inspect.pieces(io.BytesIO(data), "-"))) > 10


def test_a_line_longer_than_a_piece_stays_whole(small_pieces: int) -> None:
    code, changes, _ = run(payload(1, size=5_000) + b"\n" + payload(2))
    assert code == 0
    assert len(changes) == 2


def test_a_line_without_end_is_refused(small_pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "LINE_BYTES_MAX", 3_000)
    with pytest.raises(FatalError, match="line 2 of") as caught:
        run(payload(1) + b"\n" + b" " * 10 + b"x" * 8_000)
    assert caught.value.code == "input_too_large"


@pytest.mark.parametrize("indent", [None, 1])
def test_a_long_event_document_is_read_whole(small_pieces: int, indent: int | None) -> None:
    records = [json.loads(payload(n, size=50)) for n in range(20)]
    data = json.dumps({"Records": records}, indent=indent).encode()
    (only,) = inspect.pieces(io.BytesIO(data), "-")
    assert only == (0, data)
    code, changes, rejections = run(data)
    assert (code, rejections) == (0, [])
    assert len(changes) == 20


def test_an_attribute_named_records_makes_no_document(small_pieces: int) -> None:
    line = payload(1).replace(b'"Price": {"N": "0.30"}', b'"Records": {"L": []}')
    _, changes, _ = run(b"\n".join([line] * 20))
    assert len(changes) == 20


def test_objects_without_a_delimiter_as_firehose_writes_them(
    small_pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "LINE_BYTES_MAX", 3_000)  # one line may be a whole object
    # Its records hold what looks like the border of two.
    row = b"".join(payload(n, size=50).replace(b'"xx', b'"}{') for n in range(40))
    code, changes, rejections = run(gzip.compress(row))
    assert (code, rejections) == (0, [])
    assert [change["key"] for change in changes] == [{"id": str(n)} for n in range(40)]
    (only,) = inspect.pieces(io.BytesIO(row), "-")
    assert only == (0, row)


def test_a_broken_object_in_a_row_costs_no_object_before_it() -> None:
    code, changes, rejections = run(payload(1) + payload(2) + b"{broken" + payload(3))
    assert code == 1
    assert [change["key"] for change in changes] == [{"id": "1"}, {"id": "2"}]
    (rejection,) = rejections
    assert base64.b64decode(str(rejection["raw_base64"])) == b"{broken" + payload(3)


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a", b"PK\x03\x04" + b"x" * 20, "a ZIP archive.*unzip -p"),
        ("a", b"\xff\x06\x00\x00sNaPpY", "Snappy.*CompressionFormat GZIP are read"),
        ("shop-1-2026-01-31-12-00-00-uuid.hsnappy", b"\0\0\1\0\0\0\0\x20", "Snappy"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\0", "zstd -dc"),
        ("a.parquet", b"PAR1", "Parquet.*duckdb"),
        ("a.orc", b"ORC", "ORC"),
    ],
)
def test_what_is_not_read_says_what_to_do(
    tmp_path: Path, name: str, data: bytes, what: str
) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(FatalError, match=what) as caught:
        run(b"", str(file))
    assert caught.value.code == "input_unsupported"
    assert str(file) in caught.value.message


@pytest.mark.parametrize("name", ["a.zip", "a.snappy", "a.parquet"])
def test_a_name_is_believed_only_where_the_bytes_say_nothing(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(gzip.compress(payload(1)))
    assert run(b"", str(file))[0] == 0
    file.write_bytes(payload(1))
    assert run(b"", str(file))[0] == 0


def test_a_reader_that_has_enough_is_no_error() -> None:
    class Closed(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    assert inspect.main("-", io.BytesIO(payload(1)), Closed(), io.BytesIO()) == 1
