"""The sinks of one pipeline, asked as one: all at once, and the answer is the least of theirs.

Each keeps its own positions. Who fails is known by its name, with the reason, for as long as it
lasts: see `Outlet.trouble`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from replicator.core.fanout import Held, least, reached_by
from replicator.core.trouble import Trouble
from replicator.errors import FatalError, LeaseLost, ReplicatorError
from replicator.model import (
    SHARD_END,
    Batching,
    Fence,
    Position,
    Reached,
    Start,
    Stream,
    TableSchema,
)
from replicator.protocols import Batched, Clock, Inheriting, Sink
from replicator.telemetry.stats import Stats

# A write that has had no answer for so long is told.
SLOW_WRITE_SECONDS = 10.0

T = TypeVar("T")

SinkStart: TypeAlias = Start | Literal["now", "snapshot"]


class Outlet:
    """One sink of a pipeline. `start` says where it begins beside sinks that were read into
    before; None where nothing was said."""

    def __init__(
        self,
        name: str,
        sink: Sink[Any],
        clock: Clock,
        stats: Stats,
        *,
        batching: Batching,
        start: SinkStart | None = None,
        errors: Counter[str] | None = None,
    ) -> None:
        """`batching`: of a sink that says none itself; `errors` counts what it answers
        instead of what it is asked, by code."""
        self.name = name
        self.sink = sink
        self.stats = stats
        self.batching = sink.batching if isinstance(sink, Batched) else batching
        self.start = start
        self.absent: ReplicatorError | None = None
        """Why it couldn't be opened yet: until then it is asked for nothing else."""
        self._errors = Counter() if errors is None else errors
        self._clock = clock
        self._failing: dict[str, tuple[float, str]] = {}
        self._writing: dict[object, float] = {}

    async def answers(self, stream: Stream, shard_id: str) -> None:
        """Returns when it can be asked something again; it changes nothing. Raises why not."""
        if self.absent is not None:
            raise self.absent
        await self.sink.reached(stream, [shard_id])

    def failed(self, what: str, error: ReplicatorError) -> None:
        """It refused something: a shard's, or the pipeline's."""
        since, _ = self._failing.get(what, (self._clock.monotonic(), ""))
        self._failing[what] = (since, str(error))
        self._errors[error.code] += 1

    def works(self, what: str) -> None:
        """It did what it was asked, or nobody here asks any more."""
        self._failing.pop(what, None)

    def begins_write(self, lane: object) -> None:
        """A lane waits for its answer from now on."""
        self._writing[lane] = self._clock.monotonic()

    def ends_write(self, lane: object) -> None:
        """The answer came, whatever it is."""
        self._writing.pop(lane, None)

    def trouble(self) -> Trouble | None:
        """What is wrong with it now; None when nothing is known to be."""
        now = self._clock.monotonic()
        if self._failing:
            since = min(since for since, _ in self._failing.values())
            *_, (_, why) = self._failing.values()
            return Trouble(now - since, why, sum(1 for what in self._failing if what))
        seconds = now - min(self._writing.values(), default=now)
        if seconds >= SLOW_WRITE_SECONDS:
            return Trouble(seconds, f"a write has had no answer for {seconds:.0f} s", 0)
        return None


@dataclass(frozen=True, slots=True)
class Stand:
    """Where one sink stood when a shard's reading began under this fence."""

    outlet: Outlet
    fence: Fence
    position: Position | None
    reached: Mapping[str, Reached]
    """Of the shard and its ancestors."""

    @property
    def held(self) -> Held:
        """The same for `core.fanout`."""
        return Held(self.position, self.reached.get(self.fence.shard_id))


@dataclass(slots=True)
class Answers(Generic[T]):
    """What the sinks said, each in its order: the answer, or why there is none."""

    good: dict[Outlet, T] = field(default_factory=dict)
    errors: dict[Outlet, ReplicatorError] = field(default_factory=dict)


