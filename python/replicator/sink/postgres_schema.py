"""Compares what stands in the database with what the sink needs, and makes the rest.

`plan` only looks; `make` runs exactly the DDL that the plan shows. Both `check`
and the sink's start go this way, so what one promises the other does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from replicator.errors import FatalError
from replicator.model import SinkFinding, SinkPlan, TableSchema
from replicator.sink.postgres_layout import DocumentTable, document_tables
from replicator.sink.postgres_settings import PostgresSettings
from replicator.sink.statements import fill, quoted, statements

if TYPE_CHECKING:
    from replicator.sink.postgres_session import Connection

POSTGRES_VERSION_MIN: Final = 130000
_DDL_LOCK: Final = int.from_bytes(hashlib.sha256(b"replicator ddl").digest()[:8], signed=True)
_STATE_COLUMNS: Final[Mapping[str, frozenset[str]]] = {
    "positions": frozenset(
        "pipeline stream_arn stream_created_at shard position sequence_number epoch owner"
        " store_id last_arrival_at tip_at begun_at updated_at".split()
    ),
    "streams": frozenset("pipeline stream_arn stream_created_at starts tables begun_at".split()),
    "dead_letters": frozenset(
        "pipeline table_name stream shard sequence_number record_index code message raw"
        " created_at attempts".split()
    ),
}
_STATE_NAMES: Final = {kind: f"replicator_{kind}" for kind in _STATE_COLUMNS}


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresPlan(SinkPlan):
    """The plan, and what the sink needs of it."""

    state: Mapping[str, str]
    tables: tuple[DocumentTable, ...]
    has_lz4: bool


@dataclass(frozen=True, slots=True)
class _Relation:
    kind: str
    columns: Mapping[str, str]
    must_be_given: frozenset[str]
    primary_key: tuple[str, ...]
    missing_rights: tuple[str, ...]
    may_delete: bool
    may_alter: bool

    @property
    def shape(self) -> str:
        return _shape(self.columns, self.primary_key)


async def plan(
    connection: Connection, settings: PostgresSettings, sources: Sequence[TableSchema]
) -> PostgresPlan:
    """What is there, what is missing, what differs. Changes nothing; raises FatalError
    only for settings that name no usable place."""
    catalog = statements("catalog")
    row = await connection.fetchrow(catalog["server"])
    assert row is not None
    server = dict(row)
    own_schema = _own_schema(server, settings)
    tables = document_tables(sources, settings.table, server["schema"] or own_schema)
    look = _Look(connection, server, create=settings.create)
    look.findings += _server_findings(server)
    state = _state_names(own_schema)
    for kind, name in _STATE_NAMES.items():
        await look.at_state(own_schema, name, kind, state)
    for table in tables:
        await look.at_table(table, has_lz4=server["has_lz4"])
    return PostgresPlan(
        server=f"Postgres {server['version_text']}, database {server['database']}",
        state=state,
        tables=tables,
        has_lz4=server["has_lz4"],
        findings=tuple(look.findings),
        creates=settings.create,
    )


async def make(
    connection: Connection, settings: PostgresSettings, sources: Sequence[TableSchema]
) -> PostgresPlan:
    """Makes what is missing, in one transaction, and gives the plan it followed.
    Raises FatalError when something differs, or is missing and `create` is false."""
    session = statements("session")
    planned = await plan(connection, settings, sources)
    refuse(planned, create=settings.create)
    if not planned.ddl or not settings.create:
        return planned
    await connection.execute(session["begin"])
    await connection.execute(session["lock_ddl"], _DDL_LOCK)
    followed = await plan(connection, settings, sources)  # another process may have been quicker
    refuse(followed, create=True)
    for statement in followed.ddl:
        await connection.execute(statement)
    await connection.execute(session["commit"])
    return followed


def refuse(planned: PostgresPlan, *, create: bool) -> None:
    """Raises FatalError when the plan can't be followed."""
    if planned.problems:
        first = planned.problems[0]
        raise FatalError(first.code, "\n".join(problem.message for problem in planned.problems))
    missing = [finding for finding in planned.findings if finding.ddl and finding.is_required]
    if missing and not create:
        names = ", ".join(dict.fromkeys(finding.subject for finding in missing))
        ddl = ";\n".join(planned.ddl)
        raise FatalError(
            "table_missing",
            f"{names} missing, and the sink has `create: false`."
            f" Run this, or set `create: true`:\n{ddl};",
        )


