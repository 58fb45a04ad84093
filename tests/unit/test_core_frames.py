"""Event-stream frames against botocore's own reader, and in every cut."""

from __future__ import annotations

import base64
import json
import struct
from binascii import crc32
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer

from replicator._core import BodyError, EventStream, decode


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    packed = b"".join(
        struct.pack("B", len(name))
        + name.encode()
        + b"\x07"
        + struct.pack(">H", len(value))
        + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack(">I", crc32(prelude)) + packed + payload
    return message + struct.pack(">I", crc32(message))


def event(records: list[bytes], **members: Any) -> bytes:
    body = {
        "Records": [
            {
                "SequenceNumber": str(i),
                "ApproximateArrivalTimestamp": 1706542773.5 + i,
                "Data": base64.b64encode(data).decode(),
                "PartitionKey": "p",
            }
            for i, data in enumerate(records)
        ],
        "ContinuationSequenceNumber": "9",
        "MillisBehindLatest": 0,
        **members,
    }
    headers = {":message-type": "event", ":event-type": "SubscribeToShardEvent"}
    return frame(headers, json.dumps(body).encode())


def test_botocore_reads_the_same_records() -> None:
    payloads = [bytes([i]) * i for i in range(50)]
    body = b"".join(event(payloads[i : i + 7]) for i in range(0, 50, 7))
    theirs = EventStreamBuffer()
    theirs.add_data(body)
    expected = [
        base64.b64decode(record["Data"])
        for message in theirs
        for record in json.loads(message.payload)["Records"]
    ]
    ours = [
        rejection.raw
        for shard_event in EventStream().feed(body)
        for rejection in decode(shard_event.records).rejections
    ]
    assert ours == expected == payloads


@pytest.mark.parametrize("size", [1, 2, 11, 12, 13, 100, 4096])
def test_chunks_may_be_cut_anywhere(size: int) -> None:
    body = event([b"{}"] * 3) + event([]) + event([b"[]"])
    stream = EventStream()
    events = [e for at in range(0, len(body), size) for e in stream.feed(body[at : at + size])]
    assert [len(e.records) for e in events] == [3, 0, 1]
    assert stream.buffered_bytes == 0


def test_a_cut_body_shows() -> None:
    body = event([b"{}"])
    stream = EventStream()
    assert stream.feed(body[:-1]) == []
    assert stream.buffered_bytes == len(body) - 1


def test_complete_events_come_before_the_error() -> None:
    good = event([b"{}"])
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    stream = EventStream()
    assert len(stream.feed(good + damaged + good)) == 1
    for _ in range(2):
        with pytest.raises(BodyError) as caught:
            stream.feed(b"")
        assert caught.value.code == "message_checksum"
    with pytest.raises(BodyError):
        EventStream().feed(damaged)


def test_a_frame_over_the_limit_is_refused_at_its_prelude() -> None:
    body = event([b"x" * 2000])
    with pytest.raises(BodyError) as caught:
        EventStream(1000).feed(body[:12])
    assert caught.value.code == "frame_length"


def test_every_flipped_bit_is_noticed() -> None:
    body = event([b"{}"])
    for bit in range(0, len(body) * 8, 7):
        damaged = bytearray(body)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BodyError):
            EventStream().feed(bytes(damaged))
