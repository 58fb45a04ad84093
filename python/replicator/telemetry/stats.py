"""Live counters of one process: what `demo`, the summary at the end and tests read.

Everything is counted after it was durable, in whole batches.
"""

from __future__ import annotations

import math
from collections import Counter

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
        self.gaps = 0
        self.flushes = 0
        self.retries: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.flush_reasons: Counter[str] = Counter()
        self._latency_buckets: Counter[int] = Counter()

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
