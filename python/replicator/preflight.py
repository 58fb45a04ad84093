"""`check`: what a run would meet. It connects to both sides and only looks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from replicator.beginning import require_sink_start
from replicator.config import Config, PipelineConfig, StreamsSourceConfig
from replicator.core import gap
from replicator.core.start import (
    incomparable,
    reach_us,
    require_comparable,
    require_start,
    resolved,
)
from replicator.errors import ReplicatorError
from replicator.model import TRIM_HORIZON, Ago, Position, SinkHeld, Start, Stream, TableSchema
from replicator.protocols import Expiring, ShownSink, Source
from replicator.service import (
    SystemClock,
    closing,
    configured_start,
    make_sinks,
    make_source,
    source_settings,
)
from replicator.settings import SinkConfig, parse_start
from replicator.source.fallback import FallbackSource
from replicator.source.kinesis import KinesisSource
from replicator.source.kinesis_polling import KinesisPollingSource
from replicator.source.streams import StreamsSource, view_type_problem
from replicator.source.tables import describe_tables, destinations
from replicator.tables import expand, with_stream

MARKS = {"ok": "ok      ", "todo": "would do", "warning": "warning ", "problem": "PROBLEM "}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check: `level` is ok, todo (run would do it), warning or problem."""

    pipeline: str
    subject: str
    level: str
    message: str
    code: str = ""
    ddl: str = ""


