"""The Iceberg sink: positions, fences and the writer over snapshots. `iceberg_writer` writes.

PyIceberg is an extra of the package, and it is loaded when it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from replicator._core import Columns
from replicator.core.start import Brought, Joining, joining, require_comparable
from replicator.core.windows import Windows
from replicator.errors import FatalError
from replicator.model import (
    SHARD_END,
    TRIM_HORIZON,
    Batching,
    Fence,
    Position,
    Reached,
    SinkFinding,
    SinkHeld,
    SinkPlan,
    SinkReport,
    StoredLetter,
    Stream,
    TableSchema,
)
from replicator.sink.clocks import MACHINE, Clocks
from replicator.sink.fences import fence_lost
from replicator.sink.iceberg_settings import IcebergSettings
from replicator.sink.iceberg_state import ShardRow, SinkState, first
from replicator.sink.log_shard import LogPosition, LogShard
from replicator.sink.projected import require_keys

if TYPE_CHECKING:
    from replicator.sink.iceberg_commits import Commits, Look
    from replicator.sink.iceberg_lake import Lake, Wanted
    from replicator.sink.iceberg_shards import FencedShard
    from replicator.sink.iceberg_state_writer import IcebergStateWriter
    from replicator.sink.iceberg_writer import IcebergWriter


@dataclass(frozen=True, slots=True)
class _Opened:
    """A loaded catalog, and the commits to its tables: `commits` to that with the positions,
    `tables` by the source's table; some of them may be the same."""

    lake: Lake
    commits: Commits
    letters: Commits
    tables: Mapping[str, Commits]
    writer: IcebergWriter | IcebergStateWriter

    @property
    def all(self) -> set[Commits]:
        """Each once."""
        return {self.commits, self.letters, *self.tables.values()}


