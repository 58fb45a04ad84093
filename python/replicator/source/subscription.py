"""One SubscribeToShard connection: raw bytes in, events of the Rust core out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import aiohttp

from replicator import _core
from replicator.model import Position, PositionKind
from replicator.source.hand_over import raw_body

FRAME_BYTES_MAX = 33_554_432


class Ended(StrEnum):
    """Why a subscription gives no more events."""

    DUE = "due"
    """Its own time was up, shortly before the service's five minutes."""
    FINISHED = "finished"
    """The service ended the body, whole."""
    SILENT = "silent"
    """No byte, or no answer at all, came within its deadline."""
    CUT = "cut"
    """The connection broke, or the body ended inside a frame."""
    CORRUPT = "corrupt"
    """A frame can't be trusted."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What one wait brought: events, or the reason why there will be no more."""

    events: list[_core.ShardEvent]
    ended: Ended | None = None
    detail: str = ""


class Subscription:
    """An open subscription. Bytes are read from the socket only inside `events`, so a
    consumer that doesn't ask holds one read buffer and one unfinished frame."""

    def __init__(self, response: aiohttp.ClientResponse, frame_bytes_max: int) -> None:
        self._response = response
        self._frames = _core.EventStream(frame_bytes_max)

    @classmethod
    async def open(
        cls,
        client: Any,
        consumer_arn: str,
        shard_id: str,
        position: Position,
        frame_bytes_max: int = FRAME_BYTES_MAX,
    ) -> Subscription:
        """A subscription from `position` on. Raises the driver's own exceptions: the
        caller maps them."""
        with raw_body() as raw:
            answer = await client.subscribe_to_shard(
                ConsumerARN=consumer_arn,
                ShardId=shard_id,
                StartingPosition=starting_position(position),
            )
            # Runs the stock parser's generator to its end, or it would wait for the collector.
            async for _ in answer["EventStream"]:
                pass
        assert raw.content is not None, "register() was not called on this client"
        return cls(raw.content, frame_bytes_max)

    async def events(self, timeout_seconds: float, when_late: Ended) -> Arrived:
        """The events of the next bytes that arrive (often none yet: a large frame
        comes in pieces), or `when_late` once the time is up."""
        try:
            # A broken frame behind good ones shows at the next feed: not only when bytes come.
            self._frames.feed(b"")
        except _core.BodyError as error:
            return Arrived([], Ended.CORRUPT, f"{error.code}: {error}")
        try:
            async with asyncio.timeout(timeout_seconds):
                chunk = await self._response.content.readany()
        except TimeoutError:
            return Arrived([], when_late)
        except (aiohttp.ClientError, OSError) as error:
            return Arrived([], Ended.CUT, str(error) or type(error).__name__)
        try:
            events = self._frames.feed(chunk)
        except _core.BodyError as error:
            return Arrived([], Ended.CORRUPT, f"{error.code}: {error}")
        if chunk:
            return Arrived(events)
        if self._frames.buffered_bytes:
            return Arrived(
                events, Ended.CUT, f"{self._frames.buffered_bytes} bytes of an unfinished frame"
            )
        return Arrived(events, Ended.FINISHED)

    def close(self) -> None:
        """Closes the connection; it is not reused. May be called twice."""
        self._response.close()


def starting_position(position: Position) -> dict[str, Any]:
    """The API's StartingPosition. Times are cut to milliseconds, the API's precision,
    downwards: nothing is skipped
    (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_StartingPosition.html)."""
    if position.kind is PositionKind.AT_TIMESTAMP:
        assert position.timestamp_us is not None
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
            milliseconds=position.timestamp_us // 1_000
        )
        return {"Type": position.kind.value, "Timestamp": moment}
    if position.sequence_number is not None:
        return {"Type": position.kind.value, "SequenceNumber": position.sequence_number}
    assert position.kind in {PositionKind.TRIM_HORIZON, PositionKind.LATEST}, position
    return {"Type": position.kind.value}
