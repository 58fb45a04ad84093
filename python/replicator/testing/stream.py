"""A Kinesis stream in memory: shards, lineage and records, without any transport.

`ScriptedSource` serves it in the process, `KinesisServer` over the wire. Records may be
made by a function when they are read, so a gigabyte of them takes no memory. A closed
shard stays readable to its end, as the service keeps it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from replicator.errors import PositionLost
from replicator.model import Position, PositionKind, Shard, after

# 56 digits, as the service's numbers have; each shard counts in a range of its own.
_BASE = 49_600_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000
_SHARD_STEP = 10**30
# A partition key's MD5, as a number, tells its shard
# (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecord.html).
HASH_KEY_END = 2**128


@dataclass(frozen=True, slots=True)
class ScriptedRecord:
    """One record as it will be served."""

    payload: bytes
    sequence_number: str
    arrival_ms: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """Records that were added together, given by their place in the segment."""

    start: int
    count: int
    payload: Callable[[int], bytes]
    arrival_ms: int


@dataclass(slots=True)
class _ShardLog:
    id: str
    parents: tuple[str, ...]
    base: int
    count: int = 0
    trimmed: int = 0
    is_open: bool = True
    segments: list[_Segment] = field(default_factory=list)
    children: tuple[str, ...] = ()
    # The first hash key and the one after the last.
    hash_range: tuple[int, int] | None = None
    closed_ms: int = 0

    def sequence_number(self, index: int) -> str:
        return str(self.base + index)

    def record(self, index: int) -> ScriptedRecord:
        segment = self.segments[bisect_right(self.segments, index, key=lambda s: s.start) - 1]
        return ScriptedRecord(
            segment.payload(index - segment.start),
            self.sequence_number(index),
            segment.arrival_ms,
        )


class ScriptedStream:
    """Shards by id. Every change of it wakes who waits in `changed`."""

    def __init__(
        self,
        shard_count: int = 0,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 10**6,
        trims_silently: bool = False,
        name: Callable[[int], str] = "shardId-{:012d}".format,
        base: int = _BASE,
        shard_step: int = _SHARD_STEP,
    ) -> None:
        """`trims_silently`: asked for a trimmed number it goes on at its oldest record, as
        Kinesis may; else that is PositionLost, as DynamoDB Streams says it."""
        self.now_ms = now_ms
        self.trims_silently = trims_silently
        self._name = name
        self._base = base
        self._shard_step = shard_step
        self._logs: dict[str, _ShardLog] = {}
        self._made = 0
        self._changed = asyncio.Event()
        for place in range(shard_count):
            first, end = (HASH_KEY_END * n // shard_count for n in (place, place + 1))
            self.add_shard(hash_range=(first, end))

    def add_shard(
        self,
        shard_id: str | None = None,
        parents: Sequence[str] = (),
        *,
        hash_range: tuple[int, int] | None = None,
    ) -> str:
        """A new open shard's id; by default the next `shardId-…` number."""
        if shard_id is None:
            shard_id = self._name(self._made)
        assert shard_id not in self._logs, shard_id
        base = self._base + self._made * self._shard_step
        self._logs[shard_id] = _ShardLog(shard_id, tuple(parents), base, hash_range=hash_range)
        self._made += 1
        self.wake()
        return shard_id

    def append(
        self, shard_id: str, payloads: Sequence[bytes], *, arrival_ms: int | None = None
    ) -> list[str]:
        """Adds records and gives their sequence numbers."""
        kept = tuple(payloads)
        first = self.generate(shard_id, len(kept), kept.__getitem__, arrival_ms=arrival_ms)
        log = self._logs[shard_id]
        return [log.sequence_number(first + index) for index in range(len(kept))]

    def generate(
        self,
        shard_id: str,
        count: int,
        payload: Callable[[int], bytes],
        *,
        arrival_ms: int | None = None,
    ) -> int:
        """Adds `count` records made by `payload(0)`, `payload(1)`, … whenever they are read
        (it must give the same bytes each time); gives the place of the first in the shard."""
        log = self._logs[shard_id]
        assert log.is_open, f"{shard_id} is closed"
        first = log.count
        if count:
            when = self.now_ms() if arrival_ms is None else arrival_ms
            log.segments.append(_Segment(first, count, payload, when))
            log.count += count
            self.wake()
        return first

    def split(self, shard_id: str, at: int | None = None) -> tuple[str, str]:
        """Closes a shard; its two children take over, the right one from hash key `at` on
        (by default the middle)."""
        whole = self._logs[shard_id].hash_range
        lower = upper = None
        if whole is not None:
            middle = sum(whole) // 2 if at is None else at
            lower, upper = (whole[0], middle), (middle, whole[1])
        left = self.add_shard(parents=(shard_id,), hash_range=lower)
        right = self.add_shard(parents=(shard_id,), hash_range=upper)
        self._close(shard_id, (left, right))
        return left, right

    def rotate(self, shard_id: str) -> str:
        """Closes a shard; one child takes over, as in DynamoDB Streams every few hours."""
        child = self.add_shard(parents=(shard_id,), hash_range=self._logs[shard_id].hash_range)
        self._close(shard_id, (child,))
        return child

    def close(self, shard_id: str) -> None:
        """Closes a shard that nobody takes over: its stream was disabled."""
        self._close(shard_id, ())

    def merge(self, shard_id: str, adjacent_id: str) -> str:
        """Closes two shards; one child of both takes over."""
        halves = [self._logs[one].hash_range for one in (shard_id, adjacent_id)]
        ends = [end for half in halves if half is not None for end in half]
        whole = (min(ends), max(ends)) if None not in halves else None
        child = self.add_shard(parents=(shard_id, adjacent_id), hash_range=whole)
        self._close(shard_id, (child,))
        self._close(adjacent_id, (child,))
        return child

    def trim(self, shard_id: str, count: int) -> None:
        """Drops the shard's first `count` records. Reading from a number among them
        raises PositionLost; TRIM_HORIZON moves on."""
        self._logs[shard_id].trimmed = count

    def expire(self, before_ms: int) -> None:
        """Trims every record that arrived before this time."""
        for log in self._logs.values():
            old = [segment for segment in log.segments if segment.arrival_ms < before_ms]
            log.trimmed = max([log.trimmed, *(segment.start + segment.count for segment in old)])

    def discard(self, before_ms: int) -> tuple[str, ...]:
        """As `expire`, and the memory is given back, and closed shards that hold nothing
        since then leave the listing; gives these."""
        self.expire(before_ms)
        gone = []
        for log in list(self._logs.values()):
            while log.segments and log.segments[0].arrival_ms < before_ms:
                del log.segments[0]
            if not log.is_open and not log.segments and log.closed_ms < before_ms:
                gone.append(log.id)
                self.remove_shard(log.id)
        return tuple(gone)

    def remove_shard(self, shard_id: str) -> None:
        """Takes the shard out of the listing, as the end of the retention does."""
        del self._logs[shard_id]
        self.wake()

    def shards(self) -> list[Shard]:
        """The listing."""
        return [
            Shard(
                id=log.id,
                parents=log.parents,
                is_open=log.is_open,
                starting_sequence_number=log.sequence_number(0),
                ending_sequence_number=None if log.is_open else log.sequence_number(log.count),
                hash_range=log.hash_range,
            )
            for log in self._logs.values()
        ]

    def hash_range(self, shard_id: str) -> tuple[int, int]:
        """The shard's first hash key and the one after its last; an empty range for a shard
        that was added without one."""
        return self._logs[shard_id].hash_range or (0, 0)

    def shard_of(self, partition_key: str) -> str:
        """The open shard that takes this key's records."""
        hashed = int.from_bytes(hashlib.md5(partition_key.encode()).digest())  # noqa: S324 the service's
        for log in self._logs.values():
            if log.is_open and log.hash_range and log.hash_range[0] <= hashed < log.hash_range[1]:
                return log.id
        raise AssertionError(f"no open shard takes hash key {hashed}")

    def has_shard(self, shard_id: str) -> bool:
        return shard_id in self._logs

    def place(self, shard_id: str, position: Position) -> int:
        """The place of the next record to read. Raises PositionLost for a number that is
        trimmed or was never given out."""
        log = self._logs[shard_id]
        match position.kind:
            case PositionKind.TRIM_HORIZON:
                return log.trimmed
            case PositionKind.LATEST | PositionKind.SHARD_END:
                return log.count
            case PositionKind.AT_TIMESTAMP:
                assert position.timestamp_us is not None
                first_ms = position.timestamp_us // 1_000
                for segment in log.segments:
                    if segment.arrival_ms >= first_ms:
                        return max(segment.start, log.trimmed)
                return log.count
            case PositionKind.AT_SEQUENCE_NUMBER | PositionKind.AFTER_SEQUENCE_NUMBER:
                assert position.sequence_number is not None
                place = int(position.sequence_number) - log.base
                if position.kind is PositionKind.AFTER_SEQUENCE_NUMBER:
                    place += 1
                if self.trims_silently and 0 <= place < log.trimmed:
                    return log.trimmed
                # One past the end is the continuation of a shard that was read whole.
                if not log.trimmed <= place <= log.count:
                    raise PositionLost(
                        "position_invalid",
                        f"{shard_id} doesn't keep sequence number {position.sequence_number}",
                    )
                return place

    def continuation(self, shard_id: str, place: int) -> Position:
        """The position behind everything before `place`."""
        return after(self._logs[shard_id].sequence_number(place - 1))

    def records(self, shard_id: str, place: int, count_max: int) -> Iterator[ScriptedRecord]:
        """Up to `count_max` records from `place` on, made one by one."""
        log = self._logs[shard_id]
        for index in range(place, min(place + count_max, log.count)):
            yield log.record(index)

    def count(self, shard_id: str) -> int:
        """Records ever added."""
        return self._logs[shard_id].count

    def behind_ms(self, shard_id: str, place: int) -> int:
        """How long the record at `place` has waited, at least 1; 0 at the tip."""
        log = self._logs[shard_id]
        if place >= log.count:
            return 0
        return max(1, self.now_ms() - log.record(place).arrival_ms)

    def is_ended(self, shard_id: str, place: int) -> bool:
        """True when the shard is closed and nothing is left from `place` on."""
        log = self._logs[shard_id]
        return not log.is_open and place >= log.count

    def children(self, shard_id: str) -> tuple[Shard, ...]:
        """The shard's children; empty while it is open."""
        return tuple(
            Shard(id=child, parents=self._logs[child].parents)
            for child in self._logs[shard_id].children
            if child in self._logs  # else it is past the retention already
        )

    async def changed(self) -> None:
        """Returns at the stream's next change."""
        await self._changed.wait()

    def _close(self, shard_id: str, children: tuple[str, ...]) -> None:
        log = self._logs[shard_id]
        log.is_open, log.children, log.closed_ms = False, children, self.now_ms()
        self.wake()

    def wake(self) -> None:
        """Lets everybody look again who waits in `changed`."""
        self._changed.set()
        self._changed = asyncio.Event()
