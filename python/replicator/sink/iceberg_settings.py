"""What the Iceberg sink is told: in the file, and by the service. Never changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from replicator._core import Columns, Pattern, Projection
from replicator.aws import AWSSettings
from replicator.model import Batching
from replicator.settings import AWSConfig, Settings, SinkConfig, require_items
from replicator.sink.place import SinkPlace

MEBIBYTE = 1_048_576
# Bytes and seconds cut; this is only so that a commit never counts without end.
ROWS_MAX = 1_000_000
# A namespace, more of them, and a table, which may be made of the source's name.
_NAME = re.compile(r"([^.{}\s]+\.)+(?=\S)[^.{}\s]*(\{table\})?[^.{}\s]*")


class CommitConfig(Settings):
    """When what was read becomes a commit: at whichever comes first. A commit takes the changes
    of all shards that this process reads."""

    seconds: float = Field(60, ge=0.1, le=900, description="Longest wait for more.")
    mb: int = Field(64, ge=1, le=512, description="MiB of records, as they came.")


class IcebergConfig(SinkConfig):
    """Tables of Apache Iceberg: of every change, or of the newest items."""

    kind: Literal["iceberg"] = "iceberg"
    catalog: dict[str, SecretStr] = Field(
        description="The catalog, in PyIceberg's own words: type (rest, glue, sql, hive), uri, "
        "warehouse, credential and what else its kind takes; name where a database holds several."
    )
    table: str = Field(
        description="namespace.table; {table} is the source's name, a dot in it an underscore. "
        "Without {table} several source tables share it."
    )
    mode: Literal["log", "state"] = Field(
        "log", description="log: a row a change. state: a row a key, its newest item."
    )
    buckets: int = Field(
        16, ge=1, le=4096, description="state: of a new table, by its hash key; see the README."
    )
    columns: dict[str, str] = Field(
        {}, description="Attributes with a typed column of their own, and their types."
    )
    dead_letters_table: str | None = Field(
        None,
        description="Where refused records lie: replicator_dead_letters beside the table.",
    )
    create: bool = Field(
        default=True, description="Create missing tables and columns; else refuse with DDL."
    )
    commit: CommitConfig = CommitConfig()
    reorder_window_seconds: float = Field(
        1.0, ge=0, le=60, description="Changes are sorted within this time of their creation."
    )
    duplicate_window_seconds: float = Field(
        60.0, ge=1, le=900, description="Copies of a change are known for this time."
    )
    aws: AWSConfig | None = Field(None, description="Overrides the top-level aws.")

    @field_validator("catalog", mode="before")
    @classmethod
    def _are_texts(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {name: _text(each) for name, each in value.items()}

    @field_validator("table", "dead_letters_table")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError(
                f"{value!r}: write namespace.table, {{table}} in the table's part only"
            )
        return value

    @field_validator("dead_letters_table")
    @classmethod
    def _is_one(cls, value: str | None) -> str | None:
        if value is not None and "{" in value:
            raise ValueError(f"{value!r}: it is one table, so its name is without {{table}}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> IcebergConfig:
        if self.mode == "state":
            if self.columns:
                raise ValueError("columns: they are the log's: mode: state keeps items as JSON")
            require_items(self.filter)
        if self.columns:
            Columns(tuple(self.columns.items()))
        if self.duplicate_window_seconds < self.reorder_window_seconds:
            raise ValueError("duplicate_window_seconds: no less than reorder_window_seconds")
        return self

    def settings(self, place: SinkPlace) -> IcebergSettings:
        """The same for the sink of one pipeline."""
        namespace = self.table.rpartition(".")[0]
        return IcebergSettings(
            name=self.name,
            pipeline=place.pipeline,
            catalog={name: each.get_secret_value() for name, each in self.catalog.items()},
            table=self.table,
            mode=self.mode,
            buckets=self.buckets,
            letters=identifier(self.dead_letters_table or f"{namespace}.replicator_dead_letters"),
            tables=place.tables,
            columns=tuple(self.columns.items()),
            create=self.create,
            batching=Batching(ROWS_MAX, self.commit.mb * MEBIBYTE, self.commit.seconds),
            aws=place.aws,
            pattern=self.pattern(),
            projection=self.projection(),
            reorder_us=round(self.reorder_window_seconds * 1_000_000),
            duplicate_us=round(self.duplicate_window_seconds * 1_000_000),
        )


def _text(value: object) -> object:
    """As PyIceberg wants it: YAML reads numbers and truths where no quotes are."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


@dataclass(frozen=True, slots=True)
class IcebergSettings:
    """The settings of one sink of one pipeline.

    A write waits for `batching`'s bytes or seconds. `reorder_us` and `duplicate_us` are those of
    `sink.log_shard`. A position that moved while no shard brought a change is stored every
    `idle_position_seconds`: far more often than any retention ends, and seldom enough that a
    quiet table isn't drowned in snapshots.
    """

    name: str
    pipeline: str
    catalog: Mapping[str, str] = field(repr=False)
    table: str
    letters: tuple[str, ...]
    tables: tuple[str, ...] = ()
    mode: Literal["log", "state"] = "log"
    buckets: int = 16
    columns: tuple[tuple[str, str], ...] = ()
    create: bool = True
    batching: Batching = field(default_factory=lambda: Batching(ROWS_MAX, 64 * MEBIBYTE, 60.0))
    aws: AWSSettings = field(default_factory=AWSSettings)
    pattern: Pattern | None = None
    projection: Projection | None = None
    reorder_us: int = 1_000_000
    duplicate_us: int = 60_000_000
    window_bytes_max: int = 67_108_864
    idle_position_seconds: float = 600.0

    @property
    def is_by_table(self) -> bool:
        """True when each source table has a table of its own."""
        return "{table}" in self.table

    def table_of(self, source: str) -> tuple[str, ...]:
        """The namespaces and name of a source table's table."""
        return identifier(self.table.replace("{table}", source.replace(".", "_")))


def identifier(name: str) -> tuple[str, ...]:
    """A name's parts: namespaces, and the table."""
    return tuple(name.split("."))
