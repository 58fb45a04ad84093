"""The seams: what a source, a sink, a lease store and a clock owe the engine.

Each method says whether it may be called twice and what its errors mean; the
error classes are those of `replicator.errors`. Every implementation, real or
shipped fake, passes the suite in `tests/contract/`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from replicator.model import (
    Batching,
    EndedLetter,
    Fence,
    Fetch,
    Horizon,
    LeaseRow,
    Pending,
    Position,
    Reached,
    Shard,
    SinkFinding,
    SinkHeld,
    SinkPlan,
    SinkReport,
    StoredLetter,
    Stream,
    TableSchema,
    WriteResult,
)


class Clock(Protocol):
    """Time and sleep, so that tests can own both."""

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back; its zero means nothing."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after that long; cancellation passes through."""
        ...


class Source(Protocol):
    """Reads the shards of one stream."""

    async def open(self) -> Stream:
        """Connects, prepares what reading needs (a consumer, say) and gives the
        stream's identity. May be called again after an error. Raises
        FatalError when the stream is missing or access is denied."""
        ...

    async def now_us(self) -> int:
        """The *service's* clock, UTC microseconds; never later than the truth, so
        that a start resolved from it loses nothing. May be called twice."""
        ...

    async def horizon(self) -> Horizon:
        """The service's clock (as `now_us`) and how long it keeps a record at present. One
        small request; may be called twice. Raises TransientError and FatalError."""
        ...

    async def shards(self) -> Sequence[Shard]:
        """Every shard the service still lists, all pages of it; parents may be
        missing once trimmed. May be called at any time, also while reading."""
        ...

    def read(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        """An asynchronous generator of the shard's fetches from `position` on.

        It renews whatever the service ends by itself (a subscription after five
        minutes) and returns after the fetch whose `next` is SHARD_END, and only
        then. Time in which the consumer doesn't ask for the next fetch counts
        against no deadline. Closing the generator closes the connection.

        Raises TransientError (read again from the last fetch's `next`),
        PositionLost, LeaseLost (somebody else reads as the same consumer), FatalError.
        """
        ...

    async def close(self) -> None:
        """Releases connections. May be called twice, and after a failed open."""
        ...


@runtime_checkable
class Measured(Protocol):
    """What a source may offer besides: it counts what it asks of the service, for `status` and
    the metrics. Both may be asked at any time and don't block."""

    def calls(self, shard_id: str) -> int:
        """Calls of the service that were made to read the shard; only grows while it is read."""
        ...

    def counters(self) -> Mapping[str, int]:
        """What happened to all shards, by a stable slug; only grows."""
        ...


@runtime_checkable
class Paged(Protocol):
    """What a source may offer besides: it counts the calls that its listings take."""

    def listing_calls(self) -> int:
        """Calls of the service that `shards` has made so far, failed ones too; only grows."""
        ...


@runtime_checkable
class Dated(Protocol):
    """What a source may offer besides: it knows how old its shards are."""

    def made_us(self, shard_id: str) -> int | None:
        """When the shard was made, UTC microseconds: every record in it is younger. None where
        that can't be told. Doesn't block."""
        ...


PayloadT = TypeVar("PayloadT")


class Writer(Protocol[PayloadT]):
    """One connection of a sink. A shard belongs to one writer at a time, a writer
    may serve many shards and then takes the changes of all of them in one write."""

    def encode(self, pending: Sequence[Pending]) -> PayloadT:
        """The sink's own bytes for these changes. Pure: may run in a thread, may
        be called twice. Never raises for bad data: that becomes dead letters."""
        ...

    async def write(self, payload: PayloadT) -> WriteResult:
        """Returns only when changes, dead letters and the shards' new positions
        are durable, together. May be called twice with the same payload while
        the fences hold. A lost fence is *returned* (`WriteResult.lost`), never
        raised. Raises TransientError (the outcome is unknown: raise the
        fence and read the position before anything else) and FatalError."""
        ...


class Sink(Protocol[PayloadT]):
    """A destination that keeps its own positions (they are the truth)."""

    async def open(self, tables: Sequence[TableSchema]) -> None:
        """Connects and makes or verifies what it writes to. May be called twice.
        Raises FatalError with what to do (the DDL to run, the differing shape)."""
        ...

    async def begin(self, stream: Stream, starts: Mapping[str, Position]) -> bool:
        """Stores, for a stream this pipeline has never read, the first position of
        each shard in one step, and returns True. Does nothing and returns
        False when the stream is known: a start is resolved once."""
        ...

    async def is_known(self, stream: Stream) -> bool:
        """True when `begin` was done for the stream."""
        ...

    async def add_tables(self, stream: Stream) -> Sequence[str]:
        """Stores with a known stream the places that it is written to since `open` and wasn't
        before, and gives their names. Raises FatalError, and stores nothing, where one of them
        holds what another stream brought since, whose versions can't be compared (law 3). May be
        called twice."""
        ...

    async def begun(self) -> Sequence[str]:
        """The ARNs of all streams that `begin` was done for, by this pipeline or into any of its
        tables, the newest last. After `open`."""
        ...

    async def holds_data(self) -> bool:
        """True when something is stored already in any place that it writes to. With
        a stream that is not known, nobody can say up to where (law 7)."""
        ...

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        """The stored position of every shard that has one."""
        ...

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Reached]:
        """Until when each of these shards was read, stored with its position (law 9);
        without those of which nothing is known."""
        ...

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        """Raises the shard's epoch, so that every older fence is dead from here on."""
        ...

    async def position(self, fence: Fence) -> Position | None:
        """The shard's stored position, read after fencing; None when it has none
        (then it is a shard found later and starts at TRIM_HORIZON). Raises
        LeaseLost when the fence is no longer the newest."""
        ...

    async def move(
        self, stream: Stream, positions: Mapping[str, Position], owner: str
    ) -> Mapping[str, Position | None]:
        """Sets these positions for an operator, and gives the old ones. Every fence of these
        shards is dead from here on, what is known of their times is forgotten, and what
        arrives from now on is owed. May be called without `open`, and twice."""
        ...

    def writer(self, fence: Fence) -> Writer[PayloadT]:
        """The writer that serves the shard from here on."""
        ...

    async def close(self) -> None:
        """Releases connections. May be called twice."""
        ...


