"""The S3 sink: positions, fences and writers over plans. `s3_writer` writes.

A shard's newest plan is its position (law 7), the number of its newest fence its epoch (law 6).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from replicator.aws import aws_client
from replicator.core.windows import Windows
from replicator.model import (
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
from replicator.sink import s3_lifecycle
from replicator.sink.clocks import MACHINE, Clocks
from replicator.sink.log_shard import LogPosition
from replicator.sink.projected import require_keys
from replicator.sink.s3_letters import letters
from replicator.sink.s3_objects import Bucket
from replicator.sink.s3_plans import Fenced, S3Plans, Standing
from replicator.sink.s3_schemas import S3Schemas
from replicator.sink.s3_settings import S3Settings, is_letters
from replicator.sink.s3_writer import S3Writer

# No object has such a name: without a folder of their own letters would be looked for everywhere.
_NOWHERE = "\0"


class S3Sink:
    """Keeps every change in objects of a bucket."""

    def __init__(
        self,
        settings: S3Settings,
        *,
        windows: Windows | None = None,
        clocks: Clocks = MACHINE,
    ) -> None:
        self._settings, self._clocks = settings, clocks
        self._windows = windows or Windows(settings.window_bytes_max)
        self._stack = AsyncExitStack()
        self._opened: tuple[Bucket, S3Plans] | None = None
        self._schemas: S3Schemas | None = None
        self._tables: frozenset[str] = frozenset()
        self._writers: dict[tuple[Stream, str], S3Writer] = {}

    @property
    def batching(self) -> Batching:
        """See `protocols.Batched`: the buffering hints."""
        return self._settings.batching

    async def open(self, tables: Sequence[TableSchema]) -> None:
        self._require_keys(tables)
        names = frozenset(table.name for table in tables)
        if names != self._tables:  # opened again, it goes on with its writers
            self._end_writers()
            self._tables = names
        bucket, _ = await self._ready()
        # Who may not list would be told that a missing plan is a forbidden one.
        await bucket.first(self._settings.state_prefix)

    async def plan(self, tables: Sequence[TableSchema]) -> SinkPlan:
        self._require_keys(tables)
        settings, encoding = self._settings, self._settings.encoding
        async with self._briefly() as (bucket, plans):
            await bucket.require_access(f"{settings.state_prefix}check")
            columns = await S3Schemas(bucket, settings).findings(tables)
            told = await bucket.lifecycle()
        form = f"{encoding.format}, {encoding.compression}"
        found = [SinkFinding("bucket", f"objects go to {plans.place} ({form})"), *columns]
        found += s3_lifecycle.findings(None if told is None else s3_lifecycle.rules(told), settings)
        if settings.lacks:
            lacks = ", ".join(settings.lacks)
            found.append(
                SinkFinding(
                    "format",
                    f"this archive doesn't hold every change whole ({lacks}): it can't be "
                    "replayed, nor a table restored from it, without loss; for that write format: "
                    "change, without filter and attributes",
                    code="archive_not_replayable",
                    is_warning=True,
                )
            )
        if settings.options.storage_class in s3_lifecycle.UNREADABLE:
            found.append(
                SinkFinding(
                    "storage_class",
                    f"objects of class {settings.options.storage_class} must be restored before "
                    "anything can read them: until then this archive can't be asked or replayed; "
                    "GLACIER_IR can be read at once",
                    code="archive_not_replayable",
                    is_warning=True,
                )
            )
        return SinkPlan(f"bucket {settings.bucket} can be listed, read and written", tuple(found))

    async def held(self, stream: Stream, tables: Sequence[TableSchema]) -> SinkHeld:
        async with self._briefly():
            begun = tuple(await self.begun())
            return SinkHeld(await self.is_known(stream), begun, await self.holds_data())

    async def report(self) -> SinkReport:
        async with self._briefly() as (bucket, plans):
            rows = []
            for begun in await plans.all_begun():
                if begun.is_ours:
                    stream = begun.stream
                    standings = await plans.all_standings(stream, marks=False)
                    live = [each for each, at in standings.items() if not at.is_finished]
                    fences = await plans.fences(stream, live)
                    rows += [
                        _row(
                            stream, shard_id, standing, fences.get(shard_id), self._clocks.now_us()
                        )
                        for shard_id, standing in sorted(standings.items())
                    ]
            letters = 0
            async for entry in bucket.entries(self._settings.error_prefix.root or _NOWHERE):
                letters += is_letters(entry.key)
        return SinkReport(tuple(rows), {"objects": letters} if letters else {})

    async def letters(self) -> Sequence[StoredLetter]:
        async with self._briefly() as (bucket, _):
            return await letters(bucket, self._settings)

    async def begin(self, stream: Stream, starts: Mapping[str, Position]) -> bool:
        _, plans = await self._ready()
        return await plans.begin(stream, starts, self._clocks.now_us())

    async def is_known(self, stream: Stream) -> bool:
        _, plans = await self._ready()
        return await plans.begun(stream) is not None

    async def add_tables(self, stream: Stream) -> Sequence[str]:
        """All tables' changes lie in the one place that was looked at when the stream was begun."""
        return ()

    async def begun(self) -> Sequence[str]:
        _, plans = await self._ready()
        return list(dict.fromkeys(each.stream.arn for each in await plans.all_begun()))

    async def holds_data(self) -> bool:
        bucket, _ = await self._ready()
        async with aclosing(bucket.level(self._settings.prefix.root)) as pages:
            async for entries, folders in pages:
                if any(map(self._settings.is_data, (*(each.key for each in entries), *folders))):
                    return True
        return False

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        _, plans = await self._ready()
        standings = await plans.all_standings(stream, marks=True)
        for (of, shard_id), writer in self._writers.items():
            if of == stream and shard_id in standings:
                writer.look(standings[shard_id])
        return {
            shard_id: standing.stored.start
            for shard_id, standing in standings.items()
            if standing.stored is not None
        }

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Reached]:
        _, plans = await self._ready()
        standings = await plans.standings(stream, shard_ids)
        return {
            shard_id: Reached(stored.last_arrival_us, stored.tip_us, stored.begun_us)
            for shard_id, standing in standings.items()
            if (stored := standing.stored) is not None
        }

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        _, plans = await self._ready()
        # Shards come and go for years.
        self._writers = {key: each for key, each in self._writers.items() if not each.is_idle}
        fence = await plans.raise_fence(stream, shard_id, owner)
        self._start(fence, await plans.standing(stream, shard_id))
        return fence

    def inherit(self, fence: Fence, parents: Sequence[str]) -> None:
        """See `protocols.Inheriting`."""
        self.writer(fence).parents = tuple(parents)

    async def position(self, fence: Fence) -> Position | None:
        # Before anything is waited for: a writer goes when its shard is seen to have moved on.
        parents = self.writer(fence).parents
        _, plans = await self._ready()
        await plans.require(fence)
        standing = await plans.standing(fence.stream, fence.shard_id)
        inherited: Sequence[bytes] = ()
        # What a plan's worker didn't know, who completes the plan must not leave out.
        is_told = standing.open is None or standing.open.settings.get("inherited", False)
        if is_told and (standing.stored is None or standing.stored.inherits):
            inherited = await plans.remembered(fence.stream, parents)
        self._start(fence, standing, inherited)
        return None if standing.stored is None else standing.stored.start

    async def move(
        self, stream: Stream, positions: Mapping[str, Position], owner: str
    ) -> Mapping[str, Position | None]:
        now_us = self._clocks.now_us()
        old: dict[str, Position | None] = {}
        async with self._briefly() as (_, plans):
            for shard_id, position in positions.items():
                tip_us = min(now_us, position.timestamp_us or now_us)
                fence = await plans.raise_fence(stream, shard_id, owner)
                stored = await plans.move(
                    fence, LogPosition(position, tip_us=tip_us, begun_us=now_us)
                )
                old[shard_id] = None if stored is None else stored.start
        return old

    def writer(self, fence: Fence) -> S3Writer:
        """The shard's own writer: its batches are those of no other shard."""
        assert self._opened is not None, "a sink is opened before it is written to"
        bucket, plans = self._opened
        key = (fence.stream, fence.shard_id)
        if (known := self._writers.get(key)) is None:
            settings = self._settings
            clocks = (self._clocks.monotonic, self._clocks.now_us)
            self._schemas = self._schemas or S3Schemas(bucket, settings)
            shared = (bucket, plans, self._schemas, settings)
            known = S3Writer(*shared, self._tables, self._windows, *clocks)
            self._writers[key] = known
        return known

    async def close(self) -> None:
        self._opened = self._schemas = None
        self._end_writers()
        await self._stack.aclose()

    def _end_writers(self) -> None:
        for writer in self._writers.values():
            writer.end()
        self._writers.clear()

    def _start(self, fence: Fence, standing: Standing, inherited: Sequence[bytes] = ()) -> None:
        first = standing.stored or LogPosition(TRIM_HORIZON)
        self.writer(fence).start(fence, standing, first, inherited)

    def _require_keys(self, tables: Sequence[TableSchema]) -> None:
        attributes = self._settings.attributes
        projection = None if attributes is None else attributes.projection()
        require_keys(self._settings.name, projection, tables)

    async def _ready(self) -> tuple[Bucket, S3Plans]:
        if self._opened is None:
            client = await self._stack.enter_async_context(aws_client(self._settings.aws, "s3"))
            settings = self._settings
            bucket = Bucket(client, settings.bucket, settings.options, self._clocks.sleep)
            self._opened = (bucket, S3Plans(bucket, settings))
        return self._opened

    @asynccontextmanager
    async def _briefly(self) -> AsyncIterator[tuple[Bucket, S3Plans]]:
        """For a command, which opens nothing and closes nothing."""
        was_open = self._opened is not None
        try:
            yield await self._ready()
        finally:
            if not was_open:
                await self.close()


