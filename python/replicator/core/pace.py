"""When one shard that is polled is asked next, and for how many records.

Four things decide, the latest wins: the service's reads a second; its bytes a second,
as a debt that an answer leaves behind (after 10 MB Kinesis refuses for five seconds);
throttles, which double the distance between two reads; and, where there is nothing to
catch up, a pause that grows while the shard is idle. Far behind there is no pause.
Limits: 5 reads and 2 MB a second a shard, shared by all that poll it
(https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html).
"""

from __future__ import annotations

from dataclasses import dataclass

# How much further apart reads are moved by a throttle, and nearer by an answer.
_SLOWER = 2.0
_QUICKER = 0.8
_IDLE_GROWTH = 1.5
# Half of the first answer's bytes may be too many, so the first one asks for few records.
_FIRST_LIMIT = 100
# The first pause in a crowd is so small a part of the longest.
_CROWD_STEPS = 4


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """What the service allows for one shard, and what is asked of it. The defaults are
    those of Kinesis."""

    reads_per_second: float = 5.0
    bytes_per_second: float = 2_000_000.0
    records_max: int = 10_000
    """Most records that the service takes for a limit."""
    answer_bytes: int = 1_048_576
    """What an answer should carry: enough for the full rate, little enough for memory
    when every shard is behind at once."""
    busy_seconds: float = 0.25
    """Pause at the tip after an answer with records."""
    idle_seconds_max: float = 2.0
    """Longest pause; the pause grows towards it with each empty answer."""
    slow_seconds_max: float = 10.0
    """Longest distance between two reads that throttles lead to."""
    behind_ms_min: int = 1_000
    """Behind by this much, the shard catches up: no pause but the service's limits."""

    def __post_init__(self) -> None:
        assert self.reads_per_second > 0, self
        assert self.bytes_per_second > 0, self
        assert 0 < self.busy_seconds <= self.idle_seconds_max, self
        assert self.records_max > 0, self
        assert self.slow_seconds_max >= self.interval_seconds, self

    @property
    def interval_seconds(self) -> float:
        """Least distance between two reads."""
        return 1.0 / self.reads_per_second


class Pace:
    """One shard's pace. `calls` and `throttles` only grow.

    The order is: `wait` until it is 0, `asked`, then one of `answered` and `throttled`
    (or none, after another failure). `now` is a monotonic clock's, in seconds.
    """

    def __init__(self, limits: PaceLimits) -> None:
        self._limits = limits
        self._interval = limits.interval_seconds
        self._pause = 0.0
        self._read_at = float("-inf")
        self._paid_at = float("-inf")
        self._due_at = float("-inf")
        self.limit = min(_FIRST_LIMIT, limits.records_max)
        self.calls = 0
        self.throttles = 0

    def wait(self, now: float) -> float:
        """Seconds until the next read may be made; 0 when it may be made now."""
        return max(0.0, self._read_at - now, self._paid_at - now, self._due_at - now)

    def asked(self, now: float) -> None:
        """A read is being made."""
        self.calls += 1
        self._read_at = now + self._interval

    def answered(
        self,
        now: float,
        *,
        records: int,
        nbytes: int,
        behind_ms: int | None,
        jitter: float,
        crowd_seconds: float = 0.0,
    ) -> None:
        """It was answered. Where the service doesn't tell how far `behind_ms` the answer
        is, a full one means that there is more. `jitter` is a random number in [0, 1).
        An idle shard may pause for `crowd_seconds` when that is longer than its limit:
        beside many others, each must cost less."""
        limits = self._limits
        self._interval = max(limits.interval_seconds, self._interval * _QUICKER)
        self._paid_at = max(self._paid_at, now) + nbytes / limits.bytes_per_second
        if behind_ms is None:
            is_behind = records >= self.limit or 2 * nbytes >= limits.answer_bytes
        else:
            is_behind = behind_ms >= limits.behind_ms_min
        if is_behind:
            self._pause = 0.0
        elif records:
            self._pause = limits.busy_seconds
        else:
            # In a crowd the first pauses are longer too: their sum is what a start costs.
            first = max(limits.busy_seconds, crowd_seconds / _CROWD_STEPS)
            longer = max(first, self._pause * _IDLE_GROWTH)
            self._pause = min(max(limits.idle_seconds_max, crowd_seconds), longer)
        # Downwards only, so that the cap is one, and shards don't ask in step.
        self._due_at = now + self._pause * (1.0 - 0.2 * jitter)
        if records:
            fitting = limits.answer_bytes * records // max(1, nbytes)
            self.limit = max(1, min(limits.records_max, fitting))

    def throttled(self, now: float, *, retry_after_seconds: float | None, jitter: float) -> None:
        """It was refused for the rate: reads move apart, and this one waits."""
        self.throttles += 1
        self._interval = min(self._limits.slow_seconds_max, self._interval * _SLOWER)
        wait = max(self._interval, retry_after_seconds or 0.0)
        self._due_at = now + wait * (1.0 + 0.2 * jitter)
