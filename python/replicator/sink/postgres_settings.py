"""What the Postgres sink is told: one value, never changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from replicator.model import Stream


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """The settings of one sink of one pipeline.

    `dsn` empty means the standard `PG*` variables. `table` is a template over the
    source table's name: `{table}`, or `schema.{table}`. `state_schema` holds
    positions and dead letters; empty means the connection's own schema.

    A server that answers nothing may be busy (a checkpoint, a failover of its
    storage): it is waited for `command_timeout_seconds` for each statement, long
    on purpose, since giving up costs a new connection and the same work again.
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
    connect_timeout_seconds: float = 10.0
    command_timeout_seconds: float = 60.0
    lock_timeout_seconds: float = 20.0
    foreign_store_patience_seconds: float = 45.0

    def __post_init__(self) -> None:
        assert self.connections >= 1, self
        assert self.lock_timeout_seconds < self.command_timeout_seconds, self


def created_at(stream: Stream) -> datetime:
    """The stream's creation time as its rows hold it."""
    return datetime.fromtimestamp(stream.created_at_s, UTC)
