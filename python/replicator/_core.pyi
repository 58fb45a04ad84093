"""The Rust core: bytes in, bytes out, a batch at a time.

It does no I/O and owns no thread, clock or global. Every call that touches
more than one record releases the GIL while it works. Records and changes stay
inside; Python sees counts, positions, rejections and finished payloads.

Shapes read: Kinesis Data Streams for DynamoDB payloads, and DynamoDB Streams records (GetRecords,
Lambda events). Limits checked: ten types, 38 significant digits, 1E-130 to 9.99…E+125, depth 32
(https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.NamingRulesDataTypes.html).
"""

import builtins
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, final

__all__ = [
    "BUILD_PROFILE",
    "COMMIT",
    "REJECTION_CODES",
    "Answer",
    "BodyError",
    "ChangeBatch",
    "Columns",
    "EventStream",
    "KafkaBatch",
    "Pattern",
    "Projection",
    "Records",
    "Rejection",
    "Rows",
    "Schema",
    "Settled",
    "ShardEvent",
    "Window",
    "__version__",
    "compress",
    "crate_item",
    "decode",
]

_Form: TypeAlias = Literal["plain", "dynamodb", "debezium", "change"]
_Codec: TypeAlias = Literal["none", "gzip", "lz4", "zstd"]
__version__: Final[str]
_Held: TypeAlias = tuple[int, str | None, int, bytes]
BUILD_PROFILE: Final[Literal["release", "debug"]]
COMMIT: Final[str]
"""The commit that was built, or `unknown`."""
REJECTION_CODES: Final[dict[str, str]]
"""Every rejection code with one sentence of meaning; a code never changes."""

class BodyError(ValueError):
    """A body of the service that can't be read further. `code` is a stable slug. Of an
    event stream (bad CRC, impossible length, missing header, JSON that can't be read):
    `frame_length`, `prelude_checksum`, `message_checksum`, `frame_headers`,
    `missing_header`, `frame_envelope`; reconnect and go on from the last event's
    continuation. Of GetRecords: `answer_envelope`; ask again with the same iterator."""

    code: str

@final
class Rejection:
    """A record that was refused, whole."""

    @property
    def index(self) -> int: ...  # in the fetch, from 0
    @property
    def line(self) -> int: ...  # that it began on, from 1, when it came from a document; else 0
    @property
    def sub_sequence_number(self) -> int: ...  # in a KPL aggregate, from 0; 0 when in none
    @property
    def part(self) -> int: ...  # which of the concatenated batches it came from, from 0
    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def raw(self) -> bytes:
        """The record's own bytes, unchanged (Kinesis: the decoded `Data`, or the user record's
        part of it). A rejection shares its batch's memory, and so keeps all of it."""
    @property
    def sequence_number(self) -> str: ...  # empty when the source gave none
    @property
    def table(self) -> str | None: ...  # that it names, when that much could be read
    @property
    def late(self) -> bool: ...  # a window marked it so

@final
class Records:
    """Undecoded records: an arena, and each payload's place, sequence number and arrival time.

    Kinesis records are taken apart where the Kinesis Producer Library put several user
    records into one: each becomes a record, in order, and all carry the aggregate's
    sequence number, so that no position lies between them. What fails the aggregate's
    checksum, or isn't one in every respect, stays one record, which decoding rejects."""

    @staticmethod
    def pack(
        payloads: Sequence[bytes],
        sequence_numbers: Sequence[str] | None = None,
        arrival_ms: Sequence[int] | None = None,
    ) -> Records:
        """Of loose payloads. Raises ValueError when the lengths differ, or beyond 4 GiB."""
    @staticmethod
    def document(data: bytes) -> Records:
        """Records of a whole file: JSON lines (one payload a line, or several objects that
        follow each other, as Firehose writes them; blank lines skipped), or one object
        with `Records` (a DynamoDB Streams answer, a Lambda event of DynamoDB Streams or of
        Kinesis, whose `data` is base64). A document whose `Records` can't be told apart
        becomes one record, which decoding rejects. Answers of Kinesis GetRecords, and one
        record formatted over several lines, are read too. Raises ValueError beyond 4 GiB."""
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def first_sequence_number(self) -> str | None: ...
    @property
    def last_sequence_number(self) -> str | None: ...
    @property
    def last_arrival_ms(self) -> int | None:
        """When the last record arrived, epoch ms; of DynamoDB Streams, creation in seconds."""

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
        """The events that this chunk completes. Raises BodyError; events that
        were complete before the broken frame are given first, and the error is
        raised by the next call, and by every one after it (`buffered_bytes` is not 0
        then). `Data` that is no base64 stays as it is: decoding rejects that record."""
    @property
    def buffered_bytes(self) -> int:
        """Bytes of an unfinished frame; not 0 at the end of a body means it was cut."""

