"""What the fault cloud's DynamoDB Streams answers, by the driver."""

from __future__ import annotations

import json
from typing import Any

import pytest

from replicator.aws import AWSSettings, aws_client
from replicator.testing.cloud import CloudClock, Fault, StreamsCloud

pytestmark = pytest.mark.usefixtures("credentials")


async def pages(client: Any, cloud: StreamsCloud, shard_id: str) -> list[list[dict[str, Any]]]:
    """Every page of a closed shard from its oldest record on."""
    request = {"StreamArn": cloud.arn, "ShardId": shard_id, "ShardIteratorType": "TRIM_HORIZON"}
    iterator = (await client.get_shard_iterator(**request))["ShardIterator"]
    found = []
    while iterator:
        answer = await client.get_records(ShardIterator=iterator)
        found.append(answer["Records"])
        iterator = answer.get("NextShardIterator")
    return found


def opened(cloud: StreamsCloud) -> Any:
    settings = AWSSettings(region="eu-north-1", endpoint_url=cloud.url)
    return aws_client(settings, "dynamodbstreams", attempts_max=1)


async def test_a_rotation_closes_every_shard_and_keys_go_on_in_order() -> None:
    script = [Fault(kind="rotate", at_seconds=(10.0,)), Fault(kind="split", at_seconds=(20.0,))]
    async with StreamsCloud(script=script, clock=CloudClock(stopped=True), keys=20) as cloud:
        for _ in range(3):
            cloud.workload.make(200, cloud.clock.seconds())
            cloud.advance(10.0)
        for shard in cloud.stream.shards():
            if shard.is_open:
                cloud.stream.close(shard.id)
        async with opened(cloud) as client:
            listed = (await client.describe_stream(StreamArn=cloud.arn))["StreamDescription"]
            parents = {shard["ShardId"]: shard.get("ParentShardId") for shard in listed["Shards"]}
            assert list(parents.values()).count(None) == 2, "two begin it"
            assert len(parents) == 2 + 2 + 2
            numbers: dict[str, list[int]] = {}
            for shard_id in parents:
                for page in await pages(client, cloud, shard_id):
                    for change in (record["dynamodb"] for record in page):
                        of_key = numbers.setdefault(change["Keys"]["id"]["S"], [])
                        of_key.append(int(change["SequenceNumber"]))
        assert sum(map(len, numbers.values())) == 600, "once each"
        assert all(of_key == sorted(of_key) for of_key in numbers.values())


async def test_empty_pages_in_the_middle_lose_nothing_and_ttl_names_the_service() -> None:
    script = [
        Fault(kind="empty_page", share=0.4),
        Fault(kind="small_page", share=0.3, count=3),
        Fault(kind="ttl", share=0.5),
    ]
    async with StreamsCloud(script=script, shards=1, keys=5, records_max=20) as cloud:
        cloud.workload.make(200, 0.0)
        (shard,) = cloud.stream.shards()
        cloud.stream.close(shard.id)
        async with opened(cloud) as client:
            read = await pages(client, cloud, shard.id)
        sizes = [len(page) for page in read]
        assert 0 in sizes[:-1]
        assert sum(sizes) == 200
        expired = [record for page in read for record in page if "userIdentity" in record]
        assert len(expired) == cloud.journal.counts["ttl"] > 0
        identity = {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}
        assert all(record["userIdentity"] == identity for record in expired)


@pytest.mark.parametrize(
    ("view_type", "images"),
    [
        ("KEYS_ONLY", set()),
        ("NEW_IMAGE", {"NewImage"}),
        ("OLD_IMAGE", {"OldImage"}),
        ("NEW_AND_OLD_IMAGES", {"NewImage", "OldImage"}),
    ],
)
async def test_records_carry_what_the_view_type_says(view_type: Any, images: set[str]) -> None:
    async with StreamsCloud(shards=1, keys=3, view_type=view_type) as cloud:
        cloud.workload.make(50, 0.0)
        (shard,) = cloud.stream.shards()
        cloud.stream.close(shard.id)
        async with opened(cloud) as client:
            read = await pages(client, cloud, shard.id)
    carried = {name for page in read for record in page for name in record["dynamodb"]}
    assert {name for name in carried if name.endswith("Image")} == images


async def test_iterators_age_by_the_clock_and_trimmed_records_are_named() -> None:
    async with StreamsCloud(shards=1, clock=CloudClock(stopped=True)) as cloud:
        cloud.workload.make(20, 0.0)
        (shard,) = cloud.stream.shards()
        request = {"StreamArn": cloud.arn, "ShardId": shard.id}
        async with opened(cloud) as client:
            oldest = {**request, "ShardIteratorType": "TRIM_HORIZON"}
            iterator = (await client.get_shard_iterator(**oldest))["ShardIterator"]
            answer = await client.get_records(ShardIterator=iterator, Limit=5)
            last = answer["Records"][-1]["dynamodb"]["SequenceNumber"]
            cloud.advance(901.0)
            with pytest.raises(client.exceptions.ExpiredIteratorException):
                await client.get_records(ShardIterator=answer["NextShardIterator"])
            iterator = (await client.get_shard_iterator(**oldest))["ShardIterator"]
            cloud.mischief.add(Fault(kind="trim"))
            cloud.tick()
            with pytest.raises(client.exceptions.TrimmedDataAccessException):
                await client.get_records(ShardIterator=iterator)
            after = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": last}
            cloud.workload.make(1, cloud.clock.seconds())
            with pytest.raises(client.exceptions.TrimmedDataAccessException):
                await client.get_shard_iterator(**request, **after)
        assert json.loads(next(iter(cloud.journal.lines())))["kind"] == "trim"