async def state_names(connection: Connection, settings: PostgresSettings) -> Mapping[str, str]:
    """The quoted names of the state tables, whether they are there or not."""
    server = await connection.fetchrow(statements("catalog")["server"])
    assert server is not None
    return _state_names(_own_schema(dict(server), settings))


def _state_names(schema: str) -> Mapping[str, str]:
    return {kind: quoted(schema, name) for kind, name in _STATE_NAMES.items()}


def _own_schema(server: Mapping[str, Any], settings: PostgresSettings) -> str:
    schema: str | None = settings.state_schema or server["schema"]
    if schema is None:
        raise FatalError(
            "postgres_settings",
            f"role {server['role']!r} has no current schema in database {server['database']!r}:"
            " set its search_path, or the sink's state_schema and `schema.{table}`",
        )
    return schema


class _Look:
    """Gathers findings, one relation after the other."""

    def __init__(self, connection: Connection, server: Mapping[str, Any], *, create: bool) -> None:
        self.findings: list[SinkFinding] = []
        self._connection = connection
        self._role: str = server["role"]
        self._may_create_schema: bool = server["may_create_schema"]
        self._create = create
        self._catalog = statements("catalog")

    async def at_state(self, schema: str, name: str, kind: str, state: Mapping[str, str]) -> None:
        subject = state[kind]
        relation = await self._relation(schema, name)
        if relation is None:
            ddl = fill(statements("state")[f"create_{kind}"], state)
            await self._missing(schema, subject, ddl)
        elif absent := sorted(_STATE_COLUMNS[kind] - set(relation.columns)):
            self._at_absent(subject, kind, absent, state, may_alter=relation.may_alter)
        else:
            self._present(subject, relation)
            if kind == "dead_letters" and not relation.may_delete:
                message = (
                    f"{self._role} lacks DELETE on {subject}, which `dead-letters redrive` and"
                    f" `drop` need: run GRANT DELETE ON {subject} TO {quoted(self._role)}"
                )
                warning = SinkFinding(subject, message, "permission_denied", is_warning=True)
                self.findings.append(warning)

    def _at_absent(
        self,
        subject: str,
        kind: str,
        absent: Sequence[str],
        state: Mapping[str, str],
        *,
        may_alter: bool,
    ) -> None:
        """Columns that came with a later version are added; what stands there stays."""
        sql = statements("state")
        if not all(f"add_{kind}_{column}" in sql for column in absent):
            self._problem(
                "state_table_differs",
                subject,
                f"{subject} lacks the columns {', '.join(absent)}: it isn't this program's,"
                " or of another version; rename it, or set another state_schema",
            )
            return
        for column in absent:
            what, ddl = f"column {column} of {subject}", fill(sql[f"add_{kind}_{column}"], state)
            message, code = f"{what} is missing: an earlier version made the table", ""
            if self._create and not may_alter:
                message += f", and only its owner may add it: run as that role\n{ddl};"
                code, ddl = "permission_denied", ""
            self.findings.append(SinkFinding(what, message, code=code, ddl=ddl))

    async def at_table(self, table: DocumentTable, *, has_lz4: bool) -> None:
        identifiers = table.identifiers(has_lz4=has_lz4)
        document = statements("document")
        subject = identifiers["table"]
        relation = await self._relation(table.schema, table.name)
        if relation is None:
            await self._missing(table.schema, subject, fill(document["create_table"], identifiers))
        elif difference := _difference(table, relation):
            self._problem("table_differs", subject, difference)
        else:
            self._present(subject, relation)
        view = await self._relation(table.schema, table.view)
        if view is None:
            ddl = fill(document["create_view"], identifiers)
            await self._missing(table.schema, identifiers["view"], ddl, is_required=False)
        elif view.kind != "v":
            self._problem(
                "table_differs",
                identifiers["view"],
                f"{identifiers['view']} should be the view of {subject}'s live rows but isn't a"
                " view: rename it, or write to another table",
            )

    async def _missing(
        self, schema: str, subject: str, ddl: str, *, is_required: bool = True
    ) -> None:
        row = await self._connection.fetchrow(self._catalog["schema"], schema)
        may_create = self._may_create_schema if row is None else row["may_create"]
        message = f"{subject} is missing"
        if self._create and not may_create:
            place = quoted(schema)
            message += f", and {self._role} may not create it in {place}: run\n{ddl};\nor"
            message += f" GRANT CREATE ON SCHEMA {place} TO {quoted(self._role)}"
            code = "permission_denied" if is_required else ""
            self.findings.append(SinkFinding(subject, message, code=code, is_required=is_required))
            return
        if row is None:
            make_schema = fill(statements("document")["create_schema"], {"schema": quoted(schema)})
            what = f"schema {quoted(schema)}"
            self.findings.append(SinkFinding(what, f"{what} is missing", ddl=make_schema))
        self.findings.append(SinkFinding(subject, message, ddl=ddl, is_required=is_required))

    def _present(self, subject: str, relation: _Relation) -> None:
        if relation.missing_rights:
            rights = ", ".join(relation.missing_rights)
            self._problem(
                "permission_denied",
                subject,
                f"{self._role} lacks {rights} on {subject}: run"
                f" GRANT {rights} ON {subject} TO {quoted(self._role)}",
            )
        else:
            self.findings.append(SinkFinding(subject, f"{subject} is there and fits"))

    def _problem(self, code: str, subject: str, message: str) -> None:
        self.findings.append(SinkFinding(subject, message, code=code))

    async def _relation(self, schema: str, name: str) -> _Relation | None:
        row = await self._connection.fetchrow(self._catalog["relation"], schema, name)
        if row is None:
            return None
        columns = await self._connection.fetch(self._catalog["columns"], row["id"])
        keys = await self._connection.fetch(self._catalog["primary_key"], row["id"])
        rights = {right: row[f"may_{right.lower()}"] for right in ("SELECT", "INSERT", "UPDATE")}
        return _Relation(
            kind=row["kind"],
            columns={column["name"]: column["type"] for column in columns},
            must_be_given=frozenset(
                column["name"] for column in columns if column["must_be_given"]
            ),
            primary_key=tuple(key["name"] for key in keys),
            missing_rights=tuple(right for right, is_there in rights.items() if not is_there),
            may_delete=row["may_delete"],
            may_alter=row["may_alter"],
        )


