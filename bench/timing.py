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


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Each variant's timing. One round to warm up; the collector is off inside a turn.

    `time.process_time` as the clock counts this process's CPU only."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            gc.disable()
            try:
                began = clock()
                variants[name]()
                took = clock() - began
            finally:
                gc.enable()
            if turn >= 0:
                seconds[name].append(took)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}
