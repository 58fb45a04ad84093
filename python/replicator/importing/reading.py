"""The text of another tool's configuration as a mapping: JSON, or Java's .properties."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from replicator.errors import FatalError


def read(content: str, where: str) -> Any:
    """JSON when it begins so, else .properties, whose values are all text.

    Raises FatalError (`config_import_unreadable`) with the place, and without the text: it may hold
    a secret.
    """
    try:
        if content.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
            found = json.loads(content.lstrip("\ufeff"))
        else:
            found = properties(content.lstrip("\ufeff"))
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise FatalError(
            "config_import_unreadable",
            f"{where} holds half a character, an escape from \\ud800 to \\udfff alone: correct it",
        ) from None
    except json.JSONDecodeError as error:
        raise FatalError(
            "config_import_unreadable",
            f"{where} is no JSON: {error.msg} (line {error.lineno}, column {error.colno})",
        ) from None
    except (ValueError, RecursionError):
        raise FatalError(
            "config_import_unreadable",
            f"{where} is no JSON: a number is too long, or it is too deep",
        ) from None
    return found


_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def properties(content: str) -> dict[str, str]:
    """Names and values of a .properties file; the last of a repeated name counts.
    https://docs.oracle.com/en/java/javase/21/docs/api/java.base/java/util/Properties.html#load(java.io.Reader)
    """
    found = {}
    for line in _logical_lines(content):
        match = re.match(r"((?:\\.|[^\\=:\s])*)[ \t\f]*[=:]?[ \t\f]*", line, re.DOTALL)
        assert match is not None, "every part may be empty"
        found[_unescaped(match[1])] = _unescaped(line[match.end() :])
    return found


def _logical_lines(content: str) -> Iterator[str]:
    """Lines without comments and blanks; one that ends in an odd number of backslashes goes on."""
    held = ""
    for line in re.split(r"\r\n|\r|\n", content):
        stripped = line.lstrip(" \t\f")
        if not held and (not stripped or stripped[0] in "#!"):
            continue
        held += stripped
        if (len(held) - len(held.rstrip("\\"))) % 2:
            held = held[:-1]
        else:
            yield held
            held = ""
    if held:
        yield held


def _unescaped(part: str) -> str:
    def one(match: re.Match[str]) -> str:
        escape = match[1]
        return chr(int(escape[1:], 16)) if len(escape) == 5 else _ESCAPES.get(escape, escape)

    text = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", one, part, flags=re.DOTALL)
    # Java writes what lies beyond 16 bits as two escapes.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def mapping(content: Any) -> Mapping[str, Any]:
    """The content, which has to be a mapping. Raises FatalError (`config_import_format`)."""
    if not isinstance(content, Mapping) or not content:
        raise FatalError(
            "config_import_format", "a mapping of options is wanted, and there is none"
        )
    return content


def flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, their names joined by dots; a list is a value, and so is an
    empty mapping."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            found |= flat(inner, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = inner
    return found
