"""Backpressure: one budget of bytes over all shards, waited for in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from replicator.core.budget import Budget


class Holder(Protocol):
    """Something that holds bytes of the budget and can be told to let them go."""

    @property
    def nbytes(self) -> int:
        """Bytes that wait here."""
        ...

    def relieve(self) -> None:
        """Writes what waits, at once."""
        ...


class Gate:
    """Lets bytes in while the budget has room (law 8). When somebody has to wait, the
    holder of the largest open buffer is told to write at once."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._holders: list[Holder] = []
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        budget.windows.on_given = self._admit

    def register(self, holder: Holder) -> None:
        """From now on `holder` is one of those that may be told to write."""
        self._holders.append(holder)

    def unregister(self, holder: Holder) -> None:
        """It holds nothing any more."""
        self._holders.remove(holder)

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._budget.used

    @property
    def is_full(self) -> bool:
        """True while somebody waits for room."""
        return bool(self._waiting)

    def try_take(self, nbytes: int) -> bool:
        """Charges the bytes if nobody waits and there is room; else nothing."""
        return not self._waiting and self._budget.try_take(nbytes)

    async def take(self, nbytes: int) -> None:
        """Returns when the bytes are charged. Cancelled while waiting, it charges nothing."""
        if self.try_take(nbytes):
            return
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((nbytes, room))
        self._relieve()
        try:
            await room
        except asyncio.CancelledError:
            if room.done() and not room.cancelled():
                self.give(nbytes)
            else:
                self._admit()
            raise

    def adjust(self, nbytes: int) -> None:
        """Charges what decoding added to an admitted fetch (or gives back, below zero)."""
        if nbytes >= 0:
            self._budget.force_take(nbytes)
        else:
            self.give(-nbytes)

    def give(self, nbytes: int) -> None:
        """Gives bytes back and lets in who fits now."""
        self._budget.give(nbytes)
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            nbytes, room = self._waiting[0]
            # Cancelled ones leave here: their task may not have run since.
            if not room.cancelled():
                if not self._budget.try_take(nbytes):
                    break
                room.set_result(None)
            self._waiting.popleft()
        if self._waiting:
            self._relieve()

    def _relieve(self) -> None:
        if self._holders:
            max(self._holders, key=lambda holder: holder.nbytes).relieve()


class Charge:
    """The bytes of one fetch, in the budget until everybody who was given it is done with it.
    Who makes it holds it first."""

    __slots__ = ("_gate", "_holders", "nbytes")

    def __init__(self, gate: Gate, nbytes: int) -> None:
        """`nbytes` are charged already."""
        self.nbytes = nbytes
        self._gate = gate
        self._holders = 1

    def hold(self) -> Charge:
        """One more is given the fetch."""
        assert self._holders, "its bytes were given back"
        self._holders += 1
        return self

    def release(self) -> None:
        """One of them is done with it."""
        assert self._holders, "its bytes were given back"
        self._holders -= 1
        if not self._holders:
            self._gate.give(self.nbytes)
