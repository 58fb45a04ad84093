"""Settings: one YAML file, environment on top (`overlay`), checked once, frozen afterwards.

Messages name the place of what is wrong, never a value that may be a secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import core_schema

from replicator.core.liveness import DEADLINE_SECONDS
from replicator.errors import FatalError
from replicator.overlay import overlay, parsed
from replicator.settings import NAME_PATTERN, AWSConfig, Settings, SinkConfig, StartText
from replicator.sink.crate_settings import CrateConfig
from replicator.sink.iceberg_settings import IcebergConfig
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.postgres_settings import PostgresConfig
from replicator.sink.s3_settings import S3Config


class SourceConfig(Settings):
    """Changes from Kinesis Data Streams for DynamoDB."""

    kind: Literal["kinesis"] = Field("kinesis", description="Kinesis Data Streams for DynamoDB.")
    stream: str | None = Field(
        None,
        min_length=1,
        description="Stream name or ARN. May be left out where tables are found by tag: then "
        "each table's own Kinesis destination is read.",
    )
    mode: Literal["auto", "fan_out", "polling"] = Field(
        "auto",
        description="fan_out: enhanced fan-out, or an error where it can't be had. polling: "
        "GetRecords. auto: fan_out, and polling for as long as fan-out can't be had.",
    )
    idle_seconds_max: float = Field(
        2.0, ge=0.25, le=60, description="Longest pause of an idle shard that is polled."
    )
    start: StartText = Field(
        "TRIM_HORIZON",
        description="First start of a pipeline on a stream: TRIM_HORIZON, LATEST, an RFC 3339 "
        "time, epoch seconds or milliseconds, a time before now (2h ago), or a sequence number. "
        "Resolved once.",
    )
    consumer: str | None = Field(
        None,
        pattern=r"^[a-zA-Z0-9_.-]{1,128}$",
        description="Name of the registered consumer; default <name>-<pipeline>.",
    )
    aws: AWSConfig | None = Field(None, description="Overrides the top-level aws.")

    @property
    def named_stream(self) -> str:
        """The stream, where the pipeline's tables are listed or found."""
        assert self.stream is not None, "checked with the pipeline"
        return self.stream


class StreamsSourceConfig(Settings):
    """Changes from DynamoDB Streams, the table's own stream."""

    kind: Literal["streams"] = Field(description="DynamoDB Streams.")
    stream: str | None = Field(
        None,
        pattern=r"^arn:[^:]+:dynamodb:.*:table/[^/]+/stream/.+$",
        description="ARN of one of the table's streams; default the newest one.",
    )
    idle_seconds_max: float = Field(
        2.0, ge=0.25, le=60, description="Longest pause of an idle shard; each call is billed."
    )
    start: StartText = Field(
        "TRIM_HORIZON",
        description="First start of a pipeline on a stream, as at Kinesis; 24 hours are kept.",
    )
    aws: AWSConfig | None = Field(None, description="Overrides the top-level aws.")

    @property
    def mode(self) -> Literal["polling"]:
        """There is no other way to read it."""
        return "polling"


def _kind_else(default: str) -> Callable[[object], str]:
    def kind(value: object) -> str:
        named = value.get("kind", default) if isinstance(value, Mapping) else default
        return str(getattr(value, "kind", named))

    return kind


AnySource: TypeAlias = Annotated[
    Annotated[SourceConfig, Tag("kinesis")] | Annotated[StreamsSourceConfig, Tag("streams")],
    Discriminator(
        _kind_else("kinesis"),
        custom_error_type="source_kind",
        custom_error_message="kind is kinesis or streams",
    ),
]

# Each kind of sink: its settings here, the sink itself in `sinks.py`.
SINK_CONFIGS: Mapping[str, type[SinkConfig]] = {
    "cratedb": CrateConfig,
    "iceberg": IcebergConfig,
    "kafka": KafkaConfig,
    "postgres": PostgresConfig,
    "s3": S3Config,
}


