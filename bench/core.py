"""The core alone: payload bytes in, Postgres COPY bytes out, against what Python offers.

Ours decodes and checks both images, takes out duplicates, orders, folds to the newest change per
key and encodes binary COPY. `orjson.loads` only parses; with boto3's `TypeDeserializer` the values
of both images become Python objects, which is what a consumer in Python does first.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from boto3.dynamodb.types import Binary, TypeDeserializer

from bench import records
from bench.timing import Timing, interleaved
from replicator import _core

KEYS: Sequence[tuple[str, Literal["S", "N", "B"]]] = (("id", "S"),)


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a shape is read. The slow peer reads `prefix` records only."""

    records: int
    records_per_batch: int
    prefix: int


SIZES = {
    "small": Size(10_000, 2_500, 3_000),
    "nested": Size(5_000, 2_500, 1_000),
    "unicode": Size(7_500, 2_500, 1_500),
    "large": Size(500, 250, 60),
}


@dataclass(frozen=True, slots=True)
class Result:
    """MB/s of input, each variant by its best round, and the rounds behind it."""

    rates: dict[str, float]
    spreads: dict[str, float]


class _Deserializer(TypeDeserializer):  # type: ignore[misc]
    """JSON carries binary as base64 text, which the original refuses."""

    def _deserialize_b(self, value: str) -> Binary:
        return Binary(base64.b64decode(value))


def _ours(batches: list[_core.Records]) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            _core.decode(batch).newest(records.TABLE, KEYS).copy()

    return run


def _parse(payloads: list[bytes]) -> Callable[[], None]:
    def run() -> None:
        loads = orjson.loads
        for payload in payloads:
            loads(payload)

    return run


def _parse_and_deserialize(payloads: list[bytes]) -> Callable[[], None]:
    deserialize = _Deserializer().deserialize

    def images(change: dict[str, Any]) -> None:
        for name in ("Keys", "NewImage", "OldImage"):
            for value in change.get(name, {}).values():
                deserialize(value)

    def run() -> None:
        for payload in payloads:
            images(orjson.loads(payload)["dynamodb"])

    return run


def measure(shape: str, *, is_quick: bool) -> Result:
    """One shape, its variants taking turns."""
    size = SIZES[shape]
    share = 5 if is_quick else 1
    payloads = records.payloads(shape, size.records // share)
    step = size.records_per_batch // share
    batches = [
        _core.Records.pack(payloads[start : start + step])
        for start in range(0, len(payloads), step)
    ]
    _check(batches)
    prefix = payloads[: size.prefix // share]
    timings = interleaved(
        {
            "ours": _ours(batches),
            "orjson.loads": _parse(payloads),
            "orjson+TypeDeserializer": _parse_and_deserialize(prefix),
        },
        rounds=3 if is_quick else 9,
    )
    whole = sum(map(len, payloads))
    nbytes = dict.fromkeys(timings, whole) | {"orjson+TypeDeserializer": sum(map(len, prefix))}
    return Result(
        rates={name: _rate(nbytes[name], timing) for name, timing in timings.items()},
        spreads={name: timing.spread for name, timing in timings.items()},
    )


def _check(batches: list[_core.Records]) -> None:
    """A fast refusal is no result."""
    for batch in batches:
        decoded = _core.decode(batch)
        rows = decoded.newest(records.TABLE, KEYS)
        assert not decoded.rejections, decoded.rejections[0].message
        assert not rows.rejections, rows.rejections[0].message
        assert decoded.duplicates
        assert 0 < len(rows) < len(decoded)


def _rate(nbytes: int, timing: Timing) -> float:
    return round(nbytes / timing.best / 1e6, 1)
