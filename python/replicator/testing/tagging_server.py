"""A small Kinesis whose tables carry tags: with GetResources of the Resource Groups Tagging API,
and DynamoDB's DescribeKinesisStreamingDestination.

As the API documents it
(https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/API_GetResources.html):
filters of several keys must all fit, of a key's values one, and none means any; answers come in
pages of at most 100, and the last one's token is empty.
"""

from __future__ import annotations

from typing import Any

from replicator.testing.kinesis_server import KinesisServer

_PAGE_MAX = 100


class TaggingServer(KinesisServer):
    """`tags` are those of each table; `destinations` its Kinesis destinations, stream ARN to
    status, every table's this stream unless a test says otherwise. `pages_of` makes pages
    smaller than they are asked for."""

    def __init__(self, *arguments: Any, pages_of: int = _PAGE_MAX, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tags: dict[str, dict[str, str]] = {}
        self.destinations: dict[str, dict[str, str]] = {}
        self.pages_of = pages_of

    def _plain(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "GetResources":
                return self._resources(body)
            case "DescribeKinesisStreamingDestination":
                name = body["TableName"]
                told = self.destinations.get(name, {self.arn: "ACTIVE"})
                return {
                    "TableName": name,
                    "KinesisDataStreamDestinations": [
                        {"StreamArn": arn, "DestinationStatus": status}
                        for arn, status in told.items()
                    ],
                }
            case _:
                return super()._plain(operation, body)

    def _resources(self, body: dict[str, Any]) -> dict[str, Any]:
        filters = body.get("TagFilters", [])
        types = body.get("ResourceTypeFilters", ["dynamodb:table"])
        found = [
            (table, tags)
            for table, tags in sorted(self.tags.items())
            if "dynamodb:table" in types and all(_fits(tags, each) for each in filters)
        ]
        first = int(body.get("PaginationToken") or 0)
        end = first + min(int(body.get("ResourcesPerPage", _PAGE_MAX)), self.pages_of)
        return {
            "PaginationToken": str(end) if end < len(found) else "",
            "ResourceTagMappingList": [
                {
                    "ResourceARN": f"arn:aws:dynamodb:eu-north-1:000000000000:table/{table}",
                    "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
                }
                for table, tags in found[first:end]
            ],
        }


def _fits(tags: dict[str, str], wanted: dict[str, Any]) -> bool:
    value = tags.get(wanted["Key"])
    return value is not None and (not wanted.get("Values") or value in wanted["Values"])
