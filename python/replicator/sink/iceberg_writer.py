"""Every change of many shards and their positions, in one commit; dead letters in one before it.

The walk of `write`: the shards' memories say what is due, that becomes files of a day each, and a
commit names them if all the fences still hold. Where one is lost the rest is written without it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeAlias

from replicator._core import ChangeBatch, Columns, Rejection
from replicator.model import DeadLetter, Fence, Pending, WriteResult
from replicator.sink.iceberg_shards import FencedShard, Lost, Room, require
from replicator.sink.iceberg_state import SinkState
from replicator.sink.iceberg_table import BY_DAY, DAY_US, Staged, discard, keep, rows_of, stage
from replicator.sink.in_thread import in_thread
from replicator.sink.log_shard import LogPosition, Taken, growth
from replicator.sink.matched import matched
from replicator.sink.position import furthest, tip_age_seconds

_Known: TypeAlias = tuple[FencedShard, tuple[Pending, ...]]


@dataclass(frozen=True, slots=True)
class _Due:
    """What one shard brings to a write."""

    shard: FencedShard
    taken: tuple[Taken, ...]
    pending: tuple[Pending, ...]

    @property
    def changes(self) -> list[ChangeBatch]:
        return [one.changes for one in self.taken if len(one.changes)]

    @property
    def rejections(self) -> list[tuple[Fence, Rejection]]:
        return [(self.shard.fence, each) for one in self.taken for each in one.rejections]

    @property
    def log(self) -> LogPosition:
        """What to store of it: never behind what is stored."""
        stored, before = self.taken[-1].stored, self.shard.committed
        if before is not None and furthest(before.position, stored.position) != stored.position:
            return before
        return stored

    @property
    def duplicates(self) -> int:
        """Copies that only the shard's memory could tell."""
        found = sum(one.changes.duplicates for one in self.taken)
        return max(0, found - sum(one.batch.duplicates for one in self.pending))


@dataclass(frozen=True, slots=True)
class _Wrote:
    """How many changes a commit added, and how many a filter left out of it."""

    rows: int = 0
    unmatched: int = 0


