"""Compares what stands in CrateDB with what the sink needs, and makes the rest.

`plan` only looks; `make` runs exactly the DDL that the plan shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from replicator.errors import FatalError
from replicator.model import SinkFinding, SinkPlan, TableSchema
from replicator.sink.crate_layout import (
    OWN_COLUMNS,
    STATE_TABLES,
    CrateTable,
    crate_tables,
    state_statements,
)
from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.statements import quoted

VERSION_MIN: Final = (5, 5)
"""The first whose dynamic objects and look-ups behave as the sink needs, as far as its
documentation tells; 6.4 is what it was tried with."""

_STATE_COLUMNS: Final[Mapping[str, frozenset[str]]] = {
    "positions": frozenset(
        "key pipeline stream_arn stream_created_at shard position sequence_number epoch owner"
        " store_id last_arrival_us tip_us begun_us updated_us".split()
    ),
    "streams": frozenset(
        "key pipeline stream_arn stream_created_at starts tables is_complete begun_us".split()
    ),
    "dead_letters": frozenset(
        "key pipeline table_name stream shard sequence_number record_index code message raw"
        " created_us attempts".split()
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CratePlan(SinkPlan):
    """The plan, and what the sink needs of it."""

    tables: tuple[CrateTable, ...]


async def plan(
    session: CrateSession, settings: CrateSettings, sources: Sequence[TableSchema]
) -> CratePlan:
    """What is there, what is missing, what differs. Changes nothing; raises FatalError only for
    names that can't be."""
    tables = crate_tables(settings, sources)
    state = state_statements(settings)
    ((version,),) = await session.fetch(state["server"])
    look = _Look(session, state)
    if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
        least = ".".join(map(str, VERSION_MIN))
        look.say(
            "server", f"CrateDB {version} is too old: {least} or newer is needed", "crate_too_old"
        )
    for kind in STATE_TABLES:
        name = f"replicator_{kind}"
        await look.at(settings.schema, name, ["key"], _STATE_COLUMNS[kind], state[f"create_{kind}"])
    for table in tables:
        columns = frozenset(table.keys) | OWN_COLUMNS.keys()
        ddl = table.statements()["create_table"]
        await look.at(table.schema, table.name, table.keys, columns, ddl)
        look.same_types(table)
    return CratePlan(
        server=f"CrateDB {version} at {settings.url}",
        findings=tuple(look.findings),
        creates=settings.create,
        tables=tables,
    )


async def make(
    session: CrateSession, settings: CrateSettings, sources: Sequence[TableSchema]
) -> CratePlan:
    """Makes what is missing. Raises FatalError with what is wrong, or with the DDL to run."""
    planned = await plan(session, settings, sources)
    if planned.problems:
        raise FatalError(
            planned.problems[0].code, "; ".join(finding.message for finding in planned.problems)
        )
    if planned.ddl and not settings.create:
        raise FatalError(
            "table_missing",
            f"sink {settings.name} has create: false, and what it needs is missing; run\n"
            + ";\n".join(planned.ddl),
        )
    for ddl in planned.ddl:  # each says IF NOT EXISTS: two workers may begin together
        await session.execute(ddl)
    return planned


class _Look:
    """Gathers findings, one table after the other."""

    def __init__(self, session: CrateSession, state: Mapping[str, str]) -> None:
        self.findings: list[SinkFinding] = []
        self._session = session
        self._state = state
        self._types: Mapping[str, str] = {}

    def say(self, subject: str, message: str, code: str = "", ddl: str = "") -> None:
        self.findings.append(SinkFinding(subject, message, code=code, ddl=ddl))

    async def at(
        self, schema: str, name: str, keys: Sequence[str], columns: frozenset[str], ddl: str
    ) -> None:
        """A table that should have this primary key and these columns."""
        subject = f"table {quoted(schema, name)}"
        fetch = self._session.fetch
        self._types = {}
        found = await fetch(self._state["relation"], schema, name)
        if not found:
            return self.say(subject, f"{subject} is missing", ddl=ddl)
        ((durability,),) = found
        rows = await fetch(self._state["columns"], schema, name)
        self._types = {column: kind for column, kind, _ in rows}
        if missing := sorted(columns - self._types.keys()):
            return self.say(
                subject,
                f"{subject} lacks {', '.join(missing)}: point the sink at another table, or drop"
                f" this one to have it made as\n{ddl}",
                "table_differs",
            )
        key = [column for (column,) in await fetch(self._state["primary_key"], schema, name)]
        if key != list(keys):
            return self.say(
                subject,
                f"{subject} has the primary key ({', '.join(key)}), not ({', '.join(keys)}): point"
                " the sink at another table",
                "table_differs",
            )
        if "version" in columns and any(row == ["version", "text", "YES"] for row in rows):
            return self.say(
                subject,
                f"{subject} has a column version without NOT NULL, which keeps older changes out:"
                f" make it as\n{ddl}",
                "table_differs",
            )
        if str(durability).upper() == "ASYNC":
            return self.say(
                subject,
                f"{subject} loses its last seconds in a crash, and a position would cover them: run"
                f" ALTER TABLE {quoted(schema, name)} SET (\"translog.durability\" = 'REQUEST')",
                "table_not_durable",
            )
        return self.say(subject, f"{subject} is there and fits")

    def same_types(self, table: CrateTable) -> None:
        """Of the table looked at last: its columns' types."""
        wanted = dict.fromkeys(table.keys, "text") | dict(OWN_COLUMNS)
        for column, kind in wanted.items():
            if self._types.get(column, kind) != kind:
                subject = f"table {table.full_name}"
                self.say(
                    subject,
                    f"{subject}, column {column} is {self._types[column]}, not {kind}: point the"
                    " sink at another table",
                    "table_differs",
                )
