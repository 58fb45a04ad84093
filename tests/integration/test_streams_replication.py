"""`replicator run` over the wire: DynamoDB Streams → this process → a real Postgres."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from replicator.aws import AWSSettings, aws_client
from replicator.testing.streams_server import StreamsServer, ViewType, table_stream
from tests.shop import TABLE, Shop
from tests.stack import CREDENTIALS, Stack, run_worker, until

pytestmark = pytest.mark.usefixtures("credentials")

SLOTS = 64


def pipelines(stack: Stack, **source: object) -> dict[str, Any]:
    """The configuration's only pipeline."""
    return {
        "pipelines": [
            {
                "name": "p",
                "tables": [TABLE],
                "source": {"kind": "streams", **source},
                "sinks": [{"name": "w", "kind": "postgres", "dsn": stack.dsn}],
            }
        ]
    }


async def positions(stack: Stack) -> dict[str, str]:
    rows = await stack.fetch("SELECT shard, position FROM replicator_positions")
    return {row["shard"]: row["position"] for row in rows}


class Load:
    """A busy table: a key's changes go to the shard that its slot belongs to."""

    def __init__(self, server: StreamsServer, seed: int) -> None:
        self.stream = server.stream
        self.shop = Shop(seed=seed, keys=200)
        self._rng = random.Random(seed)
        shards = [shard.id for shard in self.stream.shards()]
        self.slots = [shards[slot % len(shards)] for slot in range(SLOTS)]

    def feed(self, count: int) -> None:
        for key, data in self.shop.changes(count):
            self.stream.append(self.slots[int(key[-4:]) % SLOTS], [data])

    def rotate(self) -> None:
        self._replace(lambda shard_id: (self.stream.rotate(shard_id),))

    def split(self) -> None:
        self._replace(self.stream.split)

    def _replace(self, close: Any) -> None:
        shard_id = self._rng.choice(self.slots)
        children = close(shard_id)
        mine = [slot for slot in range(SLOTS) if self.slots[slot] == shard_id]
        for place, slot in enumerate(mine):
            self.slots[slot] = children[place % len(children)]

    async def run(self, steps: int) -> None:
        for step in range(steps):
            self.feed(40)
            await asyncio.sleep(0.05)
            if step % 3 == 2:
                self.rotate()
            if step % 5 == 4:
                self.split()
        self.feed(40)


@pytest.mark.parametrize(
    ("seed", "view_type", "has_filter"),
    [(71, "NEW_AND_OLD_IMAGES", True), (72, "NEW_IMAGE", False)],
)
async def test_rotation_and_splits_under_load(
    seed: int, view_type: ViewType, has_filter: bool, postgres_dsn: str, tmp_path: Path
) -> None:
    server = StreamsServer(table_stream(2), view_type=view_type, has_filter=has_filter)
    async with server:
        load = Load(server, seed)
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(**pipelines(stack))
        async with run_worker(config, tmp_path / "log") as worker:
            await load.run(18)
            await stack.until_equal(load.shop.plain())
            stream = load.stream

            async def all_stored() -> bool:
                stored = await positions(stack)
                return all(
                    stored.get(shard.id) == "SHARD_END"
                    for shard in stream.shards()
                    if not shard.is_open
                )

            await until(all_stored)
            assert await worker.stop() == 0
        order = list(
            dict.fromkeys(request["ShardId"] for request in server.called("GetShardIterator"))
        )
        for shard in stream.shards():
            for parent in shard.parents:
                if shard.id in order:
                    assert order.index(parent) < order.index(shard.id)
        assert sum(not shard.is_open for shard in stream.shards()) >= 9
        assert '"level": "error"' not in worker.log


async def test_a_restart_goes_on_where_the_sink_stands(postgres_dsn: str, tmp_path: Path) -> None:
    async with StreamsServer(table_stream(2)) as server:
        load = Load(server, 73)
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(**pipelines(stack))
        for run in range(3):
            await load.run(6)
            async with run_worker(config, tmp_path / f"log{run}") as worker:
                await stack.until_equal(load.shop.plain())
                assert await worker.stop() == 0
                assert '"superseded": 0' in worker.log, "nothing is read twice"
        assert len(await stack.fetch("SELECT FROM replicator_streams")) == 1


