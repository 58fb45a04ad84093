"""The newest items of several tables, then the positions of many shards.

Each table is a commit, and the positions, with the dead letters, are one; where the table keeps its
positions itself, all of it is one. A row is written over an older version only, so that it may be
written twice, or by a worker that lost its shard.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from pyiceberg.table import Table

from replicator._core import Rejection, Rows
from replicator.model import DeadLetter, Fence, Pending, TableSchema, WriteResult
from replicator.sink.iceberg_commits import Commits
from replicator.sink.iceberg_merge import Merged, merge
from replicator.sink.iceberg_shards import FencedShard, Lost, Room, require
from replicator.sink.iceberg_state import Key, SinkState
from replicator.sink.iceberg_table import Staged
from replicator.sink.joined import Joined, newest_rows
from replicator.sink.log_shard import LogPosition
from replicator.sink.position import furthest, tip_age_seconds

_Due: TypeAlias = Sequence[tuple[FencedShard, LogPosition]]


@dataclass(frozen=True, slots=True)
class StatePayload:
    """One write. It keeps what it was made of: without a lost shard the rest is encoded again."""

    pending: tuple[Pending, ...]
    rows: Mapping[str, Rows]
    rejections: tuple[Rejection, ...]
    joined: Joined


class IcebergStateWriter:
    """Writes all shards of one sink, one write at a time."""

    def __init__(
        self, room: Room, tables: Sequence[TableSchema], targets: Mapping[str, Commits]
    ) -> None:
        """`targets` by the source table's name; the positions' own may be one of them."""
        self._room = room
        self._tables = tables
        self._targets = targets

    def encode(self, pending: Sequence[Pending]) -> StatePayload:
        settings = self._room.settings
        joined = Joined.of(pending, [table.name for table in self._tables])
        rows, rejections = newest_rows(
            joined.batch, self._tables, settings.pattern, settings.projection
        )
        return StatePayload(tuple(pending), rows, rejections, joined)

    async def write(self, payload: StatePayload) -> WriteResult:
        known, lost = self._room.known(payload.pending)
        for shard, _ in known:
            shard.is_sure = False
        merged, told = list[Merged](), set[Fence]()
        while True:
            if lost:
                kept = [one for one in payload.pending if one.fence.shard_id not in lost]
                payload = await asyncio.to_thread(self.encode, kept)
            if not payload.pending:
                return WriteResult(lost=lost)
            due = self._due(payload.pending)
            try:
                if is_asked := not self._is_idle(payload, due):
                    merged = await self._commit(payload, due, told)
                break
            except Lost as error:
                lost |= self._room.forget(error)
        for shard, _ in due:
            shard.is_sure = True
        return replace(self._result(payload, merged, lost), is_asked=is_asked or bool(lost))

    async def _commit(self, payload: StatePayload, due: _Due, told: set[Fence]) -> list[Merged]:
        """Makes it durable: tables, dead letters, positions, in this order. Raises `Lost` when
        nothing was, or nothing that a fence keeps out; `told` are the fences whose dead letters
        are there already."""
        room, shards = self._room, [shard for shard, _ in due]
        require((await room.commits.look()).mine, shards)
        merging = {
            table.name: _Merging(payload.rows[table.name], [name for name, _ in table.keys])
            for table in self._tables
            if table.name in payload.rows and len(payload.rows[table.name])
        }
        build = None
        for name, one in merging.items():
            if (target := self._targets[name]) is room.commits:
                build = one
            else:
                await target.change(lambda state: (state, None), build=one)
        refused = [(payload.pending[one.part].fence, one) for one in payload.rejections]
        untold = [each for each in refused if each[0] not in told]
        letters = await room.staged_letters(untold) if untold else Staged()
        if room.letters is not room.commits and untold:
            await room.letters.change(lambda state: (state, None), letters)
            letters = Staged()
            told |= {fence for fence, _ in untold}
        counts = Counter(each.code for _, each in refused)
        logs = {shard.key: log for shard, log in due}

        def step(state: SinkState) -> tuple[SinkState, None]:
            require(state, shards)
            return state.moved(logs, counts, room.now_us()), None

        await room.commits.change(step, letters, build)
        for shard, log in due:
            room.committed(shard, log)
        return [one.merged for one in merging.values()]

    def _due(self, pending: Sequence[Pending]) -> _Due:
        """How far one write brings each shard."""
        now, now_us = self._room.monotonic(), self._room.now_us()
        due: dict[Key, LogPosition] = {}
        for one in pending:
            key = (one.fence.stream, one.fence.shard_id)
            before = due.get(key) or self._room.shards[key].committed
            age, arrival_ms = tip_age_seconds(one, now), one.batch.last_arrival_ms
            reached = LogPosition(one.next) if before is None else before
            due[key] = replace(
                reached,
                position=furthest(None if before is None else before.position, one.next),
                last_arrival_us=max(
                    (
                        us
                        for us in (reached.last_arrival_us, arrival_ms and arrival_ms * 1_000)
                        if us
                    ),
                    default=None,
                ),
                tip_us=reached.tip_us if age is None else now_us - round(age * 1_000_000),
            )
        return [(self._room.shards[key], log) for key, log in due.items()]

    def _is_idle(self, payload: StatePayload, due: _Due) -> bool:
        has_data = payload.rejections or any(map(len, payload.rows.values()))
        return not has_data and all(
            state.may_wait(log, self._room.settings, self._room.monotonic()) for state, log in due
        )

    def _result(
        self, payload: StatePayload, merged: Sequence[Merged], lost: frozenset[str]
    ) -> WriteResult:
        letters = [(payload.pending[one.part].fence, one) for one in payload.rejections]
        return WriteResult(
            rows=sum(one.rows for one in merged),
            duplicates=payload.joined.duplicates + sum(one.duplicates for one in merged),
            superseded=sum(one.superseded for one in merged),
            ambiguous=payload.joined.ambiguous + sum(one.ambiguous for one in merged),
            filtered=sum(rows.filtered for rows in payload.rows.values()),
            dead_letters=tuple(
                DeadLetter(fence.shard_id, one.table, one) for fence, one in letters
            ),
            lost=lost,
        )


@dataclass(slots=True)
class _Merging:
    """What a commit does to one table, anew at every try; `merged` is of the last one."""

    rows: Rows
    keys: Sequence[str]
    merged: Merged = field(default_factory=Merged)

    def __call__(self, table: Table) -> Staged:
        self.merged, staged = merge(table, self.rows, self.keys)
        return staged