@final
class Pattern:
    """Event patterns as EventBridge and Lambda's `FilterCriteria` write them, compiled:
    a change matches when one of them does. Over all members of a record, images in
    DynamoDB's typed form: `{"dynamodb": {"NewImage": {"price": {"N": [{"numeric": [">", 10]}]}}}}`.

    Operators: exact values, `prefix`, `suffix` (both also `{"equals-ignore-case": …}`),
    `equals-ignore-case`, `wildcard`, `anything-but` (a value or one of these, or lists of
    them), `numeric`, `exists`, `cidr`, `$or`. A list or set matches when an element does;
    what is asked of a list together must hold in one element together.

    Unlike AWS, numbers are compared with `N` and `NS` as numbers, exactly; `exists` also
    sees attributes (in any type), maps, lists and images; and what no record can match is
    an error. At most 64 KiB a pattern, 128 alternatives in all after `$or` multiplied out."""

    def __new__(cls, patterns: str | Sequence[str]) -> Pattern:
        """JSON texts, alternatives. Raises ValueError that says where, and what to write."""
    @property
    def names(self) -> list[str]:
        """What they speak of: `eventName`, `dynamodb.NewImage`, …, sorted."""

@final
class Projection:
    r"""What a sink may see of images. A path is an attribute's name, or names joined by dots
    into maps; a list stands for each of its elements; `\.` is a dot and `\\` a backslash of
    a name. Where a path ends at what is neither map nor list it says nothing of it.

    `include` keeps these only (and the key), `exclude` leaves out, `mask` writes the text
    `***` (it tells that a value was there, which NULL wouldn't), `hash` the HMAC-SHA-256 of
    the value with its type in hexadecimal: equal values have equal hashes in any spelling."""

    def __new__(
        cls,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        mask: Sequence[str] = (),
        hash: Sequence[str] = (),  # noqa: A002 - one word for one thing
        key: bytes | None = None,
    ) -> Projection:
        """Raises ValueError for paths that contradict, and for a hash without a key of 16 bytes."""
    def check(self, keys: Sequence[str]) -> None:
        """Raises ValueError when it would change one of these attributes of a key."""

@final
class Columns:
    """A column plan: which top-level attributes have a column of their own.

    Types: `text`, `numeric`, `numeric(P,S)` (at most 38 digits), `bigint`, `boolean`, `bytea`,
    `timestamptz` (of texts like `2024-01-29T15:39:33.915835Z`), `jsonb` (any value, plain), and
    for sets `text[]`, `numeric[]`, `bytea[]` (sorted). A value that its column can't hold
    whole (another type, a whole number beyond 64 bits, more digits than P and S, a text
    with U+0000) stays in the rest under its name, and the column is NULL. An absent
    attribute is NULL and not in the rest; a typed NULL is `null` in the rest."""

    def __new__(cls, columns: Sequence[tuple[str, str]], rest: str | None = "extra") -> Columns:
        """(attribute, type) of each column, and the name of the column of all else, JSON;
        without one, what has no column is left out. Raises ValueError for an unknown type, an
        attribute named twice or like the rest, and beyond 1,500 columns."""
    @property
    def columns(self) -> list[tuple[str, str]]: ...
    @property
    def rest(self) -> str | None: ...

