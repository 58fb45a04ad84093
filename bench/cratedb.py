"""CrateDB's `bulk_args` from decoded rows, beside a plain Python way to the same request.

Ours cuts them out of the wire's bytes: `crate_args`, each item as CrateDB's types hold it and,
beside it, as text with every digit. The other begins with the same images parsed: boto3's
deserializer, numbers as floats, orjson. It keeps neither digits nor the order of changes. Rates are
items/s; neither side sends.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
from boto3.dynamodb.types import Binary, TypeDeserializer

from bench import core, records
from bench.timing import Rates, interleaved
from bench.worker import KEYS
from replicator import _core
from replicator.testing.items import with_bytes


def _ours(rows: list[_core.Rows]) -> Callable[[], None]:
    def run() -> None:
        for each in rows:
            each.crate_args()

    return run


def _plain(value: object) -> object:
    """What orjson has no word for."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Binary):
        return value.value.hex()
    if isinstance(value, set):
        return list(value)
    raise TypeError(type(value).__name__)


def _python(images: list[dict[str, Any]]) -> Callable[[], None]:
    read = TypeDeserializer().deserialize

    def run() -> None:
        rows = []
        for image in images:
            item = {name: read(value) for name, value in image.items()}
            rows.append([item["id"], item, orjson.dumps(item, default=_plain).decode(), 1, False])
        orjson.dumps(rows, default=_plain)

    return run


def measure(shape: str, *, is_quick: bool) -> Rates:
    """One shape, its variants taking turns; Python writes a tenth of the items."""
    payloads, packed = core.packed(shape, is_quick=is_quick)
    rows = [_core.decode(batch).newest(records.TABLE, KEYS) for batch in packed]
    changes = (orjson.loads(payload)["dynamodb"] for payload in payloads[: len(payloads) // 10])
    images = [
        {name: with_bytes(value) for name, value in change["NewImage"].items()}
        for change in changes
        if change.get("NewImage") is not None
    ]
    timings = interleaved(
        {"ours": _ours(rows), "python": _python(images)}, rounds=3 if is_quick else 9
    )
    counts = {"ours": sum(map(len, rows)), "python": len(images)}
    return Rates(
        rates={name: round(counts[name] / timing.best) for name, timing in timings.items()},
        spreads={name: timing.spread for name, timing in timings.items()},
    )
