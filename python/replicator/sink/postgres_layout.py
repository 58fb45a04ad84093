"""The layout `document` on paper: which names a source table's rows get. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from replicator.errors import FatalError
from replicator.model import KeyType, TableSchema
from replicator.sink.statements import quoted

IDENTIFIER_BYTES_MAX: Final = 63
"""Longer names are cut by the server without a word (NAMEDATALEN - 1)."""

OWN_COLUMNS: Final[Mapping[str, str]] = {
    "item": "jsonb",
    "generation": "bigint",
    "version": "numeric",
    "deleted": "boolean",
}
_SYSTEM_COLUMNS: Final = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
_COLUMN_TYPES: Final[Mapping[KeyType, str]] = {"S": "text", "N": "numeric", "B": "bytea"}
_LIVE: Final = "_live"


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A key attribute's column; `type` as the server's catalog spells it."""

    name: str
    type: str

    @property
    def definition(self) -> str:
        # Bytes decide the order, as DynamoDB's own keys: no locale, and faster.
        collation = ' COLLATE "C"' if self.type == "text" else ""
        return f"{quoted(self.name)} {self.type}{collation} NOT NULL"


@dataclass(frozen=True, slots=True)
class DocumentTable:
    """A source table's place in Postgres."""

    source: TableSchema
    schema: str
    name: str
    keys: tuple[KeyColumn, ...]
    number: int

    @property
    def view(self) -> str:
        return self.name + _LIVE

    @property
    def staging(self) -> str:
        """The staging table's name among a connection's own temporary tables."""
        return f"replicator_staging_{self.number}"

    @property
    def before(self) -> str:
        """Likewise, of the table that holds what the rows' changes began with."""
        return f"replicator_before_{self.number}"

    @property
    def columns(self) -> Mapping[str, str]:
        """Name → type of every column, keys first."""
        return {key.name: key.type for key in self.keys} | dict(OWN_COLUMNS)

    def identifiers(self, *, has_lz4: bool = False) -> Mapping[str, str]:
        """What the statements of `document.sql` are filled with."""
        return {
            "schema": quoted(self.schema),
            "table": quoted(self.schema, self.name),
            "view": quoted(self.schema, self.view),
            "staging": quoted("pg_temp", self.staging),
            "before": quoted("pg_temp", self.before),
            "same_key": " AND ".join(
                f"stored.{quoted(key.name)} = staged.{quoted(key.name)}" for key in self.keys
            ),
            "keys": ", ".join(quoted(key.name) for key in self.keys),
            "key_columns": ",\n    ".join(key.definition for key in self.keys),
            "compression": " COMPRESSION lz4" if has_lz4 else "",
        }


def document_tables(
    sources: Sequence[TableSchema], template: str, default_schema: str
) -> tuple[DocumentTable, ...]:
    """Every source table's place. Raises FatalError for a template or a name that
    can't be used, and for two tables in one place."""
    tables = tuple(
        _document_table(source, template, default_schema, number)
        for number, source in enumerate(sources)
    )
    taken: dict[tuple[str, str], str] = {}
    for table in tables:
        for name in (table.name, table.view):
            other = taken.setdefault((table.schema, name), table.source.name)
            if other != table.source.name:
                raise FatalError(
                    "table_shared",
                    f"tables {other!r} and {table.source.name!r} would both use"
                    f" {quoted(table.schema, name)}: write `{{table}}` into the sink's table"
                    " name, or give one of them a sink of its own",
                )
    return tables


def _document_table(
    source: TableSchema, template: str, default_schema: str, number: int
) -> DocumentTable:
    # Split before the name goes in: a DynamoDB table's name may hold dots itself.
    schema, dot, name = template.rpartition(".")
    if (dot and not schema) or not name or "." in schema or "\0" in template:
        raise FatalError(
            "table_template",
            f"table name {template!r} is neither `{{table}}` nor `schema.{{table}}`",
        )
    schema = schema.replace("{table}", source.name) or default_schema
    name = name.replace("{table}", source.name)
    for what, text in (("schema", schema), ("table", name)):
        room = IDENTIFIER_BYTES_MAX - (len(_LIVE) if what == "table" else 0)
        if len(text.encode()) > room:
            raise FatalError(
                "identifier_too_long",
                f"{what} name {text!r} of table {source.name!r} has {len(text.encode())} bytes,"
                f" {room} are possible: give the table a sink of its own with a shorter name",
            )
    return DocumentTable(source, schema, name, _key_columns(source), number)


def _key_columns(source: TableSchema) -> tuple[KeyColumn, ...]:
    columns: list[KeyColumn] = []
    for attribute, kind in source.keys:
        reserved = attribute in OWN_COLUMNS or attribute in _SYSTEM_COLUMNS
        name = _shortened(f"key_{attribute}" if reserved else attribute)
        if any(column.name == name for column in columns):
            name = _shortened(f"key_{attribute}", always=True)
        columns.append(KeyColumn(name, _COLUMN_TYPES[kind]))
    return tuple(columns)


def _shortened(name: str, *, always: bool = False) -> str:
    """The name, or its beginning with a hash of the whole where it is too long."""
    encoded = name.encode()
    if len(encoded) <= IDENTIFIER_BYTES_MAX and not always:
        return name
    mark = "_" + hashlib.sha256(encoded).hexdigest()[:8]
    return encoded[: IDENTIFIER_BYTES_MAX - len(mark)].decode(errors="ignore") + mark