def _row(
    stream: Stream, shard_id: str, standing: Standing, fence: Fenced | None, now_us: int
) -> Mapping[str, Any]:
    """A shard as `SinkReport` shows it; whose a finished one was isn't asked."""
    stored = standing.stored
    last_us = None if stored is None else stored.last_arrival_us
    tip_us = None if stored is None else stored.tip_us
    newest_us = max((us for us in (last_us, tip_us) if us is not None), default=None)
    fenced_us = None if fence is None else fence.at_us
    stored_us = max((us for us in (standing.at_us, fenced_us) if us is not None), default=None)
    return {
        "stream_arn": stream.arn,
        "shard": shard_id,
        "position": None if stored is None else str(stored.position),
        "epoch": None if fence is None else fence.epoch,
        "owner": None if fence is None else fence.owner,
        "last_arrival_at": _iso(last_us),
        "tip_at": _iso(tip_us),
        "updated_at": _iso(stored_us),
        "age_seconds": _age(last_us, now_us),
        "lag_seconds": _age(newest_us, now_us),
        "stored_seconds": _age(stored_us, now_us),
    }


def _iso(us: int | None) -> str | None:
    return None if us is None else datetime.fromtimestamp(us / 1_000_000, UTC).isoformat()


def _age(us: int | None, now_us: int) -> float | None:
    return None if us is None else max(0.0, (now_us - us) / 1_000_000)
