"""`docs/lessons.md` names tests: each of them exists, and every row has one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LESSONS = ROOT / "docs" / "lessons.md"
NAMED = re.compile(r"`(tests/[\w/.]+)::(\w+)`")


def rows() -> Iterator[str]:
    """The tables' rows, without heads and rules."""
    for line in LESSONS.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith(("| seen at", "| what could")):
            yield line


def collected(path: str) -> set[str]:
    """What the runner collects from the file, by name."""
    if not (ROOT / path).exists():
        return set()
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(LESSONS.read_text(encoding="utf-8"))
    assert len(named) > 50
    missing = sorted({f"{path}::{name}" for path, name in named if name not in collected(path)})
    assert not missing


def test_every_row_is_held_by_a_test() -> None:
    assert [row for row in rows() if not NAMED.search(row)] == []
    # What has no test yet is said in its row; there are few.
    assert LESSONS.read_text(encoding="utf-8").count("*not ") <= 2
