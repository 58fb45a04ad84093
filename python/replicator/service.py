"""The composition root: settings in, a running process out. The only file that knows
concrete sources and stores (`sinks` knows the sinks), and the only one that handles signals.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
import uvloop

from replicator import sinks
from replicator.admin import Admin, serving
from replicator.api_calls import APICalls
from replicator.aws import AWSSettings
from replicator.config import (
    Config,
    PipelineConfig,
    SourceConfig,
    StreamsSourceConfig,
)
from replicator.coordinator import Coordinator
from replicator.core import gap
from replicator.core.budget import Budget
from replicator.core.holes import Hole
from replicator.core.liveness import Liveness, ShardView
from replicator.core.pace import PaceLimits
from replicator.core.tables import selected
from replicator.core.trouble import Trouble
from replicator.core.windows import Windows
from replicator.errors import FatalError, ReplicatorError, one_cause
from replicator.flow import Gate
from replicator.model import Batching, Start, Stream, TableSchema
from replicator.outlets import Outlet
from replicator.pipeline import Pipeline
from replicator.protocols import Clock, Measured, ShownSink, Sink, Source
from replicator.settings import SinkConfig, parse_start
from replicator.sink.place import SinkPlace
from replicator.source.fallback import FallbackSource
from replicator.source.kinesis import KinesisSource
from replicator.source.kinesis_polling import KinesisPollingSource
from replicator.source.polling import PollOptions
from replicator.source.streams import StreamsOptions, StreamsSource
from replicator.source.tables import describe_tables
from replicator.source.tagged import active_destination, tagged_tables
from replicator.store.sqlite import SQLiteLeaseStore
from replicator.supervisor import RETRY_SECONDS, DrainTimeout, Supervised, supervise
from replicator.tagged import TaggedPipeline
from replicator.telemetry.stats import Stats
from replicator.telemetry.watched import Watched, WatchedSink

log = structlog.get_logger()

EXIT_DRAINED = 0
EXIT_FAILED = 1
EXIT_DRAIN_TIMEOUT = 3
# A connection that doesn't close within this is dropped: the other side may be stalled.
CLOSE_SECONDS = 2.0
# What stands at a sink, for a stream, once a pipeline's tables were looked for.
_TAGS = Stream("tables by tag", "tables-by-tag", 0)


class SystemClock:
    """`protocols.Clock` of the machine."""

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


class Service:
    """All pipelines of one configuration; what is `watched` may be read while it runs."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self.config = config
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._clock = clock or SystemClock()
        self.watched: list[Watched] = []
        # What was counted for tables that are no longer found.
        self._ended = Stats()

    @property
    def stats(self) -> Stats:
        """All pipelines together, as they are now."""
        return Stats.total([self._ended, *(each.stats for each in self.watched)])

    async def run(self, stopping: asyncio.Event) -> None:
        """Replicates until `stopping`, then drains.

        Raises the ReplicatorError that kept every pipeline from beginning (with one pipeline:
        that one), DrainTimeout when the drain took too long. What was durable stays so in
        every case.
        """
        for pipeline in self.config.pipelines:
            gap.require_policy(pipeline.on_gap)
        async with AsyncExitStack() as stack:
            # First, so that it stops last: a drain can be watched to its end.
            admin = Admin(self.config.name, self.owner, self.watched)
            await stack.enter_async_context(serving(self.config.admin, admin))
            store = await stack.enter_async_context(open_store(self.config))
            pipelines = [self._supervised(each, store) for each in self.config.pipelines]
            with one_cause():
                await supervise(
                    pipelines, stopping, drain_timeout_seconds=self.config.drain_timeout_seconds
                )

    def _supervised(self, pipeline: PipelineConfig, store: SQLiteLeaseStore) -> Supervised:
        # A share each: a pipeline whose sink stalls must not hold up the others.
        budget = Budget(self.config.limits.memory_bytes_max // len(self.config.pipelines))
        room = Room(store, budget, Gate(budget), self._clock)
        if pipeline.tagged is not None:
            return FoundTables(self, pipeline, room).supervised

        async def known() -> PipelineConfig:
            return pipeline

        return self.show(Runs(self, pipeline, known, room)).supervised

    def show(self, runs: Runs) -> Runs:
        """From now on they are watched."""
        self.watched.append(runs.watched)
        return runs

    def hide(self, runs: Runs) -> None:
        """They are over; what they counted still counts."""
        # By identity: two may be equal.
        self.watched[:] = [each for each in self.watched if each is not runs.watched]
        self._ended = Stats.total([self._ended, runs.watched.stats])


@dataclass(frozen=True, slots=True)
class Room:
    """What the runs of one pipeline share, one after another and beside each other."""

    store: SQLiteLeaseStore
    budget: Budget
    gate: Gate
    clock: Clock


class Runs:
    """One pipeline, run after run: what is counted and shown outlives each of them. What is
    still to be found out is `resolved` anew for each."""

    def __init__(
        self,
        service: Service,
        pipeline: PipelineConfig,
        resolved: Callable[[], Awaitable[PipelineConfig]],
        room: Room,
    ) -> None:
        self._config, self._owner = service.config, service.owner
        self._resolved = resolved
        self._room = room
        self._stats = Stats()
        self._calls = APICalls()
        self._coordinator: Coordinator | None = None
        # What was counted of each sink, and the sinks of now.
        self._sinks = {each.name: (Stats(), Counter[str]()) for each in pipeline.sinks}
        self._outlets: Mapping[str, Outlet] = {}
        # What the sources of earlier runs counted, and the one of now.
        self._counted: Counter[str] = Counter()
        self._counting: Callable[[], Mapping[str, int]] = dict
        self.supervised = Supervised(pipeline.name, self._open, room.clock, self._stats)
        self.watched = Watched(
            pipeline=pipeline.name,
            sinks=[
                WatchedSink(name, stats, lambda errors=errors: errors, partial(self._trouble, name))  # type: ignore[misc]
                for name, (stats, errors) in self._sinks.items()
            ],
            own=self._stats,
            budget=room.budget,
            shards=self._shards,
            unready=self._unready,
            source_counters=self._counters,
            gaps=self._gaps,
            holes=self._holes,
            api=self._calls,
            failure=lambda: self.supervised.failure,
        )

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Coordinator]:
        """A fresh source, fresh sinks and coordinator."""
        pipeline = await self._resolved()
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(
                closing(make_source(self._config, pipeline, self._room.clock, calls=self._calls))
            )
            store_id = self._room.store.store_id
            windows = self._room.budget.windows
            made = make_sinks(self._config, pipeline, self._owner, store_id, windows)
            opened = [await stack.enter_async_context(closing(each)) for each in made.values()]
            log.info("source", pipeline=pipeline.name, mode=pipeline.source.mode)
            self._counting = _counting(source)
            self._outlets = {
                settings.name: self._outlet(settings, sink)
                for settings, sink in zip(pipeline.sinks, opened, strict=True)
            }
            self._coordinator = self._coordinating(pipeline, source)
            try:
                yield self._coordinator
            finally:
                self._counted.update(self._counting())
                self._coordinator, self._counting, self._outlets = None, dict, {}

    def _outlet(self, settings: SinkConfig, sink: Sink[Any]) -> Outlet:
        limits = self._config.limits
        stats, errors = self._sinks[settings.name]
        delay_seconds = limits.batch_delay_ms_max / 1_000
        return Outlet(
            settings.name,
            sink,
            self._room.clock,
            stats,
            batching=Batching(limits.batch_rows_max, limits.batch_bytes_max, delay_seconds),
            start=settings.begins,
            errors=errors,
        )

    def _coordinating(self, pipeline: PipelineConfig, source: Source) -> Coordinator:
        def make_pipeline(group: asyncio.TaskGroup) -> Pipeline:
            self.supervised.begun()  # nothing asks for it earlier
            return Pipeline(
                source=source,
                tables=pipeline.table_names,
                gate=self._room.gate,
                clock=self._room.clock,
                stats=self._stats,
                group=group,
            )

        async def describe() -> Sequence[TableSchema]:
            settings = source_settings(self._config, pipeline, self._calls)
            return await describe_tables(settings, pipeline.listed_tables)

        return Coordinator(
            name=self._config.qualified_name(pipeline),
            start=configured_start(pipeline),
            owner=self._owner,
            describe=describe,
            source=source,
            outlets=tuple(self._outlets.values()),
            store=self._room.store,
            make_pipeline=make_pipeline,
            clock=self._room.clock,
            jitter=random.random,
            stats=self._stats,
            alive=Liveness(
                ", ".join(self._outlets), deadline_seconds=self._config.limits.silence_seconds_max
            ),
            lease_seconds=self._config.leases.duration_seconds,
        )

    # ---- what is shown

    def _shards(self) -> Sequence[ShardView]:
        return () if self._coordinator is None else self._coordinator.views()

    def _gaps(self) -> Sequence[gap.Gap]:
        return () if self._coordinator is None else self._coordinator.gaps()

    def _holes(self) -> Sequence[Hole]:
        return () if self._coordinator is None else self._coordinator.holes()

    def _trouble(self, sink: str) -> Trouble | None:
        outlet = self._outlets.get(sink)
        return None if outlet is None else outlet.trouble()

    def _unready(self) -> str:
        if (failure := self.supervised.failure) is not None:
            return _failed(failure)
        return "it is made" if self._coordinator is None else self._coordinator.unready()

    def _counters(self) -> Mapping[str, int]:
        counted = Counter(self._counted)
        counted.update(self._counting())
        return counted


