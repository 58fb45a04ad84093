"""What both writers of the Iceberg sink know of the shards that are fenced here."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from replicator._core import Rejection
from replicator.core.windows import Windows
from replicator.errors import TransientError
from replicator.model import SHARD_END, Fence, Pending
from replicator.sink.iceberg_commits import Commits
from replicator.sink.iceberg_lake import letters
from replicator.sink.iceberg_settings import IcebergSettings
from replicator.sink.iceberg_state import Key, SinkState
from replicator.sink.iceberg_table import Staged, stage
from replicator.sink.letters import record_number
from replicator.sink.log_shard import LogPosition, LogShard


@dataclass(slots=True)
class FencedShard:
    """What is known of a shard under one fence. Once a write has failed nobody knows how far it
    came: then it is of no use any more."""

    fence: Fence
    memory: LogShard
    """Of a log; a table of the newest items needs none."""
    committed: LogPosition | None
    """What was read behind the fence, or committed under it, last."""
    stored_at: float = float("-inf")
    is_sure: bool = True
    parents: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.fence.stream, self.fence.shard_id

    @property
    def is_finished(self) -> bool:
        """True once its end is committed."""
        return self.committed is not None and self.committed.position == SHARD_END

    def may_wait(self, log: LogPosition, settings: IcebergSettings, now: float) -> bool:
        """True when nothing but the position moved, and it was stored not long ago."""
        before = self.committed
        if before is None or log.position == SHARD_END:
            return False
        if log.position.sequence_number and not before.position.sequence_number:
            return False  # it didn't tell where the shard stands
        return log == before or self.stored_at > now - settings.idle_position_seconds


@dataclass(frozen=True, slots=True)
class Room:
    """What a writer works with. `commits` are those with the positions, `shards` is the sink's."""

    settings: IcebergSettings
    commits: Commits
    letters: Commits
    windows: Windows
    monotonic: Callable[[], float]
    now_us: Callable[[], int]
    shards: dict[Key, FencedShard] = field(default_factory=dict)

    def known(
        self, payload: Sequence[Pending]
    ) -> tuple[list[tuple[FencedShard, tuple[Pending, ...]]], frozenset[str]]:
        """The fetches by shard; those of shards that aren't ours any more are lost as a whole.
        Raises TransientError when nobody knows how far the last write of one came."""
        by_fence: dict[Fence, list[Pending]] = {}
        for one in payload:
            by_fence.setdefault(one.fence, []).append(one)
        times = Counter((fence.stream, fence.shard_id) for fence in by_fence)
        known, lost = [], set()
        for fence, several in by_fence.items():
            key = (fence.stream, fence.shard_id)
            shard = self.shards.get(key)
            if shard is None or shard.fence != fence or times[key] > 1:
                lost.add(fence.shard_id)
            elif not shard.is_sure:
                raise TransientError(
                    "position_moved",
                    f"{fence.shard_id}: what was stored last isn't known here: the position is "
                    "read again before anything is written",
                    retry_after_seconds=0.0,
                )
            else:
                known.append((shard, tuple(several)))
        return known, frozenset(lost)

    def forget(self, lost: Lost) -> frozenset[str]:
        """These shards are somebody else's: gives their names."""
        for fence in lost.fences:
            self.drop((fence.stream, fence.shard_id))
        return frozenset(fence.shard_id for fence in lost.fences)

    def drop(self, key: Key) -> None:
        """The shard isn't written here any more."""
        if (shard := self.shards.pop(key, None)) is not None:
            self.windows.release(shard.memory)

    def committed(self, shard: FencedShard, log: LogPosition) -> None:
        """That is stored of it now."""
        shard.committed, shard.stored_at = log, self.monotonic()
        if log.position == SHARD_END:  # its memory is as large as what it remembers
            self.windows.release(shard.memory)
            shard.memory = LogShard(log)

    async def staged_letters(self, refused: Sequence[tuple[Fence, Rejection]]) -> Staged:
        """Refused records as files of the dead letters' table."""
        at = datetime.fromtimestamp(self.now_us() / 1_000_000, UTC)
        rows = [
            {
                "at": at,
                "pipeline": self.settings.pipeline,
                "stream_arn": fence.stream.arn,
                "shard": fence.shard_id,
                "sequence_number": record_number(each.sequence_number, each.raw),
                "record_index": each.sub_sequence_number,
                "table": each.table,
                "code": each.code,
                "message": each.message,
                "raw": each.raw,
            }
            for fence, each in refused
        ]
        table = await self.letters.table()
        return await asyncio.to_thread(stage, table, [(0, letters(rows))], None)


class Lost(Exception):
    """Fences that are gone: nothing of the write was committed."""

    def __init__(self, fences: frozenset[Fence]) -> None:
        super().__init__(str(fences))
        self.fences = fences


def require(state: SinkState, shards: Sequence[FencedShard]) -> None:
    """Raises `Lost` where a fence is gone, TransientError where a position isn't the one that was
    committed last: the table was rolled back, or its catalog lost its newest commits."""
    rows = {shard.fence: state.row(*shard.key) for shard in shards}
    if lost := frozenset(fence for fence, row in rows.items() if not row.holds(fence)):
        raise Lost(lost)
    moved = [shard.fence for shard in shards if rows[shard.fence].log != shard.committed]
    if moved:
        places = ", ".join(f"{fence.shard_id} ({rows[fence].log})" for fence in moved)
        raise TransientError(
            "position_moved",
            f"the stored position isn't the one last seen here: {places}; the table may have been "
            "rolled back, so reading goes on from the stored position",
            retry_after_seconds=0.0,
        )
