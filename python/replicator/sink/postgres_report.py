"""What `status` shows of the sink: positions and dead letters as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from replicator.model import SinkReport
from replicator.sink.postgres_settings import PostgresSettings
from replicator.sink.statements import fill, statements

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection


async def report(
    connection: Connection, settings: PostgresSettings, state: Mapping[str, str]
) -> SinkReport:
    """Reads only; `state` are the quoted names of the state tables."""
    catalog = statements("catalog")
    sql = {name: fill(text, state) for name, text in statements("state").items()}
    for kind in ("positions", "dead_letters"):
        if not await connection.fetchval(catalog["exists"], state[kind]):
            return SinkReport()
    positions = await connection.fetch(sql["report_positions"], settings.pipeline)
    letters = await connection.fetch(sql["report_dead_letters"], settings.pipeline)
    return SinkReport(
        positions=tuple({name: _plain(value) for name, value in row.items()} for row in positions),
        dead_letters={row["code"]: row["records"] for row in letters},
    )


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
