"""How many shards a stream gets: told, or from the load that its tables have had.

A table's writes are what CloudWatch has of its consumed write capacity: the greatest sum over
five minutes in 14 days. One unit is a write of up to 1 KB, so a write of the average item takes
as many as it has KB, rounded up
(https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/on-demand-capacity-mode.html).
The average item is the table's size by its items, which DynamoDB counts about every six hours.
How many writes are updates is measured nowhere: all of them is what needs most shards.

Permissions: cloudwatch:GetMetricData, dynamodb:DescribeTable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from replicator.aws import aws_errors
from replicator.shards import estimate

DAYS = 14
_PERIOD_SECONDS = 300
_UNIT_BYTES = 1_024


@dataclass(frozen=True, slots=True)
class Capacity:
    """The shards of a new stream, None for one on demand, and what the number comes from."""

    shards: int | None
    reason: str = ""

    def __str__(self) -> str:
        if self.shards is None:
            unknown = (
                "nothing is known of the load (--writes, --bytes and --updates give a number of "
                "shards, --from-metrics takes it from CloudWatch)"
            )
            return f"on demand: {self.reason or unknown}"
        noun = "shard" if self.shards == 1 else "shards"
        return f"with {self.shards} {noun}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Load:
    """One table's greatest load. `units` are write capacity units a second."""

    table: str
    units: float
    nbytes: float

    @property
    def writes_per_second(self) -> float:
        """Of the average item."""
        return self.units / max(1, math.ceil(self.nbytes / _UNIT_BYTES))


def capacity(loads: Sequence[Load]) -> Capacity:
    """The shards for tables that all have their greatest load at once."""
    writes = sum(load.writes_per_second for load in loads)
    if not writes:
        return Capacity(None, f"no writes were measured in the last {DAYS} days")
    nbytes = sum(load.writes_per_second * load.nbytes for load in loads) / writes
    shards = estimate(writes_per_second=writes, nbytes=nbytes, updates_percent=100).shards
    seen = " and ".join(
        f"{load.writes_per_second:.1f} writes/s of {load.nbytes:.0f} B ({load.table})"
        for load in loads
    )
    return Capacity(
        shards, f"at most {seen} in the last {DAYS} days by CloudWatch, all taken for updates"
    )


async def measured(dynamodb: Any, cloudwatch: Any, tables: Sequence[str]) -> Capacity:
    """The shards for these tables' measured load. Raises FatalError where a table is missing or
    reading is denied, and TransientError."""
    return capacity([await _load(dynamodb, cloudwatch, table) for table in tables])


async def _load(dynamodb: Any, cloudwatch: Any, table: str) -> Load:
    with aws_errors("DescribeTable", table):
        found = (await dynamodb.describe_table(TableName=table))["Table"]
    items = found.get("ItemCount", 0)
    nbytes = found.get("TableSizeBytes", 0) / items if items else float(_UNIT_BYTES)
    end = datetime.now(UTC)
    query = {
        "Id": "writes",
        "MetricStat": {
            "Metric": {
                "Namespace": "AWS/DynamoDB",
                "MetricName": "ConsumedWriteCapacityUnits",
                "Dimensions": [{"Name": "TableName", "Value": found["TableName"]}],
            },
            "Period": _PERIOD_SECONDS,
            "Stat": "Sum",
        },
    }
    greatest = 0.0
    more: dict[str, str] = {}
    while True:
        with aws_errors("GetMetricData", table):
            answer = await cloudwatch.get_metric_data(
                MetricDataQueries=[query],
                StartTime=end - timedelta(days=DAYS),
                EndTime=end,
                **more,
            )
        for result in answer["MetricDataResults"]:
            greatest = max([greatest, *result["Values"]])
        if (token := answer.get("NextToken")) is None:
            return Load(found["TableName"], greatest / _PERIOD_SECONDS, nbytes)
        more = {"NextToken": token}