class _ByKind:
    """Checks a sink by the settings of its `kind`."""

    def __get_pydantic_core_schema__(
        self, source: type[SinkConfig], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.tagged_union_schema(
            {kind: handler.generate_schema(each) for kind, each in SINK_CONFIGS.items()},
            _kind_else("postgres"),
            custom_error_type="sink_kind",
            custom_error_message=f"kind is one of {', '.join(SINK_CONFIGS)}",
        )


AnySink: TypeAlias = Annotated[SinkConfig, _ByKind()]


def _tag_values(value: object) -> object:
    """One value, a list of them, or null for any. What YAML reads as no text is said."""
    values = value if isinstance(value, list | tuple) else [value]
    for each in values:
        if each is not None and not isinstance(each, str):
            raise ValueError(f"YAML reads a tag's value as {each!r}: put it into quotes")
    if value is None:
        return None
    if not values:
        raise ValueError("no value is wanted: null means any value")
    return tuple(values)


TagValues: TypeAlias = Annotated[
    Annotated[tuple[str, ...], Field(max_length=20)] | None,
    BeforeValidator(_tag_values),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "null"},
            ]
        }
    ),
]


class TaggedTables(Settings):
    """Tables by their tags, looked for again every 60 s."""

    tags: dict[str, TagValues] = Field(
        min_length=1,
        max_length=50,
        description="A table carries all of them; a value, a list of which one fits, or null "
        "for any value.",
    )
    include: tuple[str, ...] = Field(
        ("*",), min_length=1, description="Patterns of table names (*, ?, […]) that are wanted."
    )
    exclude: tuple[str, ...] = Field((), description="Patterns that are not; these win.")


def _listed_or_tagged(value: object) -> str:
    return "by_tag" if isinstance(value, Mapping | TaggedTables) else "by_name"


AnyTables: TypeAlias = Annotated[
    Annotated[tuple[str, ...], Field(min_length=1), Tag("by_name")]
    | Annotated[TaggedTables, Tag("by_tag")],
    Discriminator(_listed_or_tagged),
]


