"""A table of items in CrateDB on paper: names and statements. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from replicator.errors import FatalError
from replicator.model import TableSchema
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.statements import fill, quoted, statements

OWN_COLUMNS: Final[Mapping[str, str]] = {
    "item": "object",
    "exact": "text",
    "version": "text",
    "deleted": "boolean",
    "chain": "text",
}
STATE_TABLES: Final = ("positions", "streams", "dead_letters")
INSTANT_LENGTH: Final = 51
"""Characters of a version up to its instant's end."""


@dataclass(frozen=True, slots=True)
class CrateTable:
    """A source table's place in CrateDB. `keys` are its key columns' names."""

    source: TableSchema
    schema: str
    name: str
    keys: tuple[str, ...]
    settings: CrateSettings

    @property
    def full_name(self) -> str:
        return quoted(self.schema, self.name)

    @property
    def one_key(self) -> str:
        """The condition that names one row."""
        return "(" + " AND ".join(f"{quoted(key)} = ?" for key in self.keys) + ")"

    def statements(self) -> Mapping[str, str]:
        """Those of `crate_document.sql`; in them only `{any_key}` is left."""
        settings = self.settings
        words = {
            "table": self.full_name,
            "keys": ", ".join(map(quoted, self.keys)),
            "key_columns": ",\n    ".join(f"{quoted(key)} TEXT" for key in self.keys),
            "places": ", ".join("?" * len(self.keys)),
            "one_key": self.one_key,
            "any_key": "{any_key}",
            "policy": "DYNAMIC" if settings.dynamic else "IGNORED",
            "clustered": f" CLUSTERED INTO {settings.shards} SHARDS" if settings.shards else "",
            "options": (
                f" WITH (number_of_replicas = '{settings.replicas}')" if settings.replicas else ""
            ),
        }
        return {name: fill(sql, words) for name, sql in statements("crate_document").items()}


def state_statements(settings: CrateSettings) -> Mapping[str, str]:
    """Those of `crate_state.sql`; in them only `{any_key}` is left."""
    words = {kind: quoted(settings.schema, f"replicator_{kind}") for kind in STATE_TABLES}
    words["any_key"] = "{any_key}"
    return {name: fill(sql, words) for name, sql in statements("crate_state").items()}


def crate_tables(settings: CrateSettings, sources: Sequence[TableSchema]) -> tuple[CrateTable, ...]:
    """The tables of these sources. Raises FatalError when two would be one, or a name can't be."""
    tables: dict[str, CrateTable] = {}
    for source in sources:
        # A relation's name has no dot; one in the template is between schema and name.
        template = settings.table
        schema, _, name = template.rpartition(".")
        name = name.replace("{table}", source.name.replace(".", "_"))
        table = CrateTable(source, schema or settings.schema, name, _key_columns(source), settings)
        if not name or name.startswith("_") or len(name) > 255:
            raise FatalError(
                "crate_table_name",
                f"table {source.name}: {name!r} is no name of a table in CrateDB; set `table` of"
                f" sink {settings.name}",
            )
        if name.startswith("replicator_") and name.removeprefix("replicator_") in STATE_TABLES:
            raise FatalError(
                "crate_table_name",
                f"table {source.name}: {name} is where sink {settings.name} keeps its own state;"
                " set its `table`",
            )
        other = tables.setdefault(table.full_name, table)
        if other is not table:
            raise FatalError(
                "crate_table_name",
                f"tables {other.source.name} and {source.name} would both be {table.full_name}: set"
                f" `table` of sink {settings.name} to something with {{table}}",
            )
    return tuple(tables.values())


def _key_columns(source: TableSchema) -> tuple[str, ...]:
    """The key attributes' columns: what a column can't be called is written as in a URL, a name
    that is taken gets a `_`, and one that begins with it, as the server's own do, a `key`."""
    names: list[str] = []
    for attribute, _ in source.keys:
        name = "".join(f"%{ord(c):02X}" if c in ".[%\t\n\r" else c for c in attribute)
        if name.startswith("_"):
            name = f"key{name}"
        while name in OWN_COLUMNS or name in names:
            name += "_"
        names.append(name)
    return tuple(names)
