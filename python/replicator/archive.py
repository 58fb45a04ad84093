"""`archive`: what an S3 sink has written, listed, printed and asked by SQL.

Objects are fetched with the sink's own credentials into a temporary folder, as Parquet of one
shape whatever their format is, and DuckDB reads them there: it needs no extension and no network.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import re
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from replicator import _core
from replicator.aws import AWSSettings
from replicator.config import Config
from replicator.core.schemas import REST
from replicator.core.start import resolved
from replicator.errors import FatalError
from replicator.model import Ago, PositionKind
from replicator.settings import parse_start
from replicator.sink.place import SinkPlace
from replicator.sink.s3_archive import ArchivedObject, S3Archive, Span
from replicator.sink.s3_settings import S3Config, S3Settings
from replicator.sink.together import together

if TYPE_CHECKING:
    import duckdb

_FETCHES_MAX = 8
# A member of a whole change. (In a text the quotes would be escaped, in an item its value typed.)
_POSITION = re.compile(rb'"position":"([0-9]+)"')
# What they are here, of what `ChangeBatch.parquet` calls them. (A time with a zone would need
# pytz on its way to Python.)
_COLUMNS = {
    "table": '"table"',
    "event": "event",
    "key": "key::JSON",
    "version": "version",
    "time": "event_time::TIMESTAMP",
    "item": "item::JSON",
    "old": "old::JSON",
    "event_id": "event_id",
    "position": "sequence_number",
}
_OWN = [source.partition("::")[0].strip('"') for source in _COLUMNS.values()]


@dataclass(frozen=True, slots=True)
class Asked:
    """Whose archive, and what of it: as the command line has them."""

    pipeline: str | None = None
    sink: str | None = None
    table: str | None = None
    begin: str | None = None
    end: str | None = None

    def span(self) -> Span:
        """The times as instants. Raises FatalError for what is none."""
        return Span(_instant(self.begin), _instant(self.end), self.table)


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of a query."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def as_dict(self) -> list[dict[str, Any]]:
        """For `--output json`: a member a column; what JSON has no form for is text."""
        return [
            {name: _plain(value) for name, value in zip(self.columns, row, strict=True)}
            for row in self.rows
        ]

    def as_text(self) -> str:
        """For people: columns side by side."""
        table = [self.columns, *(tuple(map(_shown, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        )


async def listed(config: Config, asked: Asked) -> list[ArchivedObject]:
    """The objects that may hold what is asked for. Raises TransientError and FatalError."""
    async with S3Archive.open(settings_of(config, asked)) as archive:
        return await archive.objects(asked.span())


async def printed(config: Config, asked: Asked) -> AsyncIterator[bytes]:
    """The changes, a line of JSON each and an object at a time: whole changes where they were
    written so, else what there is. Raises TransientError and FatalError."""
    settings, span = settings_of(config, asked), asked.span()
    async with S3Archive.open(settings) as archive:
        for each in await archive.objects(span):
            if (data := await archive.read(each.key)) is not None:
                yield await asyncio.to_thread(_lines, each, data, span)


async def queried(config: Config, asked: Asked, sql: str) -> Answer:
    """What a query says of the view `changes`. Raises TransientError and FatalError, also for
    what DuckDB refuses."""
    settings, span = settings_of(config, asked), asked.span()
    with tempfile.TemporaryDirectory(prefix="replicator-archive-") as folder:
        files: list[Path] = []
        async with S3Archive.open(settings) as archive:
            found = await archive.objects(span)
            for some in _some(list(enumerate(found)), _FETCHES_MAX):
                fetches = (_fetched(archive, each, Path(folder), n) for n, each in some)
                files += filter(None, await together(list(fetches)))
        return await asyncio.to_thread(_answer, files, span, sql)


def settings_of(config: Config, asked: Asked) -> S3Settings:
    """The S3 sink that is meant. Raises FatalError when there is none, or more than one."""
    pipeline = config.pipeline(asked.pipeline)
    sinks = [each for each in pipeline.sinks if isinstance(each, S3Config)]
    meant = [each for each in sinks if asked.sink in {None, each.name}]
    if len(meant) != 1:
        names = ", ".join(each.name for each in sinks)
        said = f"name one with --sink: {names}" if names else "an archive is a sink of kind s3"
        raise FatalError(
            "usage_sink", f"{pipeline.name} has {len(meant)} sinks that could be meant: {said}"
        )
    aws = AWSSettings(**(meant[0].aws or config.aws).model_dump())
    return meant[0].settings(SinkPlace(config.sink_name(pipeline, meant[0]), "archive", "", aws))


# ---- objects as files of one shape


async def _fetched(
    archive: S3Archive, each: ArchivedObject, folder: Path, number: int
) -> Path | None:
    if (data := await archive.read(each.key)) is None:
        return None
    path = folder / f"{number:09d}.parquet"
    await asyncio.to_thread(_write_parquet, each, data, path)
    return path


@contextmanager
def _reading(key: str) -> Iterator[None]:
    """For what is made of an object's bytes."""
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise FatalError(
            "archive_unreadable",
            f"{key}: {error}. What to do: look whether something else writes there, or ask for a "
            "narrower time",
        ) from error


