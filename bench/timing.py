"""Fair timing: variants take turns in one process, and their order rotates."""

from __future__ import annotations

import gc
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


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Each variant's timing. One round to warm up; the collector is off inside a turn."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            gc.disable()
            try:
                began = time.perf_counter()
                variants[name]()
                took = time.perf_counter() - began
            finally:
                gc.enable()
            if turn >= 0:
                seconds[name].append(took)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}
