"""What filters and projections cost, beside the decoding that comes before them.

`decode` is the whole of it: both images checked, the new one written plain, duplicates out, order.
A log sink's `filter` and `project` work on every change and both images, a state sink's `newest`
only on the new image of the newest change of each key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench import core, records, worker
from bench.timing import Timing, interleaved
from replicator import _core

KEY = b"0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Result:
    """MB/s of input of each step, by its best round, and the rounds behind it."""

    rates: dict[str, float]
    spreads: dict[str, float]


def patterns() -> Mapping[str, str]:
    """By name: what is asked of the envelope, the key, and an attribute that isn't there."""

    def image(**attributes: Any) -> dict[str, Any]:
        return {"dynamodb": {"NewImage": attributes}}

    absent = {"N": [{"numeric": [">", 10]}]}
    asked: dict[str, Any] = {
        "event name": {"eventName": ["INSERT", "REMOVE"]},
        "key prefix": {"dynamodb": {"Keys": {"id": {"S": [{"prefix": "zz"}]}}}},
        "absent attribute": image(nowhere=absent),
        "user identity": {"userIdentity": {"type": ["Service"]}},
        "five filters": {
            "$or": [
                image(**{f"nowhere{n}": {"S": [{"wildcard": f"*{n}*x"}, {"suffix": "y"}]}})
                for n in range(5)
            ]
        },
    }
    return {name: json.dumps(pattern) for name, pattern in asked.items()}


def measure(shape: str, *, is_quick: bool) -> Result:
    """One shape, its variants taking turns."""
    payloads, packed = core.packed(shape, is_quick=is_quick)
    decoded = [_core.decode(one) for one in packed]

    def over(work: Callable[..., object], *arguments: object) -> Callable[[], None]:
        def run() -> None:
            for batch in decoded:
                work(batch, *arguments)

        return run

    def decode() -> None:
        for one in packed:
            _core.decode(one)

    variants: dict[str, Callable[[], None]] = {"decode": decode}
    for name, text in patterns().items():
        variants[f"filter: {name}"] = over(_core.ChangeBatch.filter, _core.Pattern(text))
    variants["newest"] = over(_newest)
    absent = _core.Pattern(patterns()["absent attribute"])
    variants["newest: absent attribute"] = over(_newest, None, absent)
    name = max(json.loads(payloads[0])["dynamodb"]["NewImage"].keys() - {"id"})
    for what, projection in {
        "nothing to do": _core.Projection(exclude=["nowhere"]),
        "mask one": _core.Projection(mask=[name]),
        "hash one": _core.Projection(hash=[name], key=KEY),
        "include one": _core.Projection(include=[name]),
    }.items():
        variants[f"newest: {what}"] = over(_newest, projection)
        variants[f"project: {what}"] = over(_core.ChangeBatch.project, projection)
    timings = interleaved(variants, rounds=3 if is_quick else 9)
    whole = sum(map(len, payloads))
    return Result(
        rates={name: _rate(whole, timing) for name, timing in timings.items()},
        spreads={name: timing.spread for name, timing in timings.items()},
    )


def _newest(
    batch: _core.ChangeBatch,
    projection: _core.Projection | None = None,
    pattern: _core.Pattern | None = None,
) -> None:
    batch.newest(records.TABLE, worker.KEYS, pattern, projection)


def _rate(nbytes: int, timing: Timing) -> float:
    return round(nbytes / timing.best / 1e6, 1)
