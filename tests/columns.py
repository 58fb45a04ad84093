"""Items for column plans, and a plain-Python oracle of what goes where."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any, Literal

from boto3.dynamodb.types import TypeDeserializer
from hypothesis import strategies as st

from replicator._core import ChangeBatch, Columns, Records, decode
from replicator.testing.items import with_bytes
from tests.property.test_decode import (
    binaries,
    decimal_value,
    number_texts,
    plain,
    texts,
    values,
)

EXACT = Context(prec=400)
TABLE = "products"
KEYS: list[tuple[str, Literal["S", "N", "B"]]] = [("id", "S")]
# One column of each type, under names that other formats have to spell otherwise.
PLAN = {
    "name": "text",
    "Price": "numeric",
    "amount (kr)": "numeric(12,3)",
    "Stock": "bigint",
    "is_open": "boolean",
    "blob": "bytea",
    "seen": "timestamptz",
    "doc": "jsonb",
    "tags": "text[]",
    "1st": "numeric[]",
    "naïve": "bytea[]",
}
COLUMNS = Columns(list(PLAN.items()))

instants = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)).map(  # noqa: DTZ001
    lambda at: at.isoformat() + "Z"
)
_FITTING = {
    "text": texts.map(lambda text: {"S": text}),
    "numeric": number_texts().map(lambda text: {"N": text}),
    "numeric(12,3)": st.decimals(-(10**9), 10**9, places=3).map(lambda n: {"N": f"{n:f}"}),
    "bigint": st.integers(-(2**63) - 2, 2**63 + 1).map(lambda n: {"N": str(n)}),
    "boolean": st.booleans().map(lambda flag: {"BOOL": flag}),
    "bytea": binaries.map(lambda text: {"B": text}),
    "timestamptz": instants.map(lambda text: {"S": text}),
    "jsonb": values,
    "text[]": st.lists(texts, min_size=1, max_size=5, unique=True).map(lambda v: {"SS": v}),
    "numeric[]": st.lists(number_texts(), min_size=1, max_size=5, unique_by=decimal_value).map(
        lambda v: {"NS": v}
    ),
    "bytea[]": st.lists(binaries, min_size=1, max_size=5, unique=True).map(lambda v: {"BS": v}),
}

Item = dict[str, Any]


@st.composite
def items(draw: st.DrawFn) -> Item:
    """An item in DynamoDB's form: planned attributes, mostly in a type that fits, and others."""
    item: Item = {}
    for name, kind in PLAN.items():
        match draw(st.integers(0, 5)):
            case 0:
                pass
            case 1:
                item[name] = draw(values)
            case _:
                item[name] = draw(_FITTING[kind])
    item |= draw(st.dictionaries(texts.filter(lambda name: name != "id"), values, max_size=2))
    return item


def without_nul(value: Any) -> Any:
    """The same with `?` for U+0000."""
    if isinstance(value, str):
        return value.replace("\0", "?")
    if isinstance(value, list):
        return list({json.dumps(without_nul(x)): without_nul(x) for x in value}.values())
    if isinstance(value, dict):
        return {without_nul(name): without_nul(x) for name, x in value.items()}
    return value


def batch_of(items_: Sequence[Item], **more: Any) -> ChangeBatch:
    """Inserts of these items, keyed by `id`: 0, 1, 2 …"""
    return decode(
        Records.pack(
            [
                json.dumps(
                    {
                        "eventID": str(i),
                        "eventName": "INSERT",
                        "tableName": TABLE,
                        "dynamodb": {
                            "ApproximateCreationDateTime": 1_706_542_773_915_835 + i,
                            "ApproximateCreationDateTimePrecision": "MICROSECOND",
                            "Keys": {"id": {"S": str(i)}},
                            "NewImage": {"id": {"S": str(i)}, **item},
                        },
                    }
                ).encode()
                for i, item in enumerate(items_)
            ]
        ),
        **more,
    )


def _instant(text: str) -> datetime | None:
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", text, re.ASCII):
        return None
    head, _, fraction = text[:-1].partition(".")
    try:
        at = datetime.strptime(head, "%Y-%m-%dT%H:%M:%S")  # noqa: DTZ007 UTC follows
    except ValueError:
        return None
    return at.replace(microsecond=int(fraction.ljust(6, "0")), tzinfo=UTC)


def fitting(kind: str, value: Mapping[str, Any]) -> Any:
    """What the column holds (numbers as Decimal, binary as bytes); None when it doesn't fit."""
    ((tag, content),) = value.items()
    found = plain(TypeDeserializer().deserialize(with_bytes(dict(value))))
    match kind, tag:
        case "text", "S":
            return None if "\0" in content else content
        case "numeric", "N":
            return found
        case "numeric(12,3)", "N":
            is_exact = EXACT.compare(EXACT.quantize(found, Decimal("1E-3")), found) == 0
            return found if is_exact and abs(found) < 10**9 else None
        case "bigint", "N":
            is_whole = EXACT.compare(found.to_integral_value(), found) == 0
            return int(found) if is_whole and -(2**63) <= found < 2**63 else None
        case ("boolean", "BOOL") | ("numeric[]", "NS"):
            return found
        case "bytea", "B":
            return base64.b64decode(content)
        case "timestamptz", "S":
            return _instant(content)
        case "jsonb", _:
            # One with U+0000 stays in the rest, as does what looks so in JSON.
            has_nul = "\\u0000" in json.dumps(content)
            return None if tag == "NULL" or has_nul else found
        case "text[]", "SS":
            return None if any("\0" in text for text in content) else found
        case "bytea[]", "BS":
            return [base64.b64decode(text) for text in found]
        case _:
            return None


def expected(item: Item, plan: Mapping[str, str] = PLAN) -> tuple[list[Any], Item]:
    """Per column its value, and the rest (plain)."""
    columns = [fitting(kind, item[name]) if name in item else None for name, kind in plan.items()]
    held = {name for name, value in zip(plan, columns, strict=True) if value is not None}
    rest = {
        name: plain(TypeDeserializer().deserialize(with_bytes(value)))
        for name, value in item.items()
        if name not in held
    }
    return columns, rest


def exact(text: str | bytes) -> Any:
    """JSON with numbers as they are written."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)