@runtime_checkable
class Batched(Protocol):
    """What a sink may offer besides: it says how its writes are cut. The memory budget, a shard's
    end and a stop still make them smaller."""

    @property
    def batching(self) -> Batching:
        """The same for all its writers, at any time."""
        ...


@runtime_checkable
class Inheriting(Protocol):
    """What a sink may offer besides: it remembers changes of a shard past its end, for the shards
    that follow it."""

    def inherit(self, fence: Fence, parents: Sequence[str]) -> None:
        """The fence's shard follows these, of which the sink holds everything. Asked after `fence`
        and before `position`; doesn't block, may be called twice."""
        ...


Describe: TypeAlias = Callable[[], Awaitable[Sequence[TableSchema]]]
"""Asks for the tables of a pipeline. Raises FatalError and TransientError."""


@runtime_checkable
class Expiring(Protocol):
    """What a sink may offer besides: it says when records are deleted, or refused, for the age of
    their changes."""

    async def expiring(self, tables: Sequence[TableSchema], reach_us: int) -> Sequence[SinkFinding]:
        """Warnings, when changes come that are up to so old (microseconds). May be called without
        `open`. Raises TransientError and FatalError."""
        ...


@runtime_checkable
class Redriven(Protocol):
    """What a sink may offer besides: an operator ends its dead letters, also while workers write.
    It may be called without `open`, and again after an error."""

    def redrive_letters(
        self, ids: Sequence[str], owner: str, describe: Describe
    ) -> AsyncGenerator[EndedLetter, None]:
        """Writes these (all, without ids) to where they belong, and gives what became of each once
        that is durable, its end with it. A sink of the newest items asks `describe`, writes each
        as any change, so that it undoes nothing newer, and raises no fence. A sink of every change
        writes with one all that waits behind its key, in order, and what comes later goes its
        usual way; every fence of these shards is dead from here on, by one of `owner`'s.

        Raises FatalError (`usage_letter` for an id that isn't there), TransientError, and LeaseLost
        when a worker took the shard meanwhile; what was given by then is done."""
        ...

    def drop_letters(self, ids: Sequence[str], owner: str) -> AsyncGenerator[EndedLetter, None]:
        """The same, but gives them up."""
        ...


class ShownSink(Sink[PayloadT], Protocol[PayloadT]):
    """A sink that commands can look at without opening it: nothing is made or changed."""

    async def plan(self, tables: Sequence[TableSchema]) -> SinkPlan:
        """What `open` would find and do, for `check`. May be called before, after and without
        `open`. Raises TransientError and FatalError."""
        ...

    async def held(self, stream: Stream, tables: Sequence[TableSchema]) -> SinkHeld:
        """What `is_known`, `begun`, `holds_data` and `add_tables` would say after `open`: of what
        isn't there yet, nothing. Raises TransientError and FatalError."""
        ...

    async def report(self) -> SinkReport:
        """Positions and dead letters as they are stored; empty before the sink was opened for
        the first time. May be called without `open`. Raises TransientError and FatalError."""
        ...

    async def letters(self) -> Sequence[StoredLetter]:
        """The dead letters that wait, of a shard in order. May be called without `open`. Raises
        TransientError and FatalError."""
        ...


class LeaseStore(Protocol):
    """Who may read which shard. It never decides: `core.lease` does, by counters."""

    async def open(self) -> None:
        """Makes or opens the store. May be called twice."""
        ...

    async def rows(self, pipeline: str) -> Sequence[LeaseRow]:
        """All rows of a pipeline."""
        ...

    async def create(self, pipeline: str, shard_ids: Sequence[str]) -> None:
        """Adds unowned rows where none exist; leaves existing ones alone."""
        ...

    async def take(self, seen: LeaseRow, owner: str) -> LeaseRow | None:
        """Makes `owner` the owner if the row's counter is still `seen.counter`
        (counter + 1); None when somebody was quicker."""
        ...

    async def renew(self, held: LeaseRow) -> LeaseRow:
        """Counter + 1 if the row is still `held`. Raises LeaseLost otherwise."""
        ...

    async def take_all(self, seen: Sequence[LeaseRow], owner: str) -> Sequence[LeaseRow]:
        """`take` of each, in as few steps as the store can: those that were taken. After an
        error any of them may have been."""
        ...

    async def renew_all(self, held: Sequence[LeaseRow]) -> Sequence[LeaseRow]:
        """`renew` of each, likewise: those that were still held."""
        ...

    async def release(self, held: LeaseRow) -> None:
        """Gives the row up if it is still held; never raises for a lost one."""
        ...

    async def checkpoint(self, pipeline: str, shard_id: str, position: Position) -> None:
        """Stores the copy for display."""
        ...

    async def checkpoint_all(self, pipeline: str, positions: Mapping[str, Position]) -> None:
        """`checkpoint` of each, in as few steps as the store can."""
        ...

    async def delete(self, pipeline: str, shard_ids: Sequence[str]) -> None:
        """Removes rows of shards that are finished and no longer listed."""
        ...

    async def close(self) -> None:
        """May be called twice."""
        ...
