"""A log sink in memory, as Kafka's and S3's are: every change that is due, then the position, and
with a shard's end what it remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from replicator.core.windows import Windows
from replicator.errors import TransientError
from replicator.model import SHARD_END, TRIM_HORIZON, Fence, Pending, Position, Stream, WriteResult
from replicator.sink.log_shard import LogPosition, LogShard, growth
from replicator.testing.sink import MemorySink, MemoryStore
from tests.property.test_window import Given, shown


@dataclass
class LogStore(MemoryStore):
    """What outlives a process; `written` is the log."""

    written: list[Given] = field(default_factory=list)
    logs: dict[str, LogPosition] = field(default_factory=dict)
    remembered: dict[str, bytes] = field(default_factory=dict)
    inherited: int = 0


class LogSink(MemorySink):
    """`log` are the options of `LogShard`."""

    store: LogStore

    def __init__(
        self, store: LogStore, *, log: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__("test/p", store, **options)
        self.windows = Windows(1 << 40)
        self._log = log or {}
        self.opened: dict[Fence, LogShard] = {}
        self.unsure: set[Fence] = set()
        self._parents: dict[Fence, Sequence[str]] = {}

    def inherit(self, fence: Fence, parents: Sequence[str]) -> None:
        assert all(self.store.logs[parent].position == SHARD_END for parent in parents)
        self._parents[fence] = parents

    async def position(self, fence: Fence) -> Position | None:
        await super().position(fence)
        stored = self.store.logs.get(fence.shard_id)
        first = stored or LogPosition(TRIM_HORIZON)
        parents = self._parents[fence] if first.inherits else ()
        inherited = [self.store.remembered[parent] for parent in parents]
        self.store.inherited += sum(map(bool, inherited))
        if fence not in self.opened:
            self.opened[fence] = LogShard(first, inherited=inherited, **self._log)
        return None if stored is None else stored.start

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        begun = await super().positions(stream)
        return {**begun, **{shard: log.position for shard, log in self.store.logs.items()}}

    def writer(self, fence: Fence) -> Any:
        """A shard's own."""
        return LogWriter(self, fence)


class LogWriter:
    def __init__(self, sink: LogSink, fence: Fence) -> None:
        self._sink = sink
        self._fence = fence

    def encode(self, pending: Sequence[Pending]) -> tuple[Pending, ...]:
        return tuple(pending)

    async def write(self, payload: tuple[Pending, ...]) -> WriteResult:
        sink, fence = self._sink, self._fence
        if not sink.holds(fence) or fence in sink.unsure:
            return WriteResult(lost=frozenset({fence.shard_id}))
        log = sink.opened[fence]
        with sink.windows.taking(log, growth(payload)):
            taken = [log.take(one) for one in payload]
        fate = await sink.fault()
        if not sink.holds(fence):
            return WriteResult(lost=frozenset({fence.shard_id}))
        if fate != "before":
            store, last = sink.store, taken[-1]
            for each in taken:
                store.written += shown(each.changes)
            store.logs[fence.shard_id] = last.stored
            if last.stored.position == SHARD_END:
                store.remembered[fence.shard_id] = last.remembered
                sink.windows.release(log)
        if fate is not None:
            sink.unsure.add(fence)
            raise TransientError("scripted", f"failed {fate} the commit, as ordered")
        return WriteResult(holding=frozenset({fence.shard_id} if taken[-1].is_holding else ()))
