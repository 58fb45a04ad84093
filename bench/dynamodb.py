"""DynamoDB's PutItem bodies from decoded rows, against botocore's serializer.

Ours cuts the newest change per key out of the wire's bytes: `dynamodb_puts`, whole bodies with the
condition "newer only". botocore begins with the same items as Python dicts of typed values, and
validates and serializes the same request. Rates are items/s; neither side signs or sends.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import botocore.serialize
import botocore.session

from bench import records
from bench.core import SIZES
from bench.timing import Rates, interleaved
from bench.worker import KEYS
from replicator import _core

TABLE = "copy"
Item = dict[str, Any]


def _typed(value: Any) -> Any:
    """A value of the wire as botocore takes it: bytes where JSON has base64."""
    ((tag, content),) = value.items()
    match tag:
        case "B":
            return {"B": base64.b64decode(content)}
        case "BS":
            return {"BS": [base64.b64decode(text) for text in content]}
        case "L":
            return {"L": [_typed(inner) for inner in content]}
        case "M":
            return {"M": {name: _typed(inner) for name, inner in content.items()}}
        case _:
            return value


def _ours(rows: list[_core.Rows]) -> Callable[[], None]:
    def run() -> None:
        for each in rows:
            each.dynamodb_puts(TABLE, version_attribute="v")

    return run


def _botocore(items: list[Item]) -> Callable[[], None]:
    model = botocore.session.get_session().get_service_model("dynamodb")
    operation = model.operation_model("PutItem")
    serializer = botocore.serialize.create_serializer("json", include_validation=True)

    def run() -> None:
        for item in items:
            serializer.serialize_to_request(
                {
                    "TableName": TABLE,
                    "Item": item,
                    "ConditionExpression": "#v < :v",
                    "ExpressionAttributeNames": {"#v": "v"},
                    "ExpressionAttributeValues": {":v": item["v"]},
                    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                },
                operation,
            )

    return run


def measure(shape: str, *, is_quick: bool) -> Rates:
    """One shape, its variants taking turns; botocore serializes a tenth of the items."""
    size = SIZES[shape]
    share = 5 if is_quick else 1
    payloads = records.payloads(shape, size.records // share)
    step = size.records_per_batch // share
    rows = [
        _core.decode(_core.Records.pack(payloads[start : start + step])).newest(records.TABLE, KEYS)
        for start in range(0, len(payloads), step)
    ]
    bodies = [
        body for each in rows for body in each.dynamodb_puts(TABLE, version_attribute="v") if body
    ]
    items = [
        {name: _typed(value) for name, value in json.loads(body)["Item"].items()}
        for body in bodies[: max(1, len(bodies) // 10)]
    ]
    timings = interleaved(
        {"ours": _ours(rows), "botocore": _botocore(items)}, rounds=3 if is_quick else 9
    )
    counts = {"ours": len(bodies), "botocore": len(items)}
    return Rates(
        rates={name: round(counts[name] / timing.best) for name, timing in timings.items()},
        spreads={name: timing.spread for name, timing in timings.items()},
    )
