"""Virtual time, and workers that stand still as under SIGSTOP."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple, Unpack

import looptime

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Which worker a task belongs to; tasks inherit it from who made them.
WORKER: contextvars.ContextVar[str | None] = contextvars.ContextVar("worker", default=None)


class PausableLoop(looptime.LoopTimeEventLoop, asyncio.SelectorEventLoop):
    """Virtual time, and workers that can be stopped as SIGSTOP does: nothing that a paused
    one has scheduled runs until it is resumed, while its timers go on."""

    def __init__(self) -> None:
        self._parked: dict[str, list[Callable[[], None]]] = {}
        super().__init__(start=1_000.0, noop_cycles=0)

    def pause(self, worker: str) -> None:
        self._parked.setdefault(worker, [])

    def resume(self, worker: str) -> None:
        for run in self._parked.pop(worker, ()):
            super().call_soon(run, context=contextvars.Context())

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if (parked := self._parked.get(_worker_of(context))) is None:
            return super().call_soon(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self, context)
        parked.append(lambda: None if handle.cancelled() else handle._run())
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        worker = _worker_of(context)

        def fire() -> None:
            if not timer.cancelled():
                callback(*args)

        def fire_or_park() -> None:
            if (parked := self._parked.get(worker)) is None:
                callback(*args)
            else:
                inside = contextvars.copy_context()
                parked.append(lambda: inside.run(fire))

        timer = super().call_at(when, fire_or_park, context=context)
        return timer


def _worker_of(context: contextvars.Context | None) -> str:
    return (WORKER.get() if context is None else context.get(WORKER)) or ""


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Runs it in a loop of its own in which waiting takes no time."""
    with asyncio.Runner(loop_factory=PausableLoop) as runner:
        return runner.run(main)
