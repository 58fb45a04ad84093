"""The tables of the CrateDB stand-in, kept by SQLite.

SQLite's grammar is near enough to CrateDB's for the statements that the sink writes; the rest is
put in its own words here. Searches see what the last REFRESH showed, look-ups by primary key what
is there, as CrateDB does it. No other statement is understood, and none is checked as CrateDB
would: the tests ask CrateDB's own parser for that.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from replicator.testing.crate_types import Refused, Types, cast, learn

_NAME: Final = r'"((?:[^"]|"")+)"'
_RELATION: Final = re.compile(rf"{_NAME}\.{_NAME}")
_CREATE: Final = re.compile(rf"CREATE TABLE IF NOT EXISTS {_NAME}\.{_NAME} \((.*)\n\)", re.DOTALL)
_COLUMN: Final = re.compile(
    r'^\s*(?:"((?:[^"]|"")+)"|(\w+)) (TEXT|BIGINT|BOOLEAN|OBJECT|ARRAY)(.*)'
)
_WORDS: Final = (
    (re.compile(r"CURRENT_TIMESTAMP::BIGINT"), "now_ms()"),
    (re.compile(r"\?::\w+"), "?"),
    (re.compile(r"LEFT\(([\w.]+), (\d+)\)"), r"substr(\1, 1, \2)"),
)
_LOOK_UP: Final = re.compile(r"WHERE [(]?(\"?\w|key = \?)")
_JSON: Final = frozenset({"object", "text_array"})


@dataclass(slots=True)
class _Table:
    name: str
    columns: dict[str, str]
    not_null: frozenset[str]
    keys: tuple[str, ...]
    is_dynamic: bool
    durability: str = "REQUEST"
    types: Types = field(default_factory=dict)


class CrateTables:
    """All tables of a server."""

    def __init__(self) -> None:
        self.counts_conflicts = False  # a row that isn't the one that was read: 0, and no error
        self.refuse: Callable[[Sequence[Any]], Refused | None] = lambda _: None
        """What becomes of a row of a bulk request, for a reason that doesn't show at will."""
        self._db = _connected()
        self._tables: dict[tuple[str, str], _Table] = {}
        self._sequence = 0
        self._db.create_function("next_sequence", 0, self._next)

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def copied(self) -> CrateTables:
        """The same tables, on their own from here on."""
        other = CrateTables()
        self._db.backup(other._db)
        other._sequence = self._sequence
        other._tables = {
            name: _Table(
                table.name,
                table.columns,
                table.not_null,
                table.keys,
                table.is_dynamic,
                table.durability,
                dict(table.types),
            )
            for name, table in self._tables.items()
        }
        return other

    # ---- statements

    def run(self, statement: str, args: Sequence[Any]) -> tuple[list[list[Any]], int]:
        """Rows and row count of one statement. Raises Refused."""
        if created := _CREATE.match(statement):
            self._create(statement, *created.groups())
            return [], 1
        if "information_schema." in statement or "sys." in statement:
            return self._catalog(statement, args)
        table = self._table(statement)
        if statement.startswith("REFRESH"):
            shown = f'"{table.name}~"'
            self._db.execute(f"DELETE FROM {shown}")  # noqa: S608 our own name
            self._db.execute(f'INSERT INTO {shown} SELECT * FROM "{table.name}"')  # noqa: S608 our own name
            return [], 1
        return self._execute(table, statement, self._cast(table, args))

    def run_bulk(self, statement: str, bulk_args: Sequence[Sequence[Any]]) -> list[Refused | int]:
        """Row count or refusal of each. Raises Refused for all of them: for a wrong statement, and
        for a value that can't be cast to the column it has."""
        table = self._table(statement)
        try:
            self._db.execute(f"EXPLAIN {_translated(statement, table.name)}", _nothing(statement))
        except sqlite3.OperationalError as error:
            code = 4043 if "column" in str(error) else 4000
            raise Refused(code, f"SQLParseException[{error}]") from None
        for args in bulk_args:
            self._cast(table, args)
        return [self.refuse(args) or self._run_row(table, statement, args) for args in bulk_args]

    def _run_row(self, table: _Table, statement: str, args: Sequence[Any]) -> Refused | int:
        try:
            values = self._cast(table, args)
            if table.is_dynamic:
                types = dict(table.types)
                for value in values:
                    if isinstance(value, dict):
                        learn(value, (), types)
                table.types = types
            _, count = self._execute(table, statement, values)
        except Refused as refused:
            return refused
        if count == 0 and "_seq_no" in statement and not self.counts_conflicts:
            return Refused(4092, "VersionConflictEngineException[version conflict]")
        return count

    def _cast(self, table: _Table, args: Sequence[Any]) -> list[Any]:
        if not table.is_dynamic:
            return list(args)
        kinds = table.types | {(): "object"}
        return [cast(value, (), kinds) if isinstance(value, dict) else value for value in args]

    def _execute(
        self, table: _Table, statement: str, args: Sequence[Any]
    ) -> tuple[list[list[Any]], int]:
        source = table.name
        if statement.startswith("SELECT") and not self._is_look_up(table, statement):
            source += "~"
        values = [json.dumps(value) if isinstance(value, dict | list) else value for value in args]
        try:
            cursor = self._db.execute(_translated(statement, source), values)
        except sqlite3.IntegrityError as error:
            column = str(error).rpartition(".")[2]
            raise Refused(4000, f'SQLParseException["{column}" must not be null]') from None
        except sqlite3.Error as error:
            raise Refused(4000, f"SQLParseException[{error}]") from None
        names = [column[0] for column in cursor.description or ()]
        rows = [
            [
                _shown(value, table.columns.get(name, ""))
                for name, value in zip(names, row, strict=True)
            ]
            for row in cursor.fetchall()
        ]
        return rows, len(rows) if names else cursor.rowcount

    def _is_look_up(self, table: _Table, statement: str) -> bool:
        """True for a WHERE that is a chain of OR over whole primary keys."""
        _, _, condition = statement.partition("WHERE ")
        one = " AND ".join(rf'"?{re.escape(key)}"? = \?' for key in table.keys)
        return re.fullmatch(rf"\(?{one}\)?( OR \(?{one}\)?)*", condition.strip()) is not None

    # ---- tables

    def drop_column(self, schema: str, name: str, column: str) -> None:
        """As an operator might."""
        table = self._tables[schema, name]
        del table.columns[column]
        for source in (table.name, f"{table.name}~"):
            self._db.execute(f'ALTER TABLE "{source}" DROP COLUMN "{column}"')

    def _table(self, statement: str) -> _Table:
        if (named := _RELATION.search(statement)) is None:
            raise Refused(4000, f"the stand-in doesn't know this statement: {statement[:100]}")
        schema, name = (part.replace('""', '"') for part in named.groups())
        if (schema, name) not in self._tables:
            raise Refused(4041, f"RelationUnknown[Relation '{schema}.{name}' unknown]")
        return self._tables[schema, name]

    def _create(self, statement: str, schema: str, name: str, body: str) -> None:
        if (schema, name) in self._tables:
            return
        columns: dict[str, str] = {}
        not_null: set[str] = set()
        keys: list[str] = []
        for line in body.split("\n"):
            if (listed := re.search(r"PRIMARY KEY \((.*)\)", line)) is not None:
                keys = [key.replace('""', '"') for key in re.findall(_NAME, listed[1])]
            elif (column := _COLUMN.match(line)) is not None:
                quoted, plain, kind, rest = column.groups()
                column_name = quoted.replace('""', '"') if quoted else plain
                columns[column_name] = {"ARRAY": "text_array"}.get(kind, kind.lower())
                if "PRIMARY KEY" in rest:
                    keys.append(column_name)
                if "NOT NULL" in rest:
                    not_null.add(column_name)
        not_null.update(keys)
        table = _Table(
            f"{schema}.{name}", columns, frozenset(not_null), tuple(keys), "DYNAMIC" in statement
        )
        self._tables[schema, name] = table
        self._make(table)

    def _make(self, table: _Table) -> None:
        lines = [
            f'"{name}"' + (" NOT NULL" if name in table.not_null else "") for name in table.columns
        ]
        lines += ['"_seq_no"', '"_primary_term"']
        keys = ", ".join(f'"{key}"' for key in table.keys)
        for source in (table.name, f"{table.name}~"):
            self._db.execute(f'CREATE TABLE "{source}" ({", ".join(lines)}, PRIMARY KEY ({keys}))')
        for event in ("INSERT", "UPDATE"):
            renumber = f'UPDATE "{table.name}" SET _seq_no = next_sequence(), _primary_term = 1'  # noqa: S608 our own name
            self._db.execute(
                f'CREATE TRIGGER "{table.name} {event}" AFTER {event} ON "{table.name}" BEGIN'
                f" {renumber} WHERE rowid = NEW.rowid; END"
            )

    def _catalog(self, statement: str, args: Sequence[Any]) -> tuple[list[list[Any]], int]:
        rows: list[list[Any]]
        if "sys.nodes" in statement:
            rows = [["6.4.3"]]
        elif (table := self._tables.get((args[0], args[1]))) is None:
            rows = []
        elif "information_schema.tables" in statement:
            rows = [[table.durability]]
        elif "key_column_usage" in statement:
            rows = [[key] for key in table.keys]
        else:
            rows = [
                [name, kind, "NO" if name in table.not_null else "YES"]
                for name, kind in table.columns.items()
            ]
        return rows, len(rows)


def _connected() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    db.create_function("now_ms", 0, lambda: time.time_ns() // 1_000_000)
    db.create_function("LEAST", -1, lambda *values: min(v for v in values if v is not None))
    db.create_function(
        "GREATEST", -1, lambda *values: max((v for v in values if v is not None), default=None)
    )
    return db


def _translated(statement: str, source: str) -> str:
    statement = _RELATION.sub('"' + source.replace("\\", "\\\\") + '"', statement)
    for pattern, words in _WORDS:
        statement = pattern.sub(words, statement)
    return statement


def _nothing(statement: str) -> list[None]:
    return [None] * statement.count("?")


def _shown(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "boolean":
        return bool(value)
    return json.loads(value) if kind in _JSON else value
