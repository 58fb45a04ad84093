"""Where reading starts: a stream's first time, and a shard's every time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from replicator.errors import FatalError, RejectedError, TransientError
from replicator.model import (
    SHARD_END,
    TRIM_HORIZON,
    Ago,
    Horizon,
    Position,
    PositionKind,
    Shard,
    Start,
    Stream,
    at_timestamp,
)


def resolved(start: Start, now_us: int) -> Position:
    """The start as it is stored: LATEST and a time before now become the instant that they
    mean by the service's clock, `now_us` (law 5)."""
    if isinstance(start, Ago):
        return at_timestamp(now_us - start.us)
    return at_timestamp(now_us) if start.kind is PositionKind.LATEST else start


def reach_us(start: Position, horizon: Horizon) -> int:
    """How old changes may be that are read from there on, in microseconds: what a start by time
    says, else all that the stream keeps."""
    if start.timestamp_us is None:
        return horizon.retention_us
    return min(max(horizon.now_us - start.timestamp_us, 0), horizon.retention_us)


def position_to_read(stored: Position | None) -> Position:
    """Where a shard's reading starts: its stored position, else (a shard found after
    the first start) at its oldest record. A configured start has no say here."""
    assert stored is None or stored.kind is not PositionKind.LATEST, stored
    return TRIM_HORIZON if stored is None else stored


def require_start(pipeline: str, stream: Stream, start: Start | None, begun: Sequence[str]) -> None:
    """Raises FatalError when a stream that was never read can't begin in tables that hold rows:
    from the streams `begun` into them (ARNs, the newest last), and the configured start."""
    require_comparable(stream.arn, begun)
    if start is None:
        raise FatalError(
            "position_missing",
            f"the tables of {pipeline} hold rows, but no position says up to where {stream.name} "
            "was read into them. What to do: empty the tables, or say where to start with "
            "`start:` at the source. If all rows came from Kinesis streams, as this one is, "
            "TRIM_HORIZON is safe: older changes undo nothing. After another kind of source, or "
            "another stream of a table, no start is",
        )


def incomparable(arn: str, begun: Sequence[str]) -> tuple[str, ...]:
    """Those of the streams `begun` (ARNs) whose versions can't be compared with this one's."""
    others = tuple(other for other in begun if other != arn)
    return () if all(_has_instants(each) for each in (arn, *others)) else others


def require_redrivable(arn: str, newest: str | None) -> None:
    """Law 3: refuses a dead letter of a stream whose versions can't be compared with those of its
    table's rows, which the stream that came there last brought (its ARN). Raises RejectedError."""
    if newest is None or incomparable(arn, [newest]):
        raise RejectedError(
            "stream_replaced",
            f"it came from {arn}, whose versions can't be compared with those that the table holds "
            f"from {newest or 'no known stream'}: write its item in DynamoDB again, and drop it",
        )


def require_comparable(arn: str, begun: Sequence[str]) -> None:
    """Law 3: refuses a stream whose versions can't be compared with those that a sink holds,
    from the streams `begun` into it (ARNs, the newest last).

    A version from Kinesis is an instant, the same in every stream. One from DynamoDB Streams is
    a sequence number, which says nothing in another stream, of the same table even: a change
    might look older than what it follows, and be left out without a word. Raises FatalError.
    """
    if not (others := incomparable(arn, begun)):
        return
    newest = others[-1]
    old_one = (
        ""
        if _has_instants(newest)
        else f"The old stream is kept for 24 hours after it was disabled: to read it to its end, "
        f"run with `source: {{kind: streams, stream: {newest}}}` first. "
    )
    raise FatalError(
        "stream_replaced",
        f"the sink's tables hold what {newest} brought, and versions of {arn} can't be compared "
        f"with it: changes might be taken for older ones and lost. {old_one}What to do: let this "
        "pipeline write to empty tables (empty them, or name others with the sink's `table`); "
        "what the new stream doesn't bring has to be loaded from the table",
    )


@dataclass(frozen=True, slots=True)
class Brought:
    """A stream that was begun (its ARN), and the tables that it came to, by the sink's names.
    `is_mine`: it is the one that is asked about, of the same pipeline."""

    arn: str
    tables: frozenset[str]
    is_mine: bool = False


@dataclass(frozen=True, slots=True)
class Joining:
    """What a known stream finds in the tables that it goes to now: those that are `new` to it,
    and the ARNs that others brought to a table since it came there itself, of which the versions
    can't be compared with its own. `left` are tables that it had, goes to no more, and lost to
    such others: who comes to another table must not seem to come there anew."""

    new: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()
    rivals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def added(self) -> tuple[str, ...]:
        """Those that are new, in order."""
        return tuple(sorted(self.new))

    def tables(self, before: Collection[str]) -> tuple[str, ...]:
        """Those that are the stream's from now on, in order."""
        return tuple(sorted((set(before) - self.left) | self.new))

    @property
    def is_needed(self) -> bool:
        """True when something is to be stored, if it may be."""
        return bool(self.new or self.rivals)

    def rivals_in(self, holding: Collection[str]) -> tuple[str, ...]:
        """Those in tables that hold rows. An empty table holds nothing to compare: it is the
        stream's, who came last."""
        arns = (
            arn for table in sorted(self.rivals) if table in holding for arn in self.rivals[table]
        )
        return tuple(dict.fromkeys(arns))