def _write_parquet(each: ArchivedObject, data: bytes, path: Path) -> None:
    with _reading(each.key):
        if each.key.endswith(".parquet"):
            path.write_bytes(data)
            _make_plain(path)
            return
        text = _unpacked(each.key, data)
        if text.lstrip()[:9] == b'{"table":':  # `plain`: no whole change
            _write_plain(text, path)
            return
        batch = _core.decode(_records(text), keep_all=True)
        if batch.rejections:
            first = batch.rejections[0]
            raise ValueError(f"record {first.index + 1}: {first.message}")
        path.write_bytes(batch.parquet(compression="none"))


def _make_plain(path: Path) -> None:
    """Images beside typed columns are in DynamoDB's JSON; here they are plain, as in all others."""
    with _connected() as connection:
        described = f"DESCRIBE SELECT * FROM read_parquet('{path}')"  # noqa: S608 a path of our own
        names = {name for name, *_ in connection.execute(described).fetchall()}
        if lacks := sorted({*_OWN} - names):
            raise ValueError(f"it has no column {', '.join(lacks)}")
        if REST not in names:
            return
        images = f"SELECT item, old FROM read_parquet('{path}')"  # noqa: S608 as above
        rows = connection.execute(images).fetchall()
        lines = [_line(n, item, old) for n, (item, old) in enumerate(rows)]
        batch = _core.decode(_core.Records.pack(lines), keep_all=True)
        assert len(batch) == len(rows), batch.rejections
        plain, merged = path.with_suffix(".plain"), path.with_suffix(".merged")
        plain.write_bytes(batch.parquet(compression="none"))
        connection.execute(_MERGED.format(source=path, plain=plain, path=merged))
    plain.unlink()
    merged.replace(path)


def _line(number: int, item: str | None, old: str | None) -> bytes:
    """A change that has these images."""
    images = {"NewImage": item, "OldImage": old}
    members = "".join(f',"{name}":{text}' for name, text in images.items() if text is not None)
    return (
        f'{{"eventID":"{number}","eventName":"{"REMOVE" if item is None else "MODIFY"}",'
        f'"tableName":"t","dynamodb":{{"ApproximateCreationDateTime":{number},'
        f'"Keys":{{"n":{{"N":"{number}"}}}}{members}}}}}'
    ).encode()


def _records(text: bytes) -> _core.Records:
    """The records of a file; of whole changes with their positions, which stand in each line."""
    lines = text.splitlines()
    found = [_POSITION.search(line) for line in lines]
    numbers = [each[1].decode() for each in found if each is not None]
    if lines and len(numbers) == len(lines):
        return _core.Records.pack(lines, numbers)
    return _core.Records.document(text)


