"""Dead letters by hand: listed, shown, written again, dropped; at the sinks that offer it."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from replicator.config import Config, PipelineConfig
from replicator.errors import FatalError, ReplicatorError
from replicator.model import StoredLetter
from replicator.protocols import Redriven
from replicator.service import closing, make_sink
from replicator.settings import SinkConfig
from replicator.tables import expanded

log = structlog.get_logger()

_OWNER = "dead-letters"
# Where they are looked at, at the others.
_PLACES = {
    "postgres": "ask the table replicator_dead_letters",
    "cratedb": "ask the table replicator_dead_letters",
    "s3": "read the objects under its error_output_prefix",
}

Confirm = Callable[[str], bool]


@dataclass(slots=True)
class Listed:
    """What waits at the sinks that can say; `notes` names the others, `problems` those that
    couldn't be read."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`, without the records themselves."""
        return {"dead_letters": self.rows, "notes": self.notes, "problems": self.problems}

    def as_text(self) -> str:
        """For people."""
        lines = [*self.problems, *(_line(row) for row in self.rows), *self.notes]
        return "\n".join(lines) if lines else "no dead letters"


@dataclass(frozen=True, slots=True)
class Ended:
    """What was written again or dropped at one sink."""

    done: str
    rows: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {"done": self.done, "dead_letters": self.rows}

    def as_text(self) -> str:
        """For people."""
        return "\n".join([f"{self.done}: {len(self.rows)}", *(_line(row) for row in self.rows)])


async def listed(config: Config, pipeline: str | None, sink: str | None) -> Listed:
    """What waits at every sink of the configuration, of one pipeline, or at those of one name.
    Raises FatalError for a pipeline or sink that isn't there."""
    found = Listed()
    config = await expanded(config)
    for one, settings in config.sinks(pipeline, sink):
        name = f"{one.name}/{settings.name}"
        async with closing(make_sink(config, one, settings, _OWNER, "")) as opened:
            if not isinstance(opened, Redriven):
                found.notes.append(_elsewhere(name, settings))
                continue
            try:
                letters = await opened.letters()
            except ReplicatorError as error:
                found.problems.append(f"{name}: {error}")
                continue
        found.rows += [_row(one, settings, letter) for letter in letters]
    return found


async def shown(
    config: Config, pipeline: str | None, sink: str | None, letter_id: str
) -> dict[str, Any]:
    """One of them with its record: `raw`, and in base64 what isn't UTF-8. Raises FatalError
    when it isn't there."""
    async with _at(config, pipeline, sink) as (one, settings, opened):
        for letter in await opened.letters():
            if letter.id == letter_id:
                return _row(one, settings, letter) | _record(letter.raw)
    raise FatalError("usage_letter", f"no dead letter {letter_id} waits at sink {settings.name}")


async def end(
    config: Config,
    pipeline: str | None,
    sink: str | None,
    ids: Sequence[str],
    confirm: Confirm,
    *,
    redrive: bool,
) -> Ended | None:
    """Writes these (all, without ids) again, or drops them; see `Redriven.end_letters`. None
    when `confirm` says no. Raises FatalError, and LeaseLost when a worker took the shard
    meanwhile: then nothing of that shard was done."""
    async with _at(config, pipeline, sink) as (one, settings, opened):
        what = ", ".join(ids) if ids else "all dead letters"
        verb = "written again" if redrive else "dropped for good"
        if not confirm(
            f"{one.name}/{settings.name}: {what}, and what waits behind, will be {verb}"
        ):
            return None
        owner = f"{_OWNER}:{socket.gethostname()}:{os.getpid()}"
        letters = await opened.end_letters(ids, owner, redrive=redrive)
        name = config.qualified_name(one)
        done = "redriven" if redrive else "dropped"
        for letter in letters:
            log.warning("dead_letter_ended", pipeline=name, done=done, letter=letter.id)
        return Ended(done, tuple(_row(one, settings, letter) for letter in letters))


@asynccontextmanager
async def _at(
    config: Config, pipeline: str | None, sink: str | None
) -> AsyncIterator[tuple[PipelineConfig, SinkConfig, Redriven]]:
    config = await expanded(config)
    one = config.pipeline(pipeline)
    settings = one.sink(sink)
    async with closing(make_sink(config, one, settings, _OWNER, "")) as opened:
        if not isinstance(opened, Redriven):
            raise FatalError("usage_sink", _elsewhere(f"{one.name}/{settings.name}", settings))
        yield one, settings, opened


def _elsewhere(name: str, settings: SinkConfig) -> str:
    place = _PLACES.get(settings.kind, "look where it keeps them")
    return f"sink {name} ({settings.kind}) doesn't show its dead letters here: {place}"


def _row(pipeline: PipelineConfig, sink: SinkConfig, letter: StoredLetter) -> dict[str, Any]:
    members = asdict(letter)
    del members["raw"]
    return {"pipeline": pipeline.name, "sink": sink.name, **members}


def _record(raw: bytes) -> dict[str, str]:
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode()}


def _line(row: dict[str, Any]) -> str:
    held = "  its key waits" if row["is_held"] else ""
    return (
        f"{row['pipeline']}/{row['sink']}  {row['id']}  {row['at']}  {row['code']}  "
        f"{row['table'] or 'no table'}  {row['key'] or 'no key'}{held}"
    )
