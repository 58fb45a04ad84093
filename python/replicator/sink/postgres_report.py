"""What `status` and `check` see of the sink as it stands, without opening it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from replicator.core.start import Brought, Joining, joining
from replicator.model import SinkHeld, SinkReport
from replicator.sink.postgres_layout import DocumentTable
from replicator.sink.postgres_schema import PostgresPlan
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


async def held(connection: Connection, key: Sequence[object], planned: PostgresPlan) -> SinkHeld:
    """Reads only. `key` is the pipeline's and the stream's, `planned` what stands there: of state
    tables that are still to be made or completed nothing is read."""
    lacking = " ".join(each.subject for each in planned.findings if each.ddl or each.code)
    rivals: tuple[str, ...] = ()
    is_known, begun = False, []
    if planned.state["streams"] not in lacking:
        sql = {name: fill(text, planned.state) for name, text in statements("state").items()}
        is_known = bool(await connection.fetchval(sql["is_known"], *key))
        begun = await connection.fetch(sql["begun"], key[0], targets(planned.tables))
        found = await joined(connection, sql, key, planned.tables)
        rivals = await rivals_of(connection, found, planned.tables)
    return SinkHeld(
        is_known=is_known,
        begun=tuple(row["stream_arn"] for row in begun),
        holds_data=await holds_data(connection, planned.tables),
        rivals=rivals,
    )


async def joined(
    connection: Connection,
    sql: Mapping[str, str],
    key: Sequence[object],
    tables: Sequence[DocumentTable],
) -> Joining:
    """What the stream of this key finds in the tables."""
    rows = await connection.fetch(sql["brought"], *key)
    brought = [Brought(row["stream_arn"], frozenset(row["tables"]), row["is_mine"]) for row in rows]
    return joining(str(key[1]), targets(tables), brought)


async def rivals_of(
    connection: Connection, found: Joining, tables: Sequence[DocumentTable]
) -> tuple[str, ...]:
    """Those in tables that hold rows."""
    names = dict(zip(targets(tables), tables, strict=True))
    return found.rivals_in(
        [name for name in found.rivals if await holds_data(connection, [names[name]])]
    )


async def holds_data(connection: Connection, tables: Sequence[DocumentTable]) -> bool:
    """True when one of those tables that are there has a row."""
    exists, sql = statements("catalog")["exists"], statements("document")["holds_data"]
    for table in tables:
        is_there = await connection.fetchval(exists, *targets([table]))
        if is_there and await connection.fetchval(fill(sql, table.identifiers())):
            return True
    return False


def targets(tables: Sequence[DocumentTable]) -> list[str]:
    """The full names of the tables that are written to."""
    return [table.identifiers()["table"] for table in tables]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
