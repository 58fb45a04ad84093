"""How a pipeline begins a stream at its sinks (law 5): a start becomes positions once, stored
before the first read, at each sink that has never seen the stream."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from replicator.core.fanout import Held, least
from replicator.core.start import (
    first_starts,
    incomparable,
    reach_us,
    require_comparable,
    require_start,
    starts_beside,
    was_only_begun,
)
from replicator.errors import FatalError
from replicator.gaps import Gaps
from replicator.model import TRIM_HORIZON, Position, Start, Stream, TableSchema
from replicator.outlets import Outlet, Outlets, SinkStart
from replicator.protocols import Expiring, Source


class Beginning:
    """Begins one pipeline's stream. `start` is where one that no sink has seen begins; None means
    the oldest record, and only into sinks that hold nothing yet."""

    def __init__(
        self, pipeline: str, start: Start | None, source: Source, outlets: Outlets, gaps: Gaps
    ) -> None:
        self._pipeline = pipeline
        self._start = start
        self._source = source
        self._outlets = outlets
        self._gaps = gaps
        self._log = structlog.get_logger().bind(pipeline=pipeline)

    async def resolve(self, stream: Stream, tables: Sequence[TableSchema]) -> None:
        """Stores the first positions where there are none. May be called again after an error:
        what was stored stays. Raises FatalError with what to do."""
        there = [each for each in self._outlets if each.absent is None]
        known = {each: await each.sink.is_known(stream) for each in there}
        new = [each for each in there if not known[each]]
        others = [each for each in there if known[each]]
        for outlet in others:
            await self._add_tables(stream, outlet)
        if not new:
            return
        if others:
            for outlet in new:
                await self._join(stream, outlet, others, tables)
            return
        for absent in self._outlets.absent:
            # They all begin in the same place.
            assert absent.absent is not None
            raise absent.absent
        for outlet in new:
            if outlet.start == "snapshot":
                require_sink_start(self._pipeline, outlet.name, outlet.start)
            await self._require_room(stream, outlet)
        starts = await self._first_starts(self._start or TRIM_HORIZON, new, tables)
        await self._outlets.each("", lambda one: one.sink.begin(stream, starts))

    async def admit(self, stream: Stream, outlet: Outlet, tables: Sequence[TableSchema]) -> None:
        """Opens a sink that was absent, and begins the stream there where that was not done. It
        stays absent."""
        await outlet.sink.open(tables)
        if await outlet.sink.is_known(stream):
            await self._add_tables(stream, outlet)
        else:
            others = [each for each in self._outlets if each.absent is None]
            await self._join(stream, outlet, others, tables)

    async def _first_starts(
        self, start: Start, outlets: Sequence[Outlet], tables: Sequence[TableSchema]
    ) -> dict[str, Position]:
        position = await self._gaps.first_start(start)
        for outlet in outlets:
            if isinstance(outlet.sink, Expiring):
                reach = reach_us(position, await self._source.horizon())
                for each in await outlet.sink.expiring(tables, reach):
                    self._log.warning(each.code, sink=outlet.name, reason=each.message)
        return first_starts(await self._source.shards(), position)

    async def _add_tables(self, stream: Stream, outlet: Outlet) -> None:
        """Tables that weren't listed when the stream was begun there (law 3)."""
        if added := await outlet.sink.add_tables(stream):
            self._log.info("tables_added", sink=outlet.name, tables=list(added))

    async def _require_room(self, stream: Stream, outlet: Outlet) -> None:
        begun = await outlet.sink.begun()
        if await outlet.sink.holds_data():
            require_start(self._pipeline, stream, self._start, begun)
        elif left := incomparable(stream.arn, begun):
            action = "the tables are empty: this stream is begun, the rest of the others isn't read"
            self._log.warning("stream_replaced", stream=stream.arn, left=left, action=action)

    async def _join(
        self,
        stream: Stream,
        outlet: Outlet,
        others: Sequence[Outlet],
        tables: Sequence[TableSchema],
    ) -> None:
        """A sink that joins others which the stream was read into."""
        if await outlet.sink.holds_data():
            require_comparable(stream.arn, await outlet.sink.begun())
        found = [await other.sink.positions(stream) for other in others]
        held = {
            shard_id: least([Held(each.get(shard_id)) for each in found])
            for each in found
            for shard_id in each
        }
        positions = {shard_id: at for shard_id, at in held.items() if at is not None}
        start: SinkStart = "now"
        # When nothing was read yet, the process ended while it began them all.
        if not all(was_only_begun(each) for each in found):
            start = require_sink_start(self._pipeline, outlet.name, outlet.start)
        starts = positions
        if start != "now":
            assert start != "snapshot"
            starts = starts_beside(await self._first_starts(start, [outlet], tables), positions)
        if await outlet.sink.begin(stream, starts):
            self._log.info("sink_begun", sink=outlet.name, start=str(start), shards=len(starts))


def require_sink_start(pipeline: str, sink: str, start: SinkStart | None) -> SinkStart:
    """Where a sink begins beside others that hold positions already. Raises FatalError where
    that isn't said, or can't be done yet."""
    if start is None:
        raise FatalError(
            "sink_start_missing",
            f"sink {sink} is new to pipeline {pipeline}, whose other sinks hold positions already: "
            "nobody says where it begins. What to do: add `from:` to the sink: `now` (where the "
            "others stand: it gets what they are given from there on) or a position (TRIM_HORIZON, "
            "a time, a sequence number: what the stream still keeps is read again, and the others "
            "skip it); `snapshot` is not there yet",
        )
    if start == "snapshot":
        raise FatalError(
            "snapshot_missing",
            f"sink {sink} of pipeline {pipeline} has `from: snapshot`, and snapshots are not there "
            "yet. What to do: use `now` or a position (TRIM_HORIZON, a time, a sequence number)",
        )
    return start
