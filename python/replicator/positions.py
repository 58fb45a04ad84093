"""Positions by hand: shown, set, and set back to the oldest record.

A position is moved only where nobody reads: not while a worker renews the shard's lease, and
not shortly after somebody raised its fence or stored something (a worker whose lease store
can't be seen from here). That is looked at before the question is asked, and once more when
it was answered. Moving raises the fence, so that a worker that slept through all of this
writes nothing more.
"""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from replicator.config import Config, PipelineConfig
from replicator.core import gap
from replicator.core.start import first_starts, resolved, to_reset
from replicator.errors import FatalError, ReplicatorError
from replicator.model import (
    SHARD_END,
    TRIM_HORIZON,
    LeaseRow,
    Position,
    PositionKind,
    Shard,
    Stream,
)
from replicator.protocols import Clock, ShownSink, Source
from replicator.service import SystemClock, closing, make_sink, make_source, open_store
from replicator.settings import parse_start
from replicator.source.fallback import FallbackSource
from replicator.source.kinesis import KinesisSource
from replicator.tables import chosen, expanded

log = structlog.get_logger()

# A live worker stores the position of an idle shard twice as often.
FRESH_SECONDS = 30.0
_OWNER = "positions"

Confirm = Callable[["Move"], bool]


@dataclass(frozen=True, slots=True)
class Move:
    """What is to be changed at one sink: each shard's old and new position."""

    pipeline: str
    sink: str
    stream: str
    changes: tuple[tuple[str, str | None, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {
            "pipeline": self.pipeline,
            "sink": self.sink,
            "stream": self.stream,
            "shards": [{"shard": s, "old": old, "new": new} for s, old, new in self.changes],
        }

    def as_text(self) -> str:
        """For people, and for the question before it is done."""
        lines = [f"{self.pipeline}: positions of stream {self.stream} at sink {self.sink}"]
        lines += [f"  {s}  {old or 'no position'} -> {new}" for s, old, new in self.changes]
        return "\n".join(lines)


@dataclass(slots=True)
class Shown:
    """All positions of a configuration; `problems` are sinks that couldn't be read."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`; times in seconds."""
        return {"positions": self.rows, "problems": self.problems}

    def as_text(self) -> str:
        """For people."""
        lines = list(self.problems)
        for row in self.rows:
            age, lag = _seconds(row["age_seconds"]), _seconds(row["lag_seconds"])
            ended = row["position"] == str(SHARD_END)
            lines.append(
                f"{row['pipeline']}/{row['sink']}  {row['shard']}  "
                f"{row['position'] or 'no position yet'}  last record {age} old  "
                f"{'read to its end' if ended else f'complete up to {lag} ago'}  "
                f"epoch {row['epoch']}"
            )
        return "\n".join(lines) if lines else "no positions: nothing was read yet"


async def show(config: Config, pipeline: str | None = None, sink: str | None = None) -> Shown:
    """Every stored position of the configuration, of one pipeline, or of the sinks of one name.
    Raises FatalError for a pipeline that isn't there."""
    shown = Shown()
    config = await expanded(config)
    for one, settings in config.sinks(pipeline, sink):
        try:
            async with closing(make_sink(config, one, settings, _OWNER, "")) as opened:
                rows = (await opened.report()).positions
        except ReplicatorError as error:
            shown.problems.append(f"{one.name}/{settings.name}: {error}")
            continue
        shown.rows += [{"pipeline": one.name, "sink": settings.name, **row} for row in rows]
    return shown


async def set_position(
    config: Config,
    pipeline: str | None,
    shard_id: str,
    text: str,
    confirm: Confirm,
    clock: Clock | None = None,
    *,
    sink: str | None = None,
) -> Move | None:
    """Moves one shard, at one sink (it may be left out where there is only one), to the position
    that the text names: a start (times by the service's clock), or a position as `show` prints
    it. None when `confirm` says no.

    Raises FatalError when somebody reads the shard, or the position can't be."""
    async with _looking(config, pipeline, sink) as look:
        look.require_shard(shard_id)
        position = await _named(look, shard_id, text)
        return await _move(look, {shard_id: position}, confirm, clock or SystemClock())


async def reset(
    config: Config,
    pipeline: str | None,
    shard_id: str | None,
    confirm: Confirm,
    clock: Clock | None = None,
    *,
    sink: str | None = None,
) -> Move | None:
    """Moves a shard, or every listed one, at one sink back to its oldest record. With a shard
    go those descendants that have no position yet; one that is no longer listed counts as finished,
    so that its children are read. None when `confirm` says no. Raises as `set_position`."""
    async with _looking(config, pipeline, sink) as look:
        listed = [shard.id for shard in look.shards]
        if shard_id is None:
            wanted = dict.fromkeys(listed, TRIM_HORIZON)
        else:
            look.require_shard(shard_id)
            shards = to_reset(look.shards, shard_id, look.stored)
            wanted = {s: TRIM_HORIZON if s in listed else SHARD_END for s in shards}
        return await _move(look, wanted, confirm, clock or SystemClock())


# ---- what stands there


@dataclass(frozen=True, slots=True)
class _Look:
    config: Config
    pipeline: PipelineConfig
    sink_name: str
    source: Source
    sink: ShownSink[Any]
    stream: Stream
    shards: Sequence[Shard]
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def stored(self) -> dict[str, Position]:
        rows = self.rows.items()
        return {s: Position.parse(row["position"]) for s, row in rows if row["position"]}

    def require_shard(self, shard_id: str) -> None:
        known = {*self.rows, *(shard.id for shard in self.shards)}
        if shard_id not in known:
            near = difflib.get_close_matches(shard_id, sorted(known), n=1)
            hint = f"did you mean {near[0]}?" if near else "`replicator positions show` lists them"
            raise FatalError(
                "usage_shard", f"stream {self.stream.name} has no shard {shard_id}: {hint}"
            )


@asynccontextmanager
async def _looking(config: Config, name: str | None, sink_name: str | None) -> AsyncIterator[_Look]:
    pipeline = await chosen(config, name)
    settings = pipeline.sink(sink_name)
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(
            closing(make_source(config, pipeline, SystemClock()))
        )
        sink = await stack.enter_async_context(
            closing(make_sink(config, pipeline, settings, _OWNER, ""))
        )
        if isinstance(source, KinesisSource | FallbackSource):
            stream, _ = await source.look()  # `open` would register the consumer
        else:
            stream = await source.open()
        rows = await _rows(sink, stream)
        if not rows:
            raise FatalError(
                "position_unknown",
                f"pipeline {pipeline.name} has read nothing of stream {stream.name} into sink "
                f"{settings.name} yet: set where it begins with `start:` at its source, or with "
                "`from:` at a sink that joins others",
            )
        shards = await source.shards()
        yield _Look(config, pipeline, settings.name, source, sink, stream, shards, rows)


async def _rows(sink: ShownSink[Any], stream: Stream) -> Mapping[str, Mapping[str, Any]]:
    rows = (await sink.report()).positions
    return {row["shard"]: row for row in rows if row["stream_arn"] == stream.arn}


async def _named(look: _Look, shard_id: str, text: str) -> Position:
    try:
        position = Position.parse(text)
    except ValueError:
        try:
            start = parse_start(text)
        except ValueError as error:
            raise FatalError("usage_position", str(error)) from None
    else:
        start = position
    horizon = await look.source.horizon()
    position = resolved(start, horizon.now_us)
    gap.require_kept(position, horizon)
    if position.sequence_number is not None:
        shard = [shard for shard in look.shards if shard.id == shard_id]
        number = position.sequence_number
        at = Position(PositionKind.AT_SEQUENCE_NUMBER, sequence_number=number)
        first_starts(shard, at, shard_id=shard_id)  # raises when the shard doesn't hold it
    return position


# ---- moving


async def _move(
    look: _Look, wanted: Mapping[str, Position], confirm: Confirm, clock: Clock
) -> Move | None:
    shards = _concerned(look, wanted)
    held = await _require_no_reader(look, shards, clock)
    sink = look.sink_name
    name = look.config.qualified_name(look.pipeline)

    def described(old: Mapping[str, Position | None]) -> Move:
        changes = ((s, _text(old.get(s)), str(new)) for s, new in wanted.items())
        return Move(name, sink, look.stream.name, tuple(changes))

    if not confirm(described(look.stored)):
        return None
    # The question may have stood for long.
    _require_quiet(await _rows(look.sink, look.stream), shards)
    await _require_standing(look, shards, held)
    owner = f"{_OWNER}:{socket.gethostname()}:{os.getpid()}"
    done = described(await look.sink.move(look.stream, wanted, owner))
    for shard_id, before, after in done.changes:
        log.warning("position_moved", pipeline=name, shard=shard_id, old=before, new=after)
    return done


def _concerned(look: _Look, wanted: Mapping[str, Position]) -> set[str] | None:
    """The shards that nobody may read meanwhile; None for all. A shard that was finished is
    read by nobody, but every worker of the pipeline knows that, and would fail."""
    stored = look.stored
    returned = (s for s, to in wanted.items() if SHARD_END == stored.get(s) != to)
    return None if any(returned) else set(wanted)


async def _require_no_reader(
    look: _Look, shards: set[str] | None, clock: Clock
) -> Mapping[str, LeaseRow]:
    """The leases of the shards, which stand still. Raises FatalError that names who reads one."""
    _require_quiet(look.rows, shards)
    held = await _leases(look, shards)
    if not held:
        return held
    # Judged as workers do it: by a counter that stands still for as long as a lease lasts.
    wait = look.config.leases.duration_seconds * 1.1
    owners = ", ".join(sorted({str(row.owner) for row in held.values()}))
    log.warning("waiting", reason=f"to see whether {owners} is alive", seconds=round(wait, 1))
    await clock.sleep(wait)
    await _require_standing(look, shards, held)
    return held


def _require_quiet(rows: Mapping[str, Mapping[str, Any]], shards: set[str] | None) -> None:
    for shard_id, row in sorted(rows.items()):
        if shards is not None and shard_id not in shards:
            continue
        # A sink may not know of a finished shard who read it, and when.
        if row["owner"] and (row["stored_seconds"] or 0) < FRESH_SECONDS:
            owner, _, _ = row["owner"].rpartition("/")
            if not owner.startswith(f"{_OWNER}:"):
                raise FatalError(
                    "shard_in_use",
                    f"{shard_id} was fenced or written to {row['stored_seconds']:.0f} s ago by "
                    f"{owner}: {_stop(shards)}, and try again {FRESH_SECONDS:g} s after it ended",
                )


async def _require_standing(
    look: _Look, shards: set[str] | None, held: Mapping[str, LeaseRow]
) -> None:
    for shard_id, lease in (await _leases(look, shards)).items():
        before = held.get(shard_id)
        if before is None or (before.owner, before.counter) != (lease.owner, lease.counter):
            raise FatalError(
                "shard_in_use",
                f"{shard_id} is leased by {lease.owner}, which is alive: {_stop(shards)} "
                "(SIGTERM), and try again",
            )


def _stop(shards: set[str] | None) -> str:
    if shards is not None:
        return "stop that worker"
    return "stop every worker of the pipeline, which would fail when a finished shard returns"


async def _leases(look: _Look, shards: set[str] | None) -> dict[str, LeaseRow]:
    if not look.config.state_directory.is_dir():
        return {}
    async with open_store(look.config) as store:
        rows = await store.rows(look.config.qualified_name(look.pipeline))
    owned = (row for row in rows if row.owner)
    return {row.shard_id: row for row in owned if shards is None or row.shard_id in shards}


def _text(position: Position | None) -> str | None:
    return None if position is None else str(position)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
