"""Waiting that ends early when a stop is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


async def sleep_unless(event: asyncio.Event, seconds: float) -> None:
    """Returns after that long, or as soon as it happens."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def unless_stopped(
    stopping: asyncio.Event, work: Coroutine[Any, Any, ResultT]
) -> ResultT | None:
    """What the work gives, or None when `stopping` was quicker: then it is cancelled."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    return None if task.cancelled() else task.result()