async def test_an_idle_table_has_no_gap_and_a_shard_that_was_missed_has(
    postgres_dsn: str, tmp_path: Path
) -> None:
    """Regression: answers without records were taken for the tip. Without them nothing is known
    of an idle shard but when it was made."""
    stream = table_stream(1)
    async with StreamsServer(stream) as server:
        load = Load(server, 77)
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(**pipelines(stack))
        load.feed(50)
        async with run_worker(config, tmp_path / "log0") as worker:
            await stack.until_equal(load.shop.plain())
            assert await worker.stop() == 0
        (idle,) = [shard.id for shard in stream.shards()]
        # A day later: nothing came, and the service has trimmed what was read.
        await stack.fetch(
            "UPDATE replicator_positions SET last_arrival_at = now() - interval '25 h',"
            " tip_at = now() - interval '25 h'"
        )
        stream.trim(idle, stream.count(idle) - 1)
        now_ms = time.time_ns() // 10**6
        young = stream.add_shard(f"shardId-{now_ms - 3_600_000:020d}-00c0ffee", [idle])
        missed = stream.add_shard(f"shardId-{now_ms - 90_000_000:020d}-00c0ffee", [idle])
        stream.close(idle)
        load.slots = [young] * SLOTS
        load.feed(50)
        async with run_worker(config, tmp_path / "log1") as worker:
            await stack.until_equal(load.shop.plain())

            async def is_said() -> bool:
                return '"gap"' in worker.log

            await until(is_said)
            assert await worker.stop() == 0
        gaps = [line for line in worker.log.splitlines() if '"gap"' in line]
        assert len(gaps) == 1
        assert missed in gaps[0]
        stored = await positions(stack)
        assert stored[idle] == "SHARD_END"
        assert stored[young].startswith("AFTER_SEQUENCE_NUMBER")


async def test_trimmed_and_vanished_positions_stop_their_shards_and_no_others(
    postgres_dsn: str, tmp_path: Path
) -> None:
    stream = table_stream(3)
    async with StreamsServer(stream, records_max=10) as server:
        load = Load(server, 80)
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(**pipelines(stack))
        load.feed(200)
        async with run_worker(config, tmp_path / "log0") as worker:
            await stack.until_equal(load.shop.plain())
            assert await worker.stop() == 0
        before = await positions(stack)
        trimmed, vanished, well = (shard.id for shard in stream.shards())
        load.feed(200)
        # A closed shard whose rest was trimmed isn't finished.
        stream.close(trimmed)
        stream.trim(trimmed, stream.count(trimmed) - 5)
        stream.add_shard(parents=[vanished])
        stream.remove_shard(vanished)
        async with run_worker(config, tmp_path / "log1") as worker:

            def told() -> dict[str, str]:
                entries = [json.loads(each) for each in worker.log.splitlines() if each[:1] == "{"]
                return {each["shard"]: each["code"] for each in entries if each["event"] == "gap"}

            async def is_over() -> bool:
                end = str(stream.continuation(well, stream.count(well)))
                return len(told()) == 2 and (await positions(stack))[well] == end

            await until(is_over)
            assert await worker.stop() == 0
        assert told() == {trimmed: "position_trimmed", vanished: "shard_vanished"}
        after = await positions(stack)
        assert [after[one] for one in (trimmed, vanished)] == [
            before[one] for one in (trimmed, vanished)
        ]


async def test_latest_says_nothing_of_the_shards_that_come_later(
    postgres_dsn: str, tmp_path: Path
) -> None:
    stream = table_stream(1)
    async with StreamsServer(stream) as server:
        old = Load(server, 81)
        old.feed(50)
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        await asyncio.sleep(1.1)  # the service's clock has whole seconds
        config = stack.config(**pipelines(stack, start="LATEST"))
        async with run_worker(config, tmp_path / "log0") as worker:

            async def begun() -> bool:
                return bool(await stack.fetch("SELECT FROM replicator_streams"))

            await until(begun)
            await worker.stop(signal.SIGKILL)
        load = Load(server, 82)
        load.feed(50)
        load.rotate()
        load.feed(50)
        load.split()
        load.feed(50)
        async with run_worker(config, tmp_path / "log1") as worker:
            await stack.until_equal(load.shop.plain())
            assert await worker.stop() == 0


