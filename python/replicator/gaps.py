"""The shell around `core.gap`: looks at the age of a position before it is read, and says
what was found. A gap is told once by each worker that meets it (law 9)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog

from replicator.core import gap
from replicator.core.start import resolved
from replicator.errors import ReplicatorError
from replicator.model import Horizon, Position, Reached, Start, Stream
from replicator.outlets import Outlets
from replicator.protocols import Clock, Dated, Source
from replicator.telemetry.stats import Stats

# So long the service's clock is believed before it is asked again: many shards start at once.
HORIZON_SECONDS = 5.0


class Gaps:
    """One pipeline's gaps, as this process met them."""

    def __init__(
        self,
        pipeline: str,
        source: Source,
        outlets: Outlets,
        clock: Clock,
        stats: Stats,
        *,
        margin_us: int = gap.MARGIN_US,
    ) -> None:
        self._pipeline = pipeline
        self._source = source
        self._outlets = outlets
        self._clock = clock
        self._stats = stats
        self._margin_us = margin_us
        self._found: dict[str, gap.Gap] = {}
        self._since: dict[str, float] = {}
        self._marks: dict[str, tuple[Reached | None, ...]] = {}
        self._seen: tuple[float, Horizon] | None = None
        self._looking = asyncio.Lock()
        self._log = structlog.get_logger().bind(pipeline=pipeline)

    @property
    def found(self) -> tuple[gap.Gap, ...]:
        """The newest gap of each shard that had one, by shard; some may be mended by now."""
        return tuple(found for _, found in sorted(self._found.items()))

    def seconds(self, shard_id: str) -> float:
        """For how long the shard has stood at its gap, as far as this process knows."""
        return self._clock.monotonic() - self._since[shard_id]

    async def first_start(self, start: Start) -> Position:
        """The first start of a stream, resolved (law 5). Raises FatalError when it lies before
        the stream's horizon."""
        horizon = await self._source.horizon()
        position = resolved(start, horizon.now_us)
        gap.require_kept(position, horizon, self._margin_us)
        return position

    async def look(
        self,
        shard_id: str,
        stored: Position | None,
        ancestors: Sequence[str],
        reached: Mapping[str, Reached],
    ) -> int | None:
        """How far behind a reader of the shard may be, in milliseconds (None: the service says
        what is lost); `reached` is what the sink that stands there says of it and its
        ancestors. Raises
        PositionLost when what comes after the stored position may be gone already."""
        horizon = await self._horizon()
        margin_us = gap.margin_us_of(reached.get(shard_id), horizon, self._margin_us)
        lost = gap.aged(
            shard_id,
            stored,
            reached.get(shard_id),
            [reached[each] for each in ancestors if each in reached],
            horizon,
            margin_us,
            made_us=self._source.made_us(shard_id) if isinstance(self._source, Dated) else None,
        )
        if lost is not None:
            raise lost
        return gap.behind_ms_max(horizon, margin_us)

    async def lost(self, stream: Stream, found: gap.Gap) -> None:
        """A reader had to stop."""
        self._say(found)
        self._marks.pop(found.shard_id, None)
        with suppress(ReplicatorError):  # the first `mended` takes the mark then
            self._marks |= await self._marks_of(stream, [found.shard_id])

    async def mended(self, stream: Stream, shard_ids: Sequence[str]) -> Sequence[str]:
        """Those of these gapped shards whose position was moved since. Nothing is told when
        the sink can't be asked: the next time is soon enough."""
        with suppress(ReplicatorError):
            marks = await self._marks_of(stream, shard_ids) if shard_ids else {}
            return [s for s in shard_ids if self._marks.setdefault(s, marks[s]) != marks[s]]
        return ()

    async def _marks_of(
        self, stream: Stream, shard_ids: Sequence[str]
    ) -> dict[str, tuple[Reached | None, ...]]:
        """What changes whenever a position does, at any sink: moving it by hand sets its times,
        too."""
        reached = await self._outlets.reached(stream, shard_ids)
        return {s: tuple(each.get(s) for each in reached) for s in shard_ids}

    def vanished(self, shard_id: str, position: Position | None, held_up: Sequence[str]) -> None:
        """A shard was taken away before it was read to its end."""
        reason = "the shard is no longer listed though it was not read to its end"
        cause = gap.Cause.VANISHED
        self._say(gap.Gap(shard_id, cause, "shard_vanished", position, reason, tuple(held_up)))

    def _say(self, found: gap.Gap) -> None:
        self._stats.gaps_by_cause[found.cause] += 1
        self._found[found.shard_id] = found
        self._since[found.shard_id] = self._clock.monotonic()
        self._log.error("gap", **found.as_fields(self._pipeline))

    async def _horizon(self) -> Horizon:
        async with self._looking:
            now = self._clock.monotonic()
            if self._seen is None or now - self._seen[0] > HORIZON_SECONDS:
                self._seen = (now, await self._source.horizon())
            return self._seen[1]