class PipelineConfig(Settings):
    """One stream, its tables and its sinks; or the same for each table that carries a tag."""

    name: str = Field(pattern=NAME_PATTERN, description="Name in positions, metrics, leases.")
    tables: AnyTables = Field(
        description="Table names or ARNs; or which tags the tables carry: "
        '{tags: {replicate: "yes"}, include: [...], exclude: [...]}.'
    )
    source: AnySource
    snapshot: Literal["never"] = Field("never", description="Snapshots are not there yet.")
    on_gap: Literal["stop", "snapshot", "repair"] = Field(
        "stop",
        description="What a gap does: stop ends its shard and says so. The others need snapshots, "
        "which are not there yet: they are refused.",
    )
    sinks: tuple[AnySink, ...] = Field(
        min_length=1, description="Where the changes go; each sink keeps its own position."
    )

    @property
    def tagged(self) -> TaggedTables | None:
        """The tags; None where the tables are listed."""
        return self.tables if isinstance(self.tables, TaggedTables) else None

    @property
    def listed_tables(self) -> tuple[str, ...]:
        """The tables as they are listed, or were found (see `found`)."""
        assert not isinstance(self.tables, TaggedTables), f"{self.name}: to be found first"
        return self.tables

    @property
    def table_names(self) -> tuple[str, ...]:
        """The bare names: what a change carries as its table."""
        return tuple(table.rsplit("/", 1)[-1] for table in self.listed_tables)

    def found(self, tables: Sequence[str], *, is_later: bool = False) -> PipelineConfig:
        """What runs for tables that the tags found: the stream they share, or one table. In
        positions and leases it is named by what is read, behind the pipeline's name.

        Law 5: what was found later (`is_later`) begins at its oldest record."""
        shared = getattr(self.source, "stream", None)
        source: dict[str, Any] = {}
        if is_later and "start" in self.source.model_fields_set:
            source["start"] = "TRIM_HORIZON"
        return self.model_copy(
            update={
                "name": f"{self.name}/{(shared or tables[0]).rsplit('/', 1)[-1]}",
                "tables": tuple(tables),
                "source": self.source.model_copy(update=source),
            }
        )

    def found_in(self, stream: str) -> PipelineConfig:
        """The same, and its stream, which was found too."""
        return self.model_copy(update={"source": self.source.model_copy(update={"stream": stream})})

    @model_validator(mode="after")
    def _tables_are_distinct(self) -> PipelineConfig:
        if self.tagged is None and (duplicates := _repeated(self.table_names)):
            raise ValueError(f"table {duplicates[0]!r} is named twice")
        return self

    @model_validator(mode="after")
    def _sinks_are_distinct(self) -> PipelineConfig:
        if duplicates := _repeated(sink.name for sink in self.sinks):
            raise ValueError(f"sink {duplicates[0]!r} is named twice")
        return self

    def sink(self, name: str | None) -> SinkConfig:
        """The sink of this name; without a name the only one. Raises FatalError."""
        names = [sink.name for sink in self.sinks]
        if name is None and len(names) == 1:
            return self.sinks[0]
        for sink in self.sinks:
            if sink.name == name:
                return sink
        asked = "name a sink with --sink" if name is None else f"there is no sink {name!r}"
        raise FatalError("usage_sink", f"pipeline {self.name}: {asked}: {', '.join(names)}")

    @model_validator(mode="after")
    def _a_stream_fits_its_tables(self) -> PipelineConfig:
        stream = self.source.stream
        if isinstance(self.source, SourceConfig):
            if stream is None and self.tagged is None:
                raise ValueError(
                    "source.stream is required: name the Kinesis stream (it may be left out only "
                    "where tables are found by tag)"
                )
            return self
        if self.tagged is not None:
            if stream is not None:
                raise ValueError(
                    "source.stream: leave it out, each table that the tags find has its own"
                )
            return self
        if len(self.listed_tables) > 1:
            raise ValueError(
                "a stream of DynamoDB Streams is about one table: make a pipeline for each of "
                f"the {len(self.listed_tables)} tables, or find them by a tag"
            )
        if stream is not None and stream.split("/")[1] != self.table_names[0]:
            raise ValueError(f"{stream} is no stream of table {self.table_names[0]!r}")
        return self


class LimitsConfig(Settings):
    """What may be held and how long."""

    memory_bytes_max: int = Field(
        268_435_456, ge=1_048_576, description="Bytes of undelivered changes over all shards."
    )
    batch_rows_max: int = Field(5_000, ge=1, description="Changes in one write.")
    batch_bytes_max: int = Field(8_388_608, ge=65_536, description="Bytes in one write.")
    batch_delay_ms_max: int = Field(100, ge=0, le=60_000, description="Longest wait for more.")
    silence_seconds_max: float = Field(
        DEADLINE_SECONDS,
        ge=1,
        description="Longest silence of a shard that could be read; then /healthz is red and "
        "its reader is restarted.",
    )


