"""Which of two ways of reading is in force: the preferred one, or the other while it is refused.

All shards change together. While the other way is in force one shard at a time tries the
preferred one, every few minutes; only when that gave something do the rest follow.
"""

from __future__ import annotations

LOOK_SECONDS = 300.0


class Fallback:
    """`refused` and `works` tell whether it is news, so that it is said once.

    `now` is a monotonic clock's, in seconds.
    """

    def __init__(self, look_seconds: float = LOOK_SECONDS) -> None:
        assert look_seconds > 0
        self._look_seconds = look_seconds
        self._look_at: float | None = None

    @property
    def is_preferred(self) -> bool:
        """True while the preferred way is in force."""
        return self._look_at is None

    def is_due(self, now: float) -> bool:
        """True when somebody should try the preferred way."""
        return self._look_at is not None and now >= self._look_at

    def try_now(self, now: float) -> bool:
        """True for the one who is to try the preferred way now; the next one's turn comes a
        while later, whatever becomes of this one."""
        if not self.is_due(now):
            return False
        self._look_at = now + self._look_seconds
        return True

    def refused(self, now: float) -> bool:
        """The preferred way can't be had. True when it was in force until now."""
        was_preferred = self.is_preferred
        self._look_at = now + self._look_seconds
        return was_preferred

    def works(self) -> bool:
        """The preferred way gave something. True when it was not in force until now."""
        was_preferred = self.is_preferred
        self._look_at = None
        return not was_preferred
