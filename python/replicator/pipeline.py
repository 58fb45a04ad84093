"""One shard's records on their way, fetch to checkpoint: start reading here.

    fetch    source   one answer of the service: raw records and where reading goes on
    decode   _core    records → changes, duplicates out, in order per key; GIL released
    plan     here     what nobody asked for is counted out; each sink is given what it doesn't
                      hold yet (`fan.py`), in its writer's lane
    encode   sink     changes of all the lane's shards → the destination's own bytes
    write    sink     changes, dead letters and positions, durable together
    resolve  lane     bytes given back once all sinks are done, counters, the durable position
    checkpoint        a copy of that position for display (coordinator → lease store)

The first three run once a shard, here; the others once a writer of each sink, in `lane.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import aclosing
from typing import Any

import structlog

from replicator import _core
from replicator.core import gap
from replicator.core.batch import Batcher
from replicator.core.liveness import ShardLife
from replicator.errors import LeaseLost, TransientError
from replicator.fan import Fan, Patience
from replicator.flow import Charge, Gate
from replicator.lane import INLINE_BYTES_MAX, Lane
from replicator.model import SHARD_END, Fetch, Position, PositionKind, Shard
from replicator.outlets import Answers, Stand
from replicator.protocols import Clock, Source
from replicator.telemetry.stats import Stats

log = structlog.get_logger()

# An idle shard's position is stored this often: often enough to stay far from the end
# of the retention, seldom enough that thousands of idle shards cost nothing.
IDLE_POSITION_SECONDS = 15.0
# A reader that was held up by its sink for longer than this begins anew, with a look at the
# age of its position: the source would go on at the oldest record without a word.
HELD_UP_SECONDS_MAX = 600.0


class Pipeline:
    """Reads shards of one source into its sinks; the lanes live in `group`."""

    def __init__(
        self,
        *,
        source: Source,
        tables: Collection[str],
        gate: Gate,
        clock: Clock,
        stats: Stats,
        group: asyncio.TaskGroup,
    ) -> None:
        self._source = source
        self._tables = frozenset(tables)
        self._gate = gate
        self._clock = clock
        self._stats = stats
        self._group = group
        # By the writer, which a lane keeps: no other has its id meanwhile.
        self._lanes: dict[int, tuple[Lane, asyncio.Task[None]]] = {}
        self._named: set[str | None] = set()

    def open(self, answers: Answers[Stand], patience: Patience) -> Fan:
        """The shard's ways to all sinks that answered. `patience`: see `Fan`."""
        stands = tuple(answers.good.values())
        return Fan(stands, answers.errors, self._lane, self._clock, patience)

    def _lane(self, stand: Stand) -> Lane:
        """The lane of the writer that serves this shard."""
        outlet = stand.outlet
        writer = outlet.sink.writer(stand.fence)
        known = self._lanes.get(id(writer))
        if known is not None and not known[0].is_over:
            return known[0]
        limits = outlet.batching
        batcher: Batcher[Any] = Batcher(
            rows_max=limits.rows_max,
            bytes_max=limits.bytes_max,
            delay_seconds=limits.delay_seconds,
        )
        lane = Lane(writer, batcher, self._clock, outlet)
        self._gate.register(lane)
        task = self._group.create_task(lane.run())
        task.add_done_callback(lambda _: self._over(id(writer), lane))
        self._lanes[id(writer)] = (lane, task)
        return lane

    def _over(self, writer_id: int, lane: Lane) -> None:
        # The gate outlives the pipeline; and a task may be cancelled before its first step.
        lane.close()
        self._gate.unregister(lane)
        if self._lanes.get(writer_id, (None,))[0] is lane:
            del self._lanes[writer_id]

    def close(self) -> None:
        """Ends the lanes; what still waits in them is not written."""
        for _, task in self._lanes.values():
            task.cancel()

    async def run(
        self,
        fan: Fan,
        position: Position,
        stopping: asyncio.Event,
        life: ShardLife,
        cut: asyncio.Future[None],
        behind_ms_max: int | None = None,
    ) -> tuple[Shard, ...] | None:
        """Reads the fan's shard until its end, until `stopping`, or until `cut` fails;
        returns when all that was read is durable at every sink. `life` is told what happens.
        `behind_ms_max`: a reader further behind may be losing records (law 9).

        Gives the shard's children at its end, None when stopped. Raises the source's
        errors, PositionLost when it is overtaken, that of `cut`, and what failed the fan.
        """
        life.asks(self._clock.monotonic())
        reading = asyncio.ensure_future(self._read(fan, position, life, behind_ms_max))
        stop = asyncio.ensure_future(stopping.wait())
        ends: set[asyncio.Future[Any]] = {reading, stop, fan.failure, cut}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if fan.failure.done():
                life.waits_for_sink("", self._clock.monotonic())
            await _ended(reading)
            error = None if reading.cancelled() else reading.exception()
            lost = [each for each in (error, _failure(fan)) if isinstance(each, LeaseLost)]
            if lost:
                raise lost[0]
            # What was read before an error is still good, and may be gone when it is read
            # again. Only a lost lease makes it another worker's.
            if not fan.failure.done():
                life.ends("what was read to be durable", self._clock.monotonic())
            await fan.drain()
            if cut.done() or error is not None:
                life.source_failed(self._clock.monotonic())
            if cut.done():
                cut.result()
            return None if reading.cancelled() else reading.result()
        finally:
            stop.cancel()
            try:
                await _ended(reading)
            finally:
                # Cancelled again, too: nobody else gives back what it holds.
                fan.close()

    async def _read(
        self, fan: Fan, position: Position, life: ShardLife, behind_ms_max: int | None
    ) -> tuple[Shard, ...]:
        shard_id, before = fan.shard_id, position
        stored_at = float("-inf")
        # From the oldest record on a reader begins at the limit, and has to come away from it.
        # An answer without records shows nothing.
        is_within = position.kind not in {PositionKind.TRIM_HORIZON, PositionKind.AT_TIMESTAMP}
        async with aclosing(self._source.read(shard_id, position)) as fetches:
            async for fetch in fetches:
                ended = fetch.next == SHARD_END
                if behind_ms_max is not None and fetch.behind_ms is not None and not ended:
                    if fetch.behind_ms <= behind_ms_max:
                        is_within = is_within or len(fetch.records) > 0
                    elif is_within:
                        raise gap.overtaken(shard_id, fetch.behind_ms, behind_ms_max)
                now = self._clock.monotonic()
                # What isn't known is shown as nothing: an idle shard is no alarm.
                life.arrived(fetch.next, fetch.behind_ms or 0, now)
                if (
                    not len(fetch.records)
                    and not ended
                    and not fan.is_holding
                    and now - stored_at < IDLE_POSITION_SECONDS
                ):
                    continue
                await self._plan(fan, fetch, before, life)
                stored_at, before = now, fetch.next
                if ended:
                    return fetch.children
                held_up = self._clock.monotonic() - now
                if held_up > HELD_UP_SECONDS_MAX:
                    raise TransientError(
                        "reading_held_up",
                        f"{shard_id} was not read for {held_up:.0f} s, for its sink took nothing "
                        "more: it is read again from its stored position",
                        retry_after_seconds=0.0,
                    )
        raise AssertionError(f"{shard_id}: a source may only return after SHARD_END")

    async def _plan(self, fan: Fan, fetch: Fetch, before: Position, life: ShardLife) -> None:
        nbytes = fetch.records.nbytes
        if not self._gate.try_take(nbytes):
            life.waits_for_sink("room in the memory budget", self._clock.monotonic())
            await self._gate.take(nbytes)
            life.asks(self._clock.monotonic())
        try:
            batch = await self._decode(fetch)
        except asyncio.CancelledError:
            self._gate.give(nbytes)
            raise
        self._gate.adjust(batch.nbytes - nbytes)
        charge = Charge(self._gate, batch.nbytes)
        for table, changes in batch.tables.items():
            if table not in self._tables:
                self._drop(table, changes)
        fan.put(batch, fetch, before, charge)
        charge.release()

    async def _decode(self, fetch: Fetch) -> _core.ChangeBatch:
        if fetch.records.nbytes <= INLINE_BYTES_MAX:
            return _core.decode(fetch.records, table=fetch.table)
        return await asyncio.to_thread(_core.decode, fetch.records, table=fetch.table)

    def _drop(self, table: str | None, changes: int) -> None:
        self._stats.dropped["unknown_table"] += changes
        if table not in self._named:
            self._named.add(table)
            log.warning("table_not_configured", table=table, action="its changes are dropped")


def _failure(fan: Fan) -> BaseException | None:
    return fan.failure.exception() if fan.failure.done() else None


async def _ended(task: asyncio.Future[Any]) -> None:
    """Ends a task and waits until it is over; what it ended with is told elsewhere."""
    while not task.done():
        # Again and again: a driver may swallow one cancellation.
        task.cancel()
        await asyncio.wait({task}, timeout=1)
    if not task.cancelled():
        task.exception()
