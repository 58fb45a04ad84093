"""The core's work on a batch, beside the event loop where it is much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

# Below this the hop to a thread costs more than the work blocks the loop.
_INLINE_BYTES_MAX: Final = 100_000


async def in_thread(nbytes: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives; in a thread when the batch is large."""
    if nbytes <= _INLINE_BYTES_MAX:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
