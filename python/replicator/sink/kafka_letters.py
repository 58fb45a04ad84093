"""A dead letter as a record: the refused record's own bytes, and around them why and whence."""

from __future__ import annotations

from replicator._core import Rejection
from replicator.model import Fence
from replicator.sink.letters import record_id


def letter_key(fence: Fence, rejection: Rejection) -> bytes:
    """Stream, shard, sequence number, index: the same whenever the record is read again."""
    number, index = record_id(rejection)
    return f"{fence.stream.arn}/{fence.shard_id}/{number}/{index}".encode()


def letter_headers(pipeline: str, fence: Fence, rejection: Rejection) -> list[tuple[str, bytes]]:
    """Why it was refused, and where it came from; without what isn't known."""
    members = {
        "code": rejection.code,
        "message": rejection.message,
        "pipeline": pipeline,
        "table": rejection.table,
        "stream": fence.stream.arn,
        "shard": fence.shard_id,
        "position": rejection.sequence_number,
        "index": str(rejection.sub_sequence_number),
        "late": "true" if rejection.late else None,
    }
    return [(name, text.encode()) for name, text in members.items() if text]
