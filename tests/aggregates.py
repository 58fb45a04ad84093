"""Writes what the Kinesis Producer Library makes of several user records.

https://github.com/awslabs/amazon-kinesis-producer/blob/master/aggregation-format.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

MAGIC = b"\xf3\x89\x9a\xc2"


def aggregate(payloads: Sequence[bytes]) -> bytes:
    """One Kinesis record of these user records, all with the same partition key."""
    user_records = (_field(3, b"\x08\x00" + _field(3, payload)) for payload in payloads)
    message = _field(1, b"partition key") + b"".join(user_records)
    return MAGIC + message + hashlib.md5(message, usedforsecurity=False).digest()


def _field(number: int, data: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