class Outlets:
    """All of them, asked at the same time. Where one answer doesn't do without the others, the
    error of one is that of all."""

    def __init__(self, outlets: Sequence[Outlet]) -> None:
        assert outlets, "a pipeline has a sink"
        self._outlets = tuple(outlets)

    def __iter__(self) -> Iterator[Outlet]:
        return iter(self._outlets)

    @property
    def names(self) -> str:
        """For people."""
        return ", ".join(each.name for each in self._outlets)

    @property
    def in_trouble(self) -> str:
        """The names of those that something is wrong with."""
        return ", ".join(each.name for each in self._outlets if each.trouble() is not None)

    def works(self, shard_id: str) -> None:
        """Nobody here asks for the shard any more."""
        for each in self._outlets:
            each.works(shard_id)

    @property
    def absent(self) -> Sequence[Outlet]:
        """Those that couldn't be opened yet."""
        return [each for each in self._outlets if each.absent is not None]

    async def open(self, tables: Sequence[TableSchema]) -> None:
        """See `Sink.open`. Who can't be opened is absent; raises an error when nobody can."""
        for each in self._outlets:
            each.absent = None
        answers = await self._ask("", self._outlets, lambda one: one.sink.open(tables))
        for outlet, error in answers.errors.items():
            outlet.absent = error

    async def holds_data(self) -> bool:
        """True when one of them does."""
        return any(await self.each("", lambda one: one.sink.holds_data()))

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        """The least position of every shard that each of them has one of. While one doesn't
        answer, nobody knows whether a shard is finished: those are left out. (Who is absent is
        not let in before that was looked at.)"""
        answers = await self._ask("", self._outlets, lambda one: one.sink.positions(stream))
        found = list(answers.good.values())
        shared = set(found[0]).intersection(*found[1:])
        timed = [s for s in shared if any(each[s].timestamp_us is not None for each in found)]
        reached: Sequence[Mapping[str, Reached]] = [{}] * len(found)
        if timed and len(found) > 1:
            asked = await self._ask(
                "", tuple(answers.good), lambda one: one.sink.reached(stream, timed)
            )
            reached = [asked.good.get(one, {}) for one in answers.good]
        is_complete = all(each.absent is not None for each in answers.errors)
        positions = {}
        for shard_id in found[0]:
            if shard_id in shared:
                held = [
                    Held(each[shard_id], times.get(shard_id))
                    for each, times in zip(found, reached, strict=True)
                ]
                position = least(held)
                assert position is not None
                if position != SHARD_END or is_complete:
                    positions[shard_id] = position
        return positions

    async def reached(
        self, stream: Stream, shard_ids: Sequence[str]
    ) -> Sequence[Mapping[str, Reached]]:
        """What each of them says; see `Sink.reached`."""
        return await self.each("", lambda one: one.sink.reached(stream, shard_ids))

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Answers[Fence]:
        """Raises the fence at each of them. Raises an error when none does, and LeaseLost."""
        return await self._ask(
            shard_id, self._outlets, lambda one: one.sink.fence(stream, shard_id, owner)
        )

    async def stand(
        self, fences: Mapping[Outlet, Fence], ancestors: Sequence[str], parents: Sequence[str]
    ) -> Answers[Stand]:
        """Where those stand whose fence was raised, read behind it. Raises as `fence`."""

        async def look(one: Outlet) -> Stand:
            fence = fences[one]
            if isinstance(one.sink, Inheriting):
                one.sink.inherit(fence, parents)
            position = await one.sink.position(fence)
            reached = await one.sink.reached(fence.stream, [fence.shard_id, *ancestors])
            return Stand(one, fence, position, reached)

        shard_id = next(iter(fences.values())).shard_id
        return await self._ask(shard_id, tuple(fences), look)

    async def each(self, what: str, ask: Callable[[Outlet], Awaitable[T]]) -> tuple[T, ...]:
        """The answers of all, in the order of the sinks. Who fails is noted, with `what` failed."""
        answers = await self._ask(what, self._outlets, ask)
        if answers.errors:
            raise max(answers.errors.values(), key=_weight)
        return tuple(answers.good.values())

    async def _ask(
        self, what: str, outlets: Sequence[Outlet], ask: Callable[[Outlet], Awaitable[T]]
    ) -> Answers[T]:
        async def noted(one: Outlet) -> T:
            if one.absent is not None:
                raise one.absent
            try:
                answer = await ask(one)
            except LeaseLost:
                raise
            except ReplicatorError as error:
                one.failed(what, error)
                raise
            one.works(what)
            return answer

        found = await asyncio.gather(*map(noted, outlets), return_exceptions=True)
        answers = Answers[T]()
        for outlet, answer in zip(outlets, found, strict=True):
            if isinstance(answer, ReplicatorError) and not isinstance(answer, LeaseLost):
                answers.errors[outlet] = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answers.good[outlet] = answer
        if not answers.good:
            raise max(answers.errors.values(), key=_weight)
        return answers


def start_of(stands: Sequence[Stand]) -> tuple[Position | None, Mapping[str, Reached]]:
    """The least position, and the times that belong to it, by shard."""
    held = [stand.held for stand in stands]
    return least(held), stands[reached_by(held)].reached


def _weight(error: ReplicatorError) -> bool:
    """What an operator must mend is told first."""
    return isinstance(error, FatalError)
