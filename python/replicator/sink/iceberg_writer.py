"""Changes and positions of many shards, in one commit; dead letters in one before it.

The walk of `write`: the shards' memories say what is due, that becomes files of a day each, and a
commit names them if all the fences still hold. Where one is lost the rest is written without it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from replicator._core import ChangeBatch, Columns, Rejection
from replicator.errors import TransientError
from replicator.model import SHARD_END, DeadLetter, Fence, Pending, WriteResult
from replicator.sink.iceberg_commits import Commits
from replicator.sink.iceberg_lake import letters
from replicator.sink.iceberg_settings import IcebergSettings
from replicator.sink.iceberg_state import Key, SinkState
from replicator.sink.iceberg_table import DAY_US, Staged, discard, rows_of, stage
from replicator.sink.log_shard import LogPosition, LogShard, Taken
from replicator.sink.position import furthest, tip_age_seconds

_INLINE_BYTES_MAX: Final = 100_000


@dataclass(slots=True)
class LogState:
    """What is known of a shard under one fence. Once a write has failed nobody knows how far it
    came: then it is of no use any more."""

    fence: Fence
    memory: LogShard
    committed: LogPosition | None
    """What was read behind the fence, or committed under it, last."""
    stored_at: float = float("-inf")
    is_sure: bool = True


@dataclass(frozen=True, slots=True)
class _Due:
    """What one shard brings to a write."""

    shard: LogState
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


class _Lost(Exception):
    def __init__(self, shards: frozenset[Fence]) -> None:
        super().__init__(str(shards))
        self.shards = shards


@dataclass(frozen=True, slots=True)
class Room:
    """What a writer works with. `shards` is the sink's: those that are fenced here."""

    settings: IcebergSettings
    tables: frozenset[str]
    commits: Commits
    letters: Commits
    monotonic: Callable[[], float]
    now_us: Callable[[], int]
    shards: dict[Key, LogState] = field(default_factory=dict)


