"""When a writer's waiting items become one write, and which of them.

Pure: the writer adds what was decoded, asks `due` or sleeps for `until_next`, and
takes. The reason is a metric label. Items are whole and keep their order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")

ROWS_MAX = 5_000
BYTES_MAX = 8 * 1024 * 1024
DELAY_SECONDS = 0.1


class FlushReason(StrEnum):
    """Why a batch is due."""

    ROWS = "rows"
    BYTES = "bytes"
    DELAY = "delay"  # the oldest item waited long enough
    PRESSURE = "pressure"  # the memory budget is full
    DRAIN = "drain"  # the process stops
    END = "end"  # a shard ended: its children wait for this


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T]):
    item: T
    rows: int
    nbytes: int
    since: float


class Batcher(Generic[T]):
    """What waits for one writer. Times are seconds of one monotonic clock."""

    def __init__(
        self,
        *,
        rows_max: int = ROWS_MAX,
        bytes_max: int = BYTES_MAX,
        delay_seconds: float = DELAY_SECONDS,
    ) -> None:
        assert rows_max > 0
        assert bytes_max > 0
        assert delay_seconds >= 0
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.delay_seconds = delay_seconds
        self.rows = 0
        self.nbytes = 0
        self._waiting: deque[_Waiting[T]] = deque()
        self._asked: FlushReason | None = None
        self._asked_items = 0

    @property
    def count(self) -> int:
        """Items that wait."""
        return len(self._waiting)

    def add(self, item: T, rows: int, nbytes: int, now: float) -> None:
        """Appends an item of so many rows (0 for a position alone) and bytes."""
        assert rows >= 0
        assert nbytes >= 0
        self._waiting.append(_Waiting(item, rows, nbytes, now))
        self.rows += rows
        self.nbytes += nbytes

    def flush(self, reason: FlushReason) -> None:
        """Makes everything that waits now due. Nothing happens when nothing waits."""
        assert reason in {FlushReason.PRESSURE, FlushReason.DRAIN, FlushReason.END}, reason
        if self._waiting:
            self._asked = reason
            self._asked_items = len(self._waiting)

    def due(self, now: float) -> FlushReason | None:
        """Why a batch should be taken now; None when it should not."""
        if not self._waiting:
            return None
        if self.rows >= self.rows_max:
            return FlushReason.ROWS
        if self.nbytes >= self.bytes_max:
            return FlushReason.BYTES
        if self._asked is not None:
            return self._asked
        # The same expression as in `until_next`: who slept that long finds it due.
        if now >= self._waiting[0].since + self.delay_seconds:
            return FlushReason.DELAY
        return None

    def until_next(self, now: float) -> float | None:
        """Seconds until `due` by delay; 0 when due now, None when nothing waits."""
        if not self._waiting:
            return None
        if self.due(now) is not None:
            return 0.0
        return self._waiting[0].since + self.delay_seconds - now

    def take(self, rows_max: int | None = None, bytes_max: int | None = None) -> list[T]:
        """The oldest items, whole and in order, within both limits (its own unless
        given), but at least one when anything waits: an item is never cut."""
        rows_max = self.rows_max if rows_max is None else rows_max
        bytes_max = self.bytes_max if bytes_max is None else bytes_max
        taken: list[T] = []
        rows = nbytes = 0
        while self._waiting:
            first = self._waiting[0]
            is_over = rows + first.rows > rows_max or nbytes + first.nbytes > bytes_max
            if taken and is_over:
                break
            self._waiting.popleft()
            rows += first.rows
            nbytes += first.nbytes
            taken.append(first.item)
        self.rows -= rows
        self.nbytes -= nbytes
        self._asked_items = max(0, self._asked_items - len(taken))
        if self._asked_items == 0:
            self._asked = None
        return taken
