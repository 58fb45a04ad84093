"""The source tables' keys, as DynamoDB describes them.

Permission: dynamodb:DescribeTable; for `destinations` also
dynamodb:DescribeKinesisStreamingDestination.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replicator.aws import AWSSettings, aws_client, aws_errors
from replicator.model import TableSchema


async def describe_tables(settings: AWSSettings, tables: Sequence[str]) -> list[TableSchema]:
    """Key attributes of each table (name or ARN), hash key first.

    Raises FatalError when one is missing or access is denied, TransientError otherwise.
    """
    async with aws_client(settings, "dynamodb") as client:
        return [await _describe(client, table) for table in tables]


async def destinations(settings: AWSSettings, table: str) -> dict[str, str]:
    """The table's Kinesis destinations: stream ARN → status (`ACTIVE`, `ENABLING`, …)."""
    async with aws_client(settings, "dynamodb") as client:
        with aws_errors("DescribeKinesisStreamingDestination", table):
            answer = await client.describe_kinesis_streaming_destination(TableName=table)
    return {
        destination["StreamArn"]: destination["DestinationStatus"]
        for destination in answer.get("KinesisDataStreamDestinations", ())
    }


async def _describe(client: Any, table: str) -> TableSchema:
    with aws_errors("DescribeTable", table):
        answer = await client.describe_table(TableName=table)
    described = answer["Table"]
    types = {a["AttributeName"]: a["AttributeType"] for a in described["AttributeDefinitions"]}
    # The API gives the hash key first: "a KeySchemaElement … in the following order"
    # (https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TableDescription.html).
    keys = tuple(
        (key["AttributeName"], types[key["AttributeName"]]) for key in described["KeySchema"]
    )
    return TableSchema(described["TableName"], keys)
