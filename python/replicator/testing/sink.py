"""A sink in memory, for tests and rehearsals: the contract of `protocols.Sink`, and faults."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from replicator._core import Rejection, Rows
from replicator.core.start import Brought, joining, require_comparable
from replicator.errors import TransientError
from replicator.model import (
    DeadLetter,
    Fence,
    Pending,
    Position,
    Reached,
    Stream,
    TableSchema,
    WriteResult,
)
from replicator.sink.committed import Committed, moved_message
from replicator.sink.fences import fence_lost, marked
from replicator.sink.joined import Joined
from replicator.sink.position import furthest, tip_age_seconds

Key: TypeAlias = tuple[Any, ...]
_Became: TypeAlias = Literal["row", "duplicate", "superseded", "ambiguous"]


@dataclass(frozen=True, slots=True)
class StoredItem:
    """A key's newest change; `item` is None for a tombstone. `text` is the item as JSON,
    `chain` what the order of changes at one instant needs: see `_core.Rows`."""

    item: Mapping[str, Any] | None
    version: Decimal
    chain: bytes
    text: str | None = None

    @classmethod
    def of(cls, text: str | None, version: Decimal, chain: bytes) -> StoredItem:
        return cls(None if text is None else _exact(text), version, chain, text)

    @property
    def instant(self) -> Decimal | None:
        """The millisecond of a creation time; None where the version is none."""
        return self.version // 1000 if self.chain[0] < 2 else None

    @property
    def deleted(self) -> bool:
        return self.item is None


@dataclass(frozen=True, slots=True)
class MemoryPayload:
    """One write: the newest change per table and key, and what can't be written."""

    pending: tuple[Pending, ...]
    rows: Mapping[tuple[str, Key], StoredItem]
    encoded: Mapping[str, Rows]
    """Per table what `rows` was made of, in the same order."""
    rejections: tuple[Rejection, ...]
    joined: Joined


@dataclass(slots=True)
class MemoryStore:
    """What outlives a process: several sinks over one store are several workers."""

    items: dict[tuple[str, Key], StoredItem] = field(default_factory=dict)
    streams: dict[tuple[str, Stream], Mapping[str, Position]] = field(default_factory=dict)
    tables: dict[tuple[str, Stream], frozenset[str]] = field(default_factory=dict)
    positions: dict[tuple[str, Stream, str], Position] = field(default_factory=dict)
    reached: dict[tuple[str, Stream, str], Reached] = field(default_factory=dict)
    epochs: dict[tuple[str, Stream, str], int] = field(default_factory=dict)
    owners: dict[tuple[str, Stream, str], str] = field(default_factory=dict)
    dead_letters: dict[tuple[str, Stream, str, str, int], DeadLetter] = field(default_factory=dict)
    attempts: Counter[tuple[str, Stream, str, str, int]] = field(default_factory=Counter)


