"""What the CrateDB sink is told: in the file, and by the service. Never changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from replicator._core import Pattern, Projection
from replicator.settings import StateSinkConfig
from replicator.sink.place import SinkPlace


class CrateConfig(StateSinkConfig):
    """A CrateDB destination, over its HTTP endpoint."""

    kind: Literal["cratedb"] = Field("cratedb", description="CrateDB.")
    url: str = Field("http://localhost:4200", description="http(s)://host:port of a node.")
    user: str = Field("crate", min_length=1, description="User; it owns the tables it makes.")
    password: SecretStr = Field(SecretStr(""), description="Password; best from PASSWORD_FILE.")
    ca_file: Path | None = Field(None, description="Certificates to trust, PEM; else the system's.")
    table: str = Field(
        "{table}", description="Target table; {table} is the source's name; schema.name works."
    )
    default_schema: str = Field(
        "doc",
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="Schema of the tables that name none, and of positions and dead letters.",
    )
    dynamic: Literal["dynamic", "ignored"] = Field(
        "dynamic",
        description="dynamic: each attribute of `item` is an indexed column of one type, and an "
        "item with another is a dead letter. ignored: items are kept as they are, not indexed.",
    )
    shards: int | None = Field(None, ge=1, le=1024, description="Shards of new tables.")
    replicas: str | None = Field(
        None,
        pattern=r"^\d+(-(\d+|all))?$",
        description="number_of_replicas of new tables, such as 1 or 0-1.",
    )
    create: bool = Field(default=True, description="Create missing tables; else refuse with DDL.")
    connections: int = Field(2, ge=1, le=64, description="Writes that run at once.")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if "@" in parts.netloc:
            raise ValueError("user and password have keys of their own: take them out of the url")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
            raise ValueError("write http://host:4200 or https://host:4200")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _has_a_use_for_certificates(self) -> Self:
        if self.ca_file is not None and not self.url.startswith("https:"):
            raise ValueError("ca_file: the url is not https")
        return self

    def settings(self, place: SinkPlace) -> CrateSettings:
        """The same for the sink of one pipeline."""
        return CrateSettings(
            name=self.name,
            pipeline=place.pipeline,
            url=self.url,
            user=self.user,
            password=self.password.get_secret_value(),
            ca_file=self.ca_file,
            table=self.table,
            schema=self.default_schema,
            dynamic=self.dynamic == "dynamic",
            shards=self.shards,
            replicas=self.replicas,
            create=self.create,
            connections=self.connections,
            store_id=place.store_id,
            pattern=self.pattern(),
            projection=self.projection(),
        )


@dataclass(frozen=True, slots=True)
class CrateSettings:
    """The settings of one sink of one pipeline. `table` is a template over the source table's
    name; what names no schema lies in `schema`, positions and dead letters too.

    Only items that match `pattern` belong here, and of them only what `projection` shows."""

    name: str
    pipeline: str
    url: str
    user: str = "crate"
    password: str = field(default="", repr=False)
    ca_file: Path | None = None
    table: str = "{table}"
    schema: str = "doc"
    dynamic: bool = True
    shards: int | None = None
    replicas: str | None = None
    create: bool = True
    connections: int = 2
    store_id: str = ""
    generation: int = 0
    pattern: Pattern | None = None
    projection: Projection | None = None
    request_timeout_seconds: float = 60.0
    foreign_store_seconds: float = 60.0
