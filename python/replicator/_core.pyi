"""The Rust core: bytes in, bytes out, a batch at a time.

It does no I/O and owns no thread, clock or global. Every call that touches
more than one record releases the GIL while it works. Records and changes stay
inside; Python sees counts, positions, rejections and finished payloads.

Shapes read: Kinesis Data Streams for DynamoDB payloads, and DynamoDB Streams
records (GetRecords, Lambda events). Limits checked: ten types, 38 significant
digits, magnitudes 1E-130 to 9.99…E+125, depth 32
(https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.NamingRulesDataTypes.html).
"""

from collections.abc import Sequence
from typing import Final, Literal, final

__all__ = [
    "BUILD_PROFILE",
    "COMMIT",
    "REJECTION_CODES",
    "ChangeBatch",
    "EventStream",
    "FrameError",
    "Records",
    "Rejection",
    "Rows",
    "Settled",
    "ShardEvent",
    "__version__",
    "decode",
]

__version__: Final[str]
BUILD_PROFILE: Final[Literal["release", "debug"]]
COMMIT: Final[str]
"""The commit that was built, or `unknown`."""
REJECTION_CODES: Final[dict[str, str]]
"""Every rejection code with one sentence of meaning; a code never changes."""

class FrameError(ValueError):
    """An event-stream body that can't be trusted further: bad CRC, impossible
    length, missing header. `code` is a stable slug: `frame_length`,
    `prelude_checksum`, `message_checksum`, `frame_headers`, `missing_header`,
    `frame_envelope`. Reconnect and go on from the last event's continuation."""

    code: str

@final
class Rejection:
    """A record that was refused, whole."""

    @property
    def index(self) -> int:
        """Its index in the fetch, from 0."""
    @property
    def line(self) -> int:
        """The line it began on, from 1, when it came from a document; else 0."""
    @property
    def part(self) -> int:
        """Which of the concatenated batches it came from, from 0."""
    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def raw(self) -> bytes:
        """The record's own bytes, unchanged (Kinesis: the decoded `Data`). A rejection
        shares its batch's memory, and so keeps all of it."""
    @property
    def sequence_number(self) -> str:
        """The wire's number; empty when the source gave none."""
    @property
    def table(self) -> str | None:
        """The table it names, when that much could be read."""

@final
class Records:
    """Undecoded records: one arena of bytes, and per record its payload's place,
    its sequence number and its arrival time."""

    @staticmethod
    def pack(
        payloads: Sequence[bytes],
        sequence_numbers: Sequence[str] | None = None,
        arrival_ms: Sequence[int] | None = None,
    ) -> Records:
        """Records from loose payloads, for tests, tools and scripted sources.
        Raises ValueError when the lengths differ, or beyond 4 GiB."""
    @staticmethod
    def document(data: bytes) -> Records:
        """Records of a whole file: JSON lines (one payload a line, blank lines
        skipped), or one object with `Records` (a DynamoDB Streams answer, a Lambda
        event of DynamoDB Streams or of Kinesis, whose `data` is base64). A document
        whose `Records` can't be told apart becomes one record, which decoding rejects.
        Answers of Kinesis GetRecords, and one record formatted over several lines, are
        read too. Raises ValueError beyond 4 GiB."""
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
    @property
    def first_sequence_number(self) -> str | None: ...
    @property
    def last_sequence_number(self) -> str | None: ...
    @property
    def last_arrival_ms(self) -> int | None:
        """Arrival time of the last record at the stream, epoch milliseconds."""

@final
class ShardEvent:
    """One event of a SubscribeToShard answer
    (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShardEvent.html)."""

    @property
    def records(self) -> Records: ...
    @property
    def continuation_sequence_number(self) -> str | None:
        """Where the next subscription goes on; None at the end of the shard."""
    @property
    def millis_behind_latest(self) -> int: ...
    @property
    def child_shards(self) -> list[tuple[str, list[str]]]:
        """(shard id, parent ids) of each child; only the shard's last event has them."""
    @property
    def exception(self) -> tuple[str, str] | None:
        """(type, message) when this is an exception or error frame; nothing else is set."""

@final
class EventStream:
    """Takes the raw body of SubscribeToShard apart: frames, both CRCs, the JSON
    envelope, base64 of every `Data`. Events without records are given too (they are
    the heartbeat). `initial-response` may be missing and is not given."""

    def __new__(cls, frame_bytes_max: int = 33554432) -> EventStream: ...
    def feed(self, chunk: bytes) -> list[ShardEvent]:
        """The events that this chunk completes. Raises FrameError; events that
        were complete before the broken frame are given first, and the error is
        raised by the next call, and by every one after it (`buffered_bytes` is not 0
        then). `Data` that is no base64 stays as it is: decoding rejects that record."""
    @property
    def buffered_bytes(self) -> int:
        """Bytes of an unfinished frame; not 0 at the end of a body means it was cut."""

