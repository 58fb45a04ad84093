"""How the core's cost grows: with the record, the keys, the batch, the threads; and its memory.

Everything is the whole way from packed payloads to COPY bytes. One thread is measured in CPU
seconds, two by the clock on the wall.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import records, worker
from bench.page import Page
from bench.peers.child import Child, running
from bench.timing import Ratio, cpu_seconds, interleaved, ratio
from replicator import _core

# Bytes of a payload, from the smallest change to the largest item with one image.
RECORD_BYTES = (512, 1_000, 4_000, 16_000, 64_000, 256_000, 400_000)
# What a round reads, whatever the size of its records.
ROUND_BYTES = 8_000_000
KEYS_PER_BATCH = (1, 10, 100, 1_000, 2_500)
RECORDS_PER_BATCH = (1, 10, 100, 1_000, 10_000)
IN_FLIGHT_BYTES = (1_000_000, 8_000_000, 64_000_000)
THREADS = ("two threads", "two processes", "two threads that hash")
THREADS_TARGET = 1.8


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one size."""

    size: float
    """What the table is about: bytes, keys or records."""
    us: float
    """CPU microseconds of a record, by the middle round."""
    marginal: float | None
    """What one byte (ns) or record (us) more costs, from the size before to this one."""
    spread: float
    """How far the middle round lies above the best one, as a share of it."""


