"""The second half of the way: one writer, the shards it serves, and what waits for it.

Changes of several shards are gathered and go in one write. A lane writes one
payload at a time, in order of arrival, so a shard's durable position is always
that of its newest written fetch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from replicator.core.batch import Batcher, FlushReason
from replicator.errors import LeaseLost, ReplicatorError
from replicator.flow import Gate
from replicator.model import Fence, Pending, Position, WriteResult
from replicator.protocols import Clock, Writer
from replicator.telemetry.stats import Stats

log = structlog.get_logger()

# Below this the thread hop costs more than the work blocks the loop (0.1 ms).
INLINE_BYTES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class _Waiting:
    inlet: Inlet
    pending: Pending
    charge: int


class Inlet:
    """One shard's way into a lane, for as long as one fence holds."""

    def __init__(self, lane: Lane, fence: Fence) -> None:
        self.fence = fence
        self.durable: Position | None = None
        self.is_holding = False
        """The sink waits for time to pass, which a fetch without records tells."""
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lane = lane
        # When each fetch that waits here arrived, oldest first: they leave in this order.
        self._waiting: deque[float] = deque()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, pending: Pending, charge: int) -> None:
        """Queues a decoded fetch whose bytes are already charged; `charge` is given
        back once it is durable or dropped."""
        self._waiting.append(pending.received_at)
        self._idle.clear()
        self._lane.add(_Waiting(self, pending, charge))

    async def drain(self) -> None:
        """Returns when everything that was put is durable. Raises what failed it."""
        self._lane.flush(FlushReason.DRAIN)
        idle = asyncio.ensure_future(self._idle.wait())
        ends: set[asyncio.Future[Any]] = {idle, self.failure}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
        if self.failure.done():
            self.failure.result()

    def fail(self, error: ReplicatorError) -> None:
        """Ends the inlet: what it still has in the lane will be dropped, not written."""
        if not self.failure.done():
            self.failure.set_exception(error)
            # The shard's run looks at it when it can; it may also be gone already.
            self.failure.exception()

    def close(self) -> None:
        """The shard's run is over: what is still queued is dropped."""
        self.failure.cancel()

    @property
    def is_over(self) -> bool:
        """True once its waiting changes must not be written any more."""
        return self.failure.done()

    @property
    def waiting_from(self) -> float | None:
        """When the oldest fetch that is not durable yet arrived; None when all are."""
        return self._waiting[0] if self._waiting else None

    def leave(self, durable: Position | None) -> None:
        """One queued fetch left the lane: durable up to there, or dropped (None)."""
        self._waiting.popleft()
        if durable is not None:
            self.durable = durable
        if not self._waiting:
            self._idle.set()


