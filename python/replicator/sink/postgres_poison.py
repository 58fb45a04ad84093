"""Finds the rows that a server refuses, by halving. Pure but for the probe it is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

ErrorT = TypeVar("ErrorT", bound=BaseException)


async def find_poison(
    count: int, probe: Callable[[int, int], Awaitable[ErrorT | None]]
) -> list[tuple[int, ErrorT]]:
    """The refused rows among `count`, each with the error it gives when tried alone.

    `probe(lo, hi)` tries rows lo..hi, leaves nothing behind, and gives the error or
    None. All rows together are known to be refused; none found means that only the
    combination is. One bad row among n costs about 2 log2 n probes.
    """
    found: list[tuple[int, ErrorT]] = []
    halves = [(0, 1)] if count == 1 else [(count // 2, count), (0, count // 2)]
    while halves:
        lo, hi = halves.pop()
        if (error := await probe(lo, hi)) is None:
            continue
        if hi - lo == 1:
            found.append((lo, error))
        else:
            middle = (lo + hi) // 2
            halves += [(middle, hi), (lo, middle)]
    return found