def _server_findings(server: Mapping[str, Any]) -> list[SinkFinding]:
    """Problems of the database as a whole."""
    subject = f"database {quoted(server['database'])}"
    findings = []
    if server["version"] < POSTGRES_VERSION_MIN:
        message = f"Postgres {server['version_text']} is too old: 13 or newer is needed"
        findings.append(SinkFinding(subject, message, code="postgres_too_old"))
    if server["encoding"] != "UTF8":
        message = (
            f"{subject} is encoded in {server['encoding']}, items are Unicode: use a database"
            " with ENCODING 'UTF8'"
        )
        findings.append(SinkFinding(subject, message, code="postgres_encoding"))
    if not server["may_stage"]:
        message = (
            f"{server['role']} may make no temporary tables, which rows are staged in: run"
            f" GRANT TEMPORARY ON DATABASE {quoted(server['database'])} TO"
            f" {quoted(server['role'])}"
        )
        findings.append(SinkFinding(subject, message, code="permission_denied"))
    return findings


def _difference(table: DocumentTable, relation: _Relation) -> str | None:
    """What keeps an existing table from being written to, with both shapes."""
    keys = tuple(key.name for key in table.keys)
    unfilled = relation.must_be_given - set(table.columns)
    fits = (
        relation.kind in {"r", "p"}
        and all(relation.columns.get(name) == type_ for name, type_ in table.columns.items())
        # In any order: which columns are unique together is what the merge needs.
        and set(relation.primary_key) == set(keys)
    )
    if fits and not unfilled:
        return None
    subject = quoted(table.schema, table.name)
    if fits:
        columns = ", ".join(quoted(name) for name in sorted(unfilled))
        reason = f"{columns} would never be filled: give a default, or allow NULL"
    else:
        reason = "rename it, or write to another table"
    return (
        f"table {table.source.name!r} doesn't fit {subject}: {reason}\n"
        f"  needed: {_shape(table.columns, keys)}\n"
        f"  found:  {relation.shape}"
    )


def _shape(columns: Mapping[str, str], primary_key: Sequence[str]) -> str:
    parts = [f"{quoted(name)} {type_}" for name, type_ in columns.items()]
    if primary_key:
        parts.append(f"PRIMARY KEY ({', '.join(quoted(name) for name in primary_key)})")
    return ", ".join(parts)
