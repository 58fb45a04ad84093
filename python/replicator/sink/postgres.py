"""The Postgres sink: positions, fences and writers. `postgres_writer` writes.

Its own positions are the truth: they move in the transaction that writes what
they cover (laws 6 and 7).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import orjson

from replicator.core.start import require_comparable
from replicator.errors import FatalError, TransientError
from replicator.model import (
    EndedLetter,
    Fence,
    Position,
    Reached,
    SinkHeld,
    SinkReport,
    StoredLetter,
    Stream,
    TableSchema,
)
from replicator.protocols import Describe
from replicator.sink.committed import Committed, Shard
from replicator.sink.fences import fence_lost, marked
from replicator.sink.letters import chosen
from replicator.sink.postgres_layout import DocumentTable
from replicator.sink.postgres_letters import PostgresLetters
from replicator.sink.postgres_report import (
    held,
    holds_data,
    joined,
    report,
    rivals_of,
    targets,
)
from replicator.sink.postgres_schema import PostgresPlan, make, plan, state_names
from replicator.sink.postgres_session import PostgresSession
from replicator.sink.postgres_settings import PostgresSettings, created_at
from replicator.sink.postgres_writer import PostgresWriter
from replicator.sink.projected import require_keys
from replicator.sink.statements import fill, statements

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection

_STORE_RETRY_SECONDS = 5.0


class PostgresSink:
    """Keeps the newest image per key in Postgres 13 or newer (layout `document`).

    One connection serves positions and fences and holds the lock that says this
    lease store is alive; `settings.connections` others write.
    """

    def __init__(
        self, settings: PostgresSettings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic
        # For as long as it is connected, it says that our lease store is in use.
        hold = statements("session")["hold_store"]
        self._control = PostgresSession(
            settings, [(hold, self._store_key(settings.store_id))] if settings.store_id else []
        )
        self._tables: tuple[DocumentTable, ...] = ()
        self._writers: tuple[PostgresWriter, ...] = ()
        self._committed = Committed(on_forgotten=self._release)
        self._writer_of: dict[Shard, PostgresWriter] = {}
        self._load: Counter[PostgresWriter] = Counter()
        self._state: Mapping[str, str] = {}
        self._session_sql = statements("session")
        self._foreign_since: dict[str, float] = {}

    async def plan(self, tables: Sequence[TableSchema]) -> PostgresPlan:
        require_keys(self._settings.name, self._settings.projection, tables)
        async with self._control.use(f"looking at sink {self._settings.name}") as connection:
            return await plan(connection, self._settings, tables)

    async def report(self) -> SinkReport:
        async with self._control.use(f"reading sink {self._settings.name}") as connection:
            state = await state_names(connection, self._settings)
            return await report(connection, self._settings, state)

    async def held(self, stream: Stream, tables: Sequence[TableSchema]) -> SinkHeld:
        """What stands there of a stream and in these tables: for `check`, without `open`."""
        async with self._control.use(f"looking into sink {self._settings.name}") as connection:
            planned = await plan(connection, self._settings, tables)
            return await held(connection, self._key(stream), planned)

    async def open(self, tables: Sequence[TableSchema]) -> None:
        planned = await self._made(tables)
        self._state = {name: fill(sql, planned.state) for name, sql in statements("state").items()}
        if self._tables != planned.tables:  # opened again, it goes on with its writers
            await self._close_writers()
            self._tables = planned.tables
        self._writers = self._writers or tuple(
            PostgresWriter(self._settings, planned, self._committed, self._monotonic)
            for _ in range(self._settings.connections)
        )

    async def _made(self, tables: Sequence[TableSchema]) -> PostgresPlan:
        require_keys(self._settings.name, self._settings.projection, tables)
        async with self._control.use(f"opening sink {self._settings.name}") as connection:
            return await make(connection, self._settings, tables)

    async def begin(self, stream: Stream, starts: Mapping[str, Position]) -> bool:
        texts = {shard: str(position) for shard, position in sorted(starts.items())}
        async with self._control.use(f"beginning stream {stream.name}") as connection:
            await connection.execute(self._session_sql["begin"])
            is_new = await connection.fetchval(
                self._state["begin_stream"],
                *self._key(stream),
                orjson.dumps(texts).decode(),
                targets(self._tables),
            )
            if is_new:
                await connection.execute(
                    self._state["begin_positions"],
                    *self._key(stream),
                    *_columns(dict(sorted(starts.items()))),
                )
            await connection.execute(self._session_sql["commit"])
        return bool(is_new)

    async def is_known(self, stream: Stream) -> bool:
        async with self._control.use(f"looking for stream {stream.name}") as connection:
            return bool(await connection.fetchval(self._state["is_known"], *self._key(stream)))

    async def add_tables(self, stream: Stream) -> Sequence[str]:
        key = self._key(stream)
        async with self._control.use(f"adding tables to stream {stream.name}") as connection:
            if not (await joined(connection, self._state, key, self._tables)).is_needed:
                return ()
            await connection.execute(self._session_sql["begin"])
            await connection.execute(self._state["lock_streams"])
            found = await joined(connection, self._state, key, self._tables)
            rivals = await rivals_of(connection, found, self._tables)
            require_comparable(stream.arn, rivals)
            await connection.execute(self._state["add_tables"], *key, found.added, list(found.left))
            await connection.execute(self._session_sql["commit"])
        return found.added

    async def begun(self) -> Sequence[str]:
        async with self._control.use(f"reading streams of {self._settings.name}") as connection:
            rows = await connection.fetch(
                self._state["begun"], self._settings.pipeline, targets(self._tables)
            )
        return [row["stream_arn"] for row in rows]

    async def holds_data(self) -> bool:
        async with self._control.use(f"looking into sink {self._settings.name}") as connection:
            return await holds_data(connection, self._tables)

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        async with self._control.use(f"reading positions of {stream.name}") as connection:
            rows = await connection.fetch(self._state["positions"], *self._key(stream))
            newest = {row["shard"]: (row["epoch"], row["owner"]) for row in rows}
            self._committed.keep(stream, newest)
        return {
            row["shard"]: Position.parse(row["position"])
            for row in rows
            if row["position"] is not None
        }

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Reached]:
        async with self._control.use(f"reading positions of {stream.name}") as connection:
            rows = await connection.fetch(
                self._state["reached"], *self._key(stream), list(shard_ids)
            )
        return {
            row["shard"]: Reached(row["last_arrival_us"], row["tip_us"], row["begun_us"])
            for row in rows
        }

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        mark = marked(owner)
        async with self._control.use(f"raising the fence of {shard_id}") as connection:
            foreign = await self._foreign_store(connection, stream, shard_id)
            if foreign is None:
                row = await connection.fetchrow(
                    self._state["raise_fence"],
                    *self._key(stream),
                    shard_id,
                    mark,
                    self._settings.store_id or None,
                )
                assert row is not None
                fence = Fence(stream, shard_id, row["epoch"], mark)
                self._committed.read(fence, _parsed(row["position"]))
        if foreign is not None:
            raise self._foreign_error(foreign, shard_id)
        return fence

    async def position(self, fence: Fence) -> Position | None:
        async with self._control.use(f"reading the position of {fence.shard_id}") as connection:
            row = await connection.fetchrow(
                self._state["position"], *self._key(fence.stream), fence.shard_id
            )
            if row is not None and (row["epoch"], row["owner"]) == (fence.epoch, fence.owner):
                position = _parsed(row["position"])
                self._committed.read(fence, position)
                return position
        self._committed.forget(fence)
        raise fence_lost(fence)

    async def move(
        self, stream: Stream, positions: Mapping[str, Position], owner: str
    ) -> Mapping[str, Position | None]:
        mark = marked(owner)
        async with self._control.use(f"moving positions of {stream.name}") as connection:
            state = await state_names(connection, self._settings)
            sql = {name: fill(text, state) for name, text in statements("state").items()}
            await connection.execute(self._session_sql["begin"])
            rows = await connection.fetch(sql["old_positions"], *self._key(stream), list(positions))
            await connection.execute(
                sql["move_positions"], *self._key(stream), *_columns(positions), mark
            )
            await connection.execute(self._session_sql["commit"])
        old = {row["shard"]: _parsed(row["position"]) for row in rows}
        return {shard: old.get(shard) for shard in positions}

    async def letters(self) -> Sequence[StoredLetter]:
        return await (await self._dead()).waiting()

    async def redrive_letters(
        self,
        ids: Sequence[str],
        owner: str,
        describe: Describe,
    ) -> AsyncGenerator[EndedLetter, None]:
        dead = await self._dead()
        if letters := chosen(await dead.waiting(), ids):
            planned = await self._made(await describe())
            async for ended in dead.redriven(letters, planned):
                yield ended

    async def drop_letters(
        self,
        ids: Sequence[str],
        owner: str,
    ) -> AsyncGenerator[EndedLetter, None]:
        dead = await self._dead()
        if letters := chosen(await dead.waiting(), ids):
            for ended in await dead.dropped(letters):
                yield ended

    async def _dead(self) -> PostgresLetters:
        async with self._control.use(f"looking at sink {self._settings.name}") as connection:
            state = await state_names(connection, self._settings)
        return PostgresLetters(self._settings, self._control, state)

    def writer(self, fence: Fence) -> PostgresWriter:
        """The shard's writer, the same one for as long as its fence holds; a new shard's is
        the least busy."""
        shard = (fence.stream, fence.shard_id)
        if (known := self._writer_of.get(shard)) is not None:
            return known
        assert self._writers, "a sink is opened before it is written to"
        writer = min(self._writers, key=lambda one: self._load[one])
        if shard in self._committed:
            self._writer_of[shard] = writer
            self._load[writer] += 1
        return writer

    def _release(self, shard: Shard) -> None:
        """A shard that ended, or went to another worker, is nobody's load any more."""
        if (writer := self._writer_of.pop(shard, None)) is not None:
            self._load[writer] -= 1

    async def close(self) -> None:
        # Together: a stalled server must not be waited for once per connection.
        await asyncio.gather(self._close_writers(), self._control.close())

    async def _close_writers(self) -> None:
        writers, self._writers = self._writers, ()
        self._writer_of.clear()
        self._load.clear()
        await asyncio.gather(*(writer.close() for writer in writers))

    def _key(self, stream: Stream) -> tuple[object, ...]:
        return (self._settings.pipeline, stream.arn, created_at(stream))

    async def _foreign_store(
        self, connection: Connection, stream: Stream, shard_id: str
    ) -> str | None:
        """The id of another lease store that works at this position and is alive. Two at
        once would take every shard from each other for ever (design: Fleet)."""
        if not self._settings.store_id:
            return None
        store = await connection.fetchval(self._state["store_of"], *self._key(stream), shard_id)
        if not store or store == self._settings.store_id:
            return None
        key = self._store_key(store)
        if await connection.fetchval(self._session_sql["try_store"], key):
            await connection.execute(self._session_sql["release_store"], key)
            self._foreign_since.pop(store, None)
            return None
        return str(store)

    def _foreign_error(self, store: str, shard_id: str) -> TransientError | FatalError:
        """Transient at first: the server needs some time to notice a dead machine."""
        message = (
            f"the position of {shard_id} belongs to lease store {store!r}, whose process is still"
            f" connected: stop it, share its state directory, or give this pipeline another name"
        )
        since = self._foreign_since.setdefault(store, self._monotonic())
        if self._monotonic() - since < self._settings.foreign_store_patience_seconds:
            return TransientError(
                "foreign_lease_store", message, retry_after_seconds=_STORE_RETRY_SECONDS
            )
        return FatalError("foreign_lease_store", message)

    def _store_key(self, store_id: str) -> int:
        """The store's advisory lock: 64 bits, the same on every machine."""
        text = f"replicator\0{self._settings.pipeline}\0{store_id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)


def _parsed(position: str | None) -> Position | None:
    return None if position is None else Position.parse(position)


def _columns(
    positions: Mapping[str, Position],
) -> tuple[list[str], list[str], list[str | None], list[int | None]]:
    """As the statements take them: shards, positions, sequence numbers, instants."""
    return (
        list(positions),
        [str(position) for position in positions.values()],
        [position.sequence_number for position in positions.values()],
        [position.timestamp_us for position in positions.values()],
    )
