"""DynamoDB's PutItem bodies from decoded rows, against botocore's serializer.

Ours cuts the newest change per key out of the wire's bytes: `dynamodb_puts`, whole bodies with the
condition "newer only". botocore begins with the same items as Python dicts of typed values, and
validates and serializes the same request. Rates are items/s; neither side signs or sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import botocore.serialize
import botocore.session

from bench import core, records
from bench.timing import Rates, interleaved
from bench.worker import KEYS
from replicator import _core
from replicator.testing.items import with_bytes

TABLE = "copy"
Item = dict[str, Any]


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
    _, packed = core.packed(shape, is_quick=is_quick)
    rows = [_core.decode(batch).newest(records.TABLE, KEYS) for batch in packed]
    bodies = [
        body for each in rows for body in each.dynamodb_puts(TABLE, version_attribute="v") if body
    ]
    items = [
        {name: with_bytes(value) for name, value in json.loads(body)["Item"].items()}
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
