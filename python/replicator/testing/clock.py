"""Clocks for tests: `protocols.Clock` without waiting, and over the running loop."""

from __future__ import annotations

import asyncio


class VirtualClock:
    """Time that passes only when somebody sleeps: a sleep ends at once, `now` later by its
    length. `slept` keeps every length, in seconds and order."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += max(seconds, 0.0)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Lets time pass without a sleeper."""
        self.now += seconds


class LoopClock:
    """The running loop's own time, real or replaced."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
