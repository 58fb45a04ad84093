"""How long to wait before trying again."""

from __future__ import annotations

from dataclasses import dataclass

# What an operator must mend is looked at again this often: often enough that mending is
# enough, seldom enough to read the log.
FATAL_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double from `base_seconds` to `cap_seconds`, one half of each by
    chance, so that workers which failed together don't come back together."""

    base_seconds: float = 0.1
    cap_seconds: float = 30.0

    def __post_init__(self) -> None:
        assert 0 < self.base_seconds <= self.cap_seconds, self

    def next(self, attempt: int, jitter: float, retry_after_seconds: float | None = None) -> float:
        """Seconds to wait after the failure number `attempt` (from 0).

        `jitter` is a random number in [0, 1). With the service's own
        `retry_after_seconds` the wait is never shorter than that, nor cut to the cap.
        """
        assert attempt >= 0
        assert 0 <= jitter < 1
        # 2**64 base units pass every cap; a longer exponent would only overflow.
        full = min(self.cap_seconds, self.base_seconds * 2.0 ** min(attempt, 64))
        wait = full / 2 + jitter * full / 2
        if retry_after_seconds is None:
            return wait
        return max(wait, retry_after_seconds + jitter * self.base_seconds)
