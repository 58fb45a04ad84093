"""The core alone: payload bytes in, Postgres COPY bytes out, against everything that decodes.

Ours decodes and checks both images, takes out duplicates, orders, folds to the newest change per
key and encodes binary COPY. A peer only parses, or makes values of its language of the images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import records, worker
from bench.page import Page
from bench.peers.child import started
from bench.peers.known import PEERS
from bench.timing import Ratio, cpu_seconds, interleaved, ratio
from replicator import _core

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a shape is read. Slow peers read `prefix` records only."""

    records: int
    records_per_batch: int
    prefix: int


SIZES = {
    "small": Size(10_000, 2_500, 3_000),
    "nested": Size(5_000, 2_500, 1_000),
    "unicode": Size(7_500, 2_500, 1_500),
    "large": Size(500, 250, 60),
}

# How many times faster than a peer ours has to be: on small records, and on the others.
TARGETS = {
    "orjson.loads": (4.0, 4.0),
    "orjson+TypeDeserializer": (13.0, 18.0),
    "orjson+commons-codec": (22.0, 22.0),
    "sonic-rs": (0.95, 0.95),
    "serde_json+serde_dynamo": (3.0, 3.0),
}


def targets(shape: str) -> dict[str, float]:
    """The ratios that ours has to reach."""
    return {
        peer: of_small if shape == "small" else of_others
        for peer, (of_small, of_others) in TARGETS.items()
    }


def verdict(peer: str, shape: str, measured: Ratio) -> str:
    """The ratio, and whether it is what it has to be."""
    wanted = targets(shape).get(peer)
    if wanted is None:
        return str(measured)
    return f"{measured} {'≥' if measured.median >= wanted else '<'} {wanted:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """One shape. A peer that isn't installed is in neither table."""

    rates: Mapping[str, float]
    """MB/s of input, each variant by its middle round."""
    ratios: Mapping[str, Ratio]
    """How many times faster ours is."""


def packed(shape: str, *, is_quick: bool) -> tuple[list[bytes], list[_core.Records]]:
    """The payloads of one shape, and they in batches."""
    size = SIZES[shape]
    share = 5 if is_quick else 1
    payloads = records.payloads(shape, size.records // share)
    return payloads, worker.pack(payloads, size.records_per_batch // share)


def measure(shape: str, *, is_quick: bool) -> Result:
    """One shape, its variants taking turns."""
    payloads, batches = packed(shape, is_quick=is_quick)
    prefix = SIZES[shape].prefix // (5 if is_quick else 1)
    variants: dict[str, Callable[[], object]] = {OURS: _ours(batches)}
    nbytes = {OURS: sum(map(len, payloads))}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "payloads"
        records.write(file, payloads)
        for peer in PEERS:
            if peer.is_installed:
                part = payloads[:prefix] if peer.is_slow else payloads
                variants[peer.name] = stack.enter_context(started(peer, file, part))
                nbytes[peer.name] = sum(map(len, part))
        timings = interleaved(variants, rounds=3 if is_quick else 15, clock=cpu_seconds)
    return Result(
        rates={name: round(nbytes[name] / timings[name].median / 1e6, 1) for name in variants},
        ratios={
            name: ratio(timings[OURS], timings[name], nbytes[OURS] / nbytes[name])
            for name in variants
            if name != OURS
        },
    )


def _ours(batches: list[_core.Records]) -> Callable[[], None]:
    # A fast refusal is no result.
    for batch in batches:
        decoded = _core.decode(batch)
        rows = decoded.newest(records.TABLE, worker.KEYS)
        assert not decoded.rejections, decoded.rejections[0].message
        assert not rows.rejections, rows.rejections[0].message
        assert decoded.duplicates
        assert 0 < len(rows) < len(decoded)
    return lambda: worker.decode(batches)


def report(page: Page, *, is_quick: bool) -> dict[str, Any]:
    """All shapes: prints the tables, gives the figures."""
    results = {shape: measure(shape, is_quick=is_quick) for shape in records.SHAPES}
    peers = [peer.name for peer in PEERS]
    page.head("core, MB/s of input", *results)
    for name in (OURS, *peers):
        rates = [result.rates.get(name) for result in results.values()]
        page.row(name, *("not installed" if rate is None else f"{rate:.0f}" for rate in rates))
    page.head("ours, times faster than", *results)
    for name in peers:
        page.row(
            name,
            *(
                verdict(name, shape, result.ratios[name])
                if name in result.ratios
                else "not installed"
                for shape, result in results.items()
            ),
        )
    return {
        shape: {
            "unit": "MB/s",
            **result.rates,
            "ratios": {name: ratio.report() for name, ratio in result.ratios.items()},
            "targets": targets(shape),
        }
        for shape, result in results.items()
    }
