"""Live counters of one pipeline: metrics, `demo`, the summary at the end and tests read them.

Everything is counted after it was durable, in whole batches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

# Latencies fall into buckets that grow by this factor, so a percentile is exact to 2 %.
_GROWTH = 1.02


class Stats:
    """Counters since the start; cheap enough to update once a write."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self.changes = 0
        self.rows = 0
        self.duplicates = 0
        self.superseded = 0
        self.ambiguous = 0
        self.dead_letters = 0
        self.listings = 0
        self.reader_cuts = 0
        self.leases_given_back = 0
        self.flushes = 0
        self.write_seconds = 0.0
        self.gaps_by_cause: Counter[str] = Counter()
        self.holes: Counter[str] = Counter()
        self.discovery_failures: Counter[str] = Counter()
        self.lease_failures: Counter[str] = Counter()
        self.leases_taken: Counter[str] = Counter()
        self.leases_lost: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.flush_reasons: Counter[str] = Counter()
        self._latency_buckets: Counter[int] = Counter()

    @property
    def gaps(self) -> int:
        """Gaps that were met, whatever their cause."""
        return self.gaps_by_cause.total()

    def observe_latency(self, seconds: float, changes: int) -> None:
        """Counts `changes` that went from received frame to committed row in that time."""
        self._latency_buckets[math.floor(math.log(max(seconds, 1e-6), _GROWTH))] += changes

    def latency_ms(self, quantile: float) -> float | None:
        """Received frame to committed row in milliseconds (0.5: median); None before the first."""
        total = self._latency_buckets.total()
        seen = 0
        for bucket in sorted(self._latency_buckets):
            seen += self._latency_buckets[bucket]
            if seen >= quantile * total:
                return float(_GROWTH ** (bucket + 1) * 1_000)
        return None

    def latency_histogram(self, bounds: Iterable[float]) -> tuple[list[tuple[float, int]], float]:
        """How many changes took at most each of the rising `bounds` (seconds), and the sum of
        all in seconds; both as exact as the percentiles."""
        counts: list[tuple[float, int]] = []
        rest = sorted(self._latency_buckets.items(), reverse=True)
        seen = 0
        for bound in bounds:
            while rest and _GROWTH ** (rest[-1][0] + 1) <= bound:
                seen += rest.pop()[1]
            counts.append((bound, seen))
        total = sum(_GROWTH ** (b + 0.5) * n for b, n in self._latency_buckets.items())
        return counts, total

    @classmethod
    def of_pipeline(cls, own: Stats, sinks: Iterable[Stats]) -> Stats:
        """A pipeline's, from what it counts itself and what each sink does: what was read is
        durable as far as at every sink, what happened at any of them happened."""
        parts = list(sinks)
        result = cls.total([own, *parts])
        for name in ("records", "bytes", "changes"):
            setattr(result, name, min(getattr(part, name) for part in parts))
        return result

    @classmethod
    def total(cls, parts: Iterable[Stats]) -> Stats:
        """All of them together."""
        result = cls()
        sums = vars(result)
        for part in parts:
            for name, value in vars(part).items():
                if isinstance(value, Counter):
                    sums[name].update(value)
                else:
                    sums[name] += value
        return result
