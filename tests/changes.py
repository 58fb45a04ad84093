"""Changes made by hand, for the tests of sinks: records, and fetches that wait for a sink."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from replicator._core import Answer, Records, decode
from replicator.model import Fence, Pending, Position, Stream, after

STREAM = Stream("orders", "arn:aws:kinesis:eu-north-1:123456789012:stream/orders", 1_700_000_000)

Image = Mapping[str, Mapping[str, Any]]


def put(
    table: str, key: Image, us: int, old: Image | None = None, /, **attributes: Mapping[str, Any]
) -> bytes:
    """A record of a written item: the key and these attributes, all in DynamoDB's form."""
    new = {**key, **attributes}
    return _record(
        table, "INSERT" if old is None else "MODIFY", key, us, NewImage=new, OldImage=old
    )


def remove(table: str, key: Image, us: int, old: Image | None = None) -> bytes:
    """A record of a deleted item."""
    return _record(table, "REMOVE", key, us, OldImage=old or key)


def number(n: int) -> str:
    """The n-th sequence number of a shard."""
    return str(49_600_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000 + n)


def pending(
    fence: Fence,
    payloads: Sequence[bytes],
    *,
    first: int = 1,
    then: Position | None = None,
    behind_ms: int | None = 0,
) -> Pending:
    """A decoded fetch whose records have the sequence numbers `first` and following."""
    last = first + len(payloads) - 1
    records = Records.pack(
        payloads,
        [number(n) for n in range(first, last + 1)],
        [1_700_000_000_000 + n for n in range(first, last + 1)],
    )
    return Pending(
        fence=fence,
        batch=decode(records),
        next=then or after(number(last)),
        behind_ms=behind_ms,
        received_at=0.0,
    )


def received(fence: Fence, payloads: Sequence[bytes], *, first: int) -> Pending:
    """As `pending`, but the records came as a Kinesis answer, which may hold aggregates."""
    numbers = [number(first + n) for n in range(len(payloads))]
    body = {
        "Records": [
            {"Data": base64.b64encode(payload).decode(), "SequenceNumber": its_number}
            for payload, its_number in zip(payloads, numbers, strict=True)
        ]
    }
    answer = Answer.read(json.dumps(body).encode(), "kinesis")
    return Pending(
        fence=fence,
        batch=decode(answer.records),
        next=after(numbers[-1]),
        behind_ms=0,
        received_at=0.0,
    )


def _record(table: str, event: str, key: Image, us: int, **images: Image | None) -> bytes:
    return json.dumps(
        {
            "awsRegion": "eu-north-1",
            "eventID": str(uuid.uuid4()),
            "eventName": event,
            "userIdentity": None,
            "recordFormat": "application/json",
            "tableName": table,
            "dynamodb": {
                "ApproximateCreationDateTime": us,
                "Keys": key,
                **{name: image for name, image in images.items() if image is not None},
                "SizeBytes": 100,
                "ApproximateCreationDateTimePrecision": "MICROSECOND",
            },
            "eventSource": "aws:dynamodb",
        },
        ensure_ascii=False,
    ).encode()
