"""The second half of the way: one writer of one sink, the shards it serves, and what waits for it.

Changes of several shards are gathered and go in one write. A lane writes one
payload at a time, in order of arrival, so a shard's durable position is always
that of its newest written fetch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from replicator.core.batch import Batcher, FlushReason
from replicator.errors import LeaseLost, ReplicatorError
from replicator.flow import Charge
from replicator.model import Fence, Pending, Position, WriteResult
from replicator.outlets import Outlet
from replicator.protocols import Clock, Writer

log = structlog.get_logger()

# Below this the thread hop costs more than the work blocks the loop (0.1 ms).
INLINE_BYTES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class _Waiting:
    inlet: Inlet
    pending: Pending
    charge: Charge


class Inlet:
    """One shard's way into a lane, for as long as one fence holds. `held`: what its sink held
    when that began."""

    def __init__(
        self,
        lane: Lane,
        fence: Fence,
        outlet: Outlet,
        held: Position | None,
        on_failed: Callable[[Inlet, ReplicatorError], None],
    ) -> None:
        self.fence = fence
        self.outlet = outlet
        self.held = held
        self.durable: Position | None = None
        self.has_written = False
        """The sink did something under this fence: it works."""
        self.is_holding = False
        """The sink waits for time to pass, which a fetch without records tells."""
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lane = lane
        self._on_failed = on_failed
        # When each fetch that waits here arrived, oldest first: they leave in this order.
        self._waiting: deque[float] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self._failed_from: float | None = None
        # What a failed sink is owed: it isn't written, but the others must not run on for ever.
        self._owed: list[Charge] = []

    def put(self, pending: Pending, charge: Charge) -> None:
        """Queues a decoded fetch; `charge` is held by it and released once it is durable, or
        the shard's run is over."""
        if self.is_over:
            self._keep(charge)
            return
        self._waiting.append(pending.received_at)
        self._idle.clear()
        self._lane.add(_Waiting(self, pending, charge))

    def flush(self) -> None:
        """Has what waits here written now."""
        self._lane.flush(FlushReason.DRAIN)

    async def drain(self) -> None:
        """Returns when everything that was put is durable. Raises what failed it."""
        self.flush()
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
            if not isinstance(error, LeaseLost):
                self.outlet.failed(self.fence.shard_id, error)
            self._failed_from = self.waiting_from
            self.failure.set_exception(error)
            # The shard's run looks at it when it can; it may also be gone already.
            self.failure.exception()
            self._on_failed(self, error)

    def close(self) -> None:
        """The shard's run is over: what is still queued is dropped. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self.failure.cancel()
        while self._owed:
            self._owed.pop().release()
        self._lane.closed()

    @property
    def is_over(self) -> bool:
        """True once its waiting changes must not be written any more."""
        return self.failure.done()

    @property
    def waiting_from(self) -> float | None:
        """When the oldest fetch that is not durable yet arrived; None when all are."""
        if self._failed_from is not None:
            return self._failed_from
        return self._waiting[0] if self._waiting else None

    def leave(self, durable: Position | None, charge: Charge, *, is_asked: bool = False) -> None:
        """One queued fetch left the lane: durable up to there, or dropped (None). `is_asked`:
        its sink did something for that."""
        self._waiting.popleft()
        if durable is not None:
            self.durable = durable
        if is_asked:
            self.has_written = True
            self.outlet.works(self.fence.shard_id)
        if self.is_over:
            self._keep(charge)
        else:
            charge.release()
        if not self._waiting:
            self._idle.set()

    def _keep(self, charge: Charge) -> None:
        if self._is_closed:
            charge.release()
        else:
            self._owed.append(charge)


class Lane:
    """Gathers what its shards put in and writes it, one payload after the other."""

    def __init__(
        self,
        writer: Writer[Any],
        batcher: Batcher[_Waiting],
        clock: Clock,
        outlet: Outlet,
    ) -> None:
        self._writer = writer
        self._batcher = batcher
        self._clock = clock
        self._outlet = outlet
        self._stats = outlet.stats
        self._changed = asyncio.Event()
        self._inlets: int | None = None
        self._is_over = False

    @property
    def nbytes(self) -> int:
        """Bytes that wait here."""
        return self._batcher.nbytes

    @property
    def is_over(self) -> bool:
        """True once it takes nothing more."""
        return self._is_over

    def open(
        self,
        fence: Fence,
        outlet: Outlet,
        held: Position | None,
        on_failed: Callable[[Inlet, ReplicatorError], None],
    ) -> Inlet:
        """A way in for one shard under one fence."""
        self._inlets = (self._inlets or 0) + 1
        return Inlet(self, fence, outlet, held, on_failed)

    def closed(self) -> None:
        """One of its inlets is closed. With the last one the lane ends."""
        assert self._inlets
        self._inlets -= 1
        self._changed.set()

    def add(self, waiting: _Waiting) -> None:
        """Queues one fetch; see `Inlet.put`."""
        if self._is_over:  # a reader that is ended later than the lane
            self._drop([waiting])
            return
        batch = waiting.pending.batch
        rows = len(batch) + len(batch.rejections)
        self._batcher.add(
            waiting, rows=rows, nbytes=waiting.charge.nbytes, now=self._clock.monotonic()
        )
        self._changed.set()

    def relieve(self) -> None:
        """Writes what waits at once: the memory budget is full."""
        self.flush(FlushReason.PRESSURE)

    def flush(self, reason: FlushReason) -> None:
        """Writes what waits now without waiting for more."""
        self._batcher.flush(reason)
        self._changed.set()

    async def run(self) -> None:
        """Encode, write, resolve, until the last inlet is closed or it is cancelled. Gives back
        the bytes of what it then still holds."""
        try:
            while (reason := await self._due()) is not None:
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
            self._outlet.begins_write(self)
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
        finally:
            self._outlet.ends_write(self)

    async def _due(self) -> FlushReason | None:
        while True:
            self._changed.clear()
            if self._inlets == 0:
                return None
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
            waiting.inlet.leave(None, waiting.charge)

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
                inlet.leave(None, waiting.charge)
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
                inlet.leave(pending.next, waiting.charge, is_asked=result.is_asked)
        stats.flushes += 1
        stats.rows += result.rows
        # A copy that only the sink could tell was decoded as a change.
        stats.changes -= result.duplicates
        stats.duplicates += result.duplicates
        stats.superseded += result.superseded
        stats.ambiguous += result.ambiguous
        if result.filtered:
            stats.dropped["filtered_deletes"] += result.filtered
        if result.unmatched:
            stats.dropped["filtered"] += result.unmatched
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
