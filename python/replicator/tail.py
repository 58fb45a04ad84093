"""The changes of a stream as JSON lines, from a position on, without a sink and without a lease.

Parents come before their children, as in a worker; nothing is stored. Kinesis is polled: enhanced
fan-out would end the subscription of a worker that reads as the same consumer.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import structlog

from replicator import _core
from replicator.aws import AWSSettings
from replicator.config import Config, StreamsSourceConfig
from replicator.core import gap, lineage
from replicator.core.retry import Backoff
from replicator.core.start import first_starts, resolved
from replicator.errors import TransientError, one_cause
from replicator.inspect import rejection_line
from replicator.model import SHARD_END, TRIM_HORIZON, Fetch, Position, Shard, Start
from replicator.protocols import Clock, Source
from replicator.service import SystemClock, closing, make_source, source_settings
from replicator.settings import parse_start
from replicator.source.kinesis_polling import KinesisPollingSource
from replicator.stopping import unless_stopped
from replicator.tables import chosen

log = structlog.get_logger()

Form = Literal["plain", "dynamodb", "debezium", "change"]
_BACKOFF = Backoff(base_seconds=0.5, cap_seconds=10.0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to show: `limit` None means all of it, for ever."""

    start: Start
    form: Form = "plain"
    pattern: _core.Pattern | None = None
    limit: int | None = None


class Output:
    """Where whole batches of lines go; both calls may block."""

    def __init__(self, lines: Callable[[bytes], Any], refused: Callable[[bytes], Any]) -> None:
        self.lines = lines
        self.refused = refused


async def source_of(config: Config | None, pipeline: str | None, stream: str | None) -> Source:
    """The source to read, not opened: a pipeline's, by name (or the only one), or any stream.
    Raises as `tables.chosen`."""
    clock = SystemClock()
    if stream is not None:
        settings = AWSSettings() if config is None else AWSSettings(**config.aws.model_dump())
        return KinesisPollingSource(settings, stream, clock)
    assert config is not None
    named = await chosen(config, pipeline)
    if isinstance(named.source, StreamsSourceConfig):
        return make_source(config, named, clock)
    return KinesisPollingSource(source_settings(config, named), named.source.named_stream, clock)


async def tail(
    source: Source, wanted: Wanted, output: Output, stopping: asyncio.Event, clock: Clock
) -> int:
    """Writes until `stopping`, until the limit is reached, or until every shard has ended;
    gives the number of refused records.

    Raises what the source can't go on after, and what `output` raises (BrokenPipeError)."""
    async with closing(source):
        reading = _Tail(source, wanted, output, stopping, clock)
        with one_cause():
            await reading.run()
        return reading.refused


class _Tail:
    def __init__(
        self,
        source: Source,
        wanted: Wanted,
        output: Output,
        stopping: asyncio.Event,
        clock: Clock,
    ) -> None:
        self.refused = 0
        self._source = source
        self._wanted = wanted
        self._output = output
        self._stopping = stopping
        self._clock = clock
        self._left = wanted.limit
        self._lineage = lineage.Lineage()
        self._positions: dict[str, Position] = {}
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        if (shards := await unless_stopped(self._stopping, self._open())) is not None:
            await unless_stopped(self._stopping, self._follow(shards))

    async def _open(self) -> list[Shard]:
        await self._source.open()
        horizon = await self._source.horizon()
        start = resolved(self._wanted.start, horizon.now_us)
        gap.require_kept(start, horizon)
        shards = list(await self._source.shards())
        self._positions.update(first_starts(shards, start))
        return shards

    async def _follow(self, shards: list[Shard]) -> None:
        async with asyncio.TaskGroup() as group:
            await self._apply(lineage.Discovered(shards, self._positions), group)

    async def _apply(self, event: lineage.Event, group: asyncio.TaskGroup) -> None:
        for action in self._lineage.step(event):
            if isinstance(action, lineage.Readable):
                group.create_task(self._read(action.shard_id, group))
            elif isinstance(action, lineage.ListAgain):
                shards = await self._source.shards()
                await self._apply(lineage.Discovered(shards, self._positions), group)

    async def _read(self, shard_id: str, group: asyncio.TaskGroup) -> None:
        self._lineage.step(lineage.Started(shard_id))
        position = self._positions.get(shard_id, TRIM_HORIZON)
        attempt = 0
        while True:
            try:
                async with aclosing(self._source.read(shard_id, position)) as fetches:
                    async for fetch in fetches:
                        await self._show(fetch)
                        position, attempt = fetch.next, 0
                        if position == SHARD_END:
                            self._positions[shard_id] = SHARD_END
                            await self._apply(lineage.Ended(shard_id, fetch.children), group)
                            await self._apply(lineage.DurableEnd(shard_id), group)
                            return
                if position == SHARD_END:  # by its start: it lies before it
                    await self._apply(lineage.Stored(shard_id, SHARD_END), group)
                    return
            except TransientError as error:
                log.warning("retrying", shard=shard_id, code=error.code, reason=error.message)
                wait = _BACKOFF.next(attempt, 0.5, error.retry_after_seconds)
                attempt += 1
                await self._clock.sleep(wait)

    async def _show(self, fetch: Fetch) -> None:
        if not len(fetch.records):
            return
        batch = await asyncio.to_thread(_core.decode, fetch.records, table=fetch.table)
        if self._wanted.pattern is not None:
            batch = batch.filter(self._wanted.pattern)
        lines = batch.json_lines(self._wanted.form)
        # One write after the other: a batch is never torn apart by a neighbour's.
        async with self._writing:
            if self._left is not None:
                if self._left < len(batch):
                    lines = b"".join(lines.splitlines(keepends=True)[: self._left])
                self._left -= min(self._left, len(batch))
            if lines:
                await asyncio.to_thread(self._output.lines, lines)
            if batch.rejections:
                self.refused += len(batch.rejections)
                refused = b"".join(map(rejection_line, batch.rejections))
                await asyncio.to_thread(self._output.refused, refused)
            if self._left == 0:
                self._stopping.set()


def wanted(start: str, form: Form, filters: Sequence[str], limit: int | None) -> Wanted:
    """What the texts of a command line ask for. Raises ValueError that names the option."""
    try:
        pattern = _core.Pattern(filters) if filters else None
    except ValueError as error:
        raise ValueError(f"--filter: {error}") from None
    try:
        return Wanted(parse_start(start), form, pattern, limit)
    except ValueError as error:
        raise ValueError(f"--from: {error}") from None


def main(source: Source, wanted: Wanted, stdout: BinaryIO, stderr: BinaryIO) -> int:
    """Runs `tail` until SIGINT or SIGTERM; gives the exit code, 1 when a record was refused.
    A reader of `stdout` that has enough (`head`) ends it quietly. Raises as `tail`."""

    def written(to: BinaryIO) -> Callable[[bytes], None]:
        def write(data: bytes) -> None:
            to.write(data)
            to.flush()

        return write

    async def run() -> int:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        output = Output(written(stdout), written(stderr))
        return await tail(source, wanted, output, stopping, SystemClock())

    try:
        return 1 if asyncio.run(run()) else 0
    except BrokenPipeError:
        # It must not be flushed again at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 0