class Lane:
    """Gathers what its shards put in and writes it, one payload after the other."""

    def __init__(
        self,
        writer: Writer[Any],
        batcher: Batcher[_Waiting],
        gate: Gate,
        clock: Clock,
        stats: Stats,
    ) -> None:
        self._writer = writer
        self._batcher = batcher
        self._gate = gate
        self._clock = clock
        self._stats = stats
        self._changed = asyncio.Event()
        self._is_over = False

    @property
    def nbytes(self) -> int:
        """Bytes that wait here."""
        return self._batcher.nbytes

    def open(self, fence: Fence) -> Inlet:
        """A way in for one shard under one fence."""
        return Inlet(self, fence)

    def add(self, waiting: _Waiting) -> None:
        """Queues one fetch; see `Inlet.put`."""
        if self._is_over:  # a reader that is ended later than the lane
            self._drop([waiting])
            return
        batch = waiting.pending.batch
        rows = len(batch) + len(batch.rejections)
        self._batcher.add(waiting, rows=rows, nbytes=waiting.charge, now=self._clock.monotonic())
        self._changed.set()

    def relieve(self) -> None:
        """Writes what waits at once: the memory budget is full."""
        self.flush(FlushReason.PRESSURE)

    def flush(self, reason: FlushReason) -> None:
        """Writes what waits now without waiting for more."""
        self._batcher.flush(reason)
        self._changed.set()

    async def run(self) -> None:
        """Writes for ever: encode, write, resolve. Ends by cancellation only, and gives back
        the bytes of what it then still holds."""
        try:
            while True:
                reason = await self._due()
                if work := self._take():
                    await self._write(work, reason)
        finally:
            self.close()

    def close(self) -> None:
        """Gives back the bytes of what it still holds, and takes nothing more. May be called
        twice."""
        self._is_over = True
        while self._batcher.count:
            self._drop(self._batcher.take())

    async def _write(self, work: Sequence[_Waiting], reason: FlushReason) -> None:
        try:
            payload = await self._encode([waiting.pending for waiting in work])
            begun_at = self._clock.monotonic()
            result = await self._writer.write(payload)
        except ReplicatorError as error:
            self._fail(work, error)
        except asyncio.CancelledError:
            self._drop(work)
            raise
        else:
            self._stats.flush_reasons[reason] += 1
            self._stats.write_seconds += self._clock.monotonic() - begun_at
            self._resolve(work, result)

    async def _due(self) -> FlushReason:
        while True:
            self._changed.clear()
            now = self._clock.monotonic()
            if (reason := self._batcher.due(now)) is not None:
                return reason
            with suppress(TimeoutError):
                async with asyncio.timeout(self._batcher.until_next(now)):
                    await self._changed.wait()

    def _take(self) -> list[_Waiting]:
        taken = self._batcher.take()
        self._drop([waiting for waiting in taken if waiting.inlet.is_over])
        return [waiting for waiting in taken if not waiting.inlet.is_over]

    def _drop(self, work: Sequence[_Waiting]) -> None:
        for waiting in work:
            waiting.inlet.leave(None)
            self._gate.give(waiting.charge)

    async def _encode(self, pending: Sequence[Pending]) -> Any:
        if sum(p.batch.nbytes for p in pending) <= INLINE_BYTES_MAX:
            return self._writer.encode(pending)
        return await asyncio.to_thread(self._writer.encode, pending)

    def _fail(self, work: Sequence[_Waiting], error: ReplicatorError) -> None:
        for waiting in work:
            waiting.inlet.fail(error)
        self._drop(work)

    def _resolve(self, work: Sequence[_Waiting], result: WriteResult) -> None:
        now = self._clock.monotonic()
        stats = self._stats
        for waiting in work:
            inlet, pending = waiting.inlet, waiting.pending
            if inlet.fence.shard_id in result.lost:
                inlet.fail(
                    LeaseLost("fence_lost", f"another worker owns {inlet.fence.shard_id} now")
                )
                inlet.leave(None)
            else:
                batch = pending.batch
                stats.records += batch.records
                stats.changes += len(batch)
                stats.duplicates += batch.duplicates
                stats.ambiguous += batch.ambiguous
                stats.bytes += batch.nbytes
                if len(batch):
                    stats.observe_latency(now - pending.received_at, len(batch))
                inlet.is_holding = inlet.fence.shard_id in result.holding
                inlet.leave(pending.next)
            self._gate.give(waiting.charge)
        stats.flushes += 1
        stats.rows += result.rows
        # A copy that only the sink could tell was decoded as a change.
        stats.changes -= result.duplicates
        stats.duplicates += result.duplicates
        stats.superseded += result.superseded
        stats.ambiguous += result.ambiguous
        if result.filtered:
            stats.dropped["filtered_deletes"] += result.filtered
        if result.ambiguous:
            log.warning(
                "ambiguous_order", changes=result.ambiguous, action="the last to arrive stands"
            )
        stats.dead_letters += len(result.dead_letters)
        stats.rejected.update(result.rejected_by_code)
        for letter in result.dead_letters:
            rejection = letter.rejection
            log.warning(
                "dead_letter",
                shard=letter.shard_id,
                table=letter.table,
                sequence_number=rejection.sequence_number,
                index=rejection.index,
                code=rejection.code,
                reason=rejection.message,
            )
