"""The demo's judge: the table and the rows, item by item.

It shares no code with the way that the changes went: items are read by Scan and made
plain here, in Python, with exact numbers; rows are read as text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

DIFFERENCES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many there are on both sides, and each difference as a sentence."""

    items: int
    rows: int
    differences: tuple[str, ...]
    place: str = "Postgres"

    @property
    def is_equal(self) -> bool:
        """True when every item is a row and every row is an item, attribute by attribute."""
        return not self.differences


def compare(
    items: Mapping[str, Any], rows: Mapping[str, Any], place: str = "Postgres"
) -> Comparison:
    """Plain items against plain rows, both by their key; `place` is where the rows are."""
    return Comparison(len(items), len(rows), tuple(_differences(items, rows, place)), place)


def _differences(items: Mapping[str, Any], rows: Mapping[str, Any], place: str) -> Iterable[str]:
    for key in sorted(items.keys() | rows.keys()):
        if key not in rows:
            yield f"{key}: an item of the table that {place} has no row for"
        elif key not in items:
            yield f"{key}: a row in {place} that the table has no item for"
        elif items[key] != rows[key]:
            item, row = items[key], rows[key]
            names = sorted(
                name
                for name in item.keys() | row.keys()
                if name not in item or name not in row or item[name] != row[name]
            )
            details = ", ".join(
                f"{name} is {item.get(name, 'absent')!s} in the table and"
                f" {row.get(name, 'absent')!s} in {place}"
                for name in names
            )
            yield f"{key}: {details}"


def plain(value: Mapping[str, Any]) -> Any:
    """A typed DynamoDB value, as the client library gives it, in the plain form: numbers
    exact, sets sorted by value, binary as base64 text."""
    ((kind, inner),) = value.items()
    match kind:
        case "S" | "BOOL":
            return inner
        case "N":
            return Decimal(inner)
        case "NULL":
            return None
        case "B":
            return _base64(inner)
        case "M":
            return plain_item(inner)
        case "L":
            return [plain(each) for each in inner]
        case "SS":
            return sorted(inner)
        case "NS":
            return sorted(Decimal(each) for each in inner)
        case "BS":
            return [_base64(each) for each in sorted(inner)]
    raise ValueError(f"{kind!r} is no DynamoDB type")


def plain_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """A typed item, plain."""
    return {name: plain(value) for name, value in item.items()}


def plain_row(text: str) -> Any:
    """The text of a `jsonb` value with exact numbers."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


async def scan(dynamodb: Any, table: str) -> dict[str, Any]:
    """Every item of the table, plain, by its key `id`."""
    items: dict[str, Any] = {}
    pages = dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
    async for page in pages:
        for item in page["Items"]:
            items[item["id"]["S"]] = plain_item(item)
    return items


async def select(postgres: Any, table: str) -> dict[str, Any]:
    """Every live row of the table, plain, by its key column `id` (asyncpg connection)."""
    found = await postgres.fetch(f'SELECT id, item::text FROM "{table}" WHERE NOT deleted')  # noqa: S608 the demo's own name
    return {key: plain_row(text) for key, text in found}
