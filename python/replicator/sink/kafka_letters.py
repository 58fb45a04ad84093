"""A dead letter as a record: the refused record's own bytes, and around them why and whence."""

from __future__ import annotations

import hashlib

from replicator._core import Rejection
from replicator.model import Fence


def letter_key(fence: Fence, rejection: Rejection) -> bytes:
    """Stream, shard, sequence number, index: the same whenever the record is read again."""
    if rejection.sequence_number:
        # Only user records of one aggregate share a number.
        number, index = rejection.sequence_number, rejection.sub_sequence_number
    else:
        # Without a number of the source's own, the bytes tell two records apart.
        number = f"sha256:{hashlib.sha256(rejection.raw).hexdigest()}"
        index = rejection.index
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
