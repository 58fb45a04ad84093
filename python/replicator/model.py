"""The values that travel between the rooms: plain, frozen, printable.

Nothing here does I/O. Undecoded records and decoded changes are not modelled
in Python: they live in the Rust core (`_core.Records`, `_core.ChangeBatch`)
and travel through these values as opaque handles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from replicator._core import ChangeBatch, Records, Rejection


class PositionKind(StrEnum):
    """Where in a shard reading goes on; the names are the Kinesis API's own."""

    TRIM_HORIZON = "TRIM_HORIZON"
    LATEST = "LATEST"
    AT_TIMESTAMP = "AT_TIMESTAMP"
    AT_SEQUENCE_NUMBER = "AT_SEQUENCE_NUMBER"
    AFTER_SEQUENCE_NUMBER = "AFTER_SEQUENCE_NUMBER"
    SHARD_END = "SHARD_END"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in one shard. `timestamp_us` is UTC microseconds since the epoch."""

    kind: PositionKind
    sequence_number: str | None = None
    timestamp_us: int | None = None

    def __post_init__(self) -> None:
        by_number = self.kind in {
            PositionKind.AT_SEQUENCE_NUMBER,
            PositionKind.AFTER_SEQUENCE_NUMBER,
        }
        assert (self.sequence_number is not None) == by_number, self
        assert (self.timestamp_us is not None) == (self.kind is PositionKind.AT_TIMESTAMP), self

    def __str__(self) -> str:
        detail = self.sequence_number if self.sequence_number is not None else self.timestamp_us
        return self.kind.value if detail is None else f"{self.kind.value}:{detail}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that `str(position)` wrote. Raises ValueError otherwise."""
        kind_text, _, detail = text.partition(":")
        kind = PositionKind(kind_text)
        if kind is PositionKind.AT_TIMESTAMP:
            return cls(kind, timestamp_us=int(detail))
        if kind in {PositionKind.AT_SEQUENCE_NUMBER, PositionKind.AFTER_SEQUENCE_NUMBER}:
            if not (detail.isascii() and detail.isdigit()):
                raise ValueError(f"{text!r} has no sequence number")
            return cls(kind, sequence_number=detail)
        if detail:
            raise ValueError(f"{text!r}: {kind.value} takes no detail")
        return cls(kind)


TRIM_HORIZON = Position(PositionKind.TRIM_HORIZON)
LATEST = Position(PositionKind.LATEST)
SHARD_END = Position(PositionKind.SHARD_END)


def after(sequence_number: str) -> Position:
    """The position behind the record (or continuation) of this sequence number."""
    return Position(PositionKind.AFTER_SEQUENCE_NUMBER, sequence_number=sequence_number)


def at_timestamp(timestamp_us: int) -> Position:
    """The position of the first record that arrived at or after this instant."""
    return Position(PositionKind.AT_TIMESTAMP, timestamp_us=timestamp_us)


@dataclass(frozen=True, slots=True)
class Ago:
    """A start by a time before now, in microseconds: an instant once resolved (`core.start`)."""

    us: int

    def __str__(self) -> str:
        seconds = self.us // 1_000_000
        for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
            if seconds and not seconds % length:
                return f"{seconds // length}{unit} ago"
        return f"{seconds}s ago"


Start: TypeAlias = Position | Ago


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream's identity. Re-created under its old name it is another stream,
    so the creation time is part of it (whole seconds: the API gives no more)."""

    name: str
    arn: str
    created_at_s: int


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far back a stream reaches: records that arrived before `at_us` may be gone.

    `now_us` is the *service's* clock, `retention_us` how long it keeps a record; both in
    microseconds, the first since the epoch. `is_named`: who asks for what lies behind a sequence
    number learns from the service when it is trimmed; else that is for its age to say."""

    now_us: int
    retention_us: int
    is_named: bool = False

    @property
    def at_us(self) -> int:
        """The oldest arrival time that is surely still kept."""
        return self.now_us - self.retention_us