def _failed(failure: ReplicatorError) -> str:
    return f"it failed, and is begun anew every {RETRY_SECONDS:.0f} s: {failure}"


def _counting(source: Source) -> Callable[[], Mapping[str, int]]:
    return source.counters if isinstance(source, Measured) else dict


class FoundTables:
    """One pipeline whose tables are found: the `tagged.Hooks` that join it to the rest. The
    tables share the budget, as they share the sink."""

    def __init__(self, service: Service, pipeline: PipelineConfig, room: Room) -> None:
        self._service = service
        self._pipeline = pipeline
        self._room = room
        self._runs: dict[Supervised, Runs] = {}
        # Each table's own Kinesis stream, by the name of its runs.
        self._streams: dict[str, str] = {}
        self._tagged: TaggedPipeline | None = None
        self._calls = APICalls()
        stats = Stats()
        self.supervised = Supervised(pipeline.name, self._open, room.clock, stats)
        service.watched.append(
            Watched(
                pipeline=pipeline.name,
                sinks=[WatchedSink(each.name, Stats()) for each in pipeline.sinks],
                own=stats,
                budget=room.budget,
                shards=tuple,
                unready=self._unready,
                source_counters=dict,
                api=self._calls,
                failure=lambda: self.supervised.failure,
            )
        )

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[TaggedPipeline]:
        source = self._pipeline.source
        self._tagged = TaggedPipeline(
            self._pipeline.name,
            self,
            self._room.clock,
            is_shared=isinstance(source, SourceConfig) and source.stream is not None,
        )
        yield self._tagged

    def _unready(self) -> str:
        if (failure := self.supervised.failure) is not None:
            return _failed(failure)
        if self._tagged is not None and self._tagged.problem is not None:
            return f"its tables can't be looked for: {self._tagged.problem}"
        return "" if self.supervised.has_begun else "its tables are looked for"

    # ---- tagged.Hooks

    async def discover(self) -> list[str]:
        return await discover(self._service.config, self._pipeline, self._calls)

    async def is_first(self) -> bool:
        """A mark at the sinks says that the tables were looked for once, so that those found
        later (after a restart, too) begin at their oldest record. With the mark at one of them
        it isn't the first time: the others came later."""
        service = self._service
        # No table has such a name.
        marked = self._pipeline.model_copy(update={"name": f"{self._pipeline.name}/*"})
        first: list[bool] = []
        for made in make_sinks(service.config, marked, service.owner, "").values():
            async with closing(made) as sink:
                await sink.open([])
                first.append(await sink.begin(_TAGS, {}))
        return all(first)

    def begun(self) -> None:
        self.supervised.begun()

    def make(self, tables: Sequence[str], *, is_later: bool) -> Supervised:
        pipeline = self._pipeline.found(tables, is_later=is_later)

        async def resolved() -> PipelineConfig:
            if isinstance(pipeline.source, SourceConfig) and pipeline.source.stream is None:
                return pipeline.found_in(await self._stream_of(pipeline))
            return pipeline

        runs = self._service.show(Runs(self._service, pipeline, resolved, self._room))
        self._runs[runs.supervised] = runs
        return runs.supervised

    def drop(self, supervised: Supervised) -> None:
        self._streams.pop(supervised.name, None)
        self._service.hide(self._runs.pop(supervised))

    async def _stream_of(self, pipeline: PipelineConfig) -> str:
        """The stream that its table writes to. Two readers of one would take the consumer from
        each other."""
        (table,) = pipeline.listed_tables
        settings = source_settings(self._service.config, pipeline, self._calls)
        stream = await active_destination(settings, table)
        for other, theirs in self._streams.items():
            if theirs == stream and other != pipeline.name:
                raise FatalError(
                    "stream_shared",
                    f"table {table} writes to {stream}, which {other} reads already. What to do: "
                    "name the stream with `stream:` at the source, so that it is read once for "
                    "all tables of the tags.",
                )
        self._streams[pipeline.name] = stream
        return stream