def _write_plain(text: bytes, path: Path) -> None:
    """Lines of `plain` in the shape of the rest. A version of Kinesis is an instant."""
    source = path.with_suffix(".jsonl")
    source.write_bytes(text)
    with _connected() as connection:
        connection.execute(_PLAIN.format(source=source, path=path))
    source.unlink()


def _unpacked(key: str, data: bytes) -> bytes:
    if key.endswith(".gz"):
        return gzip.decompress(data)
    if key.endswith(".zst"):
        return _unzstd(data, "newline_delimited" if ".jsonl" in key else "unstructured")
    return data


def _apart(key: str, text: bytes) -> bytes:
    """Lines: records of `raw` stand one behind the other."""
    if ".jsonl" in key:
        return text
    batch = _core.decode(_core.Records.document(text), keep_all=True)
    return text if batch.rejections else batch.payloads(b"\n")


def _unzstd(data: bytes, form: str) -> bytes:
    """DuckDB knows zstd; the standard library does from Python 3.14 on."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl.zst") as packed:
        packed.write(data)
        packed.flush()
        with _connected() as connection:
            rows = connection.execute(
                "SELECT json::VARCHAR FROM read_json_objects($1, format = $2)", [packed.name, form]
            ).fetchall()
    return b"".join(line.encode() + b"\n" for (line,) in rows)


def _lines(each: ArchivedObject, data: bytes, span: Span) -> bytes:
    """An object's changes within the span."""
    if not each.key.endswith(".parquet"):
        with _reading(each.key):
            text = _apart(each.key, _unpacked(each.key, data))
        if span in {Span(), Span(table=each.table)}:
            return text if text.endswith(b"\n") or not text else text + b"\n"
    with tempfile.TemporaryDirectory(prefix="replicator-archive-") as folder:
        path = Path(folder) / "0.parquet"
        _write_parquet(each, data, path)
        if each.key.endswith(".parquet"):
            answer = _answer([path], span, "SELECT * FROM changes")
            return b"".join(map(_json_line, answer.as_dict()))
        is_in = f"SELECT coalesce({_where(span)}, false) FROM changes"  # noqa: S608 see `_where`
        kept = _answer([path], Span(), is_in).rows
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    with _reading(each.key):
        if len(lines) != len(kept):
            raise ValueError(f"lines: {len(lines)}, changes: {len(kept)}")
    return b"".join(line for line, (is_kept,) in zip(lines, kept, strict=True) if is_kept)