@dataclass(frozen=True, slots=True)
class Reached:
    """Until when a shard was read, UTC microseconds: the arrival time of the last record
    that is stored, and the instant up to which nothing is owed: by the service's last answer
    before the shard ended nothing more had arrived then, or the shard's first position was
    stored then (of a start by time: its instant, if that was before). Whatever comes next, in
    the shard or in its children, arrived later than both. `begun_us` is when the shard's first
    position was stored, or one was set by hand."""

    last_arrival_us: int | None = None
    tip_us: int | None = None
    begun_us: int | None = None

    @property
    def us(self) -> int | None:
        """The later of the first two; None when neither is known."""
        return max(filter(None, (self.last_arrival_us, self.tip_us)), default=None)


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as the service lists it. `is_open` is false once it takes no more
    records (it stays readable until the retention ends). `hash_range` is its first hash key
    and the one after its last, of 0 to 2**128 - 1; None where the service tells none."""

    id: str
    parents: tuple[str, ...] = ()
    is_open: bool = True
    starting_sequence_number: str | None = None
    ending_sequence_number: str | None = None
    hash_range: tuple[int, int] | None = None


KeyType = Literal["S", "N", "B"]


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A source table's name and key attributes: hash key first, then the range key."""

    name: str
    keys: tuple[tuple[str, KeyType], ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """One answer of a source for one shard.

    `next` is where reading goes on once everything of this fetch is durable:
    after the continuation number, or `SHARD_END` when the service said so.
    `children` come with the end only. `behind_ms` is the service's word, or what follows from
    the last record's arrival; 0 means that there was nothing more, None that nobody knows: an
    answer of DynamoDB Streams without records may come anywhere in a shard. `received_at` is
    `Clock.monotonic()` at the arrival of the frame's last byte, in seconds. `table` is that of
    records which name none: an answer of DynamoDB Streams is about one table.
    """

    shard_id: str
    records: Records
    next: Position
    children: tuple[Shard, ...] = ()
    behind_ms: int | None = 0
    received_at: float = 0.0
    table: str | None = None


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write one shard's changes at one sink: valid while the sink's
    own epoch and owner for the shard are still these.

    The epoch alone isn't enough: after a failover that lost the newest fence the
    sink counts the same number again. `owner` therefore says who raised it and
    bears a mark of this one raise.
    """

    stream: Stream
    shard_id: str
    epoch: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """A decoded fetch that waits for its sink, with the fence it was read under."""

    fence: Fence
    batch: ChangeBatch
    next: Position
    behind_ms: int | None
    received_at: float


@dataclass(frozen=True, slots=True)
class Batching:
    """How much a sink wants in one write, where it wants other batches than the limits give:
    whichever of changes, bytes and seconds of waiting is reached first."""

    rows_max: int
    bytes_max: int
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that a sink will never take, as it is stored: see `_core.Rejection`."""

    shard_id: str
    table: str | None
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter as its sink keeps it. `id` names it there, `stream` is the ARN it came from,
    `position` its sequence number (empty when the source gave none), `key` its change's in typed
    JSON where that can be read, `at` when it was stored (ISO 8601). `is_held`: the later changes of
    its key wait behind it."""

    id: str
    stream: str
    shard: str
    position: str
    index: int
    code: str
    message: str
    table: str | None
    key: str | None
    at: str
    is_held: bool
    raw: bytes


class LetterOutcome(StrEnum):
    """What became of a dead letter that an operator ended."""

    WRITTEN = "written"
    DUPLICATE = "duplicate"
    """The sink holds its change already."""
    SUPERSEDED = "superseded"
    """The sink holds a newer change of its key, so nothing was written."""
    DROPPED = "dropped"
    REFUSED = "refused"
    """It stays: it can't be written now either."""
    GONE = "gone"
    """Somebody else ended it meanwhile."""


@dataclass(frozen=True, slots=True)
class EndedLetter:
    """`reason` says why, where it is REFUSED: beginning with a code, as the letter does then."""

    letter: StoredLetter
    outcome: LetterOutcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What one write made durable.

    `lost` names the shards whose fence was gone: *nothing* of them was written,
    everything of the others was. `duplicates` are changes that the sink already held or
    that came in two of the write's fetches, `superseded` those that came later than a newer
    one, `filtered` those that deleted an item because it doesn't match the sink's filter, and
    `unmatched` those that a sink of every change left out for that.
    `ambiguous` are those, written or superseded, that only their arrival orders with one of
    their instant that is stored or came in another fetch. `holding` names the shards of which
    the sink keeps changes back until their time has come: a fetch without records says so.
    `is_asked` is False when nothing was due, so the destination wasn't asked for anything.
    """

    rows: int = 0
    duplicates: int = 0
    superseded: int = 0
    ambiguous: int = 0
    filtered: int = 0
    unmatched: int = 0
    dead_letters: tuple[DeadLetter, ...] = ()
    lost: frozenset[str] = frozenset()
    holding: frozenset[str] = frozenset()
    is_asked: bool = True

    @property
    def rejected_by_code(self) -> Mapping[str, int]:
        """How many dead letters each code has."""
        return Counter(letter.rejection.code for letter in self.dead_letters)


@dataclass(frozen=True, slots=True)
class SinkFinding:
    """One thing that a sink saw, without changing anything: `code` is set when it keeps the sink
    from starting, `ddl` when something is missing that this statement makes."""

    subject: str
    message: str
    code: str = ""
    ddl: str = ""
    is_required: bool = True
    is_warning: bool = False
    """With a code: the sink starts all the same."""


@dataclass(frozen=True, slots=True)
class SinkPlan:
    """What a sink would use and do; nothing of it is done yet. `server` names what answered;
    `creates` is False where what is missing is left to an operator."""

    server: str
    findings: tuple[SinkFinding, ...] = ()
    creates: bool = True

    @property
    def problems(self) -> tuple[SinkFinding, ...]:
        """What keeps the sink from starting."""
        return tuple(each for each in self.findings if each.code and not each.is_warning)

    @property
    def ddl(self) -> tuple[str, ...]:
        """The statements that would be run, in order."""
        return tuple(dict.fromkeys(finding.ddl for finding in self.findings if finding.ddl))


@dataclass(frozen=True, slots=True)
class SinkReport:
    """What a sink holds for one pipeline. `dead_letters` are counted by code. Each of
    `positions` has `stream_arn`, `shard`, `position` (text or None), `epoch`, `owner`, the times
    `last_arrival_at`, `tip_at`, `updated_at` in ISO 8601, and in seconds before now
    `age_seconds` (of the last record), `lag_seconds` (complete up to there), `stored_seconds`."""

    positions: tuple[Mapping[str, Any], ...] = ()
    dead_letters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SinkHeld:
    """What an opened sink would say of a stream (`Sink.is_known`, `begun`, `holds_data`); `rivals`
    are the streams for which `add_tables` would refuse it (ARNs)."""

    is_known: bool
    begun: tuple[str, ...]
    holds_data: bool
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """One row of a lease store: who may read a shard, judged by `counter` alone.

    `owner` is None when nobody holds it. `checkpoint` is a copy of the sink's
    position (as `str(Position)`), for display and never read back.
    """

    pipeline: str
    shard_id: str
    owner: str | None
    counter: int
    checkpoint: str | None = None