async def test_another_stream_of_the_table_fails_the_pipeline_when_the_old_one_is_read(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with StreamsServer(table_stream(1)) as server:
        load = Load(server, 74)
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(**pipelines(stack))
        old = server.arn
        async with run_worker(config, tmp_path / "log") as worker:
            load.feed(50)
            await stack.until_equal(load.shop.plain())
            load.feed(50)
            server.disable()
            new = server.enable(table_stream(1))

            async def failed() -> bool:
                return '"pipeline_failed"' in worker.log

            await until(failed)
            assert '"code": "stream_replaced"' in worker.log
            assert await worker.stop() == 0, "it waits to be begun anew, and has nothing to drain"
        assert await stack.live() == load.shop.plain(), "the old stream was read to its end"
        # Neither does a start that is set make another stream's numbers comparable.
        restarted = stack.config(**pipelines(stack, start="TRIM_HORIZON"))
        async with run_worker(restarted, tmp_path / "log2") as worker:
            async with asyncio.timeout(60):
                assert await worker.process.wait() == 1
            assert old in worker.log
            assert new in worker.log
        await stack.fetch(f'TRUNCATE "{TABLE}"')
        fresh = Load(server, 75)
        fresh.feed(50)
        async with run_worker(config, tmp_path / "log3") as worker:
            await stack.until_equal(fresh.shop.plain())
            assert await worker.stop() == 0


async def test_another_stream_of_the_table_is_begun_where_nothing_was_written(
    postgres_dsn: str, tmp_path: Path
) -> None:
    """Regression: empty tables have nothing that can't be compared, and yet the run ended when
    it was up, and when it wasn't the old stream was left without a word."""
    async with StreamsServer(table_stream(1)) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(**pipelines(stack))
        async with run_worker(config, tmp_path / "log") as worker:

            async def begun() -> bool:
                return bool(await stack.fetch("SELECT FROM replicator_streams"))

            await until(begun)
            server.disable()
            new = server.enable(table_stream(1))
            load = Load(server, 78)
            load.feed(50)
            await stack.until_equal(load.shop.plain())
            assert await worker.stop() == 0
            assert "stream_ended" in worker.log
        await stack.fetch(f'TRUNCATE "{TABLE}"')
        server.disable()
        newest = server.enable(table_stream(1))
        load = Load(server, 79)
        load.feed(50)
        async with run_worker(config, tmp_path / "log2") as worker:
            await stack.until_equal(load.shop.plain())
            assert await worker.stop() == 0
            (said,) = [line for line in worker.log.splitlines() if '"stream_replaced"' in line]
            assert new in said
            assert newest in said


# ---- the emulator's table


@asynccontextmanager
async def table(url: str, view_type: str) -> AsyncIterator[Any]:
    async with aws_client(
        AWSSettings(region="us-east-1", endpoint_url=url), "dynamodb"
    ) as dynamodb:
        await dynamodb.create_table(
            TableName=TABLE,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            StreamSpecification={"StreamEnabled": True, "StreamViewType": view_type},
        )
        yield dynamodb


@pytest.mark.parametrize("view_type", ["NEW_AND_OLD_IMAGES", "NEW_IMAGE"])
async def test_the_emulators_table_arrives(
    view_type: str,
    ministack_url: str,
    postgres_dsn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    stack = Stack(ministack_url, postgres_dsn, tmp_path, None)
    config = stack.config(**pipelines(stack))
    rng = random.Random(76)
    items: dict[str, int] = {}
    async with table(ministack_url, view_type) as dynamodb:

        async def change(count: int) -> None:
            for _ in range(count):
                key = f"item-{rng.randrange(20)}"
                if key in items and rng.random() < 0.3:
                    del items[key]
                    await dynamodb.delete_item(TableName=TABLE, Key={"id": {"S": key}})
                else:
                    # Many changes of an item in one second: their numbers alone order them.
                    items[key] = items.get(key, 0) + 1
                    item = {"id": {"S": key}, "n": {"N": str(items[key])}}
                    await dynamodb.put_item(TableName=TABLE, Item=item)

        def expected() -> dict[str, dict[str, Any]]:
            return {key: {"id": key, "n": n} for key, n in items.items()}

        for run in range(2):
            await change(100)
            async with run_worker(config, tmp_path / f"log{run}") as worker:
                await stack.until_equal(expected())
                await change(100)
                await stack.until_equal(expected())
                assert await worker.stop() == 0
                assert '"dead_letters": 0' in worker.log
    rows = await stack.fetch(f'SELECT version FROM "{TABLE}"')
    assert len({row["version"] for row in rows}) == len(rows), "versions are sequence numbers"
    connection = await asyncpg.connect(postgres_dsn)
    assert await connection.fetchval("SELECT count(*) FROM replicator_dead_letters") == 0
    await connection.close()
