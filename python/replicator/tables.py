"""What the tags of a configuration find: for commands that look once and go on with that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from replicator.config import Config, PipelineConfig, SourceConfig
from replicator.errors import FatalError, ReplicatorError
from replicator.service import discover, source_settings
from replicator.source.tagged import active_destination


async def expand(config: Config, pipeline: PipelineConfig) -> list[PipelineConfig]:
    """The pipeline itself where its tables are listed; else what `run` makes of the tables that
    its tags find now: one that reads their shared stream, or one for each. What is read may
    still be open: see `with_stream`.

    Raises FatalError where they can't be looked for, TransientError where that may pass."""
    if pipeline.tagged is None:
        return [pipeline]
    tables = await discover(config, pipeline)
    if isinstance(pipeline.source, SourceConfig) and pipeline.source.stream is not None:
        return [pipeline.found(tables)] if tables else []
    return [pipeline.found([table]) for table in tables]


async def with_stream(config: Config, pipeline: PipelineConfig) -> PipelineConfig:
    """The same with the stream that it reads, where that is its table's own Kinesis destination.

    Raises FatalError (`destination_missing`, `destination_ambiguous`), TransientError."""
    if not isinstance(pipeline.source, SourceConfig) or pipeline.source.stream is not None:
        return pipeline
    (table,) = pipeline.listed_tables
    settings = source_settings(config, pipeline)
    return pipeline.found_in(await active_destination(settings, table))


async def chosen(config: Config, name: str | None) -> PipelineConfig:
    """The pipeline of this name, listed or found, with its stream; without a name the only one.
    Raises as `expanded` and `with_stream`, and FatalError for a name that isn't there."""
    return await with_stream(config, (await expanded(config)).pipeline(name))


async def expanded(config: Config) -> Config:
    """The configuration with what is found in the place of tags. Raises as `expand`, and
    FatalError (`tables_missing`) where nothing is left."""
    if all(pipeline.tagged is None for pipeline in config.pipelines):
        return config
    pipelines = [each for one in config.pipelines for each in await expand(config, one)]
    if not pipelines:
        raise FatalError(
            "tables_missing",
            "no table carries the tags and fits the patterns of the configuration's pipelines. "
            "What to do: tag one, or look at `replicator tables`.",
        )
    return config.model_copy(update={"pipelines": tuple(pipelines)})


@dataclass(slots=True)
class Found:
    """The tables of each pipeline; `problems` are pipelines whose tags couldn't be looked for."""

    tables: dict[str, Sequence[str]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        names = [*self.tables, *self.problems]
        return {
            "pipelines": [
                {
                    "pipeline": name,
                    "tables": list(self.tables.get(name, ())),
                    "problem": self.problems.get(name, ""),
                }
                for name in names
            ]
        }

    def as_text(self) -> str:
        """For people."""
        lines = []
        for name, tables in self.tables.items():
            lines.append(f"{name}: {len(tables)} tables")
            lines += [f"  {table}" for table in tables]
        lines += [f"{name}: {problem}" for name, problem in self.problems.items()]
        return "\n".join(lines)


async def look(config: Config) -> Found:
    """The tables of every pipeline: listed, or found by its tags."""
    found = Found()
    for pipeline in config.pipelines:
        try:
            found.tables[pipeline.name] = (
                pipeline.listed_tables
                if pipeline.tagged is None
                else await discover(config, pipeline)
            )
        except ReplicatorError as error:
            found.problems[pipeline.name] = str(error)
    return found
