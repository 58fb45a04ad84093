"""What `status` shows of the sink: positions and dead letters as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from replicator.sink.postgres_settings import PostgresSettings
from replicator.sink.statements import fill, statements

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection


@dataclass(frozen=True, slots=True)
class PostgresReport:
    """One pipeline's rows: `positions` by column name, times in ISO 8601; `dead_letters`
    counted by code. Both are empty before the sink was opened for the first time."""

    positions: tuple[Mapping[str, Any], ...] = ()
    dead_letters: Mapping[str, int] = field(default_factory=dict)


async def report(
    connection: Connection, settings: PostgresSettings, state: Mapping[str, str]
) -> PostgresReport:
    """Reads only; `state` are the quoted names of the state tables."""
    catalog = statements("catalog")
    sql = {name: fill(text, state) for name, text in statements("state").items()}
    for kind in ("positions", "dead_letters"):
        if not await connection.fetchval(catalog["exists"], state[kind]):
            return PostgresReport()
    positions = await connection.fetch(sql["report_positions"], settings.pipeline)
    letters = await connection.fetch(sql["report_dead_letters"], settings.pipeline)
    return PostgresReport(
        positions=tuple({name: _plain(value) for name, value in row.items()} for row in positions),
        dead_letters={row["code"]: row["records"] for row in letters},
    )


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