@final
class Answer:
    """An answer of GetRecords: of Kinesis
    (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html), or of DynamoDB
    Streams (…/amazondynamodb/latest/APIReference/API_streams_GetRecords.html)."""

    @staticmethod
    def read(body: bytes, source: Literal["kinesis", "streams"]) -> Answer:
        """Reads the raw body in one pass. A record of DynamoDB Streams is its own payload.
        Raises BodyError, which names the byte, when the JSON around the records can't be
        read; a record that is unreadable inside is left to decoding, which rejects it."""
    @property
    def records(self) -> Records: ...
    @property
    def next_iterator(self) -> str | None:
        """Where the next call goes on; None at the end of the shard."""
    @property
    def millis_behind_latest(self) -> int | None:
        """None from DynamoDB Streams, which doesn't tell."""
    @property
    def child_shards(self) -> list[tuple[str, list[str]]]:
        """As on `ShardEvent`; DynamoDB Streams names none here."""

@final
class ChangeBatch:
    """Decoded changes: exact duplicates out, in order per key (laws 2 and 3).

    It holds the undecoded bytes too: dead letters and DynamoDB's form are cut out of them."""

    def __len__(self) -> int:
        """Changes, after exact duplicates were taken out."""
    @property
    def nbytes(self) -> int:
        """Memory held in bytes, undecoded bytes included."""
    @property
    def records(self) -> int:
        """Records decoded: changes + filtered + duplicates + rejections."""
    @property
    def duplicates(self) -> int:
        """Taken out: the same `eventID`, or equal key, microsecond, event name and images."""
    @property
    def ambiguous(self) -> int:
        """Changes of a key and instant whose images form no chain: the arrival orders them."""
    @property
    def filtered(self) -> int: ...
    @property
    def late(self) -> int:
        """Changes that a window marked late; JSON lines say `"late":true` of them."""
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
    def first_event_us(self) -> int | None: ...  # earliest creation time, UTC microseconds
    @property
    def last_event_us(self) -> int | None: ...
    @staticmethod
    def concat(batches: Sequence[ChangeBatch]) -> ChangeBatch:
        """One batch over several (of several shards, say), ordered and deduped across them,
        sharing their memory. `Rejection.part` is the index in `batches`."""
    def marked_late(self) -> ChangeBatch: ...  # all of them
    def split(self, sequence_number: str) -> tuple[ChangeBatch, ChangeBatch]:
        """Up to this sequence number, and behind it; duplicates are the first's, if it has any."""
    def newest(
        self,
        table: str,
        keys: Sequence[tuple[str, Literal["S", "N", "B"]]],
        pattern: Pattern | None = None,
        projection: Projection | None = None,
    ) -> Rows:
        """The newest change per key of one table: what a state sink writes. A change that
        doesn't have exactly these key attributes in these types, or whose new image is missing
        though it is no REMOVE, goes to `Rows.rejections`. With a pattern, a change whose new
        image doesn't match is a delete (of its version); with a projection, rows are what it
        shows. Raises ValueError when the pattern speaks of more than `dynamodb.Keys` and
        `NewImage`, or the projection of a key, and for both when the batch is projected already."""
    def filter(self, pattern: Pattern) -> ChangeBatch:
        """Without the changes that don't match: what a log sink writes. Those left out are
        counted in `filtered`, and still decide the order of others in a later `concat`."""
    def project(self, projection: Projection) -> ChangeBatch:
        """With both images as a sink may see them, for every form. Order, duplicates,
        patterns and `Rejection.raw` go by the images as they came. A change whose key
        would be changed goes to `rejections`. Raises ValueError beyond 4 GiB."""
    def partition(
        self, us: int, *, by_table: bool = False
    ) -> list[tuple[str | None, int, ChangeBatch]]:
        """The changes apart by periods of `us` microseconds of their creation, and by table if
        wanted, sorted: (table, begin of the period, changes). Raises ValueError unless 0 < us."""
    def payloads(self, delimiter: bytes) -> bytes:
        """The changes' records as they came, each followed by the delimiter."""
    def json_lines(self, form: _Form = "plain", *, compression: _Codec = "none") -> bytes:
        """One JSON object a change and line, the whole compressed as `compress` does. `plain`:
        `table`, `event`, `key`, `version` (text), `item`, `old` (null when absent); numbers as
        JSON numbers with all their digits, sets as arrays sorted by value, binary as base64.
        `dynamodb`: `key`, `item` and `old` as the wire carried them, typed. `debezium`: its
        envelope (`before`, `after`, `source`, `op` c/u/d, `ts_ms`), images plain, every time the
        change's creation, `source.sequence` the record's sequence number. `change`: the whole
        change in the shape of a Kinesis payload, with `version`, `position` (the sequence
        number) and `userIdentity` where it has them: `decode` reads it again."""
    def kafka(
        self,
        partitions: int,
        *,
        form: _Form | Schema = "plain",
        compression: _Codec = "none",
        table: str | None = None,
        headers: bool = True,
        tombstones: bool = True,
        batch_bytes_max: int = 1_000_000,
    ) -> list[KafkaBatch]:
        """The changes, of one table or of all, as record batches by partition, in order.

        Value: a line of `json_lines`, or by a `Schema`. Key: its attributes as one JSON object by
        name, numbers in one spelling; typed for `dynamodb` and `change`, else plain.
        Partition: murmur2 of the key, as Java's default partitioner. Timestamp: creation.
        Headers: `table`, `event`, `version`, `position`, `event_id`, those that are known.
        With `tombstones` a REMOVE is followed by the same record without a value. A batch
        holds `batch_bytes_max` before compression; a larger record has one of its own."""
    def set_aside(
        self,
        table: str,
        keys: Sequence[bytes] = ...,
        *,
        form: _Form | Schema = "plain",
        compression: _Codec = "none",
        headers: bool = True,
        record_bytes_max: int | None = None,
    ) -> tuple[ChangeBatch, list[bytes]]:
        """Without the table's changes of these keys (typed JSON), and of those whose record alone
        is larger, from it on: `rejections` now. And the keys that joined."""
    def misses(self, columns: Columns) -> list[tuple[str, str, int]]:
        """(attribute, its DynamoDB type, how many) of the new images' values that don't fit
        their column, `NULL` among them: what to widen. A pass of its own."""
    def unplanned(self, columns: Columns, table: str) -> list[tuple[str, str, int]]:
        """As `misses`, of the table's attributes without a column, as first met: what to add."""
    def parquet(
        self,
        columns: Columns | None = None,
        *,
        images: bool = True,
        compression: Literal["zstd", "none"] = "zstd",
        level: int = 3,
    ) -> bytes:
        """A Parquet file, a row a change: `table`, `event`, `event_id`, `key` (JSON), `version`
        (decimal text), `event_time` (µs, UTC), `sequence_number`, and, if `images` are wanted,
        `item` and `old` (plain JSON). With columns: those and the rest, of the new image,
        before `item` and `old`, which are in DynamoDB's JSON then; a name that is taken gets a
        `_`. `numeric` is text, `numeric(P,S)` a decimal, sets are lists. Raises ValueError for
        an unknown compression, or a level outside 1 to 22."""

