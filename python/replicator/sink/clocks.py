"""The clocks of a sink whose destination has none that could be asked, so that tests own them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Clocks:
    """`monotonic`, in seconds, is the one that fetches were received by; `now_us` is UTC,
    microseconds since the epoch, and `sleep` waits that many seconds."""

    monotonic: Callable[[], float] = time.monotonic
    now_us: Callable[[], int] = lambda: time.time_ns() // 1_000
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


MACHINE: Final = Clocks()
"""This machine's."""