class MemorySink:
    """Holds the newest image per key in a `MemoryStore`, positions beside it.

    Faults: clear `flowing` and writes wait until it is set again; `fail_write(n)`
    makes the n-th write from now raise TransientError before or after it took
    effect; `on_write` sees every payload first, and what it raises is raised.
    """

    def __init__(
        self,
        pipeline: str = "test",
        store: MemoryStore | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        """`monotonic` is the clock that fetches were received by, `now_us` the sink's own."""
        self.pipeline = pipeline
        self.monotonic = monotonic
        self.now_us = now_us
        self.store = store or MemoryStore()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.writes = 0
        self.on_write: Callable[[MemoryPayload], None] | None = None
        self.tables: dict[str, TableSchema] = {}
        self.committed = Committed()
        self._faults: dict[int, Literal["before", "after"]] = {}

    def fail_write(self, nth: int = 1, when: Literal["before", "after"] = "before") -> None:
        """The n-th write from now (1 is the next) fails before or after its commit."""
        self._faults[self.writes + nth] = when

    def items(self, table: str) -> dict[Key, StoredItem]:
        """Every key ever written of a table, tombstones too."""
        return {key: item for (name, key), item in self.store.items.items() if name == table}

    async def open(self, tables: Sequence[TableSchema]) -> None:
        self.tables = {table.name: table for table in tables}

    async def begin(self, stream: Stream, starts: Mapping[str, Position]) -> bool:
        if (self.pipeline, stream) in self.store.streams:
            return False
        self.store.streams[self.pipeline, stream] = dict(starts)
        self.store.tables[self.pipeline, stream] = frozenset(self.tables)
        for shard_id, position in starts.items():
            key = (self.pipeline, stream, shard_id)
            self.store.positions.setdefault(key, position)
            self.store.reached.setdefault(key, self._begun(position))
        return True

    async def is_known(self, stream: Stream) -> bool:
        return (self.pipeline, stream) in self.store.streams

    async def add_tables(self, stream: Stream) -> Sequence[str]:
        mine, before = (self.pipeline, stream), self.store.tables
        brought = [Brought(of[1].arn, tables, of == mine) for of, tables in before.items()]
        found = joining(stream.arn, self.tables, brought)
        holding = {table for table, _ in self.store.items}
        require_comparable(stream.arn, found.rivals_in(holding))
        if found.is_needed:
            before[mine] = frozenset(found.tables(before.pop(mine)))  # the newest last
        return found.added

    async def begun(self) -> Sequence[str]:
        arns = (
            stream.arn
            for (pipeline, stream), tables in self.store.tables.items()
            if pipeline == self.pipeline or not tables.isdisjoint(self.tables)
        )
        return list(dict.fromkeys(arns))

    async def holds_data(self) -> bool:
        return bool(self.store.items)

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        return {
            shard_id: position
            for (pipeline, of, shard_id), position in self.store.positions.items()
            if pipeline == self.pipeline and of == stream
        }

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Reached]:
        keys = {shard_id: (self.pipeline, stream, shard_id) for shard_id in shard_ids}
        stored = self.store.reached
        return {shard_id: stored[key] for shard_id, key in keys.items() if key in stored}

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        assert owner
        key = (self.pipeline, stream, shard_id)
        self.store.epochs[key] = self.store.epochs.get(key, 0) + 1
        self.store.owners[key] = marked(owner)
        fence = Fence(stream, shard_id, self.store.epochs[key], self.store.owners[key])
        self.committed.read(fence, self.store.positions.get(key))
        return fence

    async def position(self, fence: Fence) -> Position | None:
        if not self.holds(fence):
            self.committed.forget(fence)
            raise fence_lost(fence)
        position = self.stored(fence)
        self.committed.read(fence, position)
        return position

    async def move(
        self, stream: Stream, positions: Mapping[str, Position], owner: str
    ) -> Mapping[str, Position | None]:
        old: dict[str, Position | None] = {}
        for shard_id, position in positions.items():
            await self.fence(stream, shard_id, owner)
            key = (self.pipeline, stream, shard_id)
            old[shard_id] = self.store.positions.get(key)
            self.store.positions[key] = position
            self.store.reached[key] = self._begun(position)
        return old

    def _begun(self, position: Position) -> Reached:
        """What is owed from a position on that is stored now."""
        now_us = self.now_us()
        return Reached(tip_us=min(now_us, position.timestamp_us or now_us), begun_us=now_us)

    def writer(self, fence: Fence) -> MemoryWriter:
        assert self.store.epochs.get((self.pipeline, fence.stream, fence.shard_id)), fence
        return MemoryWriter(self)

    async def close(self) -> None:
        """Nothing to release: what was written stays in the store."""

    def holds(self, fence: Fence) -> bool:
        """True while the fence is the shard's newest."""
        key = (self.pipeline, fence.stream, fence.shard_id)
        newest = (self.store.epochs.get(key), self.store.owners.get(key))
        return newest == (fence.epoch, fence.owner)

    def stored(self, fence: Fence) -> Position | None:
        """The position of the fence's shard."""
        return self.store.positions.get((self.pipeline, fence.stream, fence.shard_id))

    async def fault(self) -> Literal["before", "after"] | None:
        """Waits while the sink is stalled, then gives this write's fate."""
        self.writes += 1
        fate = self._faults.pop(self.writes, None)
        await self.flowing.wait()
        return fate