# ---- what the settings name


def configured_start(pipeline: PipelineConfig) -> Start | None:
    """Where the pipeline is told to begin; None where it says nothing."""
    is_said = "start" in pipeline.source.model_fields_set
    return parse_start(pipeline.source.start) if is_said else None


def source_settings(
    config: Config, pipeline: PipelineConfig, calls: APICalls | None = None
) -> AWSSettings:
    """How the pipeline's stream is reached, and who counts the calls."""
    settings = (pipeline.source.aws or config.aws).model_dump()
    return AWSSettings(**settings, calls=calls or APICalls())


async def discover(
    config: Config, pipeline: PipelineConfig, calls: APICalls | None = None
) -> list[str]:
    """The tables that the pipeline's tags and patterns find now, sorted."""
    tagged = pipeline.tagged
    assert tagged is not None, f"{pipeline.name} lists its tables"
    found = await tagged_tables(source_settings(config, pipeline, calls), tagged.tags)
    return sorted(selected(found, tagged.include, tagged.exclude))


def make_source(
    config: Config, pipeline: PipelineConfig, clock: Clock, *, calls: APICalls | None = None
) -> KinesisSource | KinesisPollingSource | FallbackSource | StreamsSource:
    """The pipeline's source, not opened."""
    settings, source = source_settings(config, pipeline, calls), pipeline.source
    if isinstance(source, StreamsSourceConfig):
        return StreamsSource(
            settings,
            source.stream or pipeline.listed_tables[0],
            clock,
            options=StreamsOptions.idling(source.idle_seconds_max),
        )
    fan_out = KinesisSource(settings, source.named_stream, config.consumer_name(pipeline), clock)
    pace = PaceLimits(idle_seconds_max=source.idle_seconds_max)
    polling = KinesisPollingSource(settings, source.named_stream, clock, options=PollOptions(pace))
    match source.mode:
        case "fan_out":
            return fan_out
        case "polling":
            return polling
        case "auto":
            return FallbackSource(fan_out, polling, clock)


