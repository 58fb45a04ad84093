"""Compression of JSON lines: ours beside the standard library's gzip and a bare zstd; and what an
object of an archive costs, from decoded changes, beside compressing its lines alone.

Rates are MB/s of what goes in; a size is the share of it that comes out.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import cramjam

from bench import records
from bench.timing import Ratio, interleaved, ratio
from replicator import _core

SIZES: Final = {"small": 10_000, "nested": 4_000, "unicode": 5_000}

CODECS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": lambda data: _core.compress(data, "gzip"),
    "stdlib gzip 6": lambda data: gzip.compress(data, 6),
    "zstd": lambda data: _core.compress(data, "zstd"),
    "bare zstd 3": lambda data: bytes(cramjam.zstd.compress(data, level=3)),
    "lz4": lambda data: _core.compress(data, "lz4"),
}

OBJECT_CODECS: Final[tuple[Literal["gzip", "zstd"], ...]] = ("gzip", "zstd")


@dataclass(frozen=True, slots=True)
class Result:
    """MB/s by the best round, the spread, and the share of the size that is left."""

    rates: dict[str, float]
    spreads: dict[str, float]
    sizes: dict[str, float]


def measure(shape: str, *, is_quick: bool) -> Result:
    """One shape, all codecs taking turns."""
    payloads = records.payloads(shape, SIZES[shape] // (5 if is_quick else 1))
    lines = _core.decode(_core.Records.pack(payloads)).json_lines()

    def variant(codec: Callable[[bytes], bytes]) -> Callable[[], bytes]:
        return lambda: codec(lines)

    variants = {name: variant(codec) for name, codec in CODECS.items()}
    timings = interleaved(variants, rounds=3 if is_quick else 7, clock=time.process_time)
    return Result(
        rates={name: round(len(lines) / took.best / 1e6, 1) for name, took in timings.items()},
        spreads={name: took.spread for name, took in timings.items()},
        sizes={name: round(len(make()) / len(lines), 3) for name, make in variants.items()},
    )


def measure_objects(
    shape: str, codec: Literal["gzip", "zstd"], *, is_quick: bool
) -> tuple[float, Ratio]:
    """An object of JSON lines in the form `change`, encoded and compressed: MB/s of lines, and how
    many times as fast as compressing the same lines alone."""
    payloads = records.payloads(shape, SIZES[shape] // (5 if is_quick else 1))
    changes = _core.decode(_core.Records.pack(payloads))
    lines = changes.json_lines("change")
    timings = interleaved(
        {
            "object": lambda: changes.json_lines("change", compression=codec),
            "alone": lambda: _core.compress(lines, codec),
        },
        rounds=3 if is_quick else 15,
        clock=time.process_time,
    )
    rate = len(lines) / timings["object"].median / 1e6
    return rate, ratio(timings["object"], timings["alone"])
