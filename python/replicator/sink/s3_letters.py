"""The dead letters of one pipeline in a bucket, read back."""

from __future__ import annotations

import base64

import orjson

from replicator.model import StoredLetter
from replicator.sink.letters import in_order, record_number, stored_letter
from replicator.sink.s3_objects import Bucket, Entry
from replicator.sink.s3_settings import S3Settings, is_letters


async def letters(bucket: Bucket, settings: S3Settings) -> list[StoredLetter]:
    """All of them, of a shard in order. Raises TransientError and FatalError."""
    found: list[StoredLetter] = []
    if root := settings.error_prefix.root:
        async for entry in bucket.entries(root):
            name = entry.key.rpartition("/")[2]
            # Other pipelines may share the prefix, and one's name may begin with another's.
            if is_letters(name) and name.startswith(settings.stem):
                body = await bucket.read(entry.key) or b""
                with bucket.reading(entry.key):
                    some = [_letter(entry, line) for line in body.splitlines()]
                found += [one for one in some if name.startswith(f"{settings.stem}{one.shard}-")]
    return in_order(found)


def _letter(entry: Entry, line: bytes) -> StoredLetter:
    told = orjson.loads(line)
    raw = base64.b64decode(told["rawData"])
    return stored_letter(
        told["streamARN"],
        told["shardId"],
        record_number(told["sequenceNumber"], raw),
        told["subSequenceNumber"],
        told["errorCode"],
        told["errorMessage"],
        told["table"],
        entry.modified.isoformat(),
        raw,
    )
