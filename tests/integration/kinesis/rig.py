"""What the tests of this folder share: a stream of numbered records and hands to read it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from replicator import _core
from replicator.model import TRIM_HORIZON, Fetch, Position
from replicator.source import KinesisSource
from replicator.testing.kinesis_server import KinesisServer

CONSUMER = "shop-products"
SHARD = "shardId-000000000000"
MakeSource = Callable[..., KinesisSource]


def numbered(lo: int, hi: int) -> list[bytes]:
    return [f"record {number}".encode() for number in range(lo, hi)]


def payloads(fetches: list[Fetch]) -> list[bytes]:
    batches = [_core.decode(fetch.records, keep_all=True) for fetch in fetches]
    return [rejection.raw for batch in batches for rejection in batch.rejections]


async def take(source: KinesisSource, count: int, position: Position = TRIM_HORIZON) -> list[Fetch]:
    """Fetches until `count` records have come."""
    fetches: list[Fetch] = []
    async with asyncio.timeout(60), aclosing(source.read(SHARD, position)) as reading:
        async for fetch in reading:
            fetches.append(fetch)
            if sum(len(each.records) for each in fetches) >= count:
                break
    return fetches


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def starts(server: KinesisServer) -> list[dict[str, Any]]:
    return [call["StartingPosition"] for call in server.called("SubscribeToShard")]