def make_sink(
    config: Config,
    pipeline: PipelineConfig,
    settings: SinkConfig,
    owner: str,
    store_id: str,
    windows: Windows | None = None,
) -> ShownSink[Any]:
    """One of the pipeline's sinks, not opened. `windows`: see `SinkPlace`."""
    aws = (getattr(settings, "aws", None) or config.aws).model_dump()
    name = config.sink_name(pipeline, settings)
    tables = () if pipeline.tagged else pipeline.table_names
    place = SinkPlace(name, owner, store_id, AWSSettings(**aws, calls=APICalls()), tables)
    if windows is not None:
        place = replace(place, windows=windows)
    return sinks.make_sink(settings, place)


def make_sinks(
    config: Config,
    pipeline: PipelineConfig,
    owner: str,
    store_id: str,
    windows: Windows | None = None,
) -> dict[str, ShownSink[Any]]:
    """All the pipeline's sinks by their names, not opened."""
    return {
        each.name: make_sink(config, pipeline, each, owner, store_id, windows)
        for each in pipeline.sinks
    }


def lease_file(config: Config) -> Path:
    """Where the SQLite lease store lives."""
    return config.state_directory / "leases.sqlite"


@asynccontextmanager
async def open_store(config: Config) -> AsyncIterator[SQLiteLeaseStore]:
    """The lease store, open."""
    store = SQLiteLeaseStore(lease_file(config))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


class _Closable(Protocol):
    async def close(self) -> None: ...


CloseT = TypeVar("CloseT", bound=_Closable)


@asynccontextmanager
async def closing(thing: CloseT) -> AsyncIterator[CloseT]:
    """Closes a source or sink at the end, and doesn't wait for a stalled other side."""
    try:
        yield thing
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await thing.close()


# ---- the process


def run(config: Config) -> int:
    """Runs the service until a signal; gives the exit code."""
    # Every subscription holds a socket; the usual soft limit is far below the hard one.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run_until_signal(config))


async def _run_until_signal(config: Config) -> int:
    service = Service(config)
    stopping = asyncio.Event()
    work = asyncio.ensure_future(service.run(stopping))

    def on_signal(name: str) -> None:
        if stopping.is_set():
            log.warning("aborting", signal=name)
            work.cancel()
        else:
            log.info("draining", signal=name, timeout_seconds=config.drain_timeout_seconds)
            stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        await work
    except asyncio.CancelledError:
        return EXIT_FAILED
    except DrainTimeout as error:
        log.error("drain_timeout", reason=str(error))
        return EXIT_DRAIN_TIMEOUT
    except ReplicatorError as error:
        log.error("failed", code=error.code, reason=error.message)
        return EXIT_FAILED
    except Exception:
        # The supervisor: a bug ends the process with its trace; the sink's position stands.
        log.exception("crashed")
        return EXIT_FAILED
    stats = service.stats
    log.info(
        "drained",
        changes=stats.changes,
        rows=stats.rows,
        duplicates=stats.duplicates,
        superseded=stats.superseded,
        dropped=dict(stats.dropped),
        dead_letters=stats.dead_letters,
    )
    return EXIT_DRAINED
