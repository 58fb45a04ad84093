"""The CrateDB sink: positions, fences and writers. `crate_writer` writes.

Its own positions are the truth: they move after what they cover, and the version of each row makes
repetition harmless (laws 6 and 7).
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

from replicator.errors import TransientError
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
from replicator.sink.committed import Committed
from replicator.sink.crate_layout import CrateTable, crate_tables
from replicator.sink.crate_letters import CrateLetters
from replicator.sink.crate_schema import CratePlan, make, plan
from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.crate_state import CrateState, holds_data
from replicator.sink.crate_writer import CrateWriter
from replicator.sink.fences import fence_lost, marked
from replicator.sink.letters import chosen
from replicator.sink.projected import require_keys

_STORE_RETRY_SECONDS = 5.0


class CrateSink:
    """Keeps the newest image per key in CrateDB 5.5 or newer."""

    def __init__(
        self,
        settings: CrateSettings,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._session = CrateSession(settings, sleep)
        self._state = CrateState(settings)
        self._dead = CrateLetters(settings, self._session, self._state)
        self._tables: tuple[CrateTable, ...] = ()
        self._writers: tuple[CrateWriter, ...] = ()
        self._committed = Committed()

    async def plan(self, tables: Sequence[TableSchema]) -> CratePlan:
        require_keys(self._settings.name, self._settings.projection, tables)
        async with self._session.use(f"looking at sink {self._settings.name}") as session:
            return await plan(session, self._settings, tables)

    async def report(self) -> SinkReport:
        async with self._session.use(f"reading sink {self._settings.name}") as session:
            return await self._state.report(session)

    async def held(self, stream: Stream, tables: Sequence[TableSchema]) -> SinkHeld:
        targets = crate_tables(self._settings, tables)
        async with self._session.use(f"looking into sink {self._settings.name}") as session:
            return await self._state.held(session, stream, targets)

    async def open(self, tables: Sequence[TableSchema]) -> None:
        planned = await self._made(tables)
        if self._tables == planned.tables and self._writers:
            return  # opened again, it goes on with its writers
        self._tables = planned.tables
        self._writers = tuple(
            CrateWriter(
                self._settings,
                self._session,
                self._state,
                self._tables,
                self._committed,
                self._monotonic,
            )
            for _ in range(self._settings.connections)
        )

    async def _made(self, tables: Sequence[TableSchema]) -> CratePlan:
        require_keys(self._settings.name, self._settings.projection, tables)
        async with self._session.use(f"opening sink {self._settings.name}") as session:
            return await make(session, self._settings, tables)

    async def begin(self, stream: Stream, starts: Mapping[str, Position]) -> bool:
        async with self._session.use(f"beginning stream {stream.name}") as session:
            return await self._state.begin(session, stream, starts, self._targets)

    async def is_known(self, stream: Stream) -> bool:
        async with self._session.use(f"looking for stream {stream.name}") as session:
            return await self._state.is_known(session, stream)

    async def add_tables(self, stream: Stream) -> Sequence[str]:
        async with self._session.use(f"adding tables to stream {stream.name}") as session:
            return await self._state.add_tables(session, stream, self._tables)

    async def begun(self) -> Sequence[str]:
        async with self._session.use(f"reading streams of {self._settings.name}") as session:
            return await self._state.begun(session, self._targets)

    async def holds_data(self) -> bool:
        async with self._session.use(f"looking into sink {self._settings.name}") as session:
            return await holds_data(session, self._tables)

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        # Those raised from here on may be missing in what the search shows.
        raised = tuple(self._committed.fences(stream))
        async with self._session.use(f"reading positions of {stream.name}") as session:
            rows = await self._state.positions(session, stream)
        newest = {shard: (epoch, owner) for shard, _, epoch, owner in rows}
        for fence in raised:
            if newest.get(fence.shard_id) != (fence.epoch, fence.owner):
                self._committed.forget(fence)
        return {shard: Position.parse(text) for shard, text, _, _ in rows if text is not None}

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Reached]:
        async with self._session.use(f"reading positions of {stream.name}") as session:
            rows = await self._state.read(session, [(stream, shard) for shard in shard_ids])
        known = {row.shard: row.reached for row in rows.values()}
        return {shard: reached for shard, reached in known.items() if reached.us is not None}

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        mark = marked(owner)
        async with self._session.use(f"raising the fence of {shard_id}") as session:
            await self._require_own_store(session, stream, shard_id)
            epoch, position = await self._state.raise_fence(session, stream, shard_id, mark)
        fence = Fence(stream, shard_id, epoch, mark)
        self._committed.read(fence, position)
        return fence

    async def position(self, fence: Fence) -> Position | None:
        shard = (fence.stream, fence.shard_id)
        async with self._session.use(f"reading the position of {fence.shard_id}") as session:
            row = (await self._state.read(session, [shard])).get(shard)
        if row is not None and row.holds(fence):
            self._committed.read(fence, row.position)
            return row.position
        self._committed.forget(fence)
        raise fence_lost(fence)

    async def move(
        self, stream: Stream, positions: Mapping[str, Position], owner: str
    ) -> Mapping[str, Position | None]:
        mark = marked(owner)
        async with self._session.use(f"moving positions of {stream.name}") as session:
            rows = await self._state.read(session, [(stream, shard) for shard in positions])
            for shard, position in positions.items():
                await self._state.move(session, stream, shard, position, mark)
        old = {row.shard: row.position for row in rows.values()}
        return {shard: old.get(shard) for shard in positions}

    async def letters(self) -> Sequence[StoredLetter]:
        return await self._dead.waiting()

    async def redrive_letters(
        self,
        ids: Sequence[str],
        owner: str,
        describe: Describe,
    ) -> AsyncGenerator[EndedLetter, None]:
        if letters := chosen(await self._dead.waiting(), ids):
            planned = await self._made(await describe())
            async for ended in self._dead.redriven(letters, planned.tables):
                yield ended

    async def drop_letters(
        self,
        ids: Sequence[str],
        owner: str,
    ) -> AsyncGenerator[EndedLetter, None]:
        for ended in await self._dead.dropped(chosen(await self._dead.waiting(), ids)):
            yield ended

    def writer(self, fence: Fence) -> CrateWriter:
        """The shard's writer: the same one always, so that its writes keep their order."""
        assert self._writers, "a sink is opened before it is written to"
        return self._writers[zlib.crc32(fence.shard_id.encode()) % len(self._writers)]

    async def close(self) -> None:
        await self._session.close()

    @property
    def _targets(self) -> list[str]:
        """The tables that it writes to, by their full names."""
        return [table.full_name for table in self._tables]

    async def _require_own_store(
        self, session: CrateSession, stream: Stream, shard_id: str
    ) -> None:
        """Two lease stores at once would take every shard from each other for ever (design: Fleet).
        Another one lives as long as it stores positions; idle shards' are stored too."""
        mine = self._settings.store_id
        row = (await self._state.read(session, [(stream, shard_id)])).get((stream, shard_id))
        if not mine or row is None or row.store_id in {"", mine}:
            return
        if row.stored_us < self._settings.foreign_store_seconds * 1_000_000:
            raise TransientError(
                "foreign_lease_store",
                f"the position of {shard_id} belongs to lease store {row.store_id!r}, which stored"
                f" it {row.stored_us // 1_000_000} s ago: stop it, share its state directory, or"
                " give this pipeline another name",
                retry_after_seconds=_STORE_RETRY_SECONDS,
            )
