"""Fair timing: variants take turns in one run, in an order drawn anew each round."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one variant over its rounds."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The least: noise only ever adds."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """How far the middle round lies above the best one, as a share of it."""
        return self.median / self.best - 1


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster one variant is than another."""

    median: float
    """The middle one of the ratios of single rounds."""
    low: float
    """Their first quartile, ..."""
    high: float
    """... and their third."""

    def report(self) -> dict[str, float]:
        """For machines."""
        return {
            "median": round(self.median, 3),
            "low": round(self.low, 3),
            "high": round(self.high, 3),
        }

    def __str__(self) -> str:
        digits = 2 if self.median < 10 else 1 if self.median < 100 else 0
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def ratio(fast: Timing, slow: Timing, work: float = 1.0) -> Ratio:
    """`fast` against `slow`. `work` is how often the work of `slow` goes into that of `fast`."""
    rounds = [work * s / f for f, s in zip(fast.seconds, slow.seconds, strict=True)]
    low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return Ratio(median, low, high)


def cpu_seconds(pid: int = 0) -> float:
    """What a process has used of processors, in all its threads; 0 is this one. Linux only.

    The number of a process's clock is made as the kernel does it, see
    https://man7.org/linux/man-pages/man3/clock_getcpuclockid.3.html.
    """
    return time.clock_gettime((~pid << 3) | 2)


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Each variant's timing. One round to warm up; the collector is off inside a turn.

    A variant that returns a float has timed itself: it works in another process.
    """
    order = list(variants)
    draw = random.Random(rounds)  # so that no variant always follows the same one
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(-1, rounds):
        draw.shuffle(order)
        for name in order:
            gc.collect()
            gc.disable()
            try:
                began = clock()
                told = variants[name]()
                took = clock() - began
            finally:
                gc.enable()
            if turn >= 0:
                seconds[name].append(told if isinstance(told, float) else took)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


@dataclass(frozen=True, slots=True)
class Rates:
    """How much each variant does a second, by its best round, and the rounds behind it."""

    rates: dict[str, float]
    spreads: dict[str, float]
