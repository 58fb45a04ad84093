"""Changes, dead letters and positions of several shards, in this order.

There is no transaction, and none is needed: a row is written over an older version only, so that it
may be written twice, or by a worker that lost its shard; and a position moves after all that it
covers is durable, and only while its row is the one that was read before.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from replicator._core import Rejection
from replicator.errors import TransientError
from replicator.model import DeadLetter, Fence, Pending, Position, Stream, WriteResult
from replicator.sink.committed import Committed, moved_message
from replicator.sink.crate_layout import CrateTable
from replicator.sink.crate_merge import CrateMerge, Merged, TablePayload, table_payloads
from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.crate_state import CrateState, Move, StoredPosition
from replicator.sink.joined import Joined
from replicator.sink.position import furthest, tip_age_seconds

_Stored: TypeAlias = Mapping[Fence, StoredPosition]


@dataclass(frozen=True, slots=True)
class CratePayload:
    """One write. It keeps what it was made of: should a shard turn out lost, the rest is encoded
    again, since a lost shard's change may have hidden another's."""

    pending: tuple[Pending, ...]
    tables: tuple[TablePayload, ...]
    rejections: tuple[Rejection, ...]
    """Refused before the server saw them; `part` is the index in `pending`."""
    joined: Joined

    @property
    def filtered(self) -> int:
        """Rows that delete an item because it doesn't match the sink's filter."""
        return sum(table.rows.filtered for table in self.tables)


class CrateWriter:
    """One write at a time, for the shards that were given to it."""

    def __init__(
        self,
        settings: CrateSettings,
        session: CrateSession,
        state: CrateState,
        tables: Sequence[CrateTable],
        committed: Committed,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`committed` is the sink's, which reads positions; it moves with every write."""
        self._settings = settings
        self._session = session
        self._state = state
        self._tables = tables
        self._merges = {table.full_name: CrateMerge(table) for table in tables}
        self._committed = committed
        self._monotonic = monotonic

    def encode(self, pending: Sequence[Pending]) -> CratePayload:
        joined = Joined.of(pending, [table.source.name for table in self._tables])
        parts, rejections = table_payloads(self._settings, joined.batch, self._tables)
        return CratePayload(tuple(pending), parts, rejections, joined)

    async def write(self, payload: CratePayload) -> WriteResult:
        shards = ", ".join(sorted({one.fence.shard_id for one in payload.pending}))
        async with self._session.use(f"writing changes of {shards}") as session:
            stored, lost = await self._fenced(session, payload.pending)
            if lost:
                payload = await self._without(payload, lost)
            if not payload.pending:
                return WriteResult(lost=lost)
            merged = [
                await self._merges[part.table.full_name].merge(session, part)
                for part in payload.tables
            ]
            rejections = [*payload.rejections, *(one for part in merged for one in part.rejections)]
            letters = [(payload.pending[one.part].fence, one) for one in rejections]
            await self._state.store_dead_letters(session, letters)
            lost |= await self._store_positions(session, payload.pending, stored)
        return _result(payload, merged, letters, lost)

    async def _without(self, payload: CratePayload, lost: frozenset[str]) -> CratePayload:
        kept = [one for one in payload.pending if one.fence.shard_id not in lost]
        return await asyncio.to_thread(self.encode, kept)

    async def _fenced(
        self, session: CrateSession, pending: Sequence[Pending]
    ) -> tuple[_Stored, frozenset[str]]:
        """The positions of shards whose fence is still ours, and the lost shards.

        Raises TransientError when one isn't where this process left it: the server lost it in a
        failover, and these changes begin behind it."""
        fences = list(dict.fromkeys(one.fence for one in pending))
        found = await self._state.read(session, [(one.stream, one.shard_id) for one in fences])
        # A shard that brings changes of an older fence too is lost as a whole: its owner has
        # to look at the position again before anything of it is written.
        times = Counter((fence.stream, fence.shard_id) for fence in fences)
        stored: dict[Fence, StoredPosition] = {}
        lost: set[str] = set()
        for fence in fences:
            row = found.get((fence.stream, fence.shard_id))
            if row is None or not row.holds(fence) or times[fence.stream, fence.shard_id] > 1:
                lost.add(fence.shard_id)
            else:
                stored[fence] = row
        for fence in fences:
            if fence.shard_id in lost:
                self._committed.forget(fence)
                stored.pop(fence, None)
        moved = {
            fence: row.position
            for fence, row in stored.items()
            if not self._committed.agrees(fence, row.position)
        }
        if moved:
            raise TransientError("position_moved", moved_message(moved))
        return stored, frozenset(lost)

    async def _store_positions(
        self, session: CrateSession, pending: Sequence[Pending], stored: _Stored
    ) -> frozenset[str]:
        """The shards whose row somebody else changed since it was read: they are lost."""
        moves = _moves(
            pending, {fence: row.position for fence, row in stored.items()}, self._monotonic()
        )
        rows: dict[StoredPosition, tuple[Stream, Move]] = {
            stored[fence]: (fence.stream, move) for fence, move in moves.items()
        }
        for fence in moves:
            self._committed.unsure(fence)
        moved = await self._state.store(session, rows)
        lost = {fence for fence in moves if not moved[stored[fence]]}
        for fence in lost:
            self._committed.forget(fence)
        for fence, move in moves.items():
            if fence not in lost:
                self._committed.moved(fence, move.position)
        return frozenset(fence.shard_id for fence in lost)


def _moves(
    pending: Sequence[Pending], stored: Mapping[Fence, Position | None], now: float
) -> dict[Fence, Move]:
    """How far one write brings each shard."""
    moves: dict[Fence, Move] = {}
    for one in pending:
        before = moves.get(one.fence) or Move(stored[one.fence], None, None, None)
        position = furthest(before.position, one.next)
        arrivals = (before.last_arrival_us, _us(one.batch.last_arrival_ms))
        age = tip_age_seconds(one, now)
        # The sequence number is for the reader of the table: SHARD_END alone wouldn't tell.
        number = position.sequence_number or one.batch.last_sequence_number
        moves[one.fence] = Move(
            position,
            number or before.sequence_number,
            max((us for us in arrivals if us is not None), default=None),
            before.tip_age_us if age is None else round(age * 1_000_000),
        )
    return moves


def _us(ms: int | None) -> int | None:
    return None if ms is None else ms * 1_000


def _result(
    payload: CratePayload,
    merged: Sequence[Merged],
    letters: Sequence[tuple[Fence, Rejection]],
    lost: frozenset[str],
) -> WriteResult:
    return WriteResult(
        rows=sum(part.rows for part in merged),
        duplicates=payload.joined.duplicates + sum(part.duplicates for part in merged),
        superseded=sum(part.superseded for part in merged),
        ambiguous=payload.joined.ambiguous + sum(part.ambiguous for part in merged),
        filtered=payload.filtered,
        dead_letters=tuple(DeadLetter(fence.shard_id, one.table, one) for fence, one in letters),
        lost=lost,
    )