@final
class ChangeBatch:
    """Decoded changes: exact duplicates out, in order per key (laws 2 and 3).

    A batch holds its undecoded bytes too: dead letters and DynamoDB-form output
    are cut out of them."""

    def __len__(self) -> int:
        """Changes, after exact duplicates were taken out."""
    @property
    def nbytes(self) -> int:
        """Memory held in bytes, undecoded bytes included."""
    @property
    def records(self) -> int:
        """Records decoded: changes + duplicates + rejections."""
    @property
    def duplicates(self) -> int:
        """Exact duplicates taken out: the same `eventID`, or equal key,
        microsecond, event name and images."""
    @property
    def ambiguous(self) -> int:
        """Changes of one key at one instant whose images form no single chain;
        they follow the order of arrival."""
    @property
    def rejections(self) -> list[Rejection]: ...
    @property
    def tables(self) -> dict[str | None, int]:
        """Changes per table; None counts those that name no table."""
    @property
    def first_sequence_number(self) -> str | None: ...
    @property
    def last_sequence_number(self) -> str | None: ...
    @property
    def last_arrival_ms(self) -> int | None: ...
    @property
    def first_event_us(self) -> int | None:
        """Earliest creation time, UTC microseconds."""
    @property
    def last_event_us(self) -> int | None: ...
    @staticmethod
    def concat(batches: Sequence[ChangeBatch]) -> ChangeBatch:
        """One batch over several (of several shards, say), ordered and deduped
        across them, sharing their memory. `Rejection.part` is the index in `batches`."""
    def newest(self, table: str, keys: Sequence[tuple[str, Literal["S", "N", "B"]]]) -> Rows:
        """The newest change per key of one table: what a state sink writes. A change
        that doesn't have exactly these key attributes in these types, or whose new
        image is missing though it is no REMOVE, goes to `Rows.rejections`."""
    def json_lines(self, form: Literal["plain", "dynamodb"] = "plain") -> bytes:
        """One JSON object a change and line: `table`, `event`, `key`, `version` (text),
        `item`, `old` (null when absent). Plain: numbers as JSON numbers with all their
        digits, sets as arrays sorted by value, binary as base64. `dynamodb`: `key`,
        `item` and `old` as the wire carried them, typed."""

@final
class Rows:
    """The newest change per key of one table, as rows to be."""

    def __len__(self) -> int: ...
    @property
    def deletes(self) -> int: ...
    @property
    def folded(self) -> int:
        """Changes left out because a newer one of the same key is here."""
    @property
    def rejections(self) -> list[Rejection]: ...
    @property
    def nbytes(self) -> int:
        """About how many bytes `copy` gives."""
    def copy(self, lo: int = 0, hi: int | None = None) -> bytes:
        """Rows lo..hi as a whole PostgreSQL binary COPY stream, header and trailer
        included. Columns: the key attributes in the given order (S text, N numeric, B
        bytea), `item` jsonb (NULL for a delete; U+0000, which jsonb refuses, as another
        character that a member with an empty name tells), `version` numeric, `deleted`
        bool, `chain` bytea (what `settle` needs), `ordinal` integer (the row's place)."""
    def arrays(self, lo: int = 0, hi: int | None = None) -> list[bytes]:
        """Rows lo..hi as texts that PostgreSQL makes arrays of, one a column: keys as array
        literals, `item` joined by line feeds (empty: deleted), `version` and `chain` as
        literals. For few rows: `unnest … WITH ORDINALITY` counts the places."""
    def settle(self, stored: Sequence[tuple[int, str | None, int, bytes]]) -> Settled:
        """Settles rows with what a sink stores of the same keys at the same instant (the
        same millisecond): (row, item as JSON or None, version in UTC microseconds, chain)."""
    def record(self, row: int, code: str, message: str) -> Rejection:
        """The change behind a row as a rejection with this code and message."""
    def without(self, rows: Sequence[int]) -> Rows:
        """These rows' changes left out: the next newest change of each key, where
        there is one, takes its place. Earlier rejections are kept."""

@final
class Settled:
    """What to store in place of rows of the same instant, as parallel lists, and what
    became of the rows given: each is `later` than what was stored, a duplicate or
    superseded. Once all changes of an instant have come, in whatever order and splits,
    the last one is what is stored; only where they end in the state in which they began
    does the arrival decide, and the row is `ambiguous` too."""

    @property
    def rows(self) -> list[int]: ...
    @property
    def items(self) -> list[str | None]:
        """JSON; None: deleted."""
    @property
    def versions(self) -> list[str]: ...
    @property
    def chains(self) -> list[bytes]: ...
    @property
    def later(self) -> int: ...
    @property
    def duplicates(self) -> int: ...
    @property
    def superseded(self) -> int: ...
    @property
    def ambiguous(self) -> int: ...

def decode(records: Records, *, table: str | None = None, keep_all: bool = False) -> ChangeBatch:
    """Decodes, checks, takes out exact duplicates and orders. Never fails a batch: a
    refused record is in `rejections`, its neighbours are decoded.

    `table` names the table of records that name none (a DynamoDB Streams answer
    carries no ARN). `keep_all` keeps every change in input order, duplicates too."""