@dataclass(slots=True)
class CheckReport:
    """All findings, in the order of looking."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """True when run would start."""
        return all(finding.level != "problem" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {"ok": self.is_ok, "findings": [asdict(finding) for finding in self.findings]}

    def as_text(self) -> str:
        """For people."""
        lines = []
        for finding in self.findings:
            lines.append(f"{MARKS[finding.level]}  {finding.pipeline}: {finding.message}")
            lines += [f"              {line}" for line in finding.ddl.splitlines()]
        lines.append("ready to run" if self.is_ok else "not ready: mend what is marked PROBLEM")
        return "\n".join(lines)


class _Checks:
    def __init__(self, config: Config, pipeline: PipelineConfig, report: CheckReport) -> None:
        self._config = config
        self._pipeline = pipeline
        self._report = report

    def say(self, subject: str, level: str, message: str, code: str = "", ddl: str = "") -> None:
        self._report.findings.append(
            Finding(self._pipeline.name, subject, level, message, code, ddl)
        )

    async def attempt(self, subject: str, look: Callable[[], Awaitable[None]]) -> bool:
        """One look; what it raises is a finding (and False), and the next look goes on."""
        try:
            await look()
        except ReplicatorError as error:
            self.say(subject, "problem", error.message, error.code)
            return False
        return True

    async def run(self) -> None:
        """Looks at the source, its tables and the sinks."""
        if await self.attempt("source", self._at_stream):
            await self._at_all()

    async def _at_stream(self) -> None:
        self._pipeline = await with_stream(self._config, self._pipeline)

    async def _at_all(self) -> None:
        config, pipeline = self._config, self._pipeline
        source = make_source(config, pipeline, SystemClock())
        sinks = make_sinks(config, pipeline, owner="check", store_id="")
        tables: list[TableSchema] = []
        stream: list[Stream] = []

        async def at_tables() -> None:
            settings = source_settings(config, pipeline)
            tables.extend(await describe_tables(settings, pipeline.listed_tables))
            for table in tables:
                keys = ", ".join(f"{name} ({kind})" for name, kind in table.keys)
                self.say("table", "ok", f"table {table.name}: key {keys}")

        async def at_source() -> None:
            stream.extend(await self._at_any_source(source))

        async def at_start() -> None:
            await self._at_start(source, sinks, stream[0], tables)

        async def at_destination() -> None:
            await self._at_destinations(stream[0])

        async with AsyncExitStack() as stack:
            await self.attempt("on_gap", self._at_policy)
            await stack.enter_async_context(closing(source))
            for sink in sinks.values():
                await stack.enter_async_context(closing(sink))
            await self.attempt("table", at_tables)
            await self.attempt("source", at_source)
            if stream:
                await self.attempt("start", at_start)
            if stream and tables:
                await self.attempt("destination", at_destination)
            for name, sink in sinks.items() if tables else ():
                await self.attempt("sink", partial(self._at_sink, name, sink, tables))

    async def _at_any_source(
        self,
        source: KinesisSource | KinesisPollingSource | FallbackSource | StreamsSource,
    ) -> list[Stream]:
        """The stream, if it can be read."""
        if isinstance(source, StreamsSource):
            return await self._at_table_stream(source)
        return [await self._at_source(source)]

    async def _at_source(
        self, source: KinesisSource | KinesisPollingSource | FallbackSource
    ) -> Stream:
        consumer: ReplicatorError | str | None = None
        if isinstance(source, KinesisPollingSource):
            stream = await source.open()
        else:
            stream, consumer = await source.look()
        shards = await source.shards()
        opened = sum(shard.is_open for shard in shards)
        self.say(
            "source",
            "ok",
            f"stream {stream.name}: {len(shards)} shards, {opened} open, first start "
            f"{parse_start(self._pipeline.source.start)}",
        )
        if isinstance(source, KinesisPollingSource):
            self.say("source", "ok", "mode polling: read by GetRecords, without a consumer")
            return stream
        mode = self._pipeline.source.mode
        if isinstance(consumer, ReplicatorError):
            self.say(
                "source",
                "warning",
                f"mode {mode}: the stream would be polled, since fan-out can't be had: "
                f"{consumer.message}",
                consumer.code,
            )
        elif consumer is None:
            rest = "; where it can't be, the stream is polled" if mode == "auto" else ""
            self.say(
                "source",
                "todo",
                f"mode {mode}: consumer {source.consumer_name} would be registered{rest}",
            )
        else:
            self.say("source", "ok", f"mode {mode}: consumer {source.consumer_name} is {consumer}")
        return stream

    async def _at_table_stream(self, source: StreamsSource) -> list[Stream]:
        found = await source.look()
        arn = found.stream.arn
        if found.status not in {"ENABLED", "ENABLING"}:
            self.say(
                "source",
                "warning",
                f"stream {arn} is {found.status}: it is kept for 24 hours, and nothing new comes",
                "stream_disabled",
            )
        if (problem := view_type_problem(found.view_type)) is not None:
            self.say("source", "problem", f"stream {arn}: {problem}", "view_type_unusable")
            return []
        await source.open()
        shards = await source.shards()
        opened = sum(shard.is_open for shard in shards)
        self.say(
            "source",
            "ok",
            f"stream {arn}: {len(shards)} shards, {opened} open, first start "
            f"{parse_start(self._pipeline.source.start)}",
        )
        note = {
            "NEW_IMAGE": "enough here, since sequence numbers decide the order; what an item was "
            "before a change is not told (a filter or a log that wants old images needs "
            "NEW_AND_OLD_IMAGES)",
            "NEW_AND_OLD_IMAGES": "items before and after each change",
        }[found.view_type]
        self.say("source", "ok", f"view type {found.view_type}: {note}")
        self.say(
            "source",
            "ok",
            "no more than two processes may read a shard at once: this one, and one more (a Lambda "
            "trigger counts)",
        )
        # Reading needs a permission that listing doesn't.
        if shards:
            await source.try_reading(shards[-1].id)
            self.say("source", "ok", "listing and reading are permitted")
        return [found.stream]

    async def _at_policy(self) -> None:
        gap.require_policy(self._pipeline.on_gap)

    async def _at_start(
        self,
        source: Source,
        sinks: Mapping[str, ShownSink[Any]],
        stream: Stream,
        tables: Sequence[TableSchema],
    ) -> None:
        """As `run` does it: a stream that was begun goes on at its positions, wherever its start
        is; any other has to fit what the tables hold, and a sink that joins others says where."""
        held: dict[str, SinkHeld] = {}
        for name, sink in sinks.items():
            with suppress(ReplicatorError):  # the sink has a look of its own
                held[name] = await sink.held(stream, tables)
        for each in held.values():
            require_comparable(stream.arn, each.rivals)
        new = {name: each for name, each in held.items() if not each.is_known}
        await self._at_ages(source, sinks, held, tables)
        for settings in self._pipeline.sinks:
            if settings.name in new and (len(new) < len(held) or settings.begins == "snapshot"):
                await self._at_joining(source, settings, stream, held[settings.name])
        if len(new) < len(held):
            return
        start = configured_start(self._pipeline)
        for each in new.values():
            if each.holds_data:
                name = self._config.qualified_name(self._pipeline)
                require_start(name, stream, start, each.begun)
            elif left := incomparable(stream.arn, each.begun):
                self.say(
                    "start",
                    "warning",
                    f"the tables are empty: {stream.arn} would be begun, the rest of "
                    f"{', '.join(left)} isn't read",
                    "stream_replaced",
                )
        await self._at_kept(source, start or TRIM_HORIZON)

    async def _at_ages(
        self,
        source: Source,
        sinks: Mapping[str, ShownSink[Any]],
        held: Mapping[str, SinkHeld],
        tables: Sequence[TableSchema],
    ) -> None:
        """Whether the sinks keep all that may be read: of a stream that was begun that is whatever
        it keeps, after a long pause or when a position is set back."""
        is_begun = any(each.is_known for each in held.values())
        for settings in self._pipeline.sinks:
            sink, start = sinks[settings.name], configured_start(self._pipeline) or TRIM_HORIZON
            if settings.name not in held or not isinstance(sink, Expiring):
                continue
            if held[settings.name].is_known:
                start = TRIM_HORIZON
            elif is_begun:
                if not isinstance(settings.begins, Position | Ago):
                    continue  # where the others stand
                start = settings.begins
            horizon = await source.horizon()
            reach = reach_us(resolved(start, horizon.now_us), horizon)
            for each in await sink.expiring(tables, reach):
                self.say("start", "warning", f"sink {settings.name}: {each.message}", each.code)

    async def _at_joining(
        self, source: Source, settings: SinkConfig, stream: Stream, held: SinkHeld
    ) -> None:
        if held.holds_data:
            require_comparable(stream.arn, held.begun)
        start = require_sink_start(self._pipeline.name, settings.name, settings.begins)
        if start != "now":
            assert start != "snapshot"
            await self._at_kept(source, start)
        self.say("start", "todo", f"sink {settings.name} would join the others from {start}")

    async def _at_kept(self, source: Source, start: Start) -> None:
        horizon = await source.horizon()
        gap.require_kept(resolved(start, horizon.now_us), horizon)

    async def _at_destinations(self, stream: Stream) -> None:
        if isinstance(self._pipeline.source, StreamsSourceConfig):
            return  # the stream is the table's own
        settings = source_settings(self._config, self._pipeline)
        for table in self._pipeline.listed_tables:
            status = (await destinations(settings, table)).get(stream.arn)
            if status == "ACTIVE":
                self.say("destination", "ok", f"table {table} writes to stream {stream.name}")
            else:
                self.say(
                    "destination",
                    "warning",
                    f"table {table} does not write to stream {stream.name} "
                    f"({'no destination' if status is None else status}): run aws dynamodb "
                    f"enable-kinesis-streaming-destination --table-name {table} "
                    f"--stream-arn {stream.arn}",
                    "destination_missing",
                )

    async def _at_sink(self, name: str, sink: ShownSink[Any], tables: list[TableSchema]) -> None:
        planned = await sink.plan(tables)
        self.say("sink", "ok", f"sink {name}: {planned.server}")
        for finding in planned.findings:
            if finding.code:
                level = "warning" if finding.is_warning else "problem"
                self.say("sink", level, finding.message, finding.code)
            elif not finding.ddl:
                self.say("sink", "ok", finding.message)
            elif planned.creates:
                message = f"{finding.message}; run would create it"
                self.say("sink", "todo", message, ddl=finding.ddl)
            else:
                level = "problem" if finding.is_required else "warning"
                message = f"{finding.message} and the sink has create: false; run"
                self.say("sink", level, message, "table_missing", finding.ddl)


async def _found(
    config: Config, pipeline: PipelineConfig, report: CheckReport
) -> list[PipelineConfig]:
    """What of the pipeline is to be looked at; of one with tags, what they find now."""
    checks = _Checks(config, pipeline, report)
    found: list[PipelineConfig] = []
    before = len(report.findings)

    async def at_tags() -> None:
        found.extend(await expand(config, pipeline))

    await checks.attempt("table", at_tags)
    if pipeline.tagged is not None and len(report.findings) == before:
        names = [name for each in found for name in each.table_names]
        level = "ok" if names else "warning"
        listed = f": {', '.join(names)}" if names else ""
        checks.say("table", level, f"its tags find {len(names)} tables{listed}")
    return found


async def look(config: Config) -> CheckReport:
    """Looks at everything a run needs and changes nothing. Never raises for what it
    finds: that is in the report."""
    report = CheckReport()
    for pipeline in config.pipelines:
        for each in await _found(config, pipeline, report):
            await _Checks(config, each, report).run()
    return report


def check(config: Config) -> CheckReport:
    """See `look`."""
    return asyncio.run(look(config))
