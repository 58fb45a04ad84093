"""`ScriptedSource`: a source in memory with the faults a test writes down.

It is part of the product and passes the same contract suite as the real one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from replicator import _core
from replicator.errors import PositionLost, ReplicatorError
from replicator.model import SHARD_END, TRIM_HORIZON, Fetch, Horizon, Position, Shard, Stream
from replicator.protocols import Clock
from replicator.testing.stream import ScriptedStream

Operation = Literal["open", "now_us", "horizon", "shards", "fetch"]


@dataclass(slots=True)
class _Fault:
    operation: Operation
    at: int
    error: ReplicatorError
    shard_id: str | None


class ScriptedSource:
    """`protocols.Source` over a `ScriptedStream`.

    Each fetch holds up to `fetch_records` records and `fetch_bytes` payload bytes (at
    least one record). An idle shard gives an empty fetch every `heartbeat_seconds` of
    the running loop's time. Nothing is made before it is asked for.
    """

    def __init__(
        self,
        clock: Clock,
        stream: ScriptedStream | None = None,
        *,
        identity: Stream | None = None,
        fetch_records: int = 100,
        fetch_bytes: int = 1_048_576,
        heartbeat_seconds: float = 5.0,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1_000_000_000 * 1_000_000,
        retention_seconds: float = 86_400.0,
    ) -> None:
        self.stream = ScriptedStream(1) if stream is None else stream
        self.identity = identity or Stream(
            "scripted", "arn:aws:kinesis:eu-north-1:000000000000:stream/scripted", 1_700_000_000
        )
        self.calls: Counter[str] = Counter()
        self.readers: Counter[str] = Counter()
        self._clock = clock
        self._fetch_records = fetch_records
        self._fetch_bytes = fetch_bytes
        self._heartbeat_seconds = heartbeat_seconds
        self._now_us = now_us
        self.retention_seconds = retention_seconds
        self._faults: list[_Fault] = []
        self._redeliveries: dict[str, int] = {}
        self._stalled: dict[str, asyncio.Event] = {}

    def fail(
        self, operation: Operation, at: int, error: ReplicatorError, *, shard_id: str | None = None
    ) -> None:
        """Raises `error` at that call of the operation, once. Calls count from 1; with
        `shard_id` only that shard's fetches count."""
        self._faults.append(_Fault(operation, at, error, shard_id))

    def redeliver(self, shard_id: str, count: int) -> None:
        """The shard's next fetch repeats up to `count` records before its own."""
        self._redeliveries[shard_id] = count

    def stall(self, shard_id: str) -> None:
        """The shard gives nothing, not even a heartbeat, until `resume`."""
        self._stalled.setdefault(shard_id, asyncio.Event())

    def resume(self, shard_id: str) -> None:
        """Ends a stall."""
        if (stalled := self._stalled.pop(shard_id, None)) is not None:
            stalled.set()

    async def open(self) -> Stream:
        self._called("open")
        return self.identity

    async def now_us(self) -> int:
        self._called("now_us")
        return self._now_us()

    async def horizon(self) -> Horizon:
        self._called("horizon")
        return Horizon(self._now_us(), round(self.retention_seconds * 1_000_000))

    async def shards(self) -> Sequence[Shard]:
        self._called("shards")
        return self.stream.shards()

    async def read(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        if position == SHARD_END:
            return
        self._require(shard_id)
        place = self.stream.place(shard_id, position)
        self.readers[shard_id] += 1
        try:
            while position != SHARD_END:
                await self._wait(shard_id, place)
                self._called("fetch", shard_id)
                self._require(shard_id)
                fetch, place = self._fetch(shard_id, place)
                yield fetch
                position = fetch.next
        finally:
            self.readers[shard_id] -= 1

    async def close(self) -> None:
        """Nothing is held."""

    async def _wait(self, shard_id: str, place: int) -> None:
        """Returns when there is something to give, or a heartbeat is due."""
        try:
            async with asyncio.timeout(self._heartbeat_seconds):
                while not self._is_ready(shard_id, place):
                    await self.stream.changed()
        except TimeoutError:
            pass
        if (stalled := self._stalled.get(shard_id)) is not None:
            await stalled.wait()

    def _is_ready(self, shard_id: str, place: int) -> bool:
        if not self.stream.has_shard(shard_id) or shard_id in self._stalled:
            return True
        return place < self.stream.count(shard_id) or self.stream.is_ended(shard_id, place)

    def _fetch(self, shard_id: str, place: int) -> tuple[Fetch, int]:
        payloads: list[bytes] = []
        sequence_numbers: list[str] = []
        arrivals: list[int] = []
        nbytes = 0
        first = place
        if place < self.stream.count(shard_id):
            oldest = self.stream.place(shard_id, TRIM_HORIZON)
            first = max(oldest, place - self._redeliveries.pop(shard_id, 0))
        following = place
        limit = self._fetch_records + place - first
        for index, record in enumerate(self.stream.records(shard_id, first, limit), first):
            nbytes += len(record.payload)
            if index > place and nbytes > self._fetch_bytes:
                break
            payloads.append(record.payload)
            sequence_numbers.append(record.sequence_number)
            arrivals.append(record.arrival_ms)
            following = max(following, index + 1)
        has_ended = self.stream.is_ended(shard_id, following)
        behind_ms = 0
        if arrivals and following < self.stream.count(shard_id):
            behind_ms = max(0, self.stream.now_ms() - arrivals[-1])
        fetch = Fetch(
            shard_id=shard_id,
            records=_core.Records.pack(payloads, sequence_numbers, arrivals),
            next=SHARD_END if has_ended else self.stream.continuation(shard_id, following),
            children=self.stream.children(shard_id) if has_ended else (),
            behind_ms=behind_ms,
            received_at=self._clock.monotonic(),
        )
        return fetch, following

    def _require(self, shard_id: str) -> None:
        if not self.stream.has_shard(shard_id):
            raise PositionLost("shard_gone", f"{shard_id} is no longer listed")

    def _called(self, operation: Operation, shard_id: str | None = None) -> None:
        self.calls[operation] += 1
        if shard_id is not None:
            self.calls[f"{operation} {shard_id}"] += 1
        for fault in self._faults:
            name = operation if fault.shard_id is None else f"{operation} {fault.shard_id}"
            if fault.operation == operation and fault.at == self.calls[name]:
                if fault.shard_id is not None and fault.shard_id != shard_id:
                    continue
                self._faults.remove(fault)
                raise fault.error
