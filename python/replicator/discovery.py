"""Which shards there are: the service and the sinks are asked again and again, the graph is told,
and what nobody reads is looked for. It waits for nobody that reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog

from replicator.core import holes, lineage
from replicator.core.discovery import asked_seconds, pause_seconds
from replicator.core.retry import FATAL_RETRY_SECONDS, Backoff
from replicator.core.start import require_successor
from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.graph import Graph
from replicator.model import SHARD_END, Position, Stream
from replicator.outlets import Outlets
from replicator.protocols import Clock, LeaseStore, Paged, Source
from replicator.telemetry.logging import say
from replicator.telemetry.stats import Stats

DISCOVERY_SECONDS = 30.0


class Discovery:
    """Lists one pipeline's shards, for as long as `run` isn't cancelled."""

    def __init__(
        self,
        name: str,
        source: Source,
        outlets: Outlets,
        store: LeaseStore,
        graph: Graph,
        clock: Clock,
        jitter: Callable[[], float],
        stats: Stats,
        *,
        backoff: Backoff,
        seconds: float = DISCOVERY_SECONDS,
    ) -> None:
        self._name = name
        self._source = source
        self._outlets = outlets
        self._store = store
        self._graph = graph
        self._clock = clock
        self._jitter = jitter
        self._stats = stats
        self._backoff = backoff
        self._seconds = seconds
        self._listing_calls = source.listing_calls if isinstance(source, Paged) else lambda: 0
        self._audit = holes.Audit()
        self._log = structlog.get_logger().bind(pipeline=name)

    def holes(self) -> tuple[holes.Hole, ...]:
        """What two audits in a row have found, and is there now."""
        return self._audit.holes

    async def run(self, stream: Stream) -> None:
        """Never returns. Raises FatalError when the sink lost the end of a shard, or when the
        stream is read to its end and another has taken its place (TransientError where that
        can be begun)."""
        attempt = 0
        while True:
            self._graph.list_now.clear()
            finished = self._graph.lineage.finished()
            calls = self._listing_calls()
            try:
                found, newest = await self._ask(stream)
                is_left = newest != stream and not await self._outlets.holds_data()
            except TransientError as error:
                least = wait = self._backoff.next(
                    attempt, self._jitter(), error.retry_after_seconds
                )
                attempt += 1
                self._stats.discovery_failures[error.code] += 1
                say(self._log, error, "retrying", during="discovery", wait_seconds=round(wait, 3))
            except ReplicatorError as error:
                least = wait = FATAL_RETRY_SECONDS
                self._stats.discovery_failures[error.code] += 1
                say(self._log, error, "failed", during="discovery", wait_seconds=wait)
            else:
                self._stats.listings += 1
                self._require_no_return(finished, found.positions)
                self._graph.apply(found)
                for shard_id in await self._graph.gaps.mended(stream, self._graph.lineage.gapped()):
                    self._graph.apply(lineage.Mended(shard_id))
                require_successor(stream.arn, newest.arn, is_left=is_left)
                self._look_for_holes()
                await self._forget()
                attempt = 0
                calls = max(1, self._listing_calls() - calls)
                least = asked_seconds(calls)
                wait = pause_seconds(calls, self._seconds)
            await self._clock.sleep(least)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait - least):
                    await self._graph.list_now.wait()

    async def _ask(self, stream: Stream) -> tuple[lineage.Discovered, Stream]:
        """What there is now, and the stream that there is."""
        shards = await self._source.shards()
        # Read after the list, so that what was finished and trimmed meanwhile isn't taken
        # for lost.
        positions = await self._outlets.positions(stream)
        # A table's stream that was disabled may have been replaced by another.
        is_over = self._graph.lineage.is_over(shards)
        newest = await self._source.open() if is_over else stream
        return lineage.Discovered(tuple(shards), positions), newest

    def _require_no_return(
        self, finished: Sequence[str], positions: Mapping[str, Position]
    ) -> None:
        """A sink that failed over to an older state may have lost the end of a shard.
        Its children must wait again, so everything begins anew from its positions."""
        for shard_id in finished:
            if (position := positions.get(shard_id, SHARD_END)) != SHARD_END:
                raise FatalError(
                    "positions_returned",
                    f"a sink of {self._name} says that {shard_id} was read up to {position}, "
                    "but it was finished before: the sink lost its newest state (a failover to "
                    "a replica that was behind?). It begins anew: reading goes on where the sink "
                    "stands, and nothing is lost while the stream still keeps it",
                )

    def _look_for_holes(self) -> None:
        now = self._clock.monotonic()
        if not self._audit.is_due(now):
            return
        for hole in self._audit.step(holes.find(self._graph.lineage.nodes()), now):
            self._stats.holes[hole.cause] += 1
            self._log.error("hole", **hole.as_fields())
            # Whatever the list lacked, a new one may show it.
            self._graph.list_now.set()

    async def _forget(self) -> None:
        if forgettable := self._graph.lineage.forgettable():
            self._graph.apply(lineage.Forgotten(forgettable))
            with suppress(ReplicatorError):  # rows too many do no harm
                await self._store.delete(self._name, forgettable)
