from __future__ import annotations

import pytest

from replicator.errors import FatalError
from replicator.model import KeyType, TableSchema
from replicator.sink.postgres_layout import IDENTIFIER_BYTES_MAX, DocumentTable, document_tables


def one(name: str, *keys: tuple[str, KeyType], template: str = "{table}") -> DocumentTable:
    (table,) = document_tables([TableSchema(name, keys or (("id", "S"),))], template, "public")
    return table


@pytest.mark.parametrize(
    ("template", "schema", "name"),
    [
        ("{table}", "public", "eu.shop-orders"),
        ("warehouse.{table}", "warehouse", "eu.shop-orders"),
        ("warehouse.raw_{table}", "warehouse", "raw_eu.shop-orders"),
        ("orders", "public", "orders"),
    ],
)
def test_the_place_of_a_table(template: str, schema: str, name: str) -> None:
    table = one("eu.shop-orders", template=template)
    assert (table.schema, table.name, table.view) == (schema, name, f"{name}_live")


@pytest.mark.parametrize("template", ["", "a.b.{table}", ".{table}", "warehouse."])
def test_a_template_that_names_no_place_is_refused(template: str) -> None:
    with pytest.raises(FatalError) as refused:
        one("orders", template=template)
    assert refused.value.code == "table_template"


def test_columns_have_the_types_of_the_keys() -> None:
    table = one("t", ("customer", "S"), ("number", "N"))
    assert dict(table.columns) == {
        "customer": "text",
        "number": "numeric",
        "item": "jsonb",
        "generation": "bigint",
        "version": "numeric",
        "deleted": "boolean",
        "chain": "bytea",
    }
    assert [key.definition for key in table.keys] == [
        '"customer" text COLLATE "C" NOT NULL',
        '"number" numeric NOT NULL',
    ]
    assert one("t", ("digest", "B")).keys[0].type == "bytea"


@pytest.mark.parametrize(
    ("keys", "columns"),
    [
        (["version"], ["key_version"]),
        (["item", "deleted"], ["key_item", "key_deleted"]),
        (["chain", "ordinal"], ["key_chain", "key_ordinal"]),
        (["Item"], ["Item"]),
        (["ctid"], ["key_ctid"]),
        (["key_version"], ["key_version"]),
    ],
)
def test_a_key_named_like_an_own_column_gets_a_prefix(keys: list[str], columns: list[str]) -> None:
    table = one("t", *((key, "S") for key in keys))
    assert [key.name for key in table.keys] == columns


def test_two_keys_never_share_a_column() -> None:
    names = [key.name for key in one("t", ("version", "S"), ("key_version", "S")).keys]
    assert len(set(names)) == 2
    assert names[0] == "key_version"


def test_a_long_key_is_shortened_the_same_way_each_time() -> None:
    names = ["schlüssel" * 20 + end for end in "ab"]
    columns = [one("t", (name, "S")).keys[0].name for name in names]
    assert columns == [one("t", (name, "S")).keys[0].name for name in names]
    assert columns[0] != columns[1]
    assert all(len(column.encode()) <= IDENTIFIER_BYTES_MAX for column in columns)


def test_a_long_table_name_is_refused() -> None:
    assert one("x" * 58).name == "x" * 58
    with pytest.raises(FatalError) as refused:
        one("x" * 59)
    assert refused.value.code == "identifier_too_long"
    assert "a sink of its own" in refused.value.message


@pytest.mark.parametrize(("names", "template"), [(("a", "b"), "t"), (("a", "a_live"), "{table}")])
def test_two_tables_never_share_a_place(names: tuple[str, ...], template: str) -> None:
    sources = [TableSchema(name, (("id", "S"),)) for name in names]
    with pytest.raises(FatalError) as refused:
        document_tables(sources, template, "public")
    assert refused.value.code == "table_shared"