class MemoryWriter:
    """Writes to its sink's store; a write has no half."""

    def __init__(self, sink: MemorySink) -> None:
        self._sink = sink

    def encode(self, pending: Sequence[Pending]) -> MemoryPayload:
        joined = Joined.of(pending, self._sink.tables)
        batch = joined.batch
        rejections = list(batch.rejections)
        encoded: dict[str, Rows] = {}
        rows: dict[tuple[str, Key], StoredItem] = {}
        for name in batch.tables:
            if name is not None and (table := self._sink.tables.get(name)) is not None:
                encoded[name] = batch.newest(name, table.keys)
                rejections += encoded[name].rejections
                rows |= {(name, key): row for key, row in _decoded(encoded[name], table)}
        return MemoryPayload(tuple(pending), rows, encoded, tuple(rejections), joined)

    async def write(self, payload: MemoryPayload) -> WriteResult:
        if self._sink.on_write is not None:
            self._sink.on_write(payload)
        fate = await self._sink.fault()
        result = None if fate == "before" else self._commit(payload)
        if result is None or fate == "after":
            for one in payload.pending:
                self._sink.committed.unsure(one.fence)
            raise TransientError("scripted", f"failed {fate} the commit, as ordered")
        return result

    def _commit(self, payload: MemoryPayload) -> WriteResult:
        lost = self._lost(payload)
        if lost:
            kept = [one for one in payload.pending if one.fence.shard_id not in lost]
            payload = self.encode(kept)
        sink, committed = self._sink, self._sink.committed
        stored = {one.fence: sink.stored(one.fence) for one in payload.pending}
        moved = {fence: at for fence, at in stored.items() if not committed.agrees(fence, at)}
        if moved:
            raise TransientError("position_moved", moved_message(moved))
        became = Counter[str]()
        place = Counter[str]()
        for key, row in payload.rows.items():
            became.update(self._merge(key, row, payload.encoded[key[0]], place[key[0]]))
            place[key[0]] += 1
        dead_letters = self._store_dead_letters(payload)
        for one in payload.pending:
            shard = (sink.pipeline, one.fence.stream, one.fence.shard_id)
            position = furthest(sink.store.positions.get(shard), one.next)
            sink.store.positions[shard] = position
            self._reach(shard, one)
            committed.moved(one.fence, position)
        return WriteResult(
            rows=became["row"],
            duplicates=payload.joined.duplicates + became["duplicate"],
            superseded=became["superseded"],
            ambiguous=payload.joined.ambiguous + became["ambiguous"],
            dead_letters=dead_letters,
            lost=lost,
        )

    def _reach(self, shard: tuple[str, Stream, str], pending: Pending) -> None:
        before = self._sink.store.reached.get(shard, Reached())
        arrival_ms = pending.batch.last_arrival_ms
        age = tip_age_seconds(pending, self._sink.monotonic())
        arrival_us = None if arrival_ms is None else arrival_ms * 1_000
        reached = Reached(
            max(filter(None, (before.last_arrival_us, arrival_us)), default=None),
            before.tip_us if age is None else self._sink.now_us() - round(age * 1_000_000),
            before.begun_us,
        )
        if reached.us is not None:
            self._sink.store.reached[shard] = reached

    def _lost(self, payload: MemoryPayload) -> frozenset[str]:
        # One shard under two fences is lost too: see the Postgres sink.
        fences = {one.fence for one in payload.pending}
        times = Counter(fence.shard_id for fence in fences)
        lost = {
            fence.shard_id
            for fence in fences
            if not self._sink.holds(fence) or times[fence.shard_id] > 1
        }
        for fence in fences:
            if fence.shard_id in lost:
                self._sink.committed.forget(fence)
        return frozenset(lost)

    def _merge(self, key: tuple[str, Key], new: StoredItem, rows: Rows, row: int) -> list[_Became]:
        """Stores the newer of the two; the core tells which one of one instant is the last."""
        items = self._sink.store.items
        old = items.get(key)
        if old is not None and old.instant is not None and old.instant == new.instant:
            settled = rows.settle([(row, old.text, int(old.version), old.chain)])
            for item, version, chain in zip(
                settled.items, settled.versions, settled.chains, strict=True
            ):
                items[key] = StoredItem.of(item, Decimal(version), chain)
            ambiguous: list[_Became] = ["ambiguous"] * settled.ambiguous
            if settled.duplicates:
                return ["duplicate"]
            return [*ambiguous, "row" if settled.later else "superseded"]
        if old is not None and new.version <= old.version:
            return ["duplicate" if new.version == old.version else "superseded"]
        items[key] = new
        return ["row"]

    def _store_dead_letters(self, payload: MemoryPayload) -> tuple[DeadLetter, ...]:
        store = self._sink.store
        dead_letters = []
        for rejection in payload.rejections:
            fence = payload.pending[rejection.part].fence
            letter = DeadLetter(fence.shard_id, rejection.table, rejection)
            if rejection.sequence_number:
                record = (rejection.sequence_number, rejection.sub_sequence_number)
            else:
                record = (rejection.raw.hex(), rejection.index)
            at = (self._sink.pipeline, fence.stream, fence.shard_id, *record)
            store.dead_letters[at] = letter
            store.attempts[at] += 1
            dead_letters.append(letter)
        return tuple(dead_letters)


def _decoded(rows: Rows, table: TableSchema) -> Iterator[tuple[Key, StoredItem]]:
    """The rows with their keys, out of the arrays that Postgres takes."""
    if not len(rows):
        return
    *keys, items, versions, chains = rows.arrays()
    columns = [
        [_plain(value) if kind == "B" else value for value in _elements(column)]
        for column, (_, kind) in zip(keys, table.keys, strict=True)
    ]
    texts = [text or None for text in items.decode().split("\n")]
    for *key, text, version, chain in zip(
        *columns, texts, _elements(versions), _elements(chains), strict=True
    ):
        yield tuple(key), StoredItem.of(text, Decimal(version), bytes.fromhex(chain[2:]))


def _elements(literal: bytes) -> list[Any]:
    """An array literal's elements: numbers, or strings in quotes with backslashes."""
    return list(_exact("[" + literal.decode()[1:-1] + "]"))


def _plain(bytea: str) -> str:
    """Bytes as base64, their plain form."""
    return base64.b64encode(bytes.fromhex(bytea[2:])).decode()


def _exact(text: str) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal, strict=False)
