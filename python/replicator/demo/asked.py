"""A destination of the demo that keeps every change and is asked by SQL."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from replicator.demo import compare

# Each question reads everything that is there.
_COUNT_SECONDS = 3.0
_COPIES = "SELECT event_id, count(*) FROM changes GROUP BY event_id HAVING count(*) > 1"


class AskedPlace(ABC):
    """The newest change of each key is its item. `newest` is the SQL that finds it in `changes`:
    the item's text, empty for a delete."""

    newest: str

    def __init__(self) -> None:
        self._counted = (float("-inf"), 0)

    @abstractmethod
    async def rows(self, sql: str) -> Sequence[tuple[Any, ...]]:
        """The answer to a question about `changes`, each a row."""

    async def open(self) -> None:  # noqa: B027 - nothing to do
        """Each question opens what it needs."""

    async def close(self) -> None:  # noqa: B027 - nothing to do
        """See `open`."""

    async def count(self) -> int:
        if time.monotonic() - self._counted[0] > _COUNT_SECONDS:
            self._counted = (time.monotonic(), len(await self.items()))
        return self._counted[1]

    async def items(self) -> dict[str, Any]:
        found = await self.rows(self.newest)
        return {key: compare.plain_row(text) for key, text in found if text}

    async def faults(self) -> list[str]:
        return [f"change {each} is there {times} times" for each, times in await self.rows(_COPIES)]
