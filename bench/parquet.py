"""Parquet from decoded changes, against the ways that pyarrow offers.

document   Ours writes a row a change from a decoded batch: provenance, both images as JSON text.
           The peers begin with the same changes as JSON lines, made beforehand: `loads` of each,
           `dumps` of key and images, `Table.from_pylist`, `write_table`; once with orjson, once
           with the standard library (on a fifth of the changes). `arrow` begins with our own
           file, read into Arrow beforehand, and only writes it: the floor of pyarrow's.
columns    Ours writes the same provenance, seven typed columns of the new image and the rest, but
           no images. The peers leave out the rest and take floats for decimals: `column rows` goes
           by orjson and `from_pylist`, `read_json` lets pyarrow parse the lines (explicit schema,
           all else ignored, one thread as ours has) and flattens them.

All compress by zstd at level 1, pyarrow's default. Rates are MB/s of the changes' JSON lines.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from bench import core
from bench.timing import Rates, interleaved
from replicator import _core

LEVEL = 1
# The attributes of the small shape.
COLUMNS = {
    "id": "text",
    "name": "text",
    "SKU": "text",
    "Category": "text",
    "Stock": "bigint",
    "Price": "numeric(12,2)",
    "Weight": "numeric",
}
_ARROW = {"text": pa.string(), "bigint": pa.int64()}
_ITEM = pa.struct([(name, _ARROW.get(kind, pa.float64())) for name, kind in COLUMNS.items()])
_HEAD = [
    *((name, pa.string()) for name in ("table", "event", "event_id", "version")),
    ("event_time", pa.int64()),
]

Batches = list[_core.ChangeBatch]
Lines = list[bytes]


def _write(table: pa.Table) -> None:
    pyarrow.parquet.write_table(table, io.BytesIO(), compression="zstd", compression_level=LEVEL)


def _ours(batches: Batches, columns: _core.Columns | None) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            batch.parquet(columns, images=columns is None, level=LEVEL)

    return run


def _documents(
    batches: list[Lines], loads: Callable[[bytes], Any], dumps: Callable[[Any], str | bytes]
) -> Callable[[], None]:
    def row(line: bytes) -> dict[str, Any]:
        found: dict[str, Any] = loads(line)
        for name in ("key", "item", "old"):
            if found[name] is not None:
                found[name] = dumps(found[name])
        return found

    def run() -> None:
        for lines in batches:
            _write(pa.Table.from_pylist([row(line) for line in lines]))

    return run


def _arrow(batches: Batches) -> Callable[[], None]:
    tables = [pyarrow.parquet.read_table(io.BytesIO(batch.parquet())) for batch in batches]

    def run() -> None:
        for table in tables:
            _write(table)

    return run


def _rows(batches: list[Lines]) -> Callable[[], None]:
    schema = pa.schema([*_HEAD, ("key", pa.string()), *_ITEM])

    def row(line: bytes) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(line)
        return {**found, "key": orjson.dumps(found["key"]), **(found["item"] or {})}

    def run() -> None:
        for lines in batches:
            _write(pa.Table.from_pylist([row(line) for line in lines], schema=schema))

    return run


def _read_json(batches: list[Lines]) -> Callable[[], None]:
    schema = pa.schema([*_HEAD, ("key", pa.struct([("id", pa.string())])), ("item", _ITEM)])
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    wholes = [b"\n".join(lines) for lines in batches]

    def run() -> None:
        for whole in wholes:
            table = pyarrow.json.read_json(
                io.BytesIO(whole),
                read_options=pyarrow.json.ReadOptions(use_threads=False),
                parse_options=options,
            )
            _write(table.flatten())

    return run


def measure(shape: str, *, is_quick: bool) -> Rates:
    """One shape, its variants taking turns."""
    _, packed = core.packed(shape, is_quick=is_quick)
    batches = [_core.decode(batch) for batch in packed]
    lines = [_lines(batch) for batch in batches]
    prefix = [part[: max(1, len(part) // 5)] for part in lines]
    variants = {
        "document": _ours(batches, None),
        "orjson rows": _documents(lines, orjson.loads, orjson.dumps),
        "json rows": _documents(prefix, json.loads, json.dumps),
        "arrow": _arrow(batches),
    }
    if shape == "small":
        columns = _core.Columns(list(COLUMNS.items()))
        assert not batches[0].misses(columns), "a fast refusal is no result"
        variants |= {
            "columns": _ours(batches, columns),
            "column rows": _rows(lines),
            "read_json": _read_json(lines),
        }
    _check(batches, lines)
    timings = interleaved(variants, rounds=3 if is_quick else 9)

    def nbytes(name: str) -> int:
        return sum(
            len(line) for part in (prefix if name == "json rows" else lines) for line in part
        )

    return Rates(
        rates={
            name: round(nbytes(name) / timing.best / 1e6, 1) for name, timing in timings.items()
        },
        spreads={name: timing.spread for name, timing in timings.items()},
    )


def _lines(batch: _core.ChangeBatch) -> Lines:
    """JSON lines, and in each what only Parquet's columns have."""
    table = pyarrow.parquet.read_table(io.BytesIO(batch.parquet(_core.Columns([]), images=False)))
    ids = table.column("event_id").to_pylist()
    times = table.column("event_time").cast(pa.int64()).to_pylist()
    return [
        line[:-1] + f',"event_id":"{id_}","event_time":{us}}}'.encode()
        for line, id_, us in zip(batch.json_lines().splitlines(), ids, times, strict=True)
    ]


def _check(batches: Batches, lines: list[Lines]) -> None:
    """What is fast holds what it should."""
    table = pyarrow.parquet.read_table(io.BytesIO(batches[0].parquet(level=LEVEL)))
    found = [orjson.loads(line)["item"] for line in lines[0]]
    items = table.column("item").to_pylist()
    assert [item and orjson.loads(item) for item in items] == found
