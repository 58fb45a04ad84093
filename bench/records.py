"""Kinesis payloads in four shapes, the same on every run.

small   a flat item of seven attributes, some 0.7 KB with both images
nested  maps, lists, sets, binaries and long numbers, some 3 KB
unicode the same with four alphabets, emoji and escapes, some 2 KB
large   the same up to the size where Postgres moves a value out of the row, some 58 KB

A payload holds both images, as Kinesis Data Streams for DynamoDB sends it. Keys are hot (two of
five changes survive "newest per key") and 3 % of the records are redelivered.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import sys
import uuid
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SEED: Final = 20240801
SHAPES: Final = ("small", "nested", "unicode", "large")
TABLE: Final = "products"

_WORDS = (
    "alpha banana cargo delta engine fruit garden harbor island jungle kettle lemon "
    "market nickel orange paper quartz river silver timber"
).split()
_UNICODE = (
    'naïve café Ünïcode 東京都 渋谷区 Привет мир 🍌🚀 नमस्ते עברית a"b\\c\n\t\u0007 line\r end €'
).split(" ")

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Document:
    """How large an item of the shape becomes, and its parts."""

    nbytes_min: int
    nbytes_max: int
    text_length: int
    is_unicode: bool = False


_DOCUMENTS = {
    "nested": _Document(1100, 2000, 60),
    "unicode": _Document(500, 1200, 80, is_unicode=True),
    "large": _Document(26_000, 50_000, 300),
}


class _Generator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self, length: int, *, is_unicode: bool = False) -> str:
        words: list[str] = []
        size = 0
        while size < length:
            pool = _UNICODE if is_unicode and self.random.random() < 0.5 else _WORDS
            words.append(self.random.choice(pool))
            size += len(words[-1]) + 1
        return " ".join(words)

    def number(self) -> str:
        pick = self.random.random()
        if pick < 0.5:
            return str(self.random.randrange(10_000))
        if pick < 0.9:
            return f"{self.random.uniform(-1e4, 1e4):.{self.random.randrange(1, 6)}f}"
        if pick < 0.97:
            return str(self.random.randrange(10**12, 10**37))
        digits = self.random.randrange(1, 10**6)
        return f"{digits}E{self.random.choice('+-')}{self.random.randrange(1, 60)}"

    def binary(self, length: int) -> str:
        return base64.b64encode(self.random.randbytes(length)).decode()

    def value(self, depth: int, length: int, *, is_unicode: bool) -> Item:
        r = self.random
        pick = r.random()
        if depth and pick < 0.18:
            names = [f"{r.choice(_WORDS)}_{i}" for i in range(r.randrange(1, 5))]
            inner = (self.value(depth - 1, length // 3, is_unicode=is_unicode) for _ in names)
            return {"M": dict(zip(names, inner, strict=True))}
        if depth and pick < 0.30:
            count = r.randrange(5)
            return {
                "L": [
                    self.value(depth - 1, length // 3, is_unicode=is_unicode) for _ in range(count)
                ]
            }
        longest = max(4, length)
        forms: tuple[tuple[float, Callable[[], Item]], ...] = (
            (
                0.36,
                lambda: {
                    "SS": sorted(
                        {
                            self.text(8, is_unicode=is_unicode) + str(i)
                            for i in range(r.randrange(1, 5))
                        }
                    )
                },
            ),
            (
                0.42,
                lambda: {"NS": sorted({str(r.randrange(10**6)) for _ in range(r.randrange(1, 6))})},
            ),
            (0.47, lambda: {"B": self.binary(r.randrange(1, max(4, length // 2)))}),
            (0.49, lambda: {"BS": [self.binary(12) for _ in range(2)]}),
            (0.53, lambda: {"NULL": True}),
            (0.60, lambda: {"BOOL": r.random() < 0.5}),
            (0.75, lambda: {"N": self.number()}),
        )
        for below, make in forms:
            if pick < below:
                return make()
        return {"S": self.text(r.randrange(2, longest), is_unicode=is_unicode)}

    def small(self, key: str) -> Item:
        r = self.random
        return {
            "Weight": {"N": self.number()},
            "Stock": {"N": str(r.randrange(500))},
            "Price": {"N": f"{r.random() * 50:.2f}"},
            "id": {"S": key},
            "name": {"S": r.choice(_WORDS).title()},
            "SKU": {"S": f"BAN{r.randrange(1000)}"},
            "Category": {"S": "Fruit"},
        }

    def document(self, key: str, shape: _Document) -> Item:
        wanted = self.random.randrange(shape.nbytes_min, shape.nbytes_max)
        item: Item = {"id": {"S": key}, "Stock": {"N": str(self.random.randrange(500))}}
        nbytes = 0
        while nbytes < wanted:
            name = f"{self.random.choice(_WORDS)}{len(item)}"
            item[name] = self.value(4, shape.text_length, is_unicode=shape.is_unicode)
            nbytes += len(_json(item[name])) + len(name) + 4
        return item

    def item(self, shape: str, key: str) -> Item:
        return self.small(key) if shape == "small" else self.document(key, _DOCUMENTS[shape])

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128)))


def payloads(shape: str, count: int, seed: int = SEED) -> list[bytes]:
    """That many decoded `Data` of one shape, redelivered ones among them."""
    make = _Generator(seed)
    r = make.random
    event_us = 1_706_542_773_915_835
    keys = [make.uuid() for _ in range(max(1, int(count * 0.6)))]
    stored: dict[str, Item] = {}
    records: list[bytes] = []
    while len(records) < count:
        if records and r.random() < 0.03:
            records.append(records[-r.randrange(1, min(200, len(records)) + 1)])
            continue
        event_us += r.randrange(400)
        key = keys[int(len(keys) * r.random() ** 2)]
        old = stored.pop(key, None)
        change: Item = {"ApproximateCreationDateTime": event_us, "Keys": {"id": {"S": key}}}
        event = "INSERT" if old is None else "REMOVE" if r.random() < 0.05 else "MODIFY"
        if event != "REMOVE":
            change["NewImage"] = stored[key] = make.item(shape, key)
        if old is not None:
            change["OldImage"] = old
        change["SizeBytes"] = 223
        change["ApproximateCreationDateTimePrecision"] = "MICROSECOND"
        records.append(_payload(make, event, change))
    return records


def sized(nbytes: int, count: int, *, keys: int, seed: int = SEED) -> list[bytes]:
    """Payloads of some `nbytes` each, as dense in tokens as the shape small whatever their
    size. The changes take turns among that many keys.
    """
    make = _Generator(seed)
    names = [make.uuid() for _ in range(keys)]
    made = []
    for i in range(count):
        change: Item = {
            "ApproximateCreationDateTime": 1_706_542_773_915_835 + 200 * i,
            "Keys": {"id": {"S": names[i % keys]}},
            "NewImage": {"id": {"S": names[i % keys]}},
            "OldImage": {"id": {"S": names[i % keys]}},
            "SizeBytes": 223,
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
        }
        missing = nbytes - len(_payload(make, "MODIFY", change))
        for image in ("NewImage", "OldImage"):
            _grow(change[image], missing // 2, make)
        made.append(_payload(make, "MODIFY", change))
    return made


def _grow(image: Item, nbytes: int, make: _Generator) -> None:
    while nbytes > 0:
        for stem, value in make.small("").items():
            if nbytes > 0 and stem != "id":
                name = f"{stem}{len(image)}"
                image[name] = value
                nbytes -= len(_json({name: value})) - 1


def _payload(make: _Generator, event: str, change: Item) -> bytes:
    return _json(
        {
            "awsRegion": "eu-north-1",
            "eventID": make.uuid(),
            "eventName": event,
            "userIdentity": None,
            "recordFormat": "application/json",
            "tableName": TABLE,
            "dynamodb": change,
            "eventSource": "aws:dynamodb",
        }
    )


def frames(records: list[bytes], records_per_frame: int, first_number: int = 1) -> list[bytes]:
    """The records as `SubscribeToShard` sends them: one event-stream frame an event.

    https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShardEvent.html
    """
    made = []
    for start in range(0, len(records), records_per_frame):
        part = records[start : start + records_per_frame]
        numbers = [f"{first_number + start + i:056d}" for i in range(len(part))]
        event = {
            "ContinuationSequenceNumber": numbers[-1],
            "MillisBehindLatest": 0,
            "Records": [
                {
                    "ApproximateArrivalTimestamp": 1_706_542_774.123,
                    "Data": base64.b64encode(payload).decode(),
                    "PartitionKey": "5B9B9FFE9C2B6C2F",
                    "SequenceNumber": number,
                }
                for number, payload in zip(numbers, part, strict=True)
            ],
        }
        made.append(_frame(_json(event)))
    return made


def _frame(payload: bytes) -> bytes:
    headers = b"".join(
        struct.pack("!B", len(name)) + name + b"\x07" + struct.pack("!H", len(value)) + value
        for name, value in (
            (b":message-type", b"event"),
            (b":event-type", b"SubscribeToShardEvent"),
            (b":content-type", b"application/json"),
        )
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return body + struct.pack("!I", zlib.crc32(body))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def kinesis_answer(records: list[bytes]) -> bytes:
    """The records as one answer of Kinesis GetRecords.

    https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html
    """
    return _json(
        {
            "MillisBehindLatest": 0,
            "NextShardIterator": "A" * 200,
            "Records": [
                {
                    "ApproximateArrivalTimestamp": 1_706_542_774.123,
                    "Data": base64.b64encode(payload).decode(),
                    "PartitionKey": "5B9B9FFE9C2B6C2F",
                    "SequenceNumber": f"{number:056d}",
                }
                for number, payload in enumerate(records)
            ],
        }
    )


def streams_answer(records: list[bytes]) -> bytes:
    """The same changes as one answer of DynamoDB Streams GetRecords.

    https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_GetRecords.html
    """
    return _json(
        {
            "NextShardIterator": "A" * 200,
            "Records": [
                _streams_record(json.loads(payload), number)
                for number, payload in enumerate(records)
            ],
        }
    )


def _streams_record(record: Item, number: int) -> Item:
    change = record["dynamodb"]
    del change["ApproximateCreationDateTimePrecision"]
    return {
        "eventID": record["eventID"],
        "eventName": record["eventName"],
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": record["awsRegion"],
        "dynamodb": {
            **change,
            "ApproximateCreationDateTime": change["ApproximateCreationDateTime"] // 1_000_000,
            "SequenceNumber": str(10**20 + number),
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
    }


def write(file: Path, payloads: Iterable[bytes]) -> None:
    """The payloads for other languages: each behind its length in four bytes, little-endian."""
    with file.open("wb") as out:
        for payload in payloads:
            out.write(struct.pack("<I", len(payload)))
            out.write(payload)


def main(folder: Path) -> None:
    """One batch of each shape, for `cargo bench`."""
    folder.mkdir(parents=True, exist_ok=True)
    for shape in SHAPES:
        write(folder / shape, payloads(shape, 250 if shape == "large" else 2_500))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
