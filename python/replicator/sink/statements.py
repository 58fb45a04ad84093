"""Named SQL statements of the `.sql` files beside this module.

A statement begins at `-- name: …` and ends at the next one; `{words}` in it are
identifiers, put in when it is asked for. Values never are: they go as `$1`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_HOLE = re.compile(r"\{(\w+)\}")
_COMMENT = re.compile(r"^\s*--.*\n?", re.MULTILINE)


@cache
def statements(file: str) -> Mapping[str, str]:
    """The statements of `sql/<file>.sql` by name, without their comments."""
    text = resources.files("replicator.sink").joinpath("sql", f"{file}.sql").read_text("utf-8")
    _, *parts = _NAME.split(text)
    return {
        name: _COMMENT.sub("", body).strip()
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def fill(statement: str, identifiers: Mapping[str, str]) -> str:
    """The statement with each `{word}` replaced, in one pass: an identifier that
    looks like a hole itself stays as it is. Raises KeyError for an unknown word."""
    return _HOLE.sub(lambda hole: identifiers[hole[1]], statement)


def quoted(*names: str) -> str:
    """A quoted identifier; of several names one qualified by dots."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)
