"""The engine over the wire through everything that the fault cloud does, silence included,
with the source's waits made short: what is stored is what the cloud's own history says."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from replicator.aws import AWSSettings, aws_client
from replicator.demo.compare import plain_item
from replicator.errors import FatalError
from replicator.model import SHARD_END, TRIM_HORIZON
from replicator.protocols import Source
from replicator.source import KinesisOptions, KinesisPollingSource, KinesisSource
from replicator.store.memory import MemoryLeaseStore
from replicator.testing.clock import LoopClock
from replicator.testing.cloud import SCRIPTS, Fault, FaultCloud
from replicator.testing.items import with_bytes
from replicator.testing.sink import MemorySink
from tests.engine import Engine
from tests.shop import TABLE
from tests.stack import until

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
        # Those that are named cost seconds each, and have tests of their own.
        if fault.share and not (fault.kind == "error" and fault.code)
    ]
    return (*often, *RESHARDS)


@asynccontextmanager
async def reading(
    cloud: FaultCloud, sink: MemorySink, *, is_polled: bool = False
) -> AsyncIterator[Engine]:
    settings = AWSSettings(region="eu-north-1", endpoint_url=cloud.url)
    source: Source
    if is_polled:
        source = KinesisPollingSource(settings, cloud.name, LoopClock())
    else:
        source = KinesisSource(settings, cloud.name, "shop-products", LoopClock(), options=FAST)
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


def is_enough(done: Counter[str], *, is_polled: bool) -> bool:
    """Everything has happened that the script makes happen."""
    if is_polled:
        ended = done["throttle"] + done["expire_iterator"] + done["error"] > 0
    else:
        kinds = {"end", "cut", "cut_in_frame", "end_in_frame", "bad_crc", "exception"}
        ended = sum(done[kind] > 0 for kind in kinds) >= 5
    changed = [done[kind] for kind in ("duplicate", "reorder", "equal_instant", "poison")]
    return ended and done["split"] + done["merge"] == 6 and min(changed) > 0


@pytest.mark.parametrize(("seed", "is_polled"), [(1, False), (2, False), (3, True)])
async def test_nothing_is_lost_at_full_mischief(
    credentials: None, seed: int, is_polled: bool
) -> None:
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
        async with reading(cloud, sink, is_polled=is_polled) as engine:
            done = cloud.journal.counts
            # How much happens in a time is a matter of chance and of the machine.
            async with asyncio.timeout(60):
                while not is_enough(done, is_polled=is_polled):
                    await asyncio.sleep(0.1)
            await until_equal(cloud, sink)
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
                return any(text.startswith("gap") for text in engine.states().values())

            await until(is_stopped)
        assert engine.stats.gaps == 1


@pytest.mark.parametrize("is_polled", [False, True])
@pytest.mark.parametrize(
    ("kind", "code"),
    [("delete_stream", "resource_missing"), ("recreate_stream", "stream_recreated")],
)
async def test_a_stream_that_is_gone_stops_its_reader(
    credentials: None, kind: str, code: str, is_polled: bool
) -> None:
    """Shards of the next stream under the name have the same ids."""
    async with FaultCloud(
        shards=1, heartbeat_seconds=0.1, subscribe_interval_seconds=0.05
    ) as cloud:
        cloud.creating_answers = 0
        cloud.workload.make(20, 0.0)
        settings = AWSSettings(region="eu-north-1", endpoint_url=cloud.url)
        source: Source
        if is_polled:
            source = KinesisPollingSource(settings, cloud.name, LoopClock())
        else:
            source = KinesisSource(settings, cloud.name, "shop", LoopClock(), options=FAST)
        try:
            await source.open()
            (shard,) = await source.shards()

            async def stopped() -> str:
                """Reads until the source gives up: the code."""
                try:
                    async for _ in source.read(shard.id, TRIM_HORIZON):
                        if not cloud.journal.counts[kind]:
                            cloud.mischief.add(Fault(kind=kind))
                            cloud.tick()
                except FatalError as error:
                    return error.code
                return "ended"

            async with asyncio.timeout(60):
                # In between it is missing, and who owns the shard looks again.
                while (stop := await stopped()) != code:
                    assert stop == "resource_missing"
                    await asyncio.sleep(0.05)
        finally:
            await source.close()


async def test_a_consumer_that_is_deleted_is_registered_again(credentials: None) -> None:
    sink = MemorySink("test/p")
    script = [
        Fault(kind="error", operation="SubscribeToShard", code="ResourceInUseException", calls=(2,))
    ]
    async with FaultCloud(
        script=script,
        rate=100,
        heartbeat_seconds=0.1,
        subscribe_interval_seconds=0.05,
        # What is subscribed stays so; the next one finds that the consumer is gone.
        subscription_seconds=0.4,
    ) as cloud:
        async with reading(cloud, sink) as engine:
            for times in (1, 2):
                await until(is_subscribed(cloud, times))
                cloud.mischief.add(Fault(kind="delete_consumer"))
                cloud.tick()
            await until(is_subscribed(cloud, 3))
            await until_equal(cloud, sink)
        assert engine.stats.gaps == 0
        assert cloud.journal.counts == {"delete_consumer": 2, "error": 1}


def is_subscribed(cloud: FaultCloud, times: int) -> Callable[[], Awaitable[bool]]:
    """The consumer was registered so many times, and is used since."""

    async def check() -> bool:
        made = [name for name, _ in cloud.calls]
        registered = [at for at, name in enumerate(made) if name == "RegisterStreamConsumer"]
        return len(registered) >= times and "SubscribeToShard" in made[registered[-1] :]

    return check


async def test_a_polled_shard_may_lag_between_empty_answers(credentials: None) -> None:
    sink = MemorySink("test/p")
    script = [
        Fault(kind="empty_page", share=0.5),
        Fault(kind="small_page", share=0.3, count=2),
        Fault(kind="lag_page", share=0.2, seconds=3_600.0, count=6),
        Fault(kind="redeliver", share=0.3),
        Fault(kind="error", operation="GetRecords", code="KMSThrottlingException", calls=(3,)),
    ]
    async with FaultCloud(script=script, shards=1) as cloud:
        cloud.workload.make(120, 0.0)
        async with reading(cloud, sink, is_polled=True) as engine:
            await until_equal(cloud, sink)
        counts = cloud.journal.counts
        assert min(counts[kind] for kind in ("empty_page", "small_page", "lag_page", "error")) > 0
        assert engine.stats.duplicates > 0


async def test_only_what_was_done_is_written_down(credentials: None) -> None:
    """The first fault that ends a call leaves nothing for the others."""
    operation = "ListShards"
    script = [Fault(kind=kind, operation=operation) for kind in ("slow", "throttle", "mute")]
    script[0] = script[0].model_copy(update={"seconds": 0.01})
    async with (
        FaultCloud(script=script) as cloud,
        aws_client(AWSSettings(region="eu-north-1", endpoint_url=cloud.url), "kinesis") as kinesis,
    ):
        async with asyncio.timeout(60):
            await kinesis.list_shards(StreamName=cloud.name)
        assert cloud.journal.counts == {"slow": 1, "throttle": 1}


async def test_records_and_reshards_by_the_services_own_calls(credentials: None) -> None:
    async with (
        FaultCloud(shards=2) as cloud,
        aws_client(AWSSettings(region="eu-north-1", endpoint_url=cloud.url), "kinesis") as kinesis,
    ):
        left, right = (shard.id for shard in cloud.stream.shards())
        records = [{"Data": b"%d" % n, "PartitionKey": f"key {n}"} for n in range(100)]
        answer = await kinesis.put_records(StreamName=cloud.name, Records=records)
        assert answer["FailedRecordCount"] == 0
        assert {record["ShardId"] for record in answer["Records"]} == {left, right}
        listed = (await kinesis.list_shards(StreamName=cloud.name))["Shards"]
        # As the service: whole, without holes, both ends included.
        assert [shard["HashKeyRange"] for shard in listed] == [
            {"StartingHashKey": "0", "EndingHashKey": str(2**127 - 1)},
            {"StartingHashKey": str(2**127), "EndingHashKey": str(2**128 - 1)},
        ]
        await kinesis.split_shard(
            StreamName=cloud.name, ShardToSplit=left, NewStartingHashKey=str(2**125)
        )
        await kinesis.merge_shards(
            StreamName=cloud.name,
            ShardToMerge="shardId-000000000003",
            AdjacentShardToMerge=right,
        )
        assert [(shard.id, shard.parents) for shard in cloud.stream.shards() if shard.is_open] == [
            ("shardId-000000000002", (left,)),
            ("shardId-000000000004", ("shardId-000000000003", right)),
        ]
        assert cloud.stream.hash_range("shardId-000000000004") == (2**125, 2**128)
        with pytest.raises(kinesis.exceptions.ResourceNotFoundException):
            await kinesis.split_shard(
                StreamName=cloud.name, ShardToSplit=left, NewStartingHashKey="1"
            )


async def test_the_same_seed_and_calls_give_the_same_mischief(credentials: None) -> None:
    async def done(seed: int) -> list[tuple[str, str]]:
        kinds = ("end", "cut", "cut_in_frame", "end_in_frame", "bad_crc", "small_event", "lag")
        async with FaultCloud(
            seed=seed,
            script=[Fault(kind=kind, share=0.1) for kind in kinds],
            shards=1,
            event_records=2,
            heartbeat_seconds=0.02,
            subscribe_interval_seconds=0.05,
        ) as cloud:
            cloud.creating_answers = 0
            sink = MemorySink("test/p")
            async with reading(cloud, sink):
                cloud.workload.make(120, 0.0)
                await until_equal(cloud, sink)
            lines = [json.loads(line) for line in cloud.journal.lines()]
        return [(line["kind"], line.get("shard", "")) for line in lines if "shard" in line][:40]

    first, second, other = await done(1), await done(1), await done(2)
    assert len(first) == 40
    assert first == second
    assert first != other


async def test_a_process_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('[{"kind": "duplicate", "share": 0.5}]')
    journal = tmp_path / "journal"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "replicator.testing.cloud", "--rate", "500"),
        *("--script", str(script), "--log", str(journal)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    ready = json.loads(await process.stdout.readline())
    assert ready["event"] == "ready"

    async def has_repeated() -> bool:
        async with aiohttp.ClientSession(ready["url"]) as http, http.get("/_control/state") as got:
            return bool((await got.json())["faults"].get("duplicate"))

    await until(has_repeated)
    process.terminate()
    assert await process.wait() == 0
    assert json.loads(journal.read_text().splitlines()[0])["kind"] == "duplicate"
