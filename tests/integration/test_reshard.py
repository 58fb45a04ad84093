"""Shards split and merge over the wire while a worker reads them: nothing is lost, nothing
is read before its parents, and all of it is in Postgres in the end."""

from __future__ import annotations

import asyncio
import random
import zlib
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from replicator.model import TRIM_HORIZON, Shard
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES
from tests.shop import TABLE, Shop
from tests.stack import Stack, Worker, run_worker, until

SLOTS = 16


class Load:
    """Puts a shop's changes into the open shard of their key, and reshards meanwhile."""

    def __init__(self, stream: ScriptedStream, shop: Shop, seed: int) -> None:
        self.stream = stream
        self.shop = shop
        self._rng = random.Random(seed)
        shards = [shard.id for shard in stream.shards()]
        self.slots = [shards[slot * len(shards) // SLOTS] for slot in range(SLOTS)]

    def feed(self, count: int) -> None:
        for key, data in self.shop.disturbed(count):
            self.stream.append(self.slots[zlib.crc32(key.encode()) % SLOTS], [data])

    def split(self) -> None:
        whole = [s for s in dict.fromkeys(self.slots) if self.slots.count(s) > 1]
        shard_id = self._rng.choice(whole)
        slots = [slot for slot in range(SLOTS) if self.slots[slot] == shard_id]
        children = self.stream.split(shard_id)
        for place, slot in enumerate(slots):
            self.slots[slot] = children[2 * place // len(slots)]

    def merge(self) -> None:
        shards = list(dict.fromkeys(self.slots))
        place = self._rng.randrange(len(shards) - 1)
        two = shards[place : place + 2]
        child = self.stream.merge(*two)
        self.slots = [child if shard_id in two else shard_id for shard_id in self.slots]

    async def run(self, steps: int) -> None:
        for step in range(steps):
            self.feed(40)
            await asyncio.sleep(0.05)
            if step % 4 == 3:
                self.split()
            if step % 6 == 5:
                self.merge()
        self.feed(40)


def serve(stream: ScriptedStream) -> KinesisServer:
    return KinesisServer(
        stream,
        name=TABLE,
        tables=TABLES,
        event_records=20,
        heartbeat_seconds=0.5,
        subscribe_interval_seconds=0.05,
    )


def first_readings(server: KinesisServer) -> list[str]:
    """The shards in the order in which they were first asked for."""
    asked = ("SubscribeToShard", "GetShardIterator")
    return list(
        dict.fromkeys(str(request["ShardId"]) for name, request in server.calls if name in asked)
    )


async def positions(dsn: str) -> dict[str, str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT shard, position FROM replicator_positions")
    finally:
        await connection.close()
    return {row["shard"]: row["position"] for row in rows}


@pytest.mark.parametrize(("seed", "mode"), [(31, "fan_out"), (32, "auto"), (34, "polling")])
async def test_splits_and_merges_under_load(
    seed: int, mode: str, postgres_dsn: str, tmp_path: Path
) -> None:
    stream = ScriptedStream(2)
    load = Load(stream, Shop(seed=seed, keys=200), seed)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(limits={"batch_delay_ms_max": 20}, mode=mode)
        async with run_worker(config, tmp_path / "log") as worker:
            await load.run(24)
            await stack.until_equal(load.shop.plain())

            def end(shard: Shard) -> str:
                count = stream.count(shard.id)
                if not shard.is_open:
                    return "SHARD_END"
                # A service that is polled names no position without a record.
                is_unnamed = mode == "polling" and not count
                return str(TRIM_HORIZON if is_unnamed else stream.continuation(shard.id, count))

            async def all_read() -> bool:
                """Copies behind the last change too, and children of an empty parent."""
                ends = {shard.id: end(shard) for shard in stream.shards()}
                return await positions(postgres_dsn) == ends

            await until(all_read)
            assert await worker.stop() == 0
    assert await positions(postgres_dsn) == {shard.id: end(shard) for shard in stream.shards()}
    order = first_readings(server)
    for shard in stream.shards():
        for parent_id in shard.parents:
            assert order.index(parent_id) < order.index(shard.id)
    assert sum(not shard.is_open for shard in stream.shards()) >= 12
    assert '"level": "error"' not in worker.log


async def test_a_child_is_asked_for_only_when_its_parents_are_in_postgres(
    postgres_dsn: str, tmp_path: Path
) -> None:
    """Each first subscription looks into the database, as it stands at that moment."""
    stream = ScriptedStream(2)
    load = Load(stream, Shop(seed=33, keys=100), 33)
    early: list[tuple[str, str]] = []
    parents: dict[str, tuple[str, ...]] = {}

    class Watched(KinesisServer):
        async def _subscribe(
            self, request: web.Request, body: dict[str, Any]
        ) -> web.StreamResponse:
            shard_id = str(body["ShardId"])
            parents.update({shard.id: shard.parents for shard in stream.shards()})
            stored = await positions(postgres_dsn)
            early.extend(
                (parent_id, shard_id)
                for parent_id in parents[shard_id]
                if stored.get(parent_id) != "SHARD_END"
            )
            return await super()._subscribe(request, body)

    server = Watched(
        stream,
        name=TABLE,
        tables=TABLES,
        event_records=20,
        heartbeat_seconds=0.5,
        subscribe_interval_seconds=0.05,
    )
    async with server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        # A write takes its time, so a child that came too early would come before it.
        async with run_worker(
            stack.config(limits={"batch_delay_ms_max": 300}), tmp_path / "log"
        ) as worker:
            await load.run(12)
            await stack.until_equal(load.shop.plain())
            assert await worker.stop() == 0
    assert early == []
    assert sum(len(of) for of in parents.values()) >= 6, "children were read"


async def test_a_stop_in_the_middle_of_a_family_goes_on_where_it_was(
    postgres_dsn: str, tmp_path: Path
) -> None:
    stream = ScriptedStream(2)
    load = Load(stream, Shop(seed=34, keys=100), 34)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config()

        async def has_finished() -> bool:
            return "SHARD_END" in (await positions(postgres_dsn)).values()

        for number in range(3):
            async with run_worker(config, tmp_path / f"log-{number}") as worker:

                async def is_reading(worker: Worker = worker) -> bool:
                    return "lease_taken" in worker.log

                await until(is_reading)
                await load.run(6)
                if number:  # shards were closed before, too
                    await until(has_finished)
                assert await worker.stop() == 0
            await load.run(6)  # with nobody there
        finished = {
            shard for shard, position in (await positions(postgres_dsn)).items()
            if position == "SHARD_END"  # none is there of a shard that was just taken
        }  # fmt: skip
        before = len(server.called("SubscribeToShard"))
        async with run_worker(config, tmp_path / "log") as worker:
            await stack.until_equal(load.shop.plain())
            assert await worker.stop() == 0
        again = {str(r["ShardId"]) for r in server.called("SubscribeToShard")[before:]}
    assert finished
    assert not again & finished, "a finished shard is never read again"
