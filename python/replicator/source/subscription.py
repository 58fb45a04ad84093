"""One SubscribeToShard connection: raw bytes in, events of the Rust core out.

aiobotocore resolves, signs, sends and retries the call; its event-stream parser
never sees the body. A `before-parse` handler keeps the raw response and gives the
parser a body of one `initial-response` frame instead, because it insists on
reading one (the service itself may leave it out). On any status but 200 the
handler does nothing, so errors are parsed as ever.
"""

from __future__ import annotations

import asyncio
import binascii
import struct
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import aiohttp

from replicator import _core
from replicator.model import Position, PositionKind

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


@dataclass(slots=True)
class _HandOver:
    response: aiohttp.ClientResponse | None = None


# The call in progress of this task. The handler runs inside the call, on the same
# task, so even a cancelled call leaves the response where it can be closed.
_hand_over: ContextVar[_HandOver | None] = ContextVar("subscription_hand_over", default=None)


def register(client: Any) -> None:
    """Makes a Kinesis client hand over SubscribeToShard bodies to `Subscription.open`."""
    client.meta.events.register(
        "before-parse.kinesis.SubscribeToShard",
        _keep_body,
        unique_id="replicator-subscribe-to-shard",
    )


def _keep_body(response_dict: dict[str, Any], **_: object) -> None:
    call = _hand_over.get()
    if call is None or response_dict["status_code"] != 200:
        return
    call.response = response_dict["body"]
    response_dict["body"] = _StubBody()


class _StubBody:
    """As much of a response as the stock event-stream parser touches."""

    def __init__(self) -> None:
        self.content = self

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        yield _INITIAL_RESPONSE, True

    def close(self) -> None:
        """Nothing is open."""


def _initial_response() -> bytes:
    headers = b"".join(
        bytes((len(name),)) + name + b"\x07" + len(value).to_bytes(2, "big") + value
        for name, value in (
            (b":message-type", b"event"),
            (b":event-type", b"initial-response"),
            (b":content-type", b"application/json"),
        )
    )
    payload = b"{}"
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    head = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + payload
    return head + struct.pack(">I", binascii.crc32(head))


_INITIAL_RESPONSE = _initial_response()


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
        call = _HandOver()
        token = _hand_over.set(call)
        try:
            answer = await client.subscribe_to_shard(
                ConsumerARN=consumer_arn,
                ShardId=shard_id,
                StartingPosition=starting_position(position),
            )
            # Runs the stock parser's generator to its end, or it would wait for the collector.
            async for _ in answer["EventStream"]:
                pass
        except BaseException:
            if call.response is not None:
                call.response.close()
            raise
        finally:
            _hand_over.reset(token)
        assert call.response is not None, "register() was not called on this client"
        return cls(call.response, frame_bytes_max)

    async def events(self, timeout_seconds: float, when_late: Ended) -> Arrived:
        """The events of the next bytes that arrive (often none yet: a large frame
        comes in pieces), or `when_late` once the time is up."""
        try:
            # A broken frame behind good ones shows at the next feed: not only when bytes come.
            self._frames.feed(b"")
        except _core.FrameError as error:
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
        except _core.FrameError as error:
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