class AdminConfig(Settings):
    """Where /healthz, /readyz, /status and /metrics are served. It has no password: who can
    reach it can read it."""

    host: str = Field("127.0.0.1", min_length=1, description="Address; 0.0.0.0 in a container.")
    port: int = Field(9464, ge=0, le=65_535, description="Port; 0 takes a free one and logs it.")

    @property
    def url(self) -> str:
        """How a process of this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class LeasesConfig(Settings):
    """Where the leases are kept."""

    kind: Literal["sqlite"] = Field("sqlite", description="A file under state_directory.")
    duration_seconds: float = Field(10.0, ge=1.0, description="A silent owner loses it after this.")


class Config(Settings):
    """The whole configuration."""

    name: str = Field("replicator", pattern=NAME_PATTERN, description="The pipelines' namespace.")
    aws: AWSConfig = AWSConfig()
    pipelines: tuple[PipelineConfig, ...] = Field(min_length=1)
    limits: LimitsConfig = LimitsConfig()
    leases: LeasesConfig = LeasesConfig()
    admin: AdminConfig | None = Field(AdminConfig(), description="null switches it off.")
    state_directory: Path = Field(Path("state"), description="Leases and display copies.")
    drain_timeout_seconds: float = Field(25.0, gt=0, description="Longest orderly stop.")

    @model_validator(mode="after")
    def _pipelines_are_distinct(self) -> Config:
        if duplicates := _repeated(pipeline.name for pipeline in self.pipelines):
            raise ValueError(f"pipeline {duplicates[0]!r} is named twice")
        return self

    def pipeline(self, name: str | None) -> PipelineConfig:
        """The pipeline of this name; without a name the only one. Raises FatalError."""
        names = [pipeline.name for pipeline in self.pipelines]
        if name is None and len(names) == 1:
            return self.pipelines[0]
        for pipeline in self.pipelines:
            if pipeline.name == name:
                return pipeline
        asked = "name a pipeline" if name is None else f"there is no pipeline {name!r}"
        raise FatalError("usage_pipeline", f"{asked}: {', '.join(names)}")

    def sinks(self, pipeline: str | None, sink: str | None) -> list[tuple[PipelineConfig, AnySink]]:
        """All sinks, or those of one pipeline, or of one name. Raises FatalError where there is
        none."""
        chosen = self.pipelines if pipeline is None else (self.pipeline(pipeline),)
        found = [(one, each) for one in chosen for each in one.sinks if sink in {None, each.name}]
        if not found:
            raise FatalError("usage_sink", f"there is no sink {sink!r}")
        return found

    def consumer_name(self, pipeline: PipelineConfig) -> str:
        """The registered consumer of a Kinesis pipeline; of one that was found by tag, that of
        its tags."""
        assert isinstance(pipeline.source, SourceConfig)
        return pipeline.source.consumer or f"{self.name}-{pipeline.name.partition('/')[0]}"

    def sink_name(self, pipeline: PipelineConfig, sink: SinkConfig) -> str:
        """What a sink's positions are kept under."""
        return f"{self.qualified_name(pipeline)}/{sink.name}"

    def qualified_name(self, pipeline: PipelineConfig) -> str:
        """The pipeline's name in positions and leases: namespace and name."""
        return f"{self.name}/{pipeline.name}"


def load(path: Path | None, environment: Mapping[str, str] | None = None) -> Config:
    """The configuration of a file with the environment on top.

    Raises FatalError (`config_missing`, `config_unreadable`, `config_invalid`) with a
    line per problem: where, what, and the nearest valid key.
    """
    environment = os.environ if environment is None else environment
    data: object = {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FatalError(
                "config_missing", f"no configuration at {path}: name it with --config"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise FatalError("config_unreadable", f"cannot read {path}: {error}") from None
        data = parsed(text, str(path))
    if not isinstance(data, dict):
        raise FatalError("config_invalid", f"{path} holds no mapping at its top level")
    overlay(data, environment)
    return checked(data, str(path or "configuration"))


def checked(data: Mapping[str, Any], where: str) -> Config:
    """The configuration that these plain values make; `where` they come from is for messages.
    Raises FatalError (`config_invalid`) as `load` does."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        places = [e["loc"] for e in error.errors()]
        # A list whose item is wrong also counts as too short: say it once, at the item.
        problems = "\n".join(
            f"  {_place(e['loc'])}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
            if e["type"] != "too_short"
            or not any(p != e["loc"] and p[: len(e["loc"])] == e["loc"] for p in places)
        )
        raise FatalError("config_invalid", f"{where}:\n{problems}") from None


def schema() -> dict[str, Any]:
    """The JSON Schema of the configuration file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Config.model_json_schema()


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _place(location: tuple[int | str, ...]) -> str:
    # Behind these (and a place in `sinks`) stands which kind of them was checked: no key of the
    # file.
    kinds = {
        "source": {"kinesis", "streams"},
        "tables": {"by_name", "by_tag"},
        "sinks": SINK_CONFIGS.keys(),
    }
    keys: list[int | str] = []
    for part in location:
        of = [key for key in keys[-2:] if not isinstance(key, int)][-1:]
        if not (of and part in kinds.get(of[0], ())):
            keys.append(part)
    return ".".join(map(str, keys)) or "top level"