class IcebergWriter:
    """Writes all shards of one sink, one write at a time."""

    def __init__(self, room: Room, tables: frozenset[str]) -> None:
        self._room = room
        self._tables = tables
        self._plan = Columns(room.settings.columns)

    def encode(self, pending: Sequence[Pending]) -> tuple[Pending, ...]:
        """As they are: what is due depends on what came before."""
        return tuple(pending)

    async def write(self, payload: tuple[Pending, ...]) -> WriteResult:
        known, lost = self._room.known(payload)
        # Behind its end nothing comes, and nobody would tell a copy.
        lost |= {shard.fence.shard_id for shard, _ in known if shard.is_finished}
        known = [one for one in known if not one[0].is_finished]
        for shard, _ in known:
            shard.is_sure = False
        try:
            return await self._write(known, lost)
        finally:
            for shard, _ in known:
                if not shard.is_sure:  # it is of no use any more
                    self._room.windows.release(shard.memory)

    async def _write(self, known: Sequence[_Known], lost: frozenset[str]) -> WriteResult:
        with ExitStack() as stack:
            for shard, several in known:
                stack.enter_context(self._room.windows.taking(shard.memory, growth(several)))
            nbytes = sum(one.batch.nbytes for _, several in known for one in several)
            due = await in_thread(nbytes, self._take, known)
        wrote, told = _Wrote(), set[Fence]()
        while is_asked := bool(due) and not self._is_idle(due):
            try:
                wrote = await self._commit(due, told)
                break
            except Lost as error:
                lost |= self._room.forget(error)
                due = [one for one in due if one.shard.fence not in error.fences]
        for one in due:
            one.shard.is_sure = True
        return replace(_result(due, wrote, lost), is_asked=is_asked or bool(lost))

    # ---- what is due

    def _take(self, known: Sequence[_Known]) -> list[_Due]:
        now, now_us = self._room.monotonic(), self._room.now_us()
        due = []
        for shard, several in known:
            taken = []
            for one in several:
                age = tip_age_seconds(one, now)
                tip_us = None if age is None else now_us - round(age * 1_000_000)
                taken.append(shard.memory.take(one, tip_us))
            due.append(_Due(shard, tuple(taken), several))
        return due

    def _is_idle(self, due: Sequence[_Due]) -> bool:
        now, settings = self._room.monotonic(), self._room.settings
        return all(
            not one.changes and not one.rejections and one.shard.may_wait(one.log, settings, now)
            for one in due
        )

    # ---- commits

    async def _commit(self, due: Sequence[_Due], told: set[Fence]) -> _Wrote:
        """Makes it durable. Raises `Lost` when nothing but dead letters was: `told` are the fences
        that have theirs stored already."""
        room = self._room
        shards = [one.shard for one in due]
        if refused := [each for one in due for each in one.rejections]:
            # Before the position that passes them. Who dies between the two stores them again.
            require((await room.commits.look()).mine, shards)
            if letters := [each for each in refused if each[0] not in told]:
                files = await room.staged_letters(letters)
                await room.letters.change(lambda state: (state, None), files)
                told |= {fence for fence, _ in letters}
        staged, wrote = Staged(), _Wrote()
        if changes := [each for one in due for each in one.changes]:
            table = await room.commits.table()
            parts, unmatched = await asyncio.to_thread(self._parts, changes)
            wrote = _Wrote(sum(len(part) for _, part in parts), unmatched)
            staged = await asyncio.to_thread(
                lambda: stage(
                    table,
                    [(us // DAY_US, rows_of(self._parquet(part))) for us, part in parts],
                    BY_DAY,
                )
            )
        counts = Counter(each.code for _, each in refused)
        logs = {one.shard.key: one.log for one in due}
        remembered = {
            one.shard.key: await self._kept(one.taken[-1].remembered)
            for one in due
            if one.taken[-1].remembered
        }

        def step(state: SinkState) -> tuple[SinkState, None]:
            require(state, shards)
            return state.moved(logs, counts, room.now_us(), remembered), None

        try:
            await room.commits.change(step, staged)
        except Lost:
            await asyncio.to_thread(discard, await room.commits.table(), staged)
            raise
        for one in due:
            room.committed(one.shard, one.log)
        return wrote

    async def _kept(self, remembered: bytes) -> str:
        return await asyncio.to_thread(keep, await self._room.commits.table(), remembered)

    def _parquet(self, part: ChangeBatch) -> bytes:
        # PyIceberg compresses.
        return part.parquet(self._plan, compression="none")

    def _parts(self, several: Sequence[ChangeBatch]) -> tuple[list[tuple[int, ChangeBatch]], int]:
        """The changes of our tables that belong there, by day, and how many the filter left out."""
        settings = self._room.settings
        changes = several[0] if len(several) == 1 else ChangeBatch.concat(several)
        changes, unmatched = matched(changes, self._tables, settings.pattern, settings.projection)
        days: dict[int, list[ChangeBatch]] = {}
        # A stream may carry other tables' changes too.
        for table, us, batch in changes.partition(DAY_US, by_table=True):
            if table in self._tables:
                days.setdefault(us, []).append(batch)
        return [
            (us, some[0] if len(some) == 1 else ChangeBatch.concat(some))
            for us, some in sorted(days.items())
        ], unmatched


def _result(due: Sequence[_Due], wrote: _Wrote, lost: frozenset[str]) -> WriteResult:
    return WriteResult(
        rows=wrote.rows,
        unmatched=wrote.unmatched,
        duplicates=sum(one.duplicates for one in due),
        dead_letters=tuple(
            DeadLetter(fence.shard_id, each.table, each)
            for one in due
            for fence, each in one.rejections
        ),
        lost=lost,
        holding=frozenset(one.shard.fence.shard_id for one in due if one.taken[-1].is_holding),
    )
