"""Dead letters by hand: listed and shown; written again or dropped at the sinks that offer it."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from replicator.config import Config, PipelineConfig
from replicator.errors import FatalError, ReplicatorError
from replicator.model import LetterOutcome, StoredLetter, TableSchema
from replicator.protocols import Redriven, ShownSink
from replicator.service import closing, make_sink, source_settings
from replicator.settings import SinkConfig
from replicator.source.tables import describe_tables
from replicator.tables import expanded

log = structlog.get_logger()

_OWNER = "dead-letters"
# Where they end at the others, for which nothing waits.
_ELSEWHERE = {
    "iceberg": "delete the row from its dead letters' table",
    "s3": "remove its object under error_output_prefix",
}
_REASONS = {
    LetterOutcome.DUPLICATE: "its change is there already",
    LetterOutcome.SUPERSEDED: "a newer change of its key is there: nothing was written",
    LetterOutcome.GONE: "somebody else ended it meanwhile",
}

Confirm = Callable[[str], bool]


@dataclass(slots=True)
class Listed:
    """What waits at the sinks; `problems` names those that couldn't be read."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`, without the records themselves."""
        return {"dead_letters": self.rows, "problems": self.problems}

    def as_text(self) -> str:
        """For people."""
        lines = [*self.problems, *(_line(row) for row in self.rows)]
        return "\n".join(lines) if lines else "no dead letters"


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of those that were to be written again or dropped, at one sink."""

    done: str
    rows: tuple[dict[str, Any], ...]

    @property
    def left(self) -> int:
        """How many were refused, and stay."""
        return sum(row["outcome"] == LetterOutcome.REFUSED for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {"done": self.done, "dead_letters": self.rows}

    def as_text(self) -> str:
        """For people."""
        first = f"{self.done}: {len(self.rows) - self.left}"
        if self.left:
            first += f"; {self.left} stay"
        return "\n".join([first, *map(_ended_line, self.rows)])


async def listed(config: Config, pipeline: str | None, sink: str | None) -> Listed:
    """What waits at every sink of the configuration, of one pipeline, or at those of one name.
    Raises FatalError for a pipeline or sink that isn't there."""
    found = Listed()
    config = await expanded(config)
    for one, settings in config.sinks(pipeline, sink):
        name = f"{one.name}/{settings.name}"
        async with closing(make_sink(config, one, settings, _OWNER, "")) as opened:
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
    """Writes these (all, without ids) again, or drops them; see `Redriven`. None when `confirm`
    says no. Raises FatalError, TransientError, and LeaseLost when a worker took the shard
    meanwhile; what was done by then is in the log."""
    async with _at(config, pipeline, sink) as (one, settings, opened):
        place = f"{one.name}/{settings.name}"
        if not isinstance(opened, Redriven):
            raise FatalError(
                "usage_sink",
                f"sink {place} ({settings.kind}) shows its dead letters and ends none. What to do: "
                "write its item in DynamoDB again where the change matters, and "
                + _ELSEWHERE.get(settings.kind, "remove it where it lies"),
            )
        what = ", ".join(ids) if ids else "all dead letters"
        verb = "written again" if redrive else "dropped for good"
        if not confirm(f"{place}: {what}, with any changes that wait behind, will be {verb}"):
            return None

        async def describe() -> Sequence[TableSchema]:
            return await describe_tables(source_settings(config, one), one.listed_tables)

        owner = f"{_OWNER}:{socket.gethostname()}:{os.getpid()}"
        ending = (
            opened.redrive_letters(ids, owner, describe)
            if redrive
            else opened.drop_letters(ids, owner)
        )
        rows = []
        name = config.qualified_name(one)
        async with aclosing(ending):
            async for each in ending:
                row = _row(one, settings, each.letter)
                reason = each.reason or _REASONS.get(each.outcome, "")
                rows.append(row | {"outcome": each.outcome, "reason": reason})
                log.warning(
                    "dead_letter_ended",
                    pipeline=name,
                    letter=each.letter.id,
                    outcome=each.outcome,
                )
        return Ended("redriven" if redrive else "dropped", tuple(rows))


@asynccontextmanager
async def _at(
    config: Config, pipeline: str | None, sink: str | None
) -> AsyncIterator[tuple[PipelineConfig, SinkConfig, ShownSink[Any]]]:
    config = await expanded(config)
    one = config.pipeline(pipeline)
    settings = one.sink(sink)
    async with closing(make_sink(config, one, settings, _OWNER, "")) as opened:
        yield one, settings, opened


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


def _ended_line(row: dict[str, Any]) -> str:
    reason = f": {row['reason']}" if row["reason"] else ""
    return f"{_line(row)}  {row['outcome']}{reason}"