def _json_line(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


# ---- DuckDB


@contextmanager
def _connected() -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB, for as long as the block lasts. Raises ValueError for what it can't read."""
    import duckdb  # noqa: PLC0415 - forty megabytes, for two commands

    with duckdb.connect(":memory:") as connection:
        connection.execute("SET autoinstall_known_extensions = false; SET TimeZone = 'UTC'")
        try:
            yield connection
        except duckdb.Error as error:
            raise ValueError(str(error)) from error


def _answer(files: Sequence[Path], span: Span, sql: str) -> Answer:
    import duckdb  # noqa: PLC0415 - see `_connected`

    with _reading("the objects together"), _connected() as connection:
        if files:
            connection.execute(_view(connection, files, span))
        else:
            connection.execute(_NOTHING)
        try:
            answer = connection.execute(sql)
            columns_found = tuple(each[0] for each in answer.description or ())
            return Answer(columns_found, tuple(answer.fetchall()))
        except duckdb.Error as error:
            raise FatalError("usage_query", f"DuckDB refuses the query: {error}") from error


# What becomes one type by itself, with all digits.
_NUMBERS = ("BIGINT", "DECIMAL")


def _view(connection: duckdb.DuckDBPyConnection, files: Sequence[Path], span: Span) -> str:
    """The view over files with different columns: by their names, and where one has several
    types, as text."""
    shapes: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for path in files:
        described = f"DESCRIBE SELECT * FROM read_parquet('{path}')"  # noqa: S608 a path of our own
        found = connection.execute(described).fetchall()
        shape = tuple((name, kind) for name, kind, *_ in found if name not in _OWN)
        shapes.setdefault(shape, []).append(path)
    kinds: dict[str, set[str]] = {}
    for name, kind in itertools.chain.from_iterable(shapes):
        kinds.setdefault(name.lower(), set()).add(kind)
    selects = []
    for shape, paths in shapes.items():
        columns = [f'{source} AS "{name}"' for name, source in _COLUMNS.items()]
        for name, kind in shape:
            alias = f"{name}_" if name.lower() in _COLUMNS else name
            others = kinds[name.lower()]
            is_text = len(others) > 1 and not all(each.startswith(_NUMBERS) for each in others)
            value = _value(_quoted(name), kind, is_text=is_text)
            columns.append(f"{value} AS {_quoted(alias)}")
        names = ", ".join(f"'{path}'" for path in paths)
        selects.append(f"SELECT {', '.join(columns)} FROM read_parquet([{names}])")  # noqa: S608 quoted
    union = " UNION ALL BY NAME ".join(selects)
    return f"CREATE VIEW changes AS SELECT * FROM ({union}) WHERE {_where(span)}"  # noqa: S608 as above


def _value(column: str, kind: str, *, is_text: bool) -> str:
    if kind == "TIMESTAMP WITH TIME ZONE":  # see `_COLUMNS`
        column = f"{column}::TIMESTAMP"
    if not is_text or kind == "VARCHAR":
        return column
    if kind == "BLOB":
        return f"to_base64({column})"
    if kind == "BLOB[]":
        column = f"[to_base64(each) FOR each IN {column}]"
    return f"to_json({column})::VARCHAR" if kind.endswith("[]") else f"{column}::VARCHAR"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


_PLAIN = """
COPY (
    SELECT "table", event, NULL::VARCHAR AS event_id, key::VARCHAR AS key, version,
        CASE WHEN length(version) <= 16 THEN make_timestamp(version::BIGINT) END AS event_time,
        NULL::VARCHAR AS sequence_number, item::VARCHAR AS item, old::VARCHAR AS old
    FROM read_json('{source}', format = 'newline_delimited', columns = {{'table': 'VARCHAR',
        event: 'VARCHAR', key: 'JSON', version: 'VARCHAR', item: 'JSON', old: 'JSON'}})
) TO '{path}' (FORMAT parquet)
"""
_MERGED = """
COPY (
    SELECT whole.* REPLACE (plain.item AS item, plain.old AS old)
    FROM read_parquet('{source}') AS whole POSITIONAL JOIN read_parquet('{plain}') AS plain
) TO '{path}' (FORMAT parquet)
"""
_NOTHING = """
CREATE TABLE changes ("table" VARCHAR, event VARCHAR, key JSON, version VARCHAR,
    time TIMESTAMP, item JSON, old JSON, event_id VARCHAR, position VARCHAR)
"""


def _where(span: Span) -> str:
    conditions = ["true"]
    if span.table is not None:
        conditions.append(f"\"table\" = '{span.table.replace(chr(39), chr(39) * 2)}'")
    # What tells no time (`plain` of DynamoDB Streams) may be of any that its object is of.
    if span.from_us is not None:
        conditions.append(f"(time IS NULL OR time >= make_timestamp({span.from_us}))")
    if span.to_us is not None:
        conditions.append(f"(time IS NULL OR time < make_timestamp({span.to_us}))")
    return " AND ".join(conditions)


# ---- small things


def _instant(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        start = parse_start(text)
    except ValueError as error:
        raise FatalError("usage_time", str(error)) from None
    if isinstance(start, Ago) or start.kind is PositionKind.AT_TIMESTAMP:
        return resolved(start, time.time_ns() // 1_000).timestamp_us
    raise FatalError("usage_time", f"{text!r} is no time: write 2026-01-31T12:00:00Z, or 2h ago")


def _some(items: Sequence[Any], count: int) -> Iterable[Sequence[Any]]:
    rest = iter(items)
    while some := list(itertools.islice(rest, count)):
        yield some


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC).isoformat()  # `time` is UTC
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return str(value)


def _shown(value: Any) -> str:
    plain = _plain(value)
    return "" if plain is None else str(plain)
