"""Every statement of the CrateDB sink, by CrateDB's own grammar."""

from __future__ import annotations

import pytest
from cratedb_sqlparse import sqlparse

from replicator.errors import FatalError
from replicator.model import TableSchema
from replicator.sink.crate_layout import CrateTable, crate_tables, state_statements
from replicator.sink.crate_settings import CrateSettings

SETTINGS = CrateSettings("crate", "shop", "http://localhost:4200", shards=4, replicas="0-1")
ORDERS = TableSchema("or-ders.2", (("customer", "S"), ('Nr "1"', "N")))


def _table(source: TableSchema, **settings: object) -> CrateTable:
    (table,) = crate_tables(
        CrateSettings("crate", "shop", "http://localhost:4200", **settings),  # type: ignore[arg-type]
        [source],
    )
    return table


(TABLE,) = crate_tables(SETTINGS, [ORDERS])
STATEMENTS = {**TABLE.statements(), **state_statements(SETTINGS)}


@pytest.mark.parametrize("name", STATEMENTS)
def test_crate_can_parse_it(name: str) -> None:
    one = TABLE.one_key if name in {"stored", "tied"} else "key = ?"
    sql = STATEMENTS[name].replace("{any_key}", f"{one} OR {one}")
    assert "{" not in sql
    (parsed,) = sqlparse(sql, raise_exception=True)
    assert parsed.type == sql.split()[0]


def test_the_parser_refuses_what_crate_does() -> None:
    """Else the test above would show nothing."""
    with pytest.raises(Exception, match="WHERE"):
        sqlparse(
            "INSERT INTO t (id, v) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET v = excluded.v"
            " WHERE t.v < excluded.v",
            raise_exception=True,
        )


def test_names_are_what_crate_takes() -> None:
    assert TABLE.full_name == '"doc"."or-ders_2"'
    keys = TableSchema("t", (("item", "S"), ("a.b[0]", "N")))
    assert _table(keys).keys == ("item_", "a%2Eb%5B0]")
    assert _table(TableSchema("t", (("_id", "S"),))).keys == ("key_id",)
    assert _table(ORDERS, table="lake.of_{table}").full_name == '"lake"."of_or-ders_2"'


@pytest.mark.parametrize(
    ("template", "sources"),
    [
        ("all", ["a", "b"]),
        ("{table}", ["a.b", "a_b"]),
        ("{table}", ["replicator_positions"]),
        ("_{table}", ["a"]),
    ],
)
def test_names_that_cannot_be_are_refused(template: str, sources: list[str]) -> None:
    settings = CrateSettings("crate", "shop", "http://localhost:4200", table=template)
    with pytest.raises(FatalError) as refused:
        crate_tables(settings, [TableSchema(name, (("id", "S"),)) for name in sources])
    assert refused.value.code == "crate_table_name"
    assert "`table`" in refused.value.message