@final
class Schema:
    """A registry's schema (`core.schemas.written`), by which values are Avro or JSON, items by
    the columns; 0 and its number in four bytes stand before them. `item`: new images alone."""

    def __new__(
        cls,
        id: int,  # noqa: A002 - one word for one thing
        columns: Columns,
        *,
        format: Literal["avro", "json_schema"] = "avro",  # noqa: A002 - as in the settings
        value: Literal["change", "item"] = "change",
    ) -> Schema: ...
    @property
    def id(self) -> int: ...

@final
class KafkaBatch:
    """A finished record batch of format 2 (https://kafka.apache.org/documentation/#recordbatch)."""

    @property
    def partition(self) -> int: ...
    @property
    def count(self) -> int: ...  # tombstones included
    @property
    def nbytes(self) -> int: ...
    @property
    def base_timestamp(self) -> int: ...
    @property
    def max_timestamp(self) -> int: ...
    def bytes(
        self,
        producer_id: int = -1,
        producer_epoch: int = -1,
        base_sequence: int = -1,
        transactional: bool = False,
    ) -> builtins.bytes:
        """The batch in the name of a producer, checksum (CRC-32C) included."""

@final
class Rows:
    """The newest change per key of one table, as rows to be."""

    def __len__(self) -> int: ...
    @property
    def deletes(self) -> int: ...
    @property
    def filtered(self) -> int:
        """Deletes among them that are no REMOVE: their new image doesn't match the pattern."""
    @property
    def folded(self) -> int:
        """Changes left out because a newer one of the same key is here."""
    @property
    def rejections(self) -> list[Rejection]: ...
    @property
    def nbytes(self) -> int:
        """About how many bytes `copy` gives."""
    def copy(self, lo: int = 0, hi: int | None = None, *, columns: Columns | None = None) -> bytes:
        """Rows lo..hi as a whole PostgreSQL binary COPY stream, header and trailer included.
        Columns: the key attributes in the given order (S text, N numeric, B bytea), `item` jsonb
        (NULL for a delete; U+0000, which jsonb refuses, as another character that a member with
        an empty name tells), `version` numeric, `deleted` bool, `chain` bytea (for `settle`),
        `ordinal` integer (its place from `lo` on). With `columns`, these and the rest as jsonb
        take the place of `item`, without the key. Raises ValueError when a key's is planned."""
    def arrays(self, lo: int = 0, hi: int | None = None) -> list[bytes]:
        """Rows lo..hi as texts that PostgreSQL makes arrays of, one a column: keys, `version` and
        `chain` as array literals, `item` joined by line feeds (empty: deleted). For few rows."""
    def misses(self, columns: Columns) -> list[tuple[str, str, int]]:
        """As `ChangeBatch.misses`, of the rows that aren't deletes."""
    def settle(self, stored: Sequence[_Held], lo: int = 0, *, came_first: bool = False) -> Settled:
        """Settles rows with what a sink stores of the same keys and millisecond: (row from `lo` on,
        item as JSON or None, version in UTC µs, chain). `came_first`: the rows arrived before."""
    def dynamodb_items(
        self,
        lo: int = 0,
        hi: int | None = None,
        *,
        version_attribute: str | None = None,
        generation: int = 0,
    ) -> list[tuple[bytes, bytes | None]]:
        """Per row its key and its item (None: a delete) in DynamoDB's JSON, as the wire carried
        them. `version_attribute` is put into the items, instead of an attribute of that name: a
        text of ten digits of the generation, `-`, and 40 of the version, which sorts so."""
    def dynamodb_puts(
        self,
        table: str,
        lo: int = 0,
        hi: int | None = None,
        *,
        version_attribute: str,
        generation: int = 0,
    ) -> list[bytes | None]:
        """Per row the body of a PutItem (AWS JSON 1.0) that replaces an existing, older item,
        or None for a delete. When the condition fails, the answer's `Item` is what is stored: it
        is as new, or there is none, and `dynamodb_transactions` has the row's write."""
    def dynamodb_transactions(
        self,
        table: str,
        side: str,
        lo: int = 0,
        hi: int | None = None,
        *,
        version_attribute: str,
        generation: int = 0,
        rows_max: int = 1,
    ) -> list[bytes]:
        """Bodies of TransactWriteItems over `rows_max` rows each (1 to 50). Per row: put the
        item and delete its tombstone in the table `side`, or delete the item and put the
        tombstone (its key and version); both only where what is stored is absent or older. One row
        whose condition fails undoes its whole transaction: the service takes up to 4 MB."""
    def crate_args(
        self, lo: int = 0, hi: int | None = None, *, generation: int = 0, dynamic: bool = True
    ) -> bytes:
        """Rows lo..hi as CrateDB's `bulk_args`: arrays of the key (texts), `item` (`crate_item`),
        `exact` (plain JSON), `version` (a text that sorts), `deleted`, `chain` (hexadecimal)."""
    def parquet(self, names: Sequence[str], *, generation: int = 0) -> bytes:
        """The rows as a Parquet file: a column for each key attribute (text, called as in `names`),
        `item` (null: deleted), `version` and `deleted` as in `crate_args`, `chain` (bytes)."""
    def record(self, row: int, code: str, message: str) -> Rejection:
        """The change behind a row as a rejection with this code and message."""
    def without(self, rows: Sequence[int]) -> Rows:
        """These rows' changes left out: the next newest of each key, if there is one, takes its
        place. Earlier rejections are kept."""

