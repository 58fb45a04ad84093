"""Frames in memory to committed rows, against the same rows as COPY bytes made beforehand.

Ours is the engine of `run` behind a source that holds the raw bodies of `SubscribeToShard`: it
takes them apart, decodes, orders, folds and encodes, and writes rows and position in one
transaction per frame; the next frame is decoded while Postgres works. `ready-made`
starts with the bytes that the sink would COPY: the same COPY, the same merge, one transaction per
frame, and neither fence nor position. What is between the two is all that we add to Postgres.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvloop

from bench import records
from bench.postgres import STREAM, TABLE, Result, opened
from replicator import _core
from replicator.core.budget import Budget
from replicator.core.liveness import ShardLife
from replicator.flow import Gate
from replicator.model import (
    SHARD_END,
    TRIM_HORIZON,
    Batching,
    Fence,
    Fetch,
    Horizon,
    Pending,
    Position,
    Shard,
    Stream,
    after,
)
from replicator.outlets import Answers, Outlet, Stand
from replicator.pipeline import Pipeline
from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_layout import DocumentTable
from replicator.sink.postgres_payload import PostgresPayload
from replicator.sink.postgres_writer import PostgresWriter
from replicator.sink.statements import fill, statements
from replicator.telemetry.stats import Stats
from replicator.testing.clock import LoopClock
from replicator.testing.servers import PostgresServer, start_postgres

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection

# As large as a socket hands them over.
CHUNK_BYTES = 262_144


@dataclass(frozen=True, slots=True)
class Size:
    """How many frames of how many records a turn writes."""

    frames: int
    records_per_frame: int


SIZES = {
    "small": Size(8, 2_500),
    "nested": Size(4, 2_500),
    "unicode": Size(4, 2_500),
    "large": Size(4, 250),
}


def measure(*, is_quick: bool) -> Iterator[tuple[str, Result]]:
    """Every shape, on one Postgres of its own."""
    with start_postgres() as server:
        for shape in records.SHAPES:
            yield shape, uvloop.run(_measure(server, shape, is_quick=is_quick))


async def _measure(server: PostgresServer, shape: str, *, is_quick: bool) -> Result:
    size = SIZES[shape]
    count = size.records_per_frame * (2 if is_quick else size.frames)
    frames = [
        _chunks(frame)
        for frame in records.frames(records.payloads(shape, count), size.records_per_frame)
    ]
    async with opened(server) as (sink, connection):
        turns = _Turns(sink, connection, frames)
        await turns.prepare()
        seconds = await _interleaved(
            {"ours": turns.ours, "ready-made": turns.ready_made},
            turns.reset,
            rounds=3 if is_quick else 7,
        )
    return Result(
        rates={name: round(count / statistics.median(took)) for name, took in seconds.items()},
        spreads={name: max(took) / statistics.median(took) - 1 for name, took in seconds.items()},
    )


class _Turns:
    """The two ways to the same rows."""

    def __init__(
        self, sink: PostgresSink, connection: Connection, frames: list[list[bytes]]
    ) -> None:
        self._sink = sink
        self._connection = connection
        self._frames = frames
        self._session_sql = statements("session")
        self._merge_sql = ""
        self._payloads: list[PostgresPayload] = []
        self._copies: list[list[tuple[DocumentTable, bytes]]] = []
        self._turn = 0
        self._fence: Fence
        self._writer: PostgresWriter

    async def prepare(self) -> None:
        """Makes the ready-made bytes, by the very encoder of the other way."""
        planned = await self._sink.plan([TABLE])
        [table] = planned.tables
        identifiers = table.identifiers(has_lz4=planned.has_lz4)
        document = statements("document")
        self._merge_sql = fill(document["merge"], {**identifiers, "rows": identifiers["staging"]})
        await self._connection.execute(fill(document["create_staging"], identifiers))
        await self.reset()
        self._payloads = [
            self._writer.encode([pending])
            for chunks in self._frames
            for pending in self._pending(chunks)
        ]
        assert len(self._payloads) == len(self._frames)
        assert all(part.rows for payload in self._payloads for part in payload.tables)
        # Frames of fewer rows than that go as arrays; by COPY they are as many bytes.
        self._copies = [
            [(part.table, part.copy or part.rows.copy()) for part in payload.tables]
            for payload in self._payloads
        ]

    async def reset(self) -> None:
        """An empty table without bloat, nothing left to be written out, a fresh shard."""
        await self._connection.execute(f'TRUNCATE "{records.TABLE}"')
        await self._connection.execute("VACUUM")
        await self._connection.execute("CHECKPOINT")
        self._turn += 1
        shard = f"shardId-{self._turn:012d}"
        await self._sink.begin(STREAM, {shard: TRIM_HORIZON})
        self._fence = await self._sink.fence(STREAM, shard, "bench")
        self._writer = self._sink.writer(self._fence)

    async def ours(self) -> None:
        """The way of the product: one shard from its first record to its end."""
        stats, clock = Stats(), LoopClock()
        # No waiting for company, and never two frames in one transaction.
        outlet = Outlet("bench", self._sink, clock, stats, batching=Batching(1, 1 << 40, 0.0))
        async with asyncio.TaskGroup() as group:
            pipeline = Pipeline(
                source=_FrameSource(self._frames),
                tables=[TABLE.name],
                gate=Gate(Budget(268_435_456)),
                clock=clock,
                stats=stats,
                group=group,
            )
            stand = Stand(outlet, self._fence, TRIM_HORIZON, {})
            fan = pipeline.open(Answers({outlet: stand}), lambda *_: 1.0)
            life, cut = ShardLife(0.0, 90.0), asyncio.get_running_loop().create_future()
            await pipeline.run(fan, TRIM_HORIZON, asyncio.Event(), life, cut)
            pipeline.close()
        assert stats.flushes == len(self._frames)
        assert not stats.dead_letters

    async def ready_made(self) -> None:
        """What Postgres alone takes for the same rows."""
        connection = self._connection
        for tables in self._copies:
            await connection.execute(self._session_sql["begin"])
            for table, copy in tables:
                await connection.copy_to_table(
                    table.staging,
                    schema_name="pg_temp",
                    source=_stream(copy),
                    format="binary",
                )
                await connection.execute(self._merge_sql, 0)
            await connection.execute(self._session_sql["commit"])

    def _pending(self, chunks: list[bytes]) -> Iterator[Pending]:
        for event in _events(chunks):
            yield Pending(self._fence, _core.decode(event.records), _next(event), 0, 0.0)


class _FrameSource:
    """`protocols.Source` of one shard whose bodies are in memory."""

    def __init__(self, frames: Sequence[list[bytes]]) -> None:
        self._frames = frames

    async def open(self) -> Stream:
        return STREAM

    async def now_us(self) -> int:
        return time.time_ns() // 1_000

    async def horizon(self) -> Horizon:
        return Horizon(await self.now_us(), 86_400_000_000)

    async def shards(self) -> Sequence[Shard]:
        return ()

    async def read(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        assert position == TRIM_HORIZON
        last = len(self._frames) - 1
        for number, chunks in enumerate(self._frames):
            for event in _events(chunks):
                yield Fetch(
                    shard_id=shard_id,
                    records=event.records,
                    next=SHARD_END if number == last else _next(event),
                    received_at=time.monotonic(),
                )

    async def close(self) -> None:
        """Nothing is held."""


def _events(chunks: list[bytes]) -> Iterator[_core.ShardEvent]:
    stream = _core.EventStream()
    for chunk in chunks:
        yield from stream.feed(chunk)


def _next(event: _core.ShardEvent) -> Position:
    assert event.continuation_sequence_number is not None
    return after(event.continuation_sequence_number)


async def _interleaved(
    variants: dict[str, Callable[[], Awaitable[None]]],
    reset: Callable[[], Awaitable[None]],
    rounds: int,
) -> dict[str, list[float]]:
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            await reset()
            await asyncio.sleep(0)
            gc.collect()
            began = time.perf_counter()
            await variants[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


async def _stream(rows: bytes) -> AsyncIterator[Any]:
    view = memoryview(rows)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def _chunks(body: bytes) -> list[bytes]:
    return [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]
