"""Bytes in memory, counted against one limit over all shards.

Pure accounting: who waits, and in which order, is the shell's.
"""

from __future__ import annotations

from replicator.core.windows import Windows


class Budget:
    """What is asked for, with what the `windows` of log sinks hold, never passes `limit`, but for
    one take that is larger than the windows leave: it is granted while nothing else was taken, so
    that one record always fits. No more than half of the limit is the windows'."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes."""
        assert limit > 0
        self.limit = limit
        self.windows = Windows(limit // 2)
        self.used = 0
        self.peak = 0

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        return max(0, self.limit - self.used - self.windows.held)

    def try_take(self, nbytes: int) -> bool:
        """Takes the bytes and returns True, or takes nothing."""
        assert nbytes >= 0
        if self.used > 0 and nbytes > self.left:
            return False
        self.force_take(nbytes)
        return True

    def force_take(self, nbytes: int) -> None:
        """Takes bytes that exist already (what decoding added to an admitted fetch): they
        may pass the limit, and nobody else is let in until they are given back."""
        assert nbytes >= 0
        self.used += nbytes
        self.peak = max(self.peak, self.used)

    def give(self, nbytes: int) -> None:
        """Gives back what was taken."""
        assert 0 <= nbytes <= self.used, (nbytes, self.used)
        self.used -= nbytes
