from __future__ import annotations

import re
from importlib import resources

import pytest

from replicator.sink.statements import fill, quoted, statements

FILES = ("catalog", "crate_document", "crate_state", "document", "session", "state")


@pytest.mark.parametrize("file", FILES)
def test_every_statement_has_a_body_and_no_comment(file: str) -> None:
    for name, sql in statements(file).items():
        assert sql, name
        assert "--" not in sql, name


def test_every_sql_file_is_read_by_somebody() -> None:
    folder = resources.files("replicator.sink").joinpath("sql")
    found = {entry.name.removesuffix(".sql") for entry in folder.iterdir()}
    assert found == set(FILES)


def test_no_name_is_given_twice() -> None:
    for file in FILES:
        text = resources.files("replicator.sink").joinpath("sql", f"{file}.sql").read_text("utf-8")
        assert len(re.findall(r"^-- name:", text, re.MULTILINE)) == len(statements(file))


def test_filling_is_one_pass() -> None:
    assert fill("{a} {b}", {"a": "{b}", "b": "x"}) == "{b} x"
    with pytest.raises(KeyError):
        fill("{nothing}", {})


def test_quoting() -> None:
    assert quoted("a.b-c") == '"a.b-c"'
    assert quoted("s", 'say "hi"') == '"s"."say ""hi"""'
