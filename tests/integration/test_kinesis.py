"""Enhanced fan-out against the emulator: a server that isn't ours."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from replicator.aws import AWSSettings, aws_client
from replicator.errors import FatalError, LeaseLost
from replicator.model import SHARD_END, TRIM_HORIZON, Fetch
from replicator.source import KinesisSource
from replicator.testing.clock import LoopClock

CONSUMER = "shop-products"
DEADLINE_SECONDS = 90.0


@pytest.fixture
async def kinesis(settings: AWSSettings) -> AsyncIterator[Any]:
    async with aws_client(settings, "kinesis") as client:
        yield client


async def make_stream(kinesis: Any, shards: int) -> str:
    name = f"stream-{secrets.token_hex(4)}"
    await kinesis.create_stream(StreamName=name, ShardCount=shards)
    await kinesis.get_waiter("stream_exists").wait(StreamName=name)
    return name


async def put(kinesis: Any, name: str, lo: int, hi: int) -> None:
    for start in range(lo, hi, 500):
        await kinesis.put_records(
            StreamName=name,
            Records=[
                {"Data": f"record {number}".encode(), "PartitionKey": str(number)}
                for number in range(start, min(start + 500, hi))
            ],
        )


async def test_several_shards_are_read_at_once(settings: AWSSettings, kinesis: Any) -> None:
    name = await make_stream(kinesis, 4)
    await put(kinesis, name, 0, 2_000)
    source = KinesisSource(settings, name, CONSUMER, LoopClock())
    await source.open()
    seen = 0

    async def read(shard_id: str) -> None:
        nonlocal seen
        async with aclosing(source.read(shard_id, TRIM_HORIZON)) as reading:
            async for fetch in reading:
                seen += len(fetch.records)
                if seen >= 2_000:
                    done.set()
                    return

    done = asyncio.Event()
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        readers = [group.create_task(read(shard.id)) for shard in await source.shards()]
        await done.wait()
        for reader in readers:
            reader.cancel()
    await source.close()
    assert seen == 2_000


async def test_the_end_of_a_shard_is_seen(settings: AWSSettings, kinesis: Any) -> None:
    name = await make_stream(kinesis, 1)
    source = KinesisSource(settings, name, CONSUMER, LoopClock())
    await source.open()
    (shard,) = await source.shards()
    fetches: list[Fetch] = []
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        aclosing(source.read(shard.id, TRIM_HORIZON)) as reading,
    ):
        await put(kinesis, name, 0, 1)
        fetches.append(await anext(reading))
        await kinesis.split_shard(
            StreamName=name, ShardToSplit=shard.id, NewStartingHashKey=str(2**127)
        )
        # Its last event carries a continuation beside the children; AWS's doesn't.
        fetches.extend([fetch async for fetch in reading])
    await source.close()
    assert fetches[-1].next == SHARD_END
    assert len(fetches[-1].children) == 2
    assert all(child.parents == (shard.id,) for child in fetches[-1].children)


async def test_a_second_reader_takes_the_subscription_over(
    settings: AWSSettings, kinesis: Any
) -> None:
    name = await make_stream(kinesis, 1)
    first = KinesisSource(settings, name, CONSUMER, LoopClock())
    second = KinesisSource(settings, name, CONSUMER, LoopClock(), jitter=lambda: 0.1)
    await first.open()
    await second.open()
    (shard,) = await first.shards()
    await put(kinesis, name, 0, 1)
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        aclosing(first.read(shard.id, TRIM_HORIZON)) as losing,
        aclosing(second.read(shard.id, TRIM_HORIZON)) as winning,
    ):
        await anext(losing)
        # Refused for five seconds after the first one's success, then it wins.
        assert len((await anext(winning)).records) == 1
        assert second.subscribe_conflicts >= 1
        with pytest.raises(LeaseLost) as caught:
            async for _ in losing:
                pass
    assert caught.value.code == "subscription_taken"
    await first.close()
    await second.close()


async def test_a_role_is_assumed(settings: AWSSettings, kinesis: Any) -> None:
    there = AWSSettings(
        region=settings.region,
        endpoint_url=settings.endpoint_url,
        role_arn="arn:aws:iam::111122223333:role/reader",
        external_id="agreed",
    )
    async with aws_client(there, "sts") as sts:
        assert (await sts.get_caller_identity())["Account"] == "111122223333"
    name = await make_stream(kinesis, 1)
    # The stream lives in the first account, so the role's account doesn't have it.
    source = KinesisSource(there, name, CONSUMER, LoopClock())
    with pytest.raises(FatalError) as caught:
        await source.open()
    assert caught.value.code == "resource_missing"
    await source.close()
