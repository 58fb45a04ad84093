"""Changes, dead letters and positions of several shards, in one transaction.

The walk of `write`: begin, lock the shards' fences, merge each table's rows,
store the dead letters, move the positions, commit.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from replicator._core import Rejection
from replicator.errors import FatalError, TransientError
from replicator.model import DeadLetter, Fence, Pending, Position, WriteResult
from replicator.sink.committed import Committed, moved_message
from replicator.sink.letters import record_id
from replicator.sink.position import furthest, tip_age_seconds
from replicator.sink.postgres_errors import refusal_code, refusal_message
from replicator.sink.postgres_merge import document_merges
from replicator.sink.postgres_payload import PostgresPayload, encode
from replicator.sink.postgres_schema import PostgresPlan
from replicator.sink.postgres_session import PostgresSession
from replicator.sink.postgres_settings import PostgresSettings, created_at
from replicator.sink.statements import fill, statements

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection

_ShardKey: TypeAlias = tuple[str, datetime, str]


class PostgresWriter:
    """One connection of the sink, for the shards that were given to it."""

    def __init__(
        self,
        settings: PostgresSettings,
        planned: PostgresPlan,
        committed: Committed,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`committed` is the sink's, which reads positions; it moves with every commit."""
        self._session = PostgresSession(
            settings, age_seconds_max=settings.connection_age_seconds_max, monotonic=monotonic
        )
        self._committed = committed
        self._pipeline = settings.pipeline
        self._tables = planned.tables
        self._pattern, self._projection = settings.pattern, settings.projection
        self._merges = document_merges(
            planned.tables, generation=settings.generation, has_lz4=planned.has_lz4
        )
        self._sql = statements("session")
        self._state = {name: fill(sql, planned.state) for name, sql in statements("state").items()}
        self._monotonic = monotonic

    def encode(self, pending: Sequence[Pending]) -> PostgresPayload:
        return encode(self._tables, pending, self._pattern, self._projection)

    async def write(self, payload: PostgresPayload) -> WriteResult:
        shards = ", ".join(sorted({one.fence.shard_id for one in payload.pending}))
        async with self._session.use(f"writing changes of {shards}") as connection:
            # Also for rows that go without it: what takes the place of a refused row may be large.
            for part in payload.tables:
                await self._session.once(self._merges[part.table.number].create_staging)
            try:
                return await self._transaction(connection, payload, careful=False)
            except asyncpg.PostgresError as error:
                if refusal_code(error) is None:
                    raise
            # A row was refused. Savepoints cost round trips, so they come only now.
            await connection.execute(self._sql["rollback"])
            return await self._transaction(connection, payload, careful=True)

    async def close(self) -> None:
        await self._session.close()

    async def _transaction(
        self, connection: Connection, payload: PostgresPayload, *, careful: bool
    ) -> WriteResult:
        await connection.execute(self._sql["begin"])
        stored, lost = await self._lock_fences(connection, payload.pending)
        if lost:
            kept = [one for one in payload.pending if one.fence.shard_id not in lost]
            if not kept:
                await connection.execute(self._sql["rollback"])
                return WriteResult(lost=lost)
            payload = await asyncio.to_thread(self.encode, kept)
        merged = []
        for part in payload.tables:
            merge = self._merges[part.table.number]
            run = merge.merge_carefully if careful else merge.merge
            merged.append(await run(connection, part))
        rejections = [*payload.rejections, *(one for part in merged for one in part.rejections)]
        dead_letters = [(payload.pending[one.part].fence, one) for one in rejections]
        if dead_letters:
            await self._store_dead_letters(connection, dead_letters)
        positions = await self._store_positions(connection, payload.pending, stored)
        await self._commit(connection, stored, positions)
        return WriteResult(
            rows=sum(part.rows for part in merged),
            duplicates=payload.duplicates + sum(part.duplicates for part in merged),
            superseded=sum(part.superseded for part in merged),
            ambiguous=payload.ambiguous + sum(part.ambiguous for part in merged),
            filtered=payload.filtered,
            dead_letters=tuple(
                DeadLetter(fence.shard_id, one.table, one) for fence, one in dead_letters
            ),
            lost=lost,
        )

    async def _lock_fences(
        self, connection: Connection, pending: Sequence[Pending]
    ) -> tuple[Mapping[Fence, Position | None], frozenset[str]]:
        """The stored positions of the shards that are still ours, and the other shards'
        ids. Until the transaction ends nobody can raise a fence that is still ours.

        Raises TransientError when a position isn't the one that was committed last: what
        lies between was lost, and these changes begin behind it.
        """
        fences = list(dict.fromkeys(one.fence for one in pending))
        keys = [_shard_key(fence) for fence in fences]
        rows = await connection.fetch(
            self._state["lock_fences"],
            self._pipeline,
            [arn for arn, _, _ in keys],
            [created for _, created, _ in keys],
            [shard for _, _, shard in keys],
            [fence.epoch for fence in fences],
            [fence.owner for fence in fences],
        )
        found: dict[_ShardKey, Position | None] = {
            (arn, created, shard): None if position is None else Position.parse(position)
            for arn, created, shard, position in rows
        }
        # A shard that brings changes of an older fence too is lost as a whole: its owner has
        # to look at the position again before anything of it is written.
        several = {key[2] for key, times in Counter(keys).items() if times > 1}
        gone = {key[2] for key in keys if key not in found}
        lost = frozenset(several | gone)
        for fence in fences:
            if fence.shard_id in lost:
                self._committed.forget(fence)
        stored = {fence: found[_shard_key(fence)] for fence in fences if fence.shard_id not in lost}
        moved = {fence: at for fence, at in stored.items() if not self._committed.agrees(fence, at)}
        if moved:
            await connection.execute(self._sql["rollback"])
            raise TransientError("position_moved", moved_message(moved))
        return stored, lost

    async def _commit(
        self,
        connection: Connection,
        stored: Mapping[Fence, Position | None],
        positions: Mapping[Fence, Position | None],
    ) -> None:
        for fence in positions:
            self._committed.unsure(fence)
        try:
            await connection.execute(self._sql["commit"])
        except asyncpg.PostgresError as error:
            # A deferred constraint: the server says that nothing was written.
            if refusal_code(error) is not None:
                self._learn(stored)
            raise
        self._learn(positions)

    def _learn(self, positions: Mapping[Fence, Position | None]) -> None:
        for fence, position in positions.items():
            self._committed.moved(fence, position)

    async def _store_dead_letters(
        self, connection: Connection, dead_letters: Sequence[tuple[Fence, Rejection]]
    ) -> None:
        # One statement can't touch a row twice.
        rows = {_dead_letter_key(fence, one): one for fence, one in dead_letters}
        try:
            await connection.execute(
                self._state["store_dead_letters"],
                self._pipeline,
                [None if one.table is None else storable(one.table) for one in rows.values()],
                [stream for stream, _, _, _ in rows],
                [shard for _, shard, _, _ in rows],
                [number for _, _, number, _ in rows],
                [index for _, _, _, index in rows],
                [one.code for one in rows.values()],
                [storable(one.message) for one in rows.values()],
                [one.raw for one in rows.values()],
            )
        except asyncpg.PostgresError as error:
            if refusal_code(error) is None:
                raise
            raise FatalError(
                "dead_letter_refused",
                f"dead letters can't be stored, so the shard stops: {refusal_message(error)}; look"
                " at the table replicator_dead_letters, its triggers and constraints",
            ) from error

    async def _store_positions(
        self,
        connection: Connection,
        pending: Sequence[Pending],
        stored: Mapping[Fence, Position | None],
    ) -> Mapping[Fence, Position | None]:
        """Where the shards' positions lie once this is committed."""
        now = self._monotonic()
        moves: dict[Fence, _Move] = {}
        for one in pending:
            move = moves.setdefault(one.fence, _Move(stored[one.fence]))
            move.take(one, now)
        keys = [_shard_key(fence) for fence in moves]
        await connection.execute(
            self._state["store_positions"],
            self._pipeline,
            [arn for arn, _, _ in keys],
            [created for _, created, _ in keys],
            [shard for _, _, shard in keys],
            [str(move.position) for move in moves.values()],
            [move.sequence_number for move in moves.values()],
            [move.arrival_ms for move in moves.values()],
            [move.tip_age_seconds for move in moves.values()],
        )
        return {fence: move.position for fence, move in moves.items()}


