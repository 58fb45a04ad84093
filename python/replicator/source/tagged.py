"""The tables that carry tags, as the Resource Groups Tagging API tells them.

It answers for one account and Region, in pages, and is eventually consistent: a table may be
listed that was deleted a moment ago, or not yet be listed though it is tagged
(https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/API_GetResources.html).

Permissions: tag:GetResources; for `active_destination` also
dynamodb:DescribeKinesisStreamingDestination.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replicator.aws import AWSSettings, aws_client, aws_errors
from replicator.errors import FatalError
from replicator.source.tables import destinations

# UPDATING changes the precision of the instants; records go on coming
# (https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_KinesisDataStreamDestination.html).
_WRITING = frozenset({"ACTIVE", "UPDATING"})


async def tagged_tables(
    settings: AWSSettings, tags: Mapping[str, Sequence[str] | None]
) -> list[str]:
    """Names of the tables that carry every one of the tags, with one of its values (None: any
    value); sorted, all pages.

    Raises FatalError when that is denied, TransientError when throttled or out of reach.
    """
    filters = [{"Key": key, "Values": list(values or ())} for key, values in tags.items()]
    found: set[str] = set()
    # Who looks again and again has a pace of its own.
    async with aws_client(settings, "resourcegroupstaggingapi", attempts_max=2) as client:
        token = ""
        while True:
            with aws_errors("GetResources", f"tables tagged {', '.join(tags)}"):
                answer = await client.get_resources(
                    TagFilters=filters,
                    ResourceTypeFilters=["dynamodb:table"],
                    ResourcesPerPage=100,
                    PaginationToken=token,
                )
            # A page may be empty and not the last; an empty token is the end.
            arns = (each["ResourceARN"] for each in answer["ResourceTagMappingList"])
            found.update(arn.rpartition(":table/")[2] for arn in arns)
            token = answer.get("PaginationToken") or ""
            if not token:
                return sorted(found)


async def active_destination(settings: AWSSettings, table: str) -> str:
    """ARN of the one Kinesis stream that the table writes to. Raises FatalError when there
    is none (`destination_missing`) or more than one (`destination_ambiguous`)."""
    told = await destinations(settings, table)
    active = sorted(arn for arn, status in told.items() if status in _WRITING)
    if not active:
        others = ", ".join(f"{arn} is {status}" for arn, status in sorted(told.items()))
        raise FatalError(
            "destination_missing",
            f"table {table} writes to no Kinesis stream ({others or 'it has no destination'}). "
            f"What to do: run aws dynamodb enable-kinesis-streaming-destination --table-name "
            f"{table} --stream-arn …, or read the table's own stream with kind: streams.",
        )
    if len(active) > 1:
        raise FatalError(
            "destination_ambiguous",
            f"table {table} writes to several Kinesis streams: {', '.join(active)}. What to do: "
            "name the one to read with `stream:` at the source.",
        )
    return active[0]
