"""What the Postgres sink is told: in the file, and by the service. Never changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from replicator._core import Pattern, Projection
from replicator.errors import FatalError
from replicator.model import Stream
from replicator.settings import StateSinkConfig
from replicator.sink.place import SinkPlace


class PostgresConfig(StateSinkConfig):
    """A Postgres 13+ destination."""

    kind: Literal["postgres"] = "postgres"
    dsn: SecretStr = Field(SecretStr(""), description="postgresql://…; empty: PG* variables.")
    layout: Literal["document"] = Field("document", description="Key columns and item jsonb.")
    table: str = Field(
        "{table}", description="Target table; {table} is the source's name; schema.name works."
    )
    create: bool = Field(default=True, description="Create missing tables; else refuse with DDL.")
    connections: int = Field(2, ge=1, le=64, description="Connections that write.")

    def settings(self, place: SinkPlace) -> PostgresSettings:
        """The same for the sink of one pipeline."""
        return PostgresSettings(
            name=self.name,
            dsn=self.dsn.get_secret_value(),
            pipeline=place.pipeline,
            table=self.table,
            create=self.create,
            connections=self.connections,
            pattern=self.pattern(),
            projection=self.projection(),
            store_id=place.store_id,
            owner=place.owner,
        )


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """The settings of one sink of one pipeline: `pipeline` is what positions are kept under.

    `dsn` empty means the standard `PG*` variables. `table` is a template over the
    source table's name: `{table}`, or `schema.{table}`. `state_schema` holds
    positions and dead letters; empty means the connection's own schema.

    Only items that match `pattern` belong here, and of them only what `projection` shows.

    A server that answers nothing may be busy (a checkpoint, a failover of its
    storage): it is waited for `command_timeout_seconds` for each statement, long
    on purpose, since giving up costs a new connection and the same work again.

    A writer's staging tables hold back the server's freeze horizon for as long as
    its session lasts (autovacuum can't freeze another session's temporary tables),
    so a connection is replaced at about `connection_age_seconds_max`.
    """

    name: str
    pipeline: str
    dsn: str = field(default="", repr=False)
    table: str = "{table}"
    create: bool = True
    connections: int = 2
    store_id: str = ""
    owner: str = ""
    state_schema: str = ""
    generation: int = 0
    pattern: Pattern | None = None
    projection: Projection | None = None
    connect_timeout_seconds: float = 10.0
    command_timeout_seconds: float = 60.0
    lock_timeout_seconds: float = 20.0
    foreign_store_patience_seconds: float = 45.0
    connection_age_seconds_max: float = 3600.0

    def __post_init__(self) -> None:
        assert self.connections >= 1, self
        assert self.lock_timeout_seconds < self.command_timeout_seconds, self


def dsn_error() -> FatalError:
    """What is said of a DSN that can't be read: nothing of it, since it holds the password."""
    return FatalError(
        "postgres_settings",
        "the sink's DSN (or a PG* variable) can't be read: write"
        " postgresql://user:password@host:port/database, with / ? # @ : % [ ] in user and"
        " password percent-encoded (%2F %3F %23 %40 %3A %25 %5B %5D)",
    )


def check_dsn(dsn: str) -> None:
    """Raises FatalError for a DSN whose password was cut at a character that ends it.
    The driver would take the rest for a host, a database or nothing at all, and
    some of its errors show it."""
    try:
        parts = urlsplit(dsn)
    except ValueError:
        parts = None
    # An @ behind the host belongs to a password that had a / or a #; two before it, to one
    # that had an @. In the query it may be a user's name.
    if parts is None or parts.fragment or "@" in parts.path or parts.netloc.count("@") > 1:
        raise dsn_error()


def created_at(stream: Stream) -> datetime:
    """The stream's creation time as its rows hold it."""
    return datetime.fromtimestamp(stream.created_at_s, UTC)
