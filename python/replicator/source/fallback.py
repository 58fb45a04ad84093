"""Kinesis by enhanced fan-out where it can be had, by polling as long as it can't.

Fan-out needs a registered consumer, of which a stream takes 20 (50 with On-demand Advantage),
and permissions that a polling reader doesn't
(https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html). A position is
the same for both, so a shard changes over between two fetches and nothing is read twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import structlog

from replicator.core.fallback import LOOK_SECONDS, Fallback
from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.model import SHARD_END, Fetch, Horizon, Position, Shard, Stream
from replicator.protocols import Clock, Measured
from replicator.source.kinesis import KinesisSource
from replicator.source.kinesis_polling import KinesisPollingSource

_log = structlog.get_logger()

# Polling the same stream works with these credentials, so a denial is one of fan-out alone.
_REFUSALS = frozenset({"access_denied", "consumer_limit"})


def _is_refusal(error: ReplicatorError) -> bool:
    """True when fan-out can't be had for now: no permission, or no room for a consumer."""
    return error.code in _REFUSALS


class FallbackSource:
    """`protocols.Source` over two that read the same stream.

    `falls` and `returns` count the changes between the two ways.
    """

    def __init__(
        self,
        fan_out: KinesisSource,
        polling: KinesisPollingSource,
        clock: Clock,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._fan_out = fan_out
        self._polling = polling
        self._clock = clock
        self._look_seconds = look_seconds
        self._fallback = Fallback(look_seconds)
        self.falls = 0
        self.returns = 0

    async def open(self) -> Stream:
        """The stream's identity; with the consumer ACTIVE where one can be had."""
        stream = await self._polling.open()
        try:
            await self._fan_out.open()
        except (TransientError, FatalError) as error:
            if not _is_refusal(error):
                raise
            self._refused(error)
        else:
            self._works()
        return stream

    async def look(self) -> tuple[Stream, ReplicatorError | str | None]:
        """The stream's identity, and the consumer's state as `KinesisSource.look` tells it, or
        why it can't be told and the stream would be polled. Changes nothing: for `check`."""
        stream = await self._polling.open()
        try:
            return await self._fan_out.look()
        except (TransientError, FatalError) as error:
            if not _is_refusal(error):
                raise
            return stream, error

    @property
    def consumer_name(self) -> str:
        """Fan-out's consumer."""
        return self._fan_out.consumer_name

    async def now_us(self) -> int:
        return await self._polling.now_us()

    async def horizon(self) -> Horizon:
        return await self._polling.horizon()

    async def shards(self) -> Sequence[Shard]:
        return await self._polling.shards()

    def listing_calls(self) -> int:
        """See `protocols.Paged`."""
        return self._polling.listing_calls()

    async def read(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        """The shard's fetches from `position` on; see `protocols.Source.read`."""
        while position != SHARD_END:
            is_trial = self._fallback.try_now(self._clock.monotonic())
            if not (is_trial or self._fallback.is_preferred):
                async with aclosing(self._polling.read(shard_id, position)) as fetches:
                    async for fetch in fetches:
                        yield fetch
                        position = fetch.next
                        if self._is_fan_out_due():
                            break
                continue
            try:
                if is_trial:
                    await self._fan_out.open()
                    # Fan-out would believe in whatever has the name now.
                    await self._polling.require_same_stream()
                async with aclosing(self._fan_out.read(shard_id, position)) as fetches:
                    async for fetch in fetches:
                        self._works()
                        is_trial = False
                        yield fetch
                        position = fetch.next
            except (TransientError, FatalError) as error:
                # A trial that fails leaves everything as it was.
                is_tried = is_trial and error.code != "stream_recreated"
                if not (is_tried or _is_refusal(error)):
                    raise
                self._refused(error)

    async def close(self) -> None:
        """Closes both. May be called twice."""
        try:
            await self._fan_out.close()
        finally:
            await self._polling.close()

    def calls(self, shard_id: str) -> int:
        """See `protocols.Measured`."""
        return sum(source.calls(shard_id) for source in self._measured())

    def counters(self) -> Mapping[str, int]:
        """Both sources' counters, and the changes between them."""
        counters = Counter({"fall_back": self.falls, "fall_back_ended": self.returns})
        for source in self._measured():
            counters.update(source.counters())
        return counters

    def _measured(self) -> Sequence[Measured]:
        return (self._fan_out, self._polling)

    def _is_fan_out_due(self) -> bool:
        return self._fallback.is_preferred or self._fallback.is_due(self._clock.monotonic())

    def _refused(self, error: ReplicatorError) -> None:
        if self._fallback.refused(self._clock.monotonic()):
            self.falls += 1
            _log.warning(
                "fan_out_unavailable",
                code=error.code,
                reason=error.message,
                action="the stream is polled instead; fan-out is tried again by itself, every "
                f"{self._look_seconds:g} s",
                advice="mend the reason, or set the source's mode to polling to stop trying",
            )

    def _works(self) -> None:
        if self._fallback.works():
            self.returns += 1
            _log.info("fan_out_available", action="every shard is read by fan-out again")
