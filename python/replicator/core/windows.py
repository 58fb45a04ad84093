"""What log sinks remember, over all shards of a pipeline, within a limit (law 8).

A log sink holds changes back until their time, and remembers more of them for longer: neither is
ended by a write, so reading must never wait for it. Windows have a share of the memory that reading
can't use up and that can't use up reading's. Who wants more than is left has the largest forget;
what it holds is given early at its own next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import nlargest
from typing import Final, Protocol

# So many make room for one at once.
_SHRUNK_MAX: Final = 8


class Window(Protocol):
    """One shard's; asked only where nobody works at it."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        ...

    @property
    def early(self) -> int:
        """Changes that it gave before their time for want of memory, since it began."""
        ...

    @property
    def forgotten(self) -> int:
        """Changes that it knows no more, for want of memory."""
        ...

    def limit(self, bytes_max: int | None) -> None:
        """No more than this from here on (None: as much as it takes): what it remembers beyond
        goes at once, what it holds back with its next batch."""
        ...


class Windows:
    """All of them together hold `held` bytes, no more than `limit` but for what a window surely
    needs (`taking`)."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes."""
        self.limit = limit
        self.held = 0
        self.peak = 0
        self.early = 0
        self.forgotten = 0
        self.on_given: Callable[[], None] = lambda: None
        """Called when less is held than before."""
        self._held: dict[Window, int] = {}
        self._busy: set[Window] = set()

    @contextmanager
    def taking(self, window: Window, growth: int, *, is_bound: bool = True) -> Iterator[None]:
        """The window takes what may make it grow by so many bytes, which are its own meanwhile.
        Not `is_bound`, it gives nothing early and forgets nothing: what it is to give was
        decided before."""
        early, forgotten = window.early, window.forgotten
        wanted = window.nbytes + growth
        granted = wanted
        if is_bound:
            self._make_room(window, wanted)
            granted = max(0, min(wanted, self.limit - self.held + self._held.get(window, 0)))
        window.limit(granted if is_bound else None)
        self._busy.add(window)
        self._hold(window, granted)
        try:
            yield
        except BaseException:
            # A thread may still be at it, and nobody will use it any more.
            self.release(window)
            raise
        finally:
            self._busy.discard(window)
        if window in self._held:
            self._hold(window, window.nbytes)
            self.early += window.early - early
            self.forgotten += window.forgotten - forgotten

    def begin(self, window: Window, *, is_bound: bool = True) -> None:
        """What it holds from the beginning counts as what it takes. Nobody works at it."""
        with self.taking(window, 0, is_bound=is_bound):
            pass

    def release(self, window: Window) -> None:
        """It holds nothing any more. May be called twice."""
        if window in self._held:
            self._hold(window, 0)
            del self._held[window]

    def _make_room(self, window: Window, wanted: int) -> None:
        """The largest of the others forget, as long as they are larger than this one."""
        missing = self.held - self._held.get(window, 0) + wanted - self.limit
        if missing <= 0:
            return
        others = (each for each in self._held if each is not window and each not in self._busy)
        for other in nlargest(_SHRUNK_MAX, others, key=lambda each: self._held[each]):
            before = self._held[other]
            if missing <= 0 or before <= wanted:
                return
            # Some more than is missing, so that the next doesn't ask again.
            forgotten = other.forgotten
            other.limit(max(wanted, before - missing - self.limit // 16))
            self.forgotten += other.forgotten - forgotten
            self._hold(other, other.nbytes)
            missing -= before - self._held[other]

    def _hold(self, window: Window, nbytes: int) -> None:
        change = nbytes - self._held.get(window, 0)
        self._held[window] = nbytes
        self.held += change
        self.peak = max(self.peak, self.held)
        if change < 0:
            self.on_given()
