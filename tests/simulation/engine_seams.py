"""The seams of the engine, watched: what passes them is compared with the truth, and
some of it fails or takes time, as a seed says."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import orjson

from replicator._core import decode
from replicator.core import gap
from replicator.core.start import position_to_read
from replicator.errors import FatalError, LeaseLost, ReplicatorError, TransientError
from replicator.model import (
    SHARD_END,
    TRIM_HORIZON,
    Fence,
    Fetch,
    Horizon,
    LeaseRow,
    Pending,
    Position,
    Reached,
    Shard,
    Stream,
    TableSchema,
    WriteResult,
)
from replicator.store.memory import MemoryLeases, MemoryLeaseStore
from replicator.testing.clock import LoopClock
from replicator.testing.sink import MemoryPayload, MemorySink, MemoryStore, MemoryWriter
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.shop import TABLE

PIPELINE = "test"
EPOCH_S = 1_700_000_000
CONNECTIONS = 2

T = TypeVar("T")
Planned: TypeAlias = ReplicatorError | Callable[[], None]


class Faults:
    """Counts what happens at the seams, and lets some of it fail.

    A moment is an operation, such as `sink.fence`, or `sink.fence (after)`: it took effect
    and its answer is lost. `plan` holds what happens at the n-th moment of a name, from 1:
    an error, or something that is done to the caller, who may not get further."""

    def __init__(self, rng: random.Random, share: float) -> None:
        self.moments: Counter[str] = Counter()
        self.plan: dict[tuple[str, int], Planned] = {}
        self.trace: list[tuple[float, str]] = []
        self.share = share
        self._rng = rng

    async def moment(self, name: str) -> None:
        """Some time passes, then it goes well or not."""
        await asyncio.sleep(self._rng.choice((0, 0, 0, 0.001, 0.03)))
        self.moments[name] += 1
        self.trace.append((asyncio.get_running_loop().time(), name))
        if (planned := self.plan.pop((name, self.moments[name]), None)) is not None:
            if isinstance(planned, ReplicatorError):
                raise planned
            planned()
            await asyncio.sleep(0)
        if self._rng.random() < self.share:
            kind = FatalError if self._rng.random() < 0.05 else TransientError
            raise kind("scripted", f"{name} failed, as the seed says")

    async def around(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        await self.moment(operation)
        answer = await call()
        await self.moment(f"{operation} (after)")
        return answer


class Ledger:
    """The truth of the stream, compared with the sink after every write."""

    def __init__(self, stream: ScriptedStream, store: MemoryStore, identity: Stream) -> None:
        self.rows: dict[str, tuple[int, str | None]] = {}
        self.lost = 0
        self._stream = stream
        self._store = store
        self._identity = identity
        self._places: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._refused: set[str] = set()
        # A copy may reach back behind a start by time: what it brings is old, and undoes nothing.
        self._before: set[tuple[str, int]] = set()

    def position(self, shard_id: str) -> Position | None:
        return self._store.positions.get((PIPELINE, self._identity, shard_id))

    def begun(self) -> None:
        """The first positions are stored: what lies before them is not ours."""
        for shard_id, start in self._store.streams[PIPELINE, self._identity].items():
            place = self._places.setdefault(shard_id, self._stream.place(shard_id, start))
            for record in self._stream.records(shard_id, 0, place):
                if record.payload.endswith(b"}"):
                    change = orjson.loads(record.payload)["dynamodb"]
                    version = change["ApproximateCreationDateTime"]
                    self._before.add((change["Keys"]["id"]["S"], version))

    def skipped(self, shard_id: str) -> None:
        """An operator accepted that what is trimmed of the shard is lost."""
        self._places[shard_id] = self._stream.place(shard_id, TRIM_HORIZON)

    def fenced(self, fence: Fence) -> None:
        assert fence.epoch > self._epochs.get(fence.shard_id, 0), "an epoch only rises"
        self._epochs[fence.shard_id] = fence.epoch

    def reading(self, shard_id: str) -> None:
        """Law 5."""
        for shard in self._stream.shards():
            if shard.id == shard_id:
                for parent_id in shard.parents:
                    assert self.position(parent_id) == SHARD_END, (
                        f"{shard_id} is read before {parent_id} is durable"
                    )

    def written(self, payload: MemoryPayload, result: WriteResult) -> None:
        """Laws 1 and 6, right after the commit."""
        self.lost += len(result.lost)
        touched = {str(key[0]) for _, key in payload.rows}
        for one in payload.pending:
            shard_id = one.fence.shard_id
            if shard_id in result.lost:
                continue
            assert one.fence.epoch == self._epochs[shard_id], (
                f"{shard_id} was written under an old fence"
            )
            touched |= self._fold(shard_id)
        for key in sorted(touched):
            assert self._is_right(key), f"{key} is not what the positions say"
        letters = {number for _, _, _, number, _ in self._store.dead_letters}
        assert letters >= self._refused, "a refused record is neither stored nor a dead letter"

    def _is_right(self, key: str) -> bool:
        stored, row = self.stored(key), self.rows.get(key)
        is_from_before = stored is not None and (key, stored[0]) in self._before
        return stored == row or (row is None and is_from_before)

    def stored(self, key: str) -> tuple[int, str | None] | None:
        found = self._store.items.get((TABLE, (key,)))
        if found is None:
            return None
        return int(found.version), None if found.item is None else str(found.item["made"])

    def complete(self) -> None:
        """Everything of every shard is stored, and nothing else."""
        for shard in self._stream.shards():
            assert self.position(shard.id) == SHARD_END, f"{shard.id} is not finished"
        stored = {str(key[0]) for _, key in self._store.items}
        assert stored >= self.rows.keys()
        assert all(self._is_right(key) for key in stored)

    def _fold(self, shard_id: str) -> set[str]:
        """Takes in the records up to the stored position; gives their keys."""
        place, position = self._places.get(shard_id, 0), self.position(shard_id)
        assert position is not None
        upto = self._stream.place(shard_id, position)
        keys = set()
        for record in self._stream.records(shard_id, place, upto - place):
            if not record.payload.endswith(b"}"):
                self._refused.add(record.sequence_number)
                continue
            change = orjson.loads(record.payload)["dynamodb"]
            key = change["Keys"]["id"]["S"]
            version = change["ApproximateCreationDateTime"]
            keys.add(key)
            if key not in self.rows or self.rows[key][0] < version:
                image = change.get("NewImage")
                self.rows[key] = (version, image and image["made"]["N"])
        self._places[shard_id] = max(place, upto)
        return keys


@dataclass(frozen=True, slots=True)
class Outage:
    """A sink is down until this is `over`: it says nothing, or that it is."""

    is_silent: bool
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Scene:
    """What all workers of a run share: the stream, what is stored, and who watches."""

    # How long the stream keeps a record; short where gaps are wanted.
    retention_seconds = 86_400.0
    gap_margin_us = gap.MARGIN_US
    pipeline = PIPELINE

    def __init__(self, seed: int, *, faults: float, is_exclusive: bool, sinks: int = 1) -> None:
        """`faults` is the share of moments that fail; `is_exclusive` means that a second
        reader of a shard ends the first, as with one registered consumer."""
        self.rng = random.Random(seed)
        self.is_exclusive = is_exclusive
        self.stream = ScriptedStream(now_ms=self.now_ms)
        self.stores = [MemoryStore() for _ in range(sinks)]
        self.store = self.stores[0]
        self.outages: list[Outage | None] = [None] * sinks
        self.leases = MemoryLeases()
        self.identity = Stream("scripted", "arn:aws:kinesis:::stream/scripted", EPOCH_S)
        self.ledgers = [Ledger(self.stream, store, self.identity) for store in self.stores]
        self.ledger = self.ledgers[0]
        self.faults = Faults(random.Random(seed + 1), faults)
        self.readers: dict[str, object] = {}
        # Of a fetch by decoding: the budget is asked for the one and holds the other.
        self.growth = 1.0
        self._steps: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def now_ms(self) -> int:
        return int((EPOCH_S + asyncio.get_running_loop().time()) * 1_000)

    async def reach(self, sink: int) -> None:
        """The way to a sink that is down: no answer, or an error."""
        while (outage := self.outages[sink]) is not None:
            if not outage.is_silent:
                raise TransientError("down", f"sink {sink} is down, as the seed says")
            await outage.over.wait()

    def stepped(self, worker: str, shard_id: str, step: str) -> None:
        """One of the steps towards reading was done; of a fence the newest counts."""
        steps = self._steps[worker, shard_id]
        if step.startswith("fence") and step in steps:
            steps.remove(step)
        steps.append(step)

    def reading(self, worker: str, shard_id: str, position: Position) -> None:
        """Law 5, and law 6: fence at every sink that answers, then a look at the lease, then the
        positions; reading starts at the least of them."""
        for ledger in self.ledgers:
            ledger.reading(shard_id)
        steps = self._steps.pop((worker, shard_id), [])
        fences = [step for step in steps if step.startswith("fence")]
        assert fences, f"{shard_id} is read without a fence of its own: {steps}"
        behind = steps[steps.index(fences[-1]) :]
        assert "renew" in behind, f"{shard_id} is read without a look at the lease: {steps}"
        stands = dict(s.split("@") for s in behind[behind.index("renew") :] if "@" in s)
        assert str(position) in stands.values(), f"{shard_id} is read from {position}: {steps}"
        place = self.stream.place(shard_id, position)
        for sink in stands:
            assert f"fence {sink}" in fences
            held = position_to_read(self.ledgers[int(sink)].position(shard_id))
            assert place <= self.stream.place(shard_id, held), (
                f"{shard_id} is read from {position}, and sink {sink} stands at {held}"
            )


class SeamSource:
    """`protocols.Source`: the scripted one, watched and failing."""

    def __init__(self, scene: Scene, worker: str) -> None:
        self._scene = scene
        self._worker = worker
        self._source = ScriptedSource(
            LoopClock(),
            scene.stream,
            identity=scene.identity,
            fetch_records=7,
            heartbeat_seconds=1.0,
            now_us=lambda: scene.now_ms() // 1_000 * 1_000_000,
            retention_seconds=scene.retention_seconds,
        )

    def redeliver(self, shard_id: str, count: int) -> None:
        self._source.redeliver(shard_id, count)

    async def open(self) -> Stream:
        return await self._scene.faults.around("source.open", self._source.open)

    async def now_us(self) -> int:
        return await self._scene.faults.around("source.now_us", self._source.now_us)

    async def horizon(self) -> Horizon:
        return await self._scene.faults.around("source.horizon", self._source.horizon)

    async def shards(self) -> Sequence[Shard]:
        return await self._scene.faults.around("source.shards", self._source.shards)

    async def read(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        scene = self._scene
        scene.reading(self._worker, shard_id, position)
        await scene.faults.moment("source.read")
        reader = scene.readers[shard_id] = object()
        async with aclosing(self._source.read(shard_id, position)) as fetches:
            async for fetch in fetches:
                await scene.faults.moment("source.fetch")
                if scene.is_exclusive and scene.readers[shard_id] is not reader:
                    raise LeaseLost("taken_over", f"somebody else subscribed to {shard_id}")
                if fetch.records.nbytes:
                    growth = decode(fetch.records).nbytes / fetch.records.nbytes
                    scene.growth = max(scene.growth, growth)
                yield fetch

    async def close(self) -> None:
        await self._source.close()


class SeamSink:
    """`protocols.Sink`: the one in memory, watched and failing, with as many writers as a
    real one has connections."""

    def __init__(self, scene: Scene, worker: str, index: int = 0) -> None:
        self._scene = scene
        self._worker = worker
        self._index = index
        self._ledger = scene.ledgers[index]
        self._sink = MemorySink(
            PIPELINE,
            scene.stores[index],
            monotonic=LoopClock().monotonic,
            now_us=lambda: scene.now_ms() * 1_000,
        )
        self._writers = [SeamWriter(self, MemoryWriter(self._sink)) for _ in range(CONNECTIONS)]

    async def around(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        await self._scene.reach(self._index)
        return await self._scene.faults.around(operation, call)

    async def open(self, tables: Sequence[TableSchema]) -> None:
        await self.around("sink.open", lambda: self._sink.open(tables))

    async def begin(self, stream: Stream, starts: Mapping[str, Position]) -> bool:
        async def begin() -> bool:
            is_first = await self._sink.begin(stream, starts)
            self._ledger.begun()
            return is_first

        return await self.around("sink.begin", begin)

    async def is_known(self, stream: Stream) -> bool:
        return await self.around("sink.is_known", lambda: self._sink.is_known(stream))

    async def add_tables(self, stream: Stream) -> Sequence[str]:
        return await self.around("sink.add_tables", lambda: self._sink.add_tables(stream))

    async def begun(self) -> Sequence[str]:
        return await self.around("sink.begun", self._sink.begun)

    async def holds_data(self) -> bool:
        return await self.around("sink.holds_data", self._sink.holds_data)

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        return await self.around("sink.positions", lambda: self._sink.positions(stream))

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Reached]:
        return await self.around("sink.reached", lambda: self._sink.reached(stream, shard_ids))

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        async def fence() -> Fence:
            raised = await self._sink.fence(stream, shard_id, owner)
            self._ledger.fenced(raised)
            return raised

        fenced = await self.around("sink.fence", fence)
        self._scene.stepped(self._worker, shard_id, f"fence {self._index}")
        return fenced

    async def position(self, fence: Fence) -> Position | None:
        position = await self.around("sink.position", lambda: self._sink.position(fence))
        step = f"{self._index}@{position_to_read(position)}"
        self._scene.stepped(self._worker, fence.shard_id, step)
        return position

    async def move(
        self, stream: Stream, positions: Mapping[str, Position], owner: str
    ) -> Mapping[str, Position | None]:
        return await self._sink.move(stream, positions, owner)

    def writer(self, fence: Fence) -> SeamWriter:
        return self._writers[zlib.crc32(fence.shard_id.encode()) % CONNECTIONS]

    async def close(self) -> None:
        await self._sink.close()


class SeamWriter:
    """`protocols.Writer` of a `SeamSink`."""

    def __init__(self, sink: SeamSink, writer: MemoryWriter) -> None:
        self._sink = sink
        self._writer = writer

    def encode(self, pending: Sequence[Pending]) -> MemoryPayload:
        return self._writer.encode(pending)

    async def write(self, payload: MemoryPayload) -> WriteResult:
        async def write() -> WriteResult:
            result = await self._writer.write(payload)
            self._sink._ledger.written(payload, result)
            return result

        return await self._sink.around("sink.write", write)


class SeamStore(MemoryLeaseStore):
    """`protocols.LeaseStore`: the one in memory, watched and failing."""

    def __init__(self, scene: Scene, worker: str) -> None:
        super().__init__(scene.leases)
        self._scene = scene
        self._faults = scene.faults
        self._worker = worker

    async def open(self) -> None:
        await self._faults.around("store.open", super().open)

    async def rows(self, pipeline: str) -> Sequence[LeaseRow]:
        call = super().rows
        return await self._faults.around("store.rows", lambda: call(pipeline))

    async def create(self, pipeline: str, shard_ids: Sequence[str]) -> None:
        call = super().create
        await self._faults.around("store.create", lambda: call(pipeline, shard_ids))

    async def take(self, seen: LeaseRow, owner: str) -> LeaseRow | None:
        call = super().take
        return await self._faults.around("store.take", lambda: call(seen, owner))

    async def renew(self, held: LeaseRow) -> LeaseRow:
        call = super().renew
        renewed = await self._faults.around("store.renew", lambda: call(held))
        self._scene.stepped(self._worker, held.shard_id, "renew")
        return renewed

    async def release(self, held: LeaseRow) -> None:
        call = super().release
        await self._faults.around("store.release", lambda: call(held))

    async def checkpoint(self, pipeline: str, shard_id: str, position: Position) -> None:
        call = super().checkpoint
        await self._faults.around("store.checkpoint", lambda: call(pipeline, shard_id, position))

    async def delete(self, pipeline: str, shard_ids: Sequence[str]) -> None:
        call = super().delete
        await self._faults.around("store.delete", lambda: call(pipeline, shard_ids))