@final
class Settled:
    """What to store in place of rows of the same instant, as parallel lists, and what
    became of the rows given: each is `later` than what was stored (or shows that another
    was), a duplicate, or superseded. Once all changes of an instant have come, in whatever
    order and splits, the last one is what is stored; only where they end in the state in
    which they began does the arrival decide, and the row is `ambiguous` too."""

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

@final
class Window:
    """The memory of a log sink for one shard (laws 2 and 7): sorts changes per key within
    `reorder_us`, gives each distinct one once. A change is due when its millisecond ended
    `reorder_us` before the greatest event time seen. What comes later, after a newer change of its
    key was given, is marked late, or left out when `compacted`; so is marked what is older than
    all that is remembered. Changes of DynamoDB Streams are never held: their order is the
    stream's, and a sequence number seen is a duplicate.

    Duplicates are known for `duplicate_us` of event time (no less than `reorder_us`, else
    ValueError) and as far as `bytes_max` allows: the oldest instants are forgotten first, then the
    oldest held changes are given early. A held change keeps no more than four times its bytes of
    the batch it came with, some 4 KB a batch apart.

    Positions: store the last sequence number added, with `given_us`. After a restart, read from
    `duplicate_us` before what is `oldest` and `refill` up to that number; then `add`. `remembered`
    at the shard's end is what its children `inherit`."""

    def __new__(
        cls,
        *,
        reorder_us: int = 1_000_000,
        duplicate_us: int = 60_000_000,
        bytes_max: int = 67_108_864,
        compacted: bool = False,
    ) -> Window: ...
    def add(self, batch: ChangeBatch) -> ChangeBatch:
        """Takes the changes of one fetch in order of arrival; gives all that are due, in
        order. The answer's `duplicates` and `rejections` are those of this fetch."""
    def advance(self, event_us: int) -> ChangeBatch:
        """What is due when the source's clock shows this time, though no change says so."""
    def flush(self) -> ChangeBatch: ...
    def refill(self, batch: ChangeBatch, given_us: int | None = None) -> None:
        """Changes of before a restart: those before `given_us` were given (None: all)."""
    def remembered(self) -> bytes:
        """What is known, for others; b"" of a stream without copies. Not what is held."""
    def inherit(self, remembered: bytes) -> int | None:
        """Knows it, too; gives its newest event time, rounded up. None: these are other bytes."""
    def limit(self, bytes_max: int) -> None: ...
    @property
    def held(self) -> int: ...
    @property
    def oldest(self) -> int | None:
        """Which call of `add` and `refill`, from 0, brought the oldest change held."""
    @property
    def given_us(self) -> int | None:
        """All that was added with an earlier event time was given."""
    @property
    def nbytes(self) -> int: ...
    @property
    def late(self) -> int:
        """Changes marked late or left out, since the beginning."""
    @property
    def left_out(self) -> int: ...
    @property
    def early(self) -> int: ...
    @property
    def forgotten(self) -> int: ...

def decode(records: Records, *, table: str | None = None, keep_all: bool = False) -> ChangeBatch:
    """Decodes, checks, takes out exact duplicates and orders. Never fails a batch: a
    refused record is in `rejections`, its neighbours are decoded.

    `table` names the table of records that name none (a DynamoDB Streams answer
    carries no ARN). `keep_all` keeps every change in input order, duplicates too."""

def compress(data: bytes, codec: Literal["gzip", "zstd", "lz4"], level: int | None = None) -> bytes:
    """One gzip member, zstd frame or lz4 frame. Levels: gzip 1 to 12 (1), zstd -7 to 22 (3, with
    tables that fit a core's cache), lz4 None only. Raises ValueError for another."""

def crate_item(plain: str, *, dynamic: bool = True) -> bytes:
    """An item in plain JSON as CrateDB's types can hold it, with every digit; `dynamic`: as columns
    of one type each, so that what no column can hold is left out."""
