"""The layout `document` on paper: which names a source table's rows get. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from replicator.errors import FatalError
from replicator.model import KeyType, TableSchema
from replicator.sink.statements import fill, quoted, statements

IDENTIFIER_BYTES_MAX: Final = 63
"""Longer names are cut by the server without a word (NAMEDATALEN - 1)."""

OWN_COLUMNS: Final[Mapping[str, str]] = {
    "item": "jsonb",
    "generation": "bigint",
    "version": "numeric",
    "deleted": "boolean",
    "chain": "bytea",
}
_SENT: Final = ("item", "version", "chain")
_ORDINAL: Final = "ordinal"
"""A row's place in its write: known where rows are staged, not in the table."""
_SAME_INSTANT: Final = (
    "get_byte(stored.chain, 0) < 2 AND get_byte(staged.chain, 0) < 2"
    " AND trunc(stored.version, -3) = trunc(staged.version, -3)"
)
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
        return f"{quoted(self.name)} {self.type}{self._collation} NOT NULL"

    @property
    def staged(self) -> str:
        """The column, taken from an array, in the order that the table's own has."""
        return f"{quoted(self.name)}{self._collation} AS {quoted(self.name)}"

    @property
    def _collation(self) -> str:
        # Bytes decide the order, as DynamoDB's own keys: no locale, and faster.
        return ' COLLATE "C"' if self.type == "text" else ""


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
            "same_key": " AND ".join(
                f"stored.{quoted(key.name)} = staged.{quoted(key.name)}" for key in self.keys
            ),
            "keys": ", ".join(quoted(key.name) for key in self.keys),
            "key_columns": ",\n    ".join(key.definition for key in self.keys),
            "same_instant": _SAME_INSTANT,
            "compression": " COMPRESSION lz4" if has_lz4 else "",
        }

    def unnested(self, first: int) -> str:
        """The rows of one write out of the parameters `first` and following, those of
        `Rows.arrays`, as a table in parentheses."""
        names = [*(quoted(key.name) for key in self.keys), *_SENT]
        types = [*(key.type for key in self.keys), *(OWN_COLUMNS[name] for name in _SENT)]
        texts = [f"convert_from(${number}::bytea, 'UTF8')" for number, _ in enumerate(types, first)]
        arrays = [f"{text}::{type_}[]" for text, type_ in zip(texts, types, strict=True)]
        item = names.index("item")
        arrays[item] = f"string_to_array({texts[item]}, E'\\n', '')::jsonb[]"
        words = {
            "staged_keys": ", ".join(key.staged for key in self.keys),
            "arrays": ", ".join(arrays),
            "names": ", ".join(names),
        }
        return fill(statements("document")["unnested"], words)


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
        reserved = attribute in {*OWN_COLUMNS, *_SYSTEM_COLUMNS, _ORDINAL}
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