class _Move:
    """How far one write brings one shard."""

    __slots__ = ("arrival_ms", "position", "sequence_number", "tip_age_seconds")

    def __init__(self, stored: Position | None) -> None:
        self.position = stored
        self.sequence_number: str | None = None
        self.arrival_ms: int | None = None
        self.tip_age_seconds: float | None = None

    def take(self, pending: Pending, now: float) -> None:
        self.position = furthest(self.position, pending.next)
        # For the reader of the table: SHARD_END alone wouldn't tell where that was.
        self.sequence_number = (
            self.position.sequence_number
            or pending.batch.last_sequence_number
            or self.sequence_number
        )
        arrivals = (self.arrival_ms, pending.batch.last_arrival_ms)
        self.arrival_ms = max((ms for ms in arrivals if ms is not None), default=None)
        age = tip_age_seconds(pending, now)
        self.tip_age_seconds = age if age is not None else self.tip_age_seconds


def _shard_key(fence: Fence) -> _ShardKey:
    return (fence.stream.arn, created_at(fence.stream), fence.shard_id)


def _dead_letter_key(fence: Fence, rejection: Rejection) -> tuple[str, str, str, int]:
    return (fence.stream.arn, fence.shard_id, *record_id(rejection))


def storable(text: str) -> str:
    r"""The text without NUL, which `text` columns refuse; written as JSON writes it."""
    return text.replace("\0", "\\u0000")
