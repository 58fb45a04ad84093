"""The commits of one table, one after the other: what waits goes into the next one, together.

A commit rewrites the table's metadata, so that fences, positions and data of many shards share one.
It is a compare-and-set upon the snapshot that was looked at: when somebody else was quicker, all
steps are asked again whether they still may.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pyiceberg.table import Table

from replicator.errors import TransientError
from replicator.sink.iceberg_lake import Lake
from replicator.sink.iceberg_state import SinkState, name_of
from replicator.sink.iceberg_table import Conflict, Staged, commit, discard, holds_rows, texts

T = TypeVar("T")

_TRIES_MAX: Final = 20
_WAIT_SECONDS: Final = 0.05
_WAIT_SECONDS_MAX: Final = 2.0
_DEADLINE_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Look:
    """What a table showed: this sink's state, that of all sinks, and whether it has rows."""

    mine: SinkState
    all: tuple[SinkState, ...]
    holds_rows: bool


@dataclass(frozen=True, slots=True)
class _Work:
    step: Callable[[SinkState], tuple[SinkState, Any]]
    staged: Staged
    build: Callable[[Table], Staged] | None
    done: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Tried:
    """A step that was part of an attempt, and what it gave: its value, or why it may not."""

    work: _Work
    value: Any = None
    error: Exception | None = None


class Commits:
    """The commits of one sink to one table. Raises FatalError and TransientError; after these
    nobody knows whether the steps took effect."""

    def __init__(
        self,
        lake: Lake,
        table: tuple[str, ...],
        pipeline: str,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._lake = lake
        self._name = table
        self._key = name_of(pipeline)
        self._sleep = sleep
        self._table: Table | None = None
        self._generation = lake.generation
        self._looking: asyncio.Task[Look] | None = None
        self._next_look: asyncio.Task[Look] | None = None
        self._tries = 0
        self._is_trying = False
        self._queue: list[_Work] = []
        self._running: asyncio.Task[None] | None = None

    async def look(self) -> Look:
        """What is stored from now on; of a table that isn't there, nothing. Who asks while another
        look is under way shares the one after it."""
        if self._next_look is None:
            self._next_look = asyncio.ensure_future(self._look_after(self._looking))
            self._next_look.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._next_look)

    async def _look_after(self, before: asyncio.Task[Look] | None) -> Look:
        if before is not None:
            await asyncio.wait({before})
        self._looking, self._next_look = self._next_look, None
        await self._renewed()
        tries = self._tries
        table = await _in_thread(self._lake.find, self._name)
        if not self._is_trying and tries == self._tries:
            # What was seen last may have gone with a failover of the catalog. (While a commit is
            # tried, this may be what was there before it.)
            self._table = table
        if table is None:
            return Look(SinkState(), (), holds_rows=False)
        return await _in_thread(self._seen, table)

    def _seen(self, table: Table) -> Look:
        # Of thousands of shards that is a fifth of a second: nothing for the event loop.
        found = {name: SinkState.from_text(text) for name, text in texts(table.metadata).items()}
        mine = found.get(self._key, SinkState())
        return Look(mine, tuple(found.values()), holds_rows(table.metadata))

    async def table(self) -> Table:
        """The table as the next commit would begin with it."""
        await self._renewed()
        if (table := self._table) is None:
            table = await _in_thread(self._lake.load, self._name)
            if self._table is None:
                self._table = table
        return table

    async def change(
        self,
        step: Callable[[SinkState], tuple[SinkState, T]],
        staged: Staged | None = None,
        build: Callable[[Table], Staged] | None = None,
    ) -> T:
        """Commits what the step makes of the state, with these files, and gives what it says. The
        step may be asked several times; what it raises is raised, and nothing of it committed.
        `build` makes files of what the table holds, anew whenever that has changed; nobody else's
        may be under way."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Work(step, staged or Staged(), build, done))
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._run())
        return await done

    async def close(self) -> None:
        """Returns when no commit is under way."""
        if self._running is not None:
            await asyncio.wait({self._running})

    async def _renewed(self) -> None:
        await self._lake.renewed()
        if self._generation != self._lake.generation:
            self._table, self._generation = None, self._lake.generation

    async def _run(self) -> None:
        while self._queue:
            work, self._queue = self._queue, []
            try:
                tried = await self._tried(work)
            except Exception as error:  # noqa: BLE001 - whoever waits shall know
                self._table = None
                tried = [_Tried(one, error=error) for one in work]
            finally:
                self._is_trying = False
            for each in tried:
                if each.work.done.done():
                    continue  # cancelled
                if each.error is None:
                    each.work.done.set_result(each.value)
                else:
                    each.work.done.set_exception(each.error)

    async def _tried(self, work: Sequence[_Work]) -> list[_Tried]:
        for tries in range(_TRIES_MAX):
            table = await self.table()
            self._tries, self._is_trying = self._tries + 1, True
            try:
                return await _in_thread(self._try, table, work)
            except Conflict:
                self._is_trying = False
                self._table = None
                wait = min(_WAIT_SECONDS * 2**tries, _WAIT_SECONDS_MAX)
                await self._sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311
        raise TransientError(
            "iceberg_busy",
            f"{'.'.join(self._name)}: others commit all the time; it is tried again. What to do: "
            "give the pipelines that write there a longer commit.seconds",
            retry_after_seconds=5.0,
        )

    def _try(self, table: Table, work: Sequence[_Work]) -> list[_Tried]:
        found = texts(table.metadata)
        before = SinkState.from_text(found.get(self._key))
        state, staged, tried = _asked(table, before, work)
        try:
            if any(each.error is not None for each in tried):
                now = self._lake.load(self._name)
                if now.metadata_location != table.metadata_location:
                    raise Conflict("what a step was refused by may be over")  # noqa: TRY301
            if state != before or any(each.files or each.removed for each in staged):
                summary = found if state == SinkState() else {**found, self._key: state.to_text()}
                self._table = commit(table, staged, summary)
        except Conflict:
            given = [one.staged for one in work]
            for each in staged:
                if each not in given:  # those that were built are built anew
                    discard(table, each)
            raise
        return tried


def _asked(
    table: Table, state: SinkState, work: Sequence[_Work]
) -> tuple[SinkState, list[Staged], list[_Tried]]:
    """What the steps make of the state and the table, one after the other; one that fails makes
    nothing of them."""
    staged: list[Staged] = []
    tried: list[_Tried] = []
    for one in work:
        try:
            if one.staged.spec_id not in {None, table.spec().spec_id}:
                raise TransientError(  # noqa: TRY301 - as the step's own
                    "iceberg_table_changed", f"{'.'.join(table.name())} is partitioned anew"
                )
            after, value = one.step(state)
            built = Staged() if one.build is None else one.build(table)
        except Exception as error:  # noqa: BLE001 - it belongs to who asked
            tried.append(_Tried(one, error=error))
        else:
            state = after
            staged += [one.staged, built]
            tried.append(_Tried(one, value))
    return state, staged, tried


async def _in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Not every client of a catalog has a deadline of its own."""
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            return await asyncio.to_thread(work, *arguments)
    except TimeoutError:
        raise TransientError(
            "iceberg_timed_out",
            f"catalog or files gave no answer in {_DEADLINE_SECONDS:g} s; it is tried again",
        ) from None