def joining(
    arn: str, tables: Collection[str], brought: Sequence[Brought], *, is_log: bool = False
) -> Joining:
    """Law 3 table by table, for tables that a pipeline lists later, too: from all streams that
    were begun, in the order in which each came to its newest tables. Of a stream that isn't among
    them, nothing: it is to be begun. A log (`is_log`) keeps the changes of all that came to it
    side by side: nobody takes it from the streams that are there."""
    mine = next((each.tables for each in brought if each.is_mine), None)
    if mine is None:
        return Joining()
    rivals: dict[str, list[str]] = {table: [] for table in mine.union(tables)}
    for each in brought:
        for table in each.tables & rivals.keys():
            if each.is_mine:
                rivals[table].clear()
            elif incomparable(arn, [each.arn]):
                rivals[table].append(each.arn)
    found = {
        table: tuple(dict.fromkeys(arns))
        for table, arns in rivals.items()
        if arns and (table not in mine or not is_log)
    }
    return Joining(
        new=frozenset(tables) - mine,
        left=frozenset(found).difference(tables),
        rivals={table: arns for table, arns in found.items() if table in tables},
    )


def require_successor(arn: str, newest: str, *, is_left: bool) -> None:
    """For a stream that was read to its end, and the one in its place. Raises FatalError where
    the newer can't be read into the same tables, TransientError (begin again) where they are
    empty (`is_left`)."""
    if not incomparable(newest, [arn]):
        return
    if not is_left:
        require_comparable(newest, [arn])
    raise TransientError(
        "stream_ended",
        f"{arn} was read to its end and left the sink's tables empty: {newest} is begun instead",
        retry_after_seconds=0.0,
    )


def _has_instants(arn: str) -> bool:
    return arn.split(":")[2:3] == ["kinesis"]


def first_starts(
    shards: Sequence[Shard], start: Position, *, shard_id: str | None = None
) -> dict[str, Position]:
    """The first position of every listed shard of a stream that was never read.

    TRIM_HORIZON and AT_TIMESTAMP hold for every shard (a closed one then gives what
    came since, or just its end). LATEST must have been resolved to an instant of
    the service's clock before. A sequence number belongs to one shard: the listed
    one whose numbers contain it, or `shard_id` where several do (numbers of
    different shards aren't told apart by the service). That shard's ancestors
    are finished then, every other shard starts at TRIM_HORIZON.

    Raises FatalError when no shard, or more than one, contains the number.
    """
    match start.kind:
        case PositionKind.TRIM_HORIZON | PositionKind.AT_TIMESTAMP:
            return {shard.id: start for shard in shards}
        case PositionKind.AT_SEQUENCE_NUMBER | PositionKind.AFTER_SEQUENCE_NUMBER:
            assert start.sequence_number is not None
            holder = _holder(shards, start.sequence_number, shard_id)
            ancestors = _ancestors(shards, holder)
            starts = {
                shard.id: SHARD_END if shard.id in ancestors else TRIM_HORIZON for shard in shards
            }
            starts[holder] = start
            return starts
        case _:
            raise AssertionError(f"{start} is no first start")


def was_only_begun(positions: Mapping[str, Position]) -> bool:
    """True when a sink's positions are those of `first_starts` still: nothing was read to it."""
    kinds = {position.kind for position in positions.values()}
    unread = {
        PositionKind.TRIM_HORIZON,
        PositionKind.AT_TIMESTAMP,
        PositionKind.AT_SEQUENCE_NUMBER,
    }
    if PositionKind.AT_SEQUENCE_NUMBER in kinds:
        unread.add(PositionKind.SHARD_END)  # that shard's ancestors
    return kinds <= unread


def starts_beside(
    first: Mapping[str, Position], others: Mapping[str, Position]
) -> dict[str, Position]:
    """The first positions of a sink that joins others: `first` of the shards that are listed; of
    those that aren't any more, what the others hold, for they can't be read again."""
    return {**others, **first}


def to_reset(
    shards: Sequence[Shard], shard_id: str, positions: Mapping[str, Position]
) -> tuple[str, ...]:
    """The shards that begin anew at TRIM_HORIZON when this one does: itself, and those of its
    listed descendants that have read nothing yet. What they lost is lost with it: nobody can
    tell any more when they began."""
    inside = {shard_id}
    listed = {shard.id: shard for shard in shards}
    added = True
    while added:
        added = False
        for shard in listed.values():
            if shard.id not in inside and inside.intersection(shard.parents):
                inside.add(shard.id)
                added = True
    unread = {None, TRIM_HORIZON}
    new = (s for s in listed if s in inside - {shard_id} and positions.get(s) in unread)
    return (shard_id, *new)


def _holder(shards: Sequence[Shard], number: str, shard_id: str | None) -> str:
    holders = [
        shard.id
        for shard in shards
        if shard_id in {None, shard.id} and _contains(shard, int(number))
    ]
    if len(holders) == 1:
        return holders[0]
    if not holders:
        where = "no listed shard" if shard_id is None else f"shard {shard_id} doesn't"
        verb = " contains" if shard_id is None else " contain"
        raise FatalError(
            "start_not_found",
            f"{where}{verb} sequence number {number}: it may be behind the horizon or of another "
            "stream. Start at a number that is still kept, at a timestamp or at TRIM_HORIZON",
        )
    raise FatalError(
        "start_ambiguous",
        f"sequence number {number} may be of {len(holders)} shards ({', '.join(holders[:5])}"
        f"{', …' if len(holders) > 5 else ''}). Name the shard, or start at a timestamp",
    )


def _contains(shard: Shard, number: int) -> bool:
    first, last = shard.starting_sequence_number, shard.ending_sequence_number
    return first is not None and int(first) <= number and (last is None or number <= int(last))


def _ancestors(shards: Sequence[Shard], shard_id: str) -> set[str]:
    parents = {shard.id: shard.parents for shard in shards}
    ancestors: set[str] = set()
    frontier = [shard_id]
    while frontier:
        for parent_id in parents.get(frontier.pop(), ()):
            if parent_id not in ancestors:
                ancestors.add(parent_id)
                frontier.append(parent_id)
    return ancestors