def by_record_bytes(*, is_quick: bool) -> list[Cost]:
    """Records of every size, all keys distinct; as many records as make up a round's bytes."""
    nbytes = ROUND_BYTES // (5 if is_quick else 1)
    made = {}
    for size in RECORD_BYTES:
        count = max(2, nbytes // size)
        made[size] = records.sized(size, count, keys=count)
    costs = _costs({size: (payloads, len(payloads)) for size, payloads in made.items()}, is_quick)
    means = [sum(map(len, payloads)) / len(payloads) for payloads in made.values()]
    slopes = _slopes(means, [cost * 1e3 for _, cost, _ in costs])
    return [
        Cost(mean, us, slope, spread)
        for mean, (_, us, spread), slope in zip(means, costs, slopes, strict=True)
    ]


def by_keys(*, is_quick: bool) -> list[Cost]:
    """One batch of 2,500 records of 0.7 KB; the fewer keys, the fewer of them are written."""
    count = 2_500
    payloads = {keys: records.sized(700, count, keys=keys) for keys in KEYS_PER_BATCH}
    costs = _costs({keys: (made, count) for keys, made in payloads.items()}, is_quick)
    return [Cost(keys, us, None, spread) for keys, us, spread in costs]


def by_batch(*, is_quick: bool) -> list[Cost]:
    """The same 10,000 records of 0.7 KB, in batches."""
    count = 10_000 // (5 if is_quick else 1)
    payloads = records.sized(700, count, keys=count)
    steps = [min(step, count) for step in RECORDS_PER_BATCH]
    costs = _costs({step: (payloads, step) for step in steps}, is_quick)
    slopes = _slopes(steps, [us * step for step, us, _ in costs])
    return [
        Cost(step, us, slope, spread)
        for (step, us, spread), slope in zip(costs, slopes, strict=True)
    ]


def _costs(
    batches: dict[int, tuple[list[bytes], int]],
    is_quick: bool,  # noqa: FBT001 - passed on
) -> list[tuple[int, float, float]]:
    """Of payloads in batches of that many: size, microseconds of a record, spread."""
    packed = {size: worker.pack(payloads, step) for size, (payloads, step) in batches.items()}
    timings = interleaved(
        {str(size): _decoding(batch) for size, batch in packed.items()},
        rounds=3 if is_quick else 15,
        clock=cpu_seconds,
    )
    return [
        (size, timings[str(size)].median / len(payloads) * 1e6, timings[str(size)].spread)
        for size, (payloads, _) in batches.items()
    ]


def _decoding(batches: Sequence[_core.Records]) -> Callable[[], None]:
    return lambda: worker.decode(batches)


def _slopes(sizes: Sequence[float], costs: Sequence[float]) -> list[float | None]:
    return [
        None,
        *(
            (more - less) / (larger - smaller)
            for (smaller, larger), (less, more) in zip(
                pairwise(sizes), pairwise(costs), strict=True
            )
        ),
    ]


def threads(shape: str, *, is_quick: bool) -> dict[str, Ratio]:
    """How many times the work of one two do in the same time, each with batches of its own.

    Two processes share nothing, and hashing touches no memory to speak of: what the machine allows.
    """
    step = 250 if shape == "large" else 2_500
    both = [records.payloads(shape, step, seed) for seed in (1, 2)]
    nbytes = sum(map(len, both[0]))
    # So that starting is lost in what is started.
    repeats = max(1, (10_000_000 if is_quick else 100_000_000) // nbytes)
    data = bytes(nbytes)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        children = []
        for number, payloads in enumerate(both):
            file = Path(folder) / str(number)
            records.write(file, payloads)
            children.append(_worker(file, step, stack))
        packed = [worker.pack(payloads, step) for payloads in both]
        ways: dict[str, list[Callable[[], None]]] = {
            "two threads": [_times(repeats, _decoding(batches)) for batches in packed],
            "two threads that hash": [_times(repeats, _hashing(data)) for _ in both],
        }
        variants: dict[str, Callable[[], object]] = {
            "one of: two processes": _asking(children[:1], repeats),
            "two processes": _asking(children, repeats),
        }
        for name, work in ways.items():
            variants[f"one of: {name}"] = _at_once(pool, work[:1])
            variants[name] = _at_once(pool, work)
        timings = interleaved(variants, rounds=3 if is_quick else 15)
    return {name: ratio(timings[name], timings[f"one of: {name}"], work=2) for name in THREADS}


def verdict(name: str, measured: Ratio) -> str:
    """The ratio; of two threads, whether it is what it has to be."""
    if name != THREADS[0]:
        return str(measured)
    return f"{measured} {'≥' if measured.median >= THREADS_TARGET else '<'} {THREADS_TARGET:g}"


def _times(repeats: int, run: Callable[[], object]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(repeats):
            run()

    return repeated


def _hashing(data: bytes) -> Callable[[], object]:
    return lambda: hashlib.sha256(data)  # frees the GIL


def _at_once(pool: Executor, work: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        for future in [pool.submit(one) for one in work]:
            future.result()

    return run


def _asking(children: Sequence[Child], repeats: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(repeats):
            for child in children:
                child.ask()
        for _ in range(repeats):
            for child in children:
                child.answer()

    return run


def _worker(file: Path, step: int, stack: ExitStack) -> Child:
    command = [sys.executable, "-m", "bench.worker", "rounds", str(file), str(step)]
    child = stack.enter_context(running(command))
    assert child.answer() == "ready\n"
    return child


def memory(shape: str, *, is_quick: bool) -> Iterator[tuple[int, int]]:
    """Payload bytes in flight, and by how much the resident memory of a process grew at most.

    They come as frames of one megabyte, and are held, decoded, until all are written together.
    """
    for nbytes in IN_FLIGHT_BYTES[: 2 if is_quick else None]:
        sample = records.payloads(shape, 20)
        mean = sum(map(len, sample)) / len(sample)
        payloads = records.payloads(shape, round(nbytes / mean))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "frames"
            file.write_bytes(b"".join(records.frames(payloads, round(1e6 / mean))))
            done = subprocess.run(
                [sys.executable, "-m", "bench.worker", "memory", str(file)],
                check=True,
                capture_output=True,
                text=True,
            )
        yield sum(map(len, payloads)), int(done.stdout)


def report(page: Page, *, is_quick: bool) -> dict[str, Any]:
    """Prints the tables, gives the figures."""
    figures: dict[str, Any] = {}
    for what, costs, per in (
        ("bytes a record", by_record_bytes(is_quick=is_quick), "ns per further byte"),
        ("keys in 2,500 records", by_keys(is_quick=is_quick), ""),
        ("records a batch", by_batch(is_quick=is_quick), "us per further record"),
    ):
        page.head(what, "us/record", *([per] if per else []))
        for cost in costs:
            marginal = "" if cost.marginal is None else f"{cost.marginal:.2f}"
            cells = [f"{cost.us:.2f} (+{cost.spread:.0%})", *([marginal] if per else [])]
            page.row(f"{cost.size:.0f}", *cells)
        figures[what] = [asdict(cost) for cost in costs]
    figures["threads"] = {}
    page.head("times the work of one", *THREADS)
    for shape in records.SHAPES:
        ratios = threads(shape, is_quick=is_quick)
        page.row(shape, *(verdict(name, ratio) for name, ratio in ratios.items()))
        figures["threads"][shape] = {name: ratio.report() for name, ratio in ratios.items()}
    figures["memory"] = {}
    page.head("MB of payloads in flight", "MB grown", "times what is in flight")
    for shape in records.SHAPES:
        peaks = list(memory(shape, is_quick=is_quick))
        for nbytes, grown in peaks:
            page.row(f"{shape} {nbytes / 1e6:.0f}", f"{grown / 1e6:.0f}", f"{grown / nbytes:.1f}")
        figures["memory"][shape] = [{"in_flight_bytes": n, "grown_bytes": g} for n, g in peaks]
    return figures
