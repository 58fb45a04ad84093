"""What `replicator inspect` prints: the changes of a file, decoded, in input order.

Nothing is folded, ordered or dropped here: one JSON line a change on standard output
and one JSON line a refused record on standard error. JSON lines are read in pieces,
so a file may be larger than memory; an event document is read whole, and so are objects
that follow each other without line feeds, as Firehose writes them unless it is told to add
a delimiter (https://docs.aws.amazon.com/firehose/latest/dev/create-destination.html).
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import orjson

from replicator import _core
from replicator.errors import FatalError

PIECE_BYTES = 8 * 1_048_576
# A Kinesis record has at most 10 MiB, so a longer line is no record.
LINE_BYTES_MAX = 64 * 1_048_576
DOCUMENT_BYTES_MAX = 1_024 * 1_048_576
EXIT_DECODED = 0
EXIT_REJECTED = 1
_GZIP_MAGIC = b"\x1f\x8b"
# What else lies in a bucket: how it begins or is named, what it is, and how it can be read.
# https://docs.aws.amazon.com/firehose/latest/APIReference/API_S3DestinationConfiguration.html
# https://github.com/google/snappy/blob/main/framing_format.txt
_UNREAD = (
    ((b"PK\x03\x04",), (".zip",), "a ZIP archive", "unzip -p {file} | replicator inspect -"),
    (
        (b"\xff\x06\x00\x00sNaPpY",),
        (".snappy", ".sz", ".hsnappy"),
        "compressed with Snappy",
        (
            "decompress it first, say by python -m snappy -d {file} OUT (package python-snappy); "
            "objects of CompressionFormat GZIP are read as they are"
        ),
    ),
    (
        (b"\x28\xb5\x2f\xfd",),
        (".zst",),
        "compressed with zstd",
        "zstd -dc {file} | replicator inspect -",
    ),
    (
        (b"PAR1",),
        (".parquet",),
        "Parquet, which holds columns and no records",
        "duckdb -c \"SELECT * FROM read_parquet('{file}')\"",
    ),
    (
        (b"ORC",),
        (".orc",),
        "ORC, which holds columns and no records",
        "orc-contents {file} (of Apache ORC)",
    ),
)
_MAGIC_BYTES = max(len(magic) for magics, *_ in _UNREAD for magic in magics)
_HEAD_BYTES = 65_536
_DOCUMENT_HEAD = re.compile(rb'"Records"\s*:\s*\[')


@dataclass(frozen=True, slots=True)
class InspectResult:
    """One JSON line a change in input order, and the records that were refused."""

    lines: bytes
    rejections: list[_core.Rejection]


def inspect(data: bytes, pattern: _core.Pattern | None = None) -> InspectResult:
    """Decodes JSON lines or one event document, whole and uncompressed; shows the changes
    that match the pattern."""
    batch = _core.decode(_core.Records.document(data), keep_all=True)
    if pattern is not None:
        batch = batch.filter(pattern)
    return InspectResult(batch.json_lines("plain"), batch.rejections)


def rejection_line(rejection: _core.Rejection, lines_before: int = 0) -> bytes:
    """A refused record as one JSON line. `lines_before` is how many lines of the
    input came before the piece that it was read from."""
    fields = {
        "line": rejection.line + lines_before,
        "code": rejection.code,
        "message": rejection.message,
        "raw_base64": base64.b64encode(rejection.raw).decode("ascii"),
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def main(
    file: str,
    stdin: BinaryIO,
    stdout: BinaryIO,
    stderr: BinaryIO,
    filters: Sequence[str] = (),
) -> int:
    """Decodes `file` (`-`: `stdin`) and gives the exit code: 1 when a record was refused.
    With filters, only changes that match one of these event patterns are shown.

    Raises FatalError: `usage_filter` for a broken filter, `usage_input` when the file
    can't be read, `input_truncated` and `input_corrupt` when its compression is broken,
    `input_too_large` past the limits above. What was decoded before stays printed.
    """
    rejected = 0
    try:
        pattern = _core.Pattern(filters) if filters else None
    except ValueError as error:
        raise FatalError("usage_filter", f"--filter: {error}") from None
    try:
        with _opened(file, stdin) as source:
            for lines_before, piece in pieces(source, file):
                result = inspect(piece, pattern)
                stdout.write(result.lines)
                # In step with the errors, so that both streams on one terminal make sense.
                stdout.flush()
                stderr.writelines(rejection_line(r, lines_before) for r in result.rejections)
                stderr.flush()
                rejected += len(result.rejections)
    except BrokenPipeError:
        # The reader (`head`) has enough. The stream must not be flushed again at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return EXIT_REJECTED
    return EXIT_REJECTED if rejected else EXIT_DECODED


def pieces(source: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """(lines before it, bytes) of what can be decoded by itself: the whole input when
    it is short or an event document, else whole lines of about `PIECE_BYTES`."""
    pending = _read(source, name, PIECE_BYTES)
    if len(pending) < PIECE_BYTES:
        if pending:
            yield 0, pending
        return
    if _begins_a_document(pending) or _begins_a_row_of_objects(pending):
        yield 0, _whole(source, name, pending)
        return
    lines_before = 0
    while more := _read(source, name, PIECE_BYTES):
        cut = pending.rfind(b"\n") + 1
        if cut:
            yield lines_before, pending[:cut]
            lines_before += pending.count(b"\n", 0, cut)
        elif len(pending) > LINE_BYTES_MAX:
            raise _too_large(name, f"line {lines_before + 1}", LINE_BYTES_MAX)
        pending = pending[cut:] + more
    yield lines_before, pending


def _whole(source: IO[bytes], name: str, head: bytes) -> bytes:
    parts, nbytes = [head], len(head)
    while more := _read(source, name, PIECE_BYTES):
        parts.append(more)
        nbytes += len(more)
        if nbytes > DOCUMENT_BYTES_MAX:
            raise _too_large(name, "what must be read whole", DOCUMENT_BYTES_MAX)
    return b"".join(parts)


def _begins_a_document(head: bytes) -> bool:
    """True when the long input that begins with `head` is one object with `Records`."""
    start = head.lstrip()
    first, newline, _ = start.partition(b"\n")
    if newline:
        with suppress(orjson.JSONDecodeError):
            value = orjson.loads(first)
            return isinstance(value, dict) and isinstance(value.get("Records"), list)
    # Spread over lines, or one line longer than the head.
    return start.startswith(b"{") and _DOCUMENT_HEAD.search(start, 0, _HEAD_BYTES) is not None


def _begins_a_row_of_objects(head: bytes) -> bool:
    """True when another object follows the first one on its line: its end can't be told from
    a brace inside a text without reading all before it."""
    text = head.lstrip().decode(errors="replace")
    with suppress(ValueError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(text)
        return text.startswith("{") and text[end:].lstrip(" \t\r").startswith("{")
    return False


@contextmanager
def _opened(file: str, stdin: BinaryIO) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        try:
            raw = stdin if file == "-" else stack.enter_context(Path(file).open("rb"))
            magic = raw.read(_MAGIC_BYTES)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise FatalError("usage_input", f"can't read {file}: {reason}") from error
        source = cast(IO[bytes], io.BufferedReader(_Rejoined(magic, raw), _HEAD_BYTES))
        _refuse_what_is_no_text(magic, file)
        if magic.startswith(_GZIP_MAGIC):
            source = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=source, mode="rb")))
        yield source


def _refuse_what_is_no_text(head: bytes, file: str) -> None:
    # gzip and text are known by how they begin, whatever the name says: `data.zip.gz`.
    is_readable = head.startswith((_GZIP_MAGIC, b"{", b"\n"))
    for magics, suffixes, what, instead in _UNREAD:
        if head.startswith(magics) or (not is_readable and file.lower().endswith(suffixes)):
            raise FatalError(
                "input_unsupported",
                f"{file} is {what}, which isn't read here: {instead.format(file=file)}",
            )


class _Rejoined(io.RawIOBase):
    """A stream with the bytes that were read ahead of it put back: a pipe can't seek."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _read(source: IO[bytes], name: str, nbytes: int) -> bytes:
    try:
        return source.read(nbytes)
    except EOFError as error:
        raise FatalError(
            "input_truncated", f"{name} ends in the middle of its gzip data: fetch it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FatalError(
            "input_corrupt", f"{name} begins like gzip but is broken: {error}"
        ) from error
    except OSError as error:
        raise FatalError("usage_input", f"can't read {name}: {error.strerror}") from error


def _too_large(name: str, what: str, limit: int) -> FatalError:
    return FatalError(
        "input_too_large",
        f"{what} of {name} is larger than {limit // 1_048_576} MiB: split the file into JSON lines",
    )
