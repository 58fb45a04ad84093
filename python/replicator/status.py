"""`status`: what each shard does now, asked of the process that runs, or where it stands in
the stores when none answers.

The admin address knows phases, lag and reasons. Without it the sink knows the positions, and
the lease store who reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import orjson

from replicator.config import Config, PipelineConfig
from replicator.errors import ReplicatorError
from replicator.model import LeaseRow
from replicator.service import closing, make_sink, open_store
from replicator.settings import SinkConfig
from replicator.tables import expand

# A process that runs answers in milliseconds; one that is stopped never.
ANSWER_SECONDS = 3.0


@dataclass(slots=True)
class PipelineStatus:
    """One pipeline at one of its sinks, as the stores show it; `sink` is empty where none could
    be asked."""

    name: str
    sink: str = ""
    shards: list[dict[str, Any]] = field(default_factory=list)
    dead_letters: dict[str, int] = field(default_factory=dict)
    problem: str = ""


@dataclass(slots=True)
class StatusReport:
    """All pipelines as the stores show them; `problem` says why nothing is known of their
    leases, `no_process` why no process was asked."""

    pipelines: list[PipelineStatus] = field(default_factory=list)
    problem: str = ""
    no_process: str = ""

    @property
    def is_complete(self) -> bool:
        """True when both the lease store and every sink could be read."""
        return not self.problem and not any(pipeline.problem for pipeline in self.pipelines)

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        pipelines = [asdict(pipeline) for pipeline in self.pipelines]
        return {
            "from": "stores",
            "no_process": self.no_process,
            "problem": self.problem,
            "pipelines": pipelines,
        }

    def as_text(self) -> str:
        """For people."""
        nobody = "unknown" if self.problem else "none"
        lines = [f"from the stores: {self.no_process}"] if self.no_process else []
        lines += [f"leases: {self.problem}"] if self.problem else []
        names = [pipeline.name for pipeline in self.pipelines]
        for pipeline in self.pipelines:
            name = pipeline.name
            if names.count(name) > 1:
                name = f"{name}/{pipeline.sink}"
            if pipeline.problem:
                lines.append(f"{name}: {pipeline.problem}")
                continue
            letters = sum(pipeline.dead_letters.values())
            lines.append(f"{name}: {len(pipeline.shards)} shards, {letters} dead letters")
            if pipeline.dead_letters:
                lines.append(f"  dead letters: {_counts(pipeline.dead_letters)}")
            lines += [
                f"  {shard['shard']}  {shard['position'] or 'no position yet'}"
                f"  owner {shard['lease_owner'] or nobody}  last record {shard['last_arrival_at']}"
                f"  stored {shard['updated_at']}"
                for shard in pipeline.shards
            ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """What a running process answered: see `/status` in `admin.py`."""

    url: str
    answer: dict[str, Any]

    @property
    def is_complete(self) -> bool:
        """Always: it answered."""
        return True

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {"from": self.url, **self.answer}

    def as_text(self) -> str:
        """For people."""
        lines = [f"from {self.url}: worker {self.answer['owner']}"]
        for pipeline in self.answer["pipelines"]:
            lines.append(
                f"{pipeline['name']}: {len(pipeline['shards'])} shards here, "
                f"{pipeline['changes']} changes, {pipeline['duplicates']} duplicates, "
                f"{sum(pipeline['dead_letters'].values())} dead letters, "
                f"{sum(pipeline['retries'].values())} retries"
            )
            if pipeline["unready"]:
                lines.append(f"  not ready: {pipeline['unready']}")
            lines += [
                f"  {name.replace('_', ' ')}: {_counts(pipeline[name])}"
                for name in ("dead_letters", "retries")
                if pipeline[name]
            ]
            lines += [
                f"  sink {sink['name']} FAILS for {_seconds(sink['failing_seconds'])}: "
                f"{sink['failing']}"
                for sink in pipeline["sinks"]
                if sink["failing"]
            ]
            if len(pipeline["sinks"]) > 1:
                lines += [
                    f"  sink {sink['name']}: {sink['changes']} changes, {sink['rows']} rows"
                    for sink in pipeline["sinks"]
                ]
            for gap in pipeline["stopped"]:
                lines.append(f"  GAP {gap['shard']}  {gap['position'] or 'no position'}")
                lines.append(f"    why: {gap['reason']}")
                lines.append(f"    what to do: {gap['action']}")
                if gap["held_up"]:
                    lines.append(f"    holds up {_some(gap['held_up'], gap['held_up_count'])}")
            for hole in pipeline["holes"]:
                names = _some(hole["shards"], hole["shards_count"]) or "no known shard"
                share = hole["hash_keys_percent"]
                lines.append(f"  HOLE {hole['cause']}  {names}  {share:g} % of the hash keys")
                lines.append(f"    what to do: {hole['action']}")
            for shard in pipeline["shards"]:
                lines.append(f"  {_shard(shard)}")
                if shard["why"]:
                    lines.append(f"    {shard['why']}")
        return "\n".join(lines)


def status(config: Config) -> LiveStatus | StatusReport:
    """Every pipeline: live from the process at the admin address, else positions, owners and
    dead letters from the stores. Never raises for a side that can't be read: its `problem` says
    why, and the others are shown."""
    return asyncio.run(look(config))


async def look(config: Config) -> LiveStatus | StatusReport:
    """See `status`."""
    asked = await _ask(config)
    if isinstance(asked, LiveStatus):
        return asked
    report = StatusReport(no_process=asked)
    leases: Mapping[tuple[str, str], LeaseRow] = {}
    pipelines: list[PipelineConfig] = []
    for pipeline in config.pipelines:
        try:
            pipelines += await expand(config, pipeline)
        except ReplicatorError as error:
            report.pipelines.append(PipelineStatus(pipeline.name, problem=str(error)))
    try:
        leases = await _leases(config, pipelines)
    except ReplicatorError as error:
        report.problem = str(error)
    for pipeline in pipelines:
        for settings in pipeline.sinks:
            report.pipelines.append(await _status(config, pipeline, settings, leases))
    return report


async def _ask(config: Config) -> LiveStatus | str:
    """The answer at the admin address, or why there is none."""
    if config.admin is None:
        return "the admin server is switched off (admin: null)"
    if config.admin.port == 0:
        return "the admin server's port is any free one (admin.port: 0); the log names it"
    url = config.admin.url
    try:
        # Never by a proxy of the environment.
        patience = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=patience, trust_env=False) as session,
            session.get(f"{url}/status") as response,
        ):
            answer = orjson.loads(await response.read())
    except (aiohttp.ClientError, OSError) as error:
        return f"no process answers at {url} ({str(error) or type(error).__name__})"
    except orjson.JSONDecodeError:
        return f"what listens at {url} is no replicator"
    if not isinstance(answer, dict) or "pipelines" not in answer:
        return f"what listens at {url} is no replicator"
    if answer["name"] != config.name:
        return f"the process at {url} runs {answer['name']!r}, not {config.name!r}"
    return LiveStatus(url, answer)


async def _leases(
    config: Config, pipelines: Iterable[PipelineConfig]
) -> dict[tuple[str, str], LeaseRow]:
    if not config.state_directory.is_dir():
        return {}
    async with open_store(config) as store:
        return {
            (name, row.shard_id): row
            for name in map(config.qualified_name, pipelines)
            for row in await store.rows(name)
        }


async def _status(
    config: Config,
    pipeline: PipelineConfig,
    settings: SinkConfig,
    leases: Mapping[tuple[str, str], LeaseRow],
) -> PipelineStatus:
    shown = PipelineStatus(pipeline.name, settings.name)
    name = config.qualified_name(pipeline)
    try:
        async with closing(make_sink(config, pipeline, settings, "status", "")) as sink:
            stored = await sink.report()
    except ReplicatorError as error:
        shown.problem = str(error)
        return shown
    for row in stored.positions:
        lease = leases.get((name, row["shard"]))
        shown.shards.append({**row, "lease_owner": None if lease is None else lease.owner})
    shown.dead_letters = dict(stored.dead_letters)
    return shown


def _shard(shard: Mapping[str, Any]) -> str:
    calls = shard["calls_per_hour"]
    return (
        f"{shard['shard']}  {shard['phase']}{' LATE' if shard['is_late'] else ''}"
        f"  {shard['position'] or 'no position yet'}"
        f"  lag {_seconds(shard['lag_seconds'])}"
        f"  last progress {_seconds(shard['progress_age_seconds'])} ago"
        f"  {'?' if calls is None else f'{calls:.0f}'} calls/h"
    )


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f} s"


def _some(names: list[str], count: int) -> str:
    rest = count - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest else "")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