class IcebergSink:
    """Keeps every change, or the newest items, in tables of Iceberg."""

    def __init__(
        self,
        settings: IcebergSettings,
        *,
        windows: Windows | None = None,
        clocks: Clocks = MACHINE,
    ) -> None:
        self._settings, self._clocks = settings, clocks
        self._windows = windows or Windows(settings.window_bytes_max)
        self._opened: _Opened | None = None
        self._names = frozenset(settings.tables)
        self._tables: tuple[TableSchema, ...] = ()
        self._opening = asyncio.Lock()
        self._shards: dict[tuple[Stream, str], FencedShard] = {}

    @property
    def batching(self) -> Batching:
        """See `protocols.Batched`: a commit's bytes and seconds."""
        return self._settings.batching

    async def open(self, tables: Sequence[TableSchema]) -> None:
        self._know(tables)
        opened = await self._ready()
        for wanted in self._wanted():
            await asyncio.to_thread(opened.lake.made, wanted, create=self._settings.create)

    async def plan(self, tables: Sequence[TableSchema]) -> SinkPlan:
        self._know(tables)
        async with self._briefly() as opened:
            found = [
                await asyncio.to_thread(self._finding, opened.lake, wanted)
                for wanted in self._wanted()
            ]
            return SinkPlan(
                f"Iceberg catalog ({opened.lake.kind}) answers", tuple(found), self._settings.create
            )

    async def held(self, stream: Stream, tables: Sequence[TableSchema]) -> SinkHeld:
        self._know(tables)
        async with self._briefly() as opened:
            look = await opened.commits.look()
            has_rows = await self._holds_rows(opened)
            _, rivals = await self._joined(opened, look, stream)
            is_known = stream in look.mine.begun
            return SinkHeld(is_known, tuple(self._begun(look)), has_rows, rivals)

    async def report(self) -> SinkReport:
        async with self._briefly() as opened:
            state = (await opened.commits.look()).mine
        now_us = self._clocks.now_us()
        rows = [_shown(*key, row, now_us) for key, row in state.shards.items()]
        return SinkReport(tuple(rows), state.letters)

    async def letters(self) -> Sequence[StoredLetter]:
        async with self._briefly() as opened:
            from replicator.sink.iceberg_letters import letters  # noqa: PLC0415 - see `_load`

            table = await asyncio.to_thread(opened.lake.find, self._settings.letters)
            if table is None:
                return ()
            return await asyncio.to_thread(letters, table, self._settings.pipeline)

    async def begin(self, stream: Stream, starts: Mapping[str, Position]) -> bool:
        def step(state: SinkState) -> tuple[SinkState, bool]:
            if stream in state.begun:
                return state, False
            return state.begin(stream, starts, self._places, self._clocks.now_us()), True

        return await (await self._ready()).commits.change(step)

    async def is_known(self, stream: Stream) -> bool:
        return stream in (await self._look()).mine.begun

    async def add_tables(self, stream: Stream) -> Sequence[str]:
        opened = await self._ready()
        look = await opened.commits.look()
        found, rivals = await self._joined(opened, look, stream)
        if not found.is_needed:
            return ()
        require_comparable(stream.arn, rivals)
        # Behind all others, whatever their clocks said.
        others = [begun.at_us for state in look.all for begun in state.begun.values()]
        at_us = max(self._clocks.now_us(), *(at + 1 for at in others))
        await opened.commits.change(lambda state: (state.joined(stream, found, at_us), None))
        return found.added

    async def begun(self) -> Sequence[str]:
        return self._begun(await self._look())

    async def holds_data(self) -> bool:
        return await self._holds_rows(await self._ready())

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        raised = {key: shard.fence for key, shard in self._shards.items() if key[0] == stream}
        rows = (await self._look()).mine.of(stream)
        for key, fence in raised.items():
            shard, row = self._shards.get(key), rows.get(key[1], ShardRow())
            if shard is not None and shard.fence == fence:
                is_over = row.log is not None and row.log.position == SHARD_END
                # Finished, or gone to another worker: its memory isn't needed here.
                if (is_over and shard.is_finished) or not row.holds(fence):
                    self._drop(key)
        return {shard_id: row.log.start for shard_id, row in rows.items() if row.log is not None}

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Reached]:
        rows = (await self._look()).mine.of(stream)
        found = {shard: rows[shard].reached for shard in shard_ids if shard in rows}
        return {shard: reached for shard, reached in found.items() if reached != Reached()}

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        def step(state: SinkState) -> tuple[SinkState, tuple[Fence, LogPosition | None]]:
            raised, fence = state.fenced(stream, shard_id, owner, self._clocks.now_us())
            return raised, (fence, state.row(stream, shard_id).log)

        fence, log = await (await self._ready()).commits.change(step)
        self._start(fence, log)
        return fence

    def inherit(self, fence: Fence, parents: Sequence[str]) -> None:
        """See `protocols.Inheriting`."""
        shard = self._shards.get((fence.stream, fence.shard_id))
        if shard is not None and shard.fence == fence:
            shard.parents = tuple(parents)

    async def position(self, fence: Fence) -> Position | None:
        state = (await self._look()).mine
        row = state.row(fence.stream, fence.shard_id)
        if not row.holds(fence):
            self._drop((fence.stream, fence.shard_id))
            raise fence_lost(fence)
        self._start(fence, row.log, await self._inherited(state, fence, row.log))
        return None if row.log is None else row.log.start

    async def move(
        self, stream: Stream, positions: Mapping[str, Position], owner: str
    ) -> Mapping[str, Position | None]:
        now_us = self._clocks.now_us()

        def step(state: SinkState) -> tuple[SinkState, dict[str, Position | None]]:
            old: dict[str, Position | None] = {}
            for shard_id, position in positions.items():
                before = state.row(stream, shard_id).log
                old[shard_id] = None if before is None else before.start
                state, _ = state.fenced(stream, shard_id, owner, now_us)
                state = state.moved({(stream, shard_id): first(position, now_us)}, {}, now_us)
            return state, old

        async with self._briefly() as opened:
            return await opened.commits.change(step)

    def writer(self, fence: Fence) -> IcebergWriter | IcebergStateWriter:
        """The same for all shards: they share commits."""
        assert self._opened is not None, "a sink is opened before it is written to"
        return self._opened.writer

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        for key in tuple(self._shards):
            self._drop(key)
        if opened is not None:
            await asyncio.gather(*(commits.close() for commits in opened.all))
            await asyncio.to_thread(opened.lake.close)

    # ----

    async def _inherited(
        self, state: SinkState, fence: Fence, log: LogPosition | None
    ) -> Sequence[bytes]:
        """What the shard's parents remembered, where that is needed."""
        from replicator.sink.iceberg_table import kept  # noqa: PLC0415 - see `_load`

        shard = self._shards.get((fence.stream, fence.shard_id))
        if shard is None or not (log or LogPosition(TRIM_HORIZON)).inherits:
            return ()
        places = [state.row(fence.stream, parent).remembered for parent in shard.parents]
        table = await (await self._ready()).commits.table()
        return [await asyncio.to_thread(kept, table, place) for place in places if place]

    def _start(
        self, fence: Fence, log: LogPosition | None, inherited: Sequence[bytes] = ()
    ) -> None:
        """From here on it is written under this fence, from where the shard stands."""
        from replicator.sink.iceberg_shards import FencedShard  # noqa: PLC0415 - see `_load`

        settings = self._settings
        memory = LogShard(
            log or LogPosition(TRIM_HORIZON),
            reorder_us=settings.reorder_us,
            duplicate_us=settings.duplicate_us,
            bytes_max=settings.window_bytes_max,
            inherited=inherited,
        )
        key = (fence.stream, fence.shard_id)
        before = self._shards.get(key)
        parents = before.parents if before is not None and before.fence == fence else ()
        self._drop(key)
        self._shards[key] = FencedShard(fence, memory, log, parents=parents)

    def _drop(self, key: tuple[Stream, str]) -> None:
        """The shard isn't written here any more."""
        if (shard := self._shards.pop(key, None)) is not None:
            self._windows.release(shard.memory)

    async def _look(self) -> Look:
        return await (await self._ready()).commits.look()

    async def _holds_rows(self, opened: _Opened) -> bool:
        looks = await asyncio.gather(*(each.look() for each in set(opened.tables.values())))
        return any(look.holds_rows for look in looks)

    async def _joined(
        self, opened: _Opened, look: Look, stream: Stream
    ) -> tuple[Joining, tuple[str, ...]]:
        """What a stream finds in the tables, and the rivals in those that hold rows."""
        each = [(state, of, begun) for state in look.all for of, begun in state.begun.items()]
        brought = [
            Brought(of.arn, frozenset(begun.tables), is_mine=of == stream and state == look.mine)
            for state, of, begun in sorted(each, key=lambda one: one[2].at_us)
        ]
        is_log = self._settings.mode == "log"
        found = joining(stream.arn, self._places, brought, is_log=is_log)
        by_place = {self._place_of(name): commits for name, commits in opened.tables.items()}
        holding = [place for place in found.rivals if (await by_place[place].look()).holds_rows]
        return found, found.rivals_in(holding)

    def _begun(self, look: Look) -> list[str]:
        """The streams of this sink, and of others that go into any of its tables."""
        mine = set(self._places)
        at = {
            stream: begun.at_us
            for state in look.all
            for stream, begun in state.begun.items()
            if state == look.mine or not mine.isdisjoint(begun.tables)
        }
        return list(dict.fromkeys(stream.arn for stream in sorted(at, key=lambda each: at[each])))

    @property
    def _places(self) -> list[str]:
        """The tables that changes go to."""
        return sorted({self._place_of(name) for name in self._names})

    def _place_of(self, name: str) -> str:
        return ".".join(self._settings.table_of(name))

    @property
    def _home(self) -> tuple[str, ...]:
        """The table whose snapshots have the positions. Who has no tables yet, and only leaves a
        mark, or has one for each source table, which no commit is about together, has them at the
        dead letters'."""
        settings = self._settings
        if not self._names or (settings.mode == "state" and settings.is_by_table):
            return settings.letters
        return settings.table_of(min(self._names))

    def _wanted(self) -> list[Wanted]:
        """The tables to be: the dead letters', and those of the changes."""
        from replicator.sink import iceberg_lake, iceberg_merge  # noqa: PLC0415 - see `_load`

        settings = self._settings
        wanted = [iceberg_lake.Wanted(settings.letters, iceberg_lake.LETTERS)]
        if settings.mode == "state":
            for table in self._tables:
                keys = [name for name, _ in table.keys]
                column = iceberg_merge.key_columns(keys)[0]
                schema = iceberg_merge.state_schema(keys)
                name = settings.table_of(table.name)
                wanted.append(iceberg_lake.Wanted(name, schema, column, settings.buckets))
        elif self._names:
            schema = iceberg_lake.schema_of(Columns(settings.columns))
            wanted.append(iceberg_lake.Wanted(self._home, schema, "event_time"))
        return wanted

    def _finding(self, lake: Lake, wanted: Wanted) -> SinkFinding:
        from replicator.sink import iceberg_lake  # noqa: PLC0415 - see `_load`

        subject = f"table {wanted.text}"
        try:
            table = lake.find(wanted.name)
            ddl = "; ".join(iceberg_lake.ddl(wanted, table))
        except FatalError as error:
            return SinkFinding(subject, error.message, code=error.code)
        if not ddl:
            return SinkFinding(subject, "is there")
        code = "" if self._settings.create else "iceberg_table_missing"
        what = "is missing" if table is None else "lacks columns"
        return SinkFinding(subject, what, code=code, ddl=ddl)

    def _know(self, tables: Sequence[TableSchema]) -> None:
        settings, names = self._settings, frozenset(table.name for table in tables)
        require_keys(settings.name, settings.projection, tables)
        if settings.is_by_table != (settings.mode == "state") and len(names) > 1:
            advice = (
                "let them share one (a name without {table}; each row names its own)"
                if settings.mode == "log"
                else "give each its own (a name with {table})"
            )
            raise FatalError(
                "iceberg_several_tables",
                f"sink {settings.name}, table {settings.table}, mode {settings.mode}: the pipeline "
                f"reads {', '.join(sorted(names))}. What to do: {advice}, or make a pipeline for "
                "each",
            )
        assert self._opened is None or names == self._names, "a sink's tables don't change"
        self._names, self._tables = names, tuple(tables)

    async def _ready(self) -> _Opened:
        async with self._opening:
            if self._opened is None:
                opened = await asyncio.to_thread(self._load)
                await opened.lake.renewed()
                self._opened = opened
            return self._opened

    def _load(self) -> _Opened:
        settings = self._settings
        try:
            # More than a hundred megabytes, for one kind of sink.
            from replicator.sink.iceberg_commits import Commits  # noqa: PLC0415
            from replicator.sink.iceberg_lake import Lake  # noqa: PLC0415
            from replicator.sink.iceberg_shards import Room  # noqa: PLC0415
            from replicator.sink.iceberg_state_writer import IcebergStateWriter  # noqa: PLC0415
            from replicator.sink.iceberg_writer import IcebergWriter  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise FatalError(
                "iceberg_missing",
                f"sink {settings.name} needs PyIceberg, which isn't installed ({error.name} is "
                "missing). What to do: pip install 'replicator[iceberg]'",
            ) from error
        lake = Lake(settings.name, settings.catalog, settings.aws)
        targets = {name: settings.table_of(name) for name in self._names}
        all_commits = {
            table: Commits(lake, table, settings.pipeline, self._clocks.sleep)
            for table in {self._home, settings.letters, *targets.values()}
        }
        home, letters = all_commits[self._home], all_commits[settings.letters]
        tables = {name: all_commits[table] for name, table in targets.items()}
        clocks = (self._clocks.monotonic, self._clocks.now_us)
        room = Room(settings, home, letters, self._windows, *clocks, self._shards)
        writer: IcebergWriter | IcebergStateWriter = (
            IcebergWriter(room, self._names)
            if settings.mode == "log"
            else IcebergStateWriter(room, self._tables, tables)
        )
        return _Opened(lake, home, letters, tables, writer)

    @asynccontextmanager
    async def _briefly(self) -> AsyncIterator[_Opened]:
        """For a command, which opens nothing and closes nothing."""
        was_open = self._opened is not None
        try:
            yield await self._ready()
        finally:
            if not was_open:
                await self.close()


def _shown(stream: Stream, shard_id: str, row: ShardRow, now_us: int) -> Mapping[str, Any]:
    """A shard as `SinkReport` shows it."""
    reached = row.reached
    return {
        "stream_arn": stream.arn,
        "shard": shard_id,
        "position": None if row.log is None else str(row.log.position),
        "epoch": row.epoch,
        "owner": row.owner or None,
        "last_arrival_at": _iso(reached.last_arrival_us),
        "tip_at": _iso(reached.tip_us),
        "updated_at": _iso(row.stored_us),
        "age_seconds": _age(reached.last_arrival_us, now_us),
        "lag_seconds": _age(reached.us, now_us),
        "stored_seconds": _age(row.stored_us, now_us),
    }


def _iso(us: int | None) -> str | None:
    return None if us is None else datetime.fromtimestamp(us / 1_000_000, UTC).isoformat()


def _age(us: int | None, now_us: int) -> float | None:
    return None if us is None else max(0.0, (now_us - us) / 1_000_000)