class IcebergWriter:
    """Writes all shards of one sink, one write at a time."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._plan = Columns(room.settings.columns)

    def encode(self, pending: Sequence[Pending]) -> tuple[Pending, ...]:
        """As they are: what is due depends on what came before."""
        return tuple(pending)

    async def write(self, payload: tuple[Pending, ...]) -> WriteResult:
        known, lost = self._known(payload)
        for shard, _ in known:
            shard.is_sure = False
        nbytes = sum(one.batch.nbytes for one in payload)
        due = (
            self._take(known)
            if nbytes <= _INLINE_BYTES_MAX
            else await asyncio.to_thread(self._take, known)
        )
        rows = 0
        while due and not self._is_idle(due):
            try:
                rows = await self._commit(due)
                break
            except _Lost as error:
                for fence in error.shards:
                    self._room.shards.pop((fence.stream, fence.shard_id), None)
                lost |= {fence.shard_id for fence in error.shards}
                due = [one for one in due if one.shard.fence not in error.shards]
        for one in due:
            one.shard.is_sure = True
        return _result(due, rows, lost)

    # ---- what is due

    def _known(
        self, payload: Sequence[Pending]
    ) -> tuple[list[tuple[LogState, tuple[Pending, ...]]], frozenset[str]]:
        """The fetches by shard; those of shards that aren't ours any more are lost as a whole."""
        by_fence: dict[Fence, list[Pending]] = {}
        for one in payload:
            by_fence.setdefault(one.fence, []).append(one)
        times = Counter((fence.stream, fence.shard_id) for fence in by_fence)
        known, lost = [], set()
        for fence, several in by_fence.items():
            key = (fence.stream, fence.shard_id)
            shard = self._room.shards.get(key)
            if shard is None or shard.fence != fence or not shard.is_sure or times[key] > 1:
                lost.add(fence.shard_id)
            else:
                known.append((shard, tuple(several)))
        return known, frozenset(lost)

    def _take(self, known: Sequence[tuple[LogState, tuple[Pending, ...]]]) -> list[_Due]:
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
        """True when nothing but positions moved, and those were stored not long ago."""
        since = self._room.monotonic() - self._room.settings.idle_position_seconds
        return all(
            not one.changes
            and not one.rejections
            and (
                one.log == one.shard.committed
                or (one.log.position != SHARD_END and one.shard.stored_at > since)
            )
            for one in due
        )

    # ---- commits

    async def _commit(self, due: Sequence[_Due]) -> int:
        """Makes it durable; how many rows. Raises `_Lost` when nothing was."""
        room = self._room
        refused = [each for one in due for each in one.rejections]
        if refused:
            await self._letters(due, refused)
        staged, rows = Staged(), 0
        if changes := [each for one in due for each in one.changes]:
            table = await room.commits.table()
            parts = await asyncio.to_thread(self._parts, changes)
            rows = sum(len(part) for _, part in parts)
            staged = await asyncio.to_thread(
                lambda: stage(table, [(us, rows_of(self._parquet(part))) for us, part in parts])
            )
        counts = Counter(each.code for _, each in refused)
        logs = {(one.shard.fence.stream, one.shard.fence.shard_id): one.log for one in due}

        def step(state: SinkState) -> tuple[SinkState, None]:
            _require(state, due)
            return state.moved(logs, counts, room.now_us()), None

        try:
            await room.commits.change(step, staged)
        except _Lost:
            await asyncio.to_thread(discard, await room.commits.table(), staged)
            raise
        for one in due:
            one.shard.committed, one.shard.stored_at = one.log, room.monotonic()
            if one.log.position == SHARD_END:  # its memory is as large as what it remembers
                room.shards.pop((one.shard.fence.stream, one.shard.fence.shard_id), None)
        return rows

    async def _letters(
        self, due: Sequence[_Due], refused: Sequence[tuple[Fence, Rejection]]
    ) -> None:
        """Stores refused records, before the position that passes them. Who dies between the two
        stores them again."""
        room = self._room
        _require((await room.commits.look()).mine, due)
        at = datetime.fromtimestamp(room.now_us() / 1_000_000, UTC)
        rows = [
            {
                "at": at,
                "pipeline": room.settings.pipeline,
                "stream_arn": fence.stream.arn,
                "shard": fence.shard_id,
                "sequence_number": each.sequence_number or _digest(each.raw),
                "record_index": each.sub_sequence_number,
                "table": each.table,
                "code": each.code,
                "message": each.message,
                "raw": each.raw,
            }
            for fence, each in refused
        ]
        table = await room.letters.table()
        staged = await asyncio.to_thread(stage, table, [(0, letters(rows))])
        await room.letters.change(lambda state: (state, None), staged)

    def _parquet(self, part: ChangeBatch) -> bytes:
        # PyIceberg compresses.
        return part.parquet(self._plan, compression="none")

    def _parts(self, several: Sequence[ChangeBatch]) -> list[tuple[int, ChangeBatch]]:
        """The changes of our tables that belong there, by day."""
        settings, tables = self._room.settings, self._room.tables
        changes = several[0] if len(several) == 1 else ChangeBatch.concat(several)
        if settings.pattern is not None:
            changes = changes.filter(settings.pattern)
        if settings.projection is not None:
            changes = changes.project(settings.projection)
        days: dict[int, list[ChangeBatch]] = {}
        # A stream may carry other tables' changes too.
        for table, us, batch in changes.partition(DAY_US, by_table=True):
            if table in tables:
                days.setdefault(us, []).append(batch)
        return [
            (us, some[0] if len(some) == 1 else ChangeBatch.concat(some))
            for us, some in sorted(days.items())
        ]


def _require(state: SinkState, due: Sequence[_Due]) -> None:
    """Raises `_Lost` where a fence is gone, TransientError where a position isn't the one that was
    committed last: the table was rolled back, or its catalog lost its newest commits."""
    rows = {
        one.shard.fence: state.row(one.shard.fence.stream, one.shard.fence.shard_id) for one in due
    }
    if lost := frozenset(fence for fence, row in rows.items() if not row.holds(fence)):
        raise _Lost(lost)
    moved = [one.shard.fence for one in due if rows[one.shard.fence].log != one.shard.committed]
    if moved:
        places = ", ".join(f"{fence.shard_id} ({rows[fence].log})" for fence in moved)
        raise TransientError(
            "position_moved",
            f"the stored position isn't the one last seen here: {places}; the table may have been "
            "rolled back, so reading goes on from the stored position",
            retry_after_seconds=0.0,
        )


def _digest(raw: bytes) -> str:
    """Without a number of the source's own, the bytes tell two records apart."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _result(due: Sequence[_Due], rows: int, lost: frozenset[str]) -> WriteResult:
    return WriteResult(
        rows=rows,
        duplicates=sum(one.duplicates for one in due),
        dead_letters=tuple(
            DeadLetter(fence.shard_id, each.table, each)
            for one in due
            for fence, each in one.rejections
        ),
        lost=lost,
        holding=frozenset(one.shard.fence.shard_id for one in due if one.taken[-1].is_holding),
    )
