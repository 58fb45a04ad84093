"""What the Iceberg sink's settings accept, and what they make of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from replicator.aws import AWSSettings
from replicator.sink.iceberg_settings import IcebergConfig
from replicator.sink.place import SinkPlace

PLACE = SinkPlace("shop/lake", "me", "", AWSSettings(), ("products",))
CATALOG = {"type": "rest", "uri": "https://u:secret@lake", "credential": "id:secret"}


def config(**changes: Any) -> IcebergConfig:
    return IcebergConfig.model_validate(
        {"name": "lake", "table": "shop.{table}", "catalog": CATALOG, **changes}
    )


def test_tables_have_names_of_their_own_beside_the_dead_letters() -> None:
    made = config().settings(PLACE)
    assert made.table_of("my.products") == ("shop", "my_products")
    assert made.letters == ("shop", "replicator_dead_letters")
    made = config(table="a.b.log", dead_letters_table="ops.letters").settings(PLACE)
    assert (made.table_of("products"), made.is_by_table) == (("a", "b", "log"), False)
    assert made.letters == ("ops", "letters")


def test_the_catalog_is_passed_on_as_text_and_never_shown() -> None:
    made = config(catalog={**CATALOG, "s3.path-style-access": True, "x": 5})
    assert "secret" not in f"{made!r} {made.model_dump()} {made.model_dump_json()}"
    passed = made.settings(PLACE)
    assert "secret" not in repr(passed)
    assert passed.catalog == {**CATALOG, "s3.path-style-access": "true", "x": "5"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"table": "products"}, "namespace.table"),
        ({"table": "{table}.log"}, "namespace.table"),
        ({"table": "shop.{tabel}"}, "namespace.table"),
        ({"table": "shop."}, "namespace.table"),
        ({"dead_letters_table": "ops.{table}"}, "one table"),
        ({"columns": {"price": "money"}}, "money"),
        ({"mode": "state", "columns": {"price": "text"}}, "columns: they are the log's"),
        ({"mode": "state", "filter": ['{"eventName": ["REMOVE"]}']}, "eventName"),
        ({"duplicate_window_seconds": 1, "reorder_window_seconds": 2}, "no less than"),
        ({"catalog": "glue"}, "catalog"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as raised:
        config(**changes)
    assert reason in str(raised.value)
    assert "secret" not in str(raised.value)
