"""Answers that carry records, handed over raw: from the HTTP client to the Rust core.

aiobotocore resolves, signs, sends and retries a call; its parser never sees the records.
A `before-parse` handler keeps the body and gives the parser a stub in its place. It does
so for calls inside `raw_body` only, and on status 200 only, so errors are parsed as ever.
"""

from __future__ import annotations

import asyncio
import binascii
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import aiohttp

from replicator import _core
from replicator.errors import FatalError

# A thread costs more than reading this much takes; more would hold up the event loop.
INLINE_BYTES_MAX = 1_048_576


class RawBody:
    """What a call was answered with: None until the answer is there, then the open
    response of SubscribeToShard, or the whole body of GetRecords."""

    __slots__ = ("content",)

    def __init__(self) -> None:
        self.content: Any = None

    def close(self) -> None:
        """Closes an open response; its connection is not reused."""
        if isinstance(self.content, aiohttp.ClientResponse):
            self.content.close()


# The call in progress of this task. The handler runs inside the call, on the same task,
# so even a cancelled call leaves the response where it can be closed.
_in_progress: ContextVar[RawBody | None] = ContextVar("raw_body", default=None)


@contextmanager
def raw_body() -> Iterator[RawBody]:
    """Inside, a call of a registered client leaves its body here, unparsed. An error
    closes the response."""
    raw = RawBody()
    token = _in_progress.set(raw)
    try:
        yield raw
    except BaseException:
        raw.close()
        raise
    finally:
        _in_progress.reset(token)


def register(client: Any) -> None:
    """Makes a client of Kinesis or DynamoDB Streams hand over its records' answers.

    Raises FatalError (`protocol_unsupported`) for a driver that would ask the service
    for something else than JSON, which is all that the core reads.
    """
    model = client.meta.service_model
    if model.resolved_protocol != "json":
        raise FatalError(
            "protocol_unsupported",
            f"this botocore speaks {model.resolved_protocol} with {model.service_id}, and only "
            "json is understood here. What to do: install the pinned versions.",
        )
    service = model.service_id.hyphenize()
    for operation, stub in _STUBS.items():
        if operation in model.operation_names:
            client.meta.events.register(
                f"before-parse.{service}.{operation}",
                _handler(stub),
                unique_id=f"replicator-raw-{operation}",
            )


def _handler(stub: Callable[[], object]) -> Callable[..., None]:
    def keep_body(response_dict: dict[str, Any], **_: object) -> None:
        raw = _in_progress.get()
        if raw is not None and response_dict["status_code"] == 200:
            raw.close()
            raw.content = response_dict["body"]
            response_dict["body"] = stub()

    return keep_body


async def kinesis_get_records(client: Any, iterator: str, limit: int) -> _core.Answer:
    """One answer of Kinesis, of at most `limit` (1 to 10,000) records and 10 MB.

    Raises the driver's own exceptions, which the caller maps, and `_core.BodyError`.
    """
    return await _get_records(client, iterator, limit, "kinesis")


async def streams_get_records(client: Any, iterator: str, limit: int) -> _core.Answer:
    """One answer of DynamoDB Streams, of at most `limit` (1 to 1,000) records and 1 MB.
    Raises as `kinesis_get_records`."""
    return await _get_records(client, iterator, limit, "streams")


async def _get_records(
    client: Any, iterator: str, limit: int, source: Literal["kinesis", "streams"]
) -> _core.Answer:
    with raw_body() as raw:
        await client.get_records(ShardIterator=iterator, Limit=limit)
    body = raw.content
    assert isinstance(body, bytes), "register() was not called on this client"
    if len(body) <= INLINE_BYTES_MAX:
        return _core.Answer.read(body, source)
    return await asyncio.to_thread(_core.Answer.read, body, source)


class _EventStreamStub:
    """As much of a response as the stock event-stream parser touches. It insists on one
    `initial-response` frame (the service itself may leave it out)."""

    def __init__(self) -> None:
        self.content = self

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        yield INITIAL_RESPONSE, True

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


INITIAL_RESPONSE = _initial_response()
# By operation: what the parser gets in the body's place.
_STUBS: dict[str, Callable[[], object]] = {
    "SubscribeToShard": _EventStreamStub,
    "GetRecords": lambda: b"{}",
}
