"""Writes the frames of a SubscribeToShard answer, for tests and benches.

Frame: total length, header length, CRC32 of those, headers, payload, CRC32 of all
(https://docs.aws.amazon.com/lexv2/latest/dg/event-stream-encoding.html).
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from replicator.model import Shard
from replicator.testing.stream import ScriptedRecord

_TEXT_HEADER = 7


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One frame with text headers."""
    head = b"".join(
        bytes((len(name),))
        + name.encode()
        + struct.pack(">BH", _TEXT_HEADER, len(value.encode()))
        + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return body + struct.pack(">I", zlib.crc32(body))


def initial_response() -> bytes:
    """The frame that AWS sends first (some emulators don't)."""
    return _event("initial-response", b"{}")


def shard_event(
    records: Iterable[ScriptedRecord],
    continuation: str | None,
    *,
    behind_ms: int = 0,
    children: Sequence[Shard] = (),
    hash_ranges: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> bytes:
    """A SubscribeToShardEvent. Without `continuation` it is the end of the shard."""
    body: dict[str, object] = {
        "Records": [record(each) for each in records],
        "MillisBehindLatest": behind_ms,
    }
    if continuation is not None:
        body["ContinuationSequenceNumber"] = continuation
    if children:
        body["ChildShards"] = [
            child_shard(child, hash_ranges.get(child.id, (0, 0))) for child in children
        ]
    return _event("SubscribeToShardEvent", json.dumps(body, separators=(",", ":")).encode())


def record(record: ScriptedRecord) -> dict[str, object]:
    """A record as every answer has it."""
    return {
        "ApproximateArrivalTimestamp": record.arrival_ms / 1_000,
        "Data": base64.b64encode(record.payload).decode(),
        "PartitionKey": "0",
        "SequenceNumber": record.sequence_number,
    }


def child_shard(child: Shard, hash_range: tuple[int, int]) -> dict[str, object]:
    """A child as the last answer of its parents names it."""
    return {
        "ShardId": child.id,
        "ParentShards": list(child.parents),
        "HashKeyRange": hash_key_range(hash_range),
    }


def hash_key_range(first_and_end: tuple[int, int]) -> dict[str, str]:
    """A half-open range as the API writes it, with its last key."""
    first, end = first_and_end
    return {"StartingHashKey": str(first), "EndingHashKey": str(max(first, end - 1))}


def exception(kind: str, message: str) -> bytes:
    """A modelled exception inside the stream, such as `ResourceInUseException`."""
    return frame(
        {
            ":message-type": "exception",
            ":exception-type": kind,
            ":content-type": "application/x-amz-json-1.1",
        },
        json.dumps({"message": message}).encode(),
    )


def error(code: str, message: str) -> bytes:
    """An error that the model doesn't name: code and text are headers."""
    return frame({":message-type": "error", ":error-code": code, ":error-message": message}, b"")


def with_bad_crc(data: bytes) -> bytes:
    """The frame with its last byte changed."""
    return data[:-1] + bytes((data[-1] ^ 0xFF,))


def _event(kind: str, payload: bytes) -> bytes:
    return frame(
        {
            ":message-type": "event",
            ":event-type": kind,
            ":content-type": "application/x-amz-json-1.1",
        },
        payload,
    )
