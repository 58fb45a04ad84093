"""What CrateDB does to the values of an OBJECT(DYNAMIC) column: pure, for the stand-in server.

As CrateDB 6.4 does it: the first value of an attribute makes a column of its type, later ones are
cast to it where they can be (a BIGINT column cuts 5.5 to 5), and refused where they can't.
"""

from __future__ import annotations

import json
from typing import Any, Final, TypeAlias

TERM_BYTES_MAX: Final = 32_766

Types: TypeAlias = dict[tuple[str, ...], str]
"""Type by path: `text`, `boolean`, `bigint`, `double precision`, `object`, each perhaps with
`_array` behind it. What has been NULL only has none."""


class Refused(Exception):
    """CrateDB's code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def cast(value: Any, path: tuple[str, ...], types: Types) -> Any:
    """The value as a column that is there already would store it; attributes without one stay as
    they are."""
    kind = types.get(path)
    if value is None or kind is None:
        return value
    if kind.endswith("_array"):
        if not isinstance(value, list):
            raise _cannot_cast(value, path, kind)
        inner = types | {path: kind.removesuffix("_array")}
        return [cast(element, path, inner) for element in value]
    if kind == "object":
        if not isinstance(value, dict):
            raise _cannot_cast(value, path, kind)
        return {name: cast(inner, (*path, name), types) for name, inner in value.items()}
    return _cast_plain(value, path, kind)


def _cast_plain(value: Any, path: tuple[str, ...], kind: str) -> Any:
    if isinstance(value, list):
        raise _cannot_cast(value, path, kind)
    if kind == "text":
        return value if isinstance(value, str) else _text(value)
    if isinstance(value, dict):
        raise _cannot_cast(value, path, kind)
    if kind == "boolean":
        if isinstance(value, bool):
            return value
        raise _cannot_cast(value, path, kind)
    if isinstance(value, bool):
        raise _cannot_cast(value, path, kind)
    try:
        number = float(value)
        return int(value) if kind == "bigint" and isinstance(value, int) else _number(number, kind)
    except ValueError:
        raise _cannot_cast(value, path, kind) from None


def _number(number: float, kind: str) -> float | int:
    return int(number) if kind == "bigint" else number


def _text(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    return {True: "t", False: "f"}[value] if isinstance(value, bool) else str(value)


def _cannot_cast(value: object, path: tuple[str, ...], kind: str) -> Refused:
    return Refused(
        4000,
        f"SQLParseException[Cannot cast object element `{path[-1]}` with value `{value}` to type"
        f" `{kind}`]",
    )


def learn(value: dict[str, Any], path: tuple[str, ...], types: Types) -> None:
    """Makes columns of attributes that have none yet. Raises Refused."""
    for name, inner in value.items():
        at = (*path, name)
        if any(c in name for c in ".["):
            raise Refused(4008, f'InvalidColumnNameException["{name}" contains a dot]')
        kind = guess(inner)
        if kind is not None:
            types.setdefault(at, kind)
        for one in inner if isinstance(inner, list) else [inner]:
            if isinstance(one, dict):
                # A list's maps share their columns: each is cast to what those before it made.
                learn(cast(one, at, types | {at: "object"}), at, types)
            if isinstance(one, str) and len(one.encode()) > TERM_BYTES_MAX:
                raise Refused(4000, "SQLParseException[Document contains an immense term]")


def guess(value: Any) -> str | None:
    """The type of a new column; None for what tells none."""
    match value:
        case bool():
            return "boolean"
        case int():
            return "bigint"
        case float():
            return "double precision"
        case str():
            return "text"
        case dict():
            return "object"
        case list():
            kinds = {kind for kind in map(guess, value) if kind is not None}
            if len(kinds) > 1:
                raise Refused(5000, "ClassCastException[elements of several types]")
            return f"{kinds.pop()}_array" if kinds else None
    return None
