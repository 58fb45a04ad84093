"""The engine over the wire through everything that the fault cloud does, silence included,
with the source's waits made short: what is stored is what the cloud's own history says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from replicator.aws import AWSSettings
from replicator.demo.compare import plain_item
from replicator.model import SHARD_END
from replicator.source import KinesisOptions, KinesisSource
from replicator.store.memory import MemoryLeaseStore
from replicator.testing.clock import LoopClock
from replicator.testing.cloud import SCRIPTS, Fault, FaultCloud
from replicator.testing.items import with_bytes
from replicator.testing.sink import MemorySink
from tests.engine import Engine
from tests.shop import TABLE
from tests.stack import until

pytestmark = pytest.mark.timeout(120)

# Ours, in the place of the service's seconds.
FAST = KinesisOptions(
    silence_seconds=0.6,
    answer_seconds=0.6,
    subscribe_interval_seconds=0.06,
    backoff_seconds=0.02,
    failures_max=10,
)
RESHARDS = (
    Fault(kind="split", at_seconds=(1.0, 2.0, 4.0)),
    # At four seconds both at once.
    Fault(kind="merge", at_seconds=(1.5, 3.0, 4.0)),
)
# What is waited for by the driver, in seconds, comes as often as it is; the rest oftener.
SLOW = {"throttle", "error", "drop", "lose_answer", "slow"}


def at_full_mischief() -> tuple[Fault, ...]:
    often = [
        fault
        if fault.kind in SLOW
        else fault.model_copy(update={"share": min(1.0, fault.share * 4)})
        for fault in SCRIPTS["full"]
        if fault.share
    ]
    return (*often, *RESHARDS)


@asynccontextmanager
async def reading(cloud: FaultCloud, sink: MemorySink) -> AsyncIterator[Engine]:
    source = KinesisSource(
        AWSSettings(region="eu-north-1", endpoint_url=cloud.url),
        cloud.name,
        "shop-products",
        LoopClock(),
        options=FAST,
    )
    engine = Engine(source, sink, MemoryLeaseStore(), lease_seconds=1.0, discovery_seconds=0.5)
    try:
        async with engine.running():
            yield engine
    finally:
        await source.close()


async def until_equal(cloud: FaultCloud, sink: MemorySink) -> None:
    """Ends the workload; returns when all of it is stored and every closed shard finished."""
    cloud.pause_workload()

    async def is_all_stored() -> bool:
        positions = {shard: at for (_, _, shard), at in sink.store.positions.items()}
        closed = [shard.id for shard in cloud.stream.shards() if not shard.is_open]
        return stored(sink) == truth(cloud) and all(
            positions.get(shard_id) == SHARD_END for shard_id in closed
        )

    await until(is_all_stored, seconds=60)


def stored(sink: MemorySink) -> dict[str, Any]:
    return {key[0]: row.item for key, row in sink.items(TABLE).items() if row.item is not None}


def truth(cloud: FaultCloud) -> dict[str, Any]:
    return {
        key: plain_item({name: with_bytes(value) for name, value in item.items()})
        for key, item in cloud.workload.history.items.items()
    }


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_at_full_mischief(credentials: None, seed: int) -> None:
    sink = MemorySink("test/p")
    async with FaultCloud(
        seed=seed,
        script=at_full_mischief(),
        rate=300,
        heartbeat_seconds=0.1,
        subscription_seconds=3.0,
        subscribe_interval_seconds=0.05,
    ) as cloud:
        cloud.creating_answers = 0
        async with reading(cloud, sink) as engine:
            await asyncio.sleep(8)
            await until_equal(cloud, sink)
        done = cloud.journal.counts
    assert done["split"] + done["merge"] == 6
    ended = {"end", "cut", "cut_in_frame", "end_in_frame", "bad_crc", "exception"}
    assert sum(done[kind] > 0 for kind in ended) >= 5
    assert min(done[kind] for kind in ("duplicate", "reorder", "equal_instant", "poison")) > 0
    assert engine.stats.gaps == 0
    # A copy of a change that isn't its item's newest any more isn't looked at.
    assert engine.stats.duplicates > done["duplicate"] / 2
    assert len(sink.store.dead_letters) == done["poison"]


@pytest.mark.parametrize("kind", ["stall", "stall_in_frame", "mute"])
async def test_a_silent_connection_is_replaced(credentials: None, kind: str) -> None:
    operation = "SubscribeToShard" if kind == "mute" else None
    sink = MemorySink("test/p")
    async with FaultCloud(
        script=[Fault(kind=kind, operation=operation, calls=(1, 2))],
        shards=1,
        heartbeat_seconds=0.1,
        subscribe_interval_seconds=0.05,
    ) as cloud:
        async with reading(cloud, sink):
            cloud.workload.make(50, 0.0)
            await until_equal(cloud, sink)
        assert cloud.journal.counts == {kind: 2}


async def test_what_was_trimmed_unread_is_a_gap(credentials: None) -> None:
    sink = MemorySink("test/p")
    async with FaultCloud(
        shards=1, heartbeat_seconds=0.1, subscribe_interval_seconds=0.05
    ) as cloud:
        async with reading(cloud, sink):
            cloud.workload.make(50, 0.0)
            await until_equal(cloud, sink)
        cloud.workload.make(50, 0.0)
        cloud.mischief.add(Fault(kind="trim"))
        cloud.tick()
        async with reading(cloud, sink) as engine:

            async def is_stopped() -> bool:
                return any(text.startswith("gap") for text in engine.coordinator.states().values())

            await until(is_stopped)
        assert engine.stats.gaps == 1
