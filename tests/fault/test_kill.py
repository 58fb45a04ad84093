"""SIGKILL at random moments: what is stored is always exactly what the positions say."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from replicator.model import Position, PositionKind
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES
from tests.shop import TABLE, Shop
from tests.stack import Stack, run_worker, until

pytestmark = pytest.mark.timeout(600)

KILLS = 16


class Feeder:
    """Appends a shop's changes to the stream, a key's changes always to one open shard."""

    def __init__(self, shop: Shop, stream: ScriptedStream) -> None:
        self.shop = shop
        self._stream = stream
        self._open = [[shard.id] for shard in stream.shards()]

    def feed(self, count: int) -> None:
        for key, data in self.shop.disturbed(count):
            number = zlib.crc32(key.encode())
            halves = self._open[number % len(self._open)]
            self._stream.append(halves[(number >> 8) % len(halves)], [data])

    def split(self) -> None:
        """The first shard that is still whole is split; its records stay readable."""
        for place, halves in enumerate(self._open):
            if len(halves) == 1:
                self._open[place] = list(self._stream.split(halves[0]))
                return

    @asynccontextmanager
    async def feeding(self) -> AsyncIterator[None]:
        async def feed() -> None:
            while True:
                self.feed(25)
                await asyncio.sleep(0.02)

        work = asyncio.ensure_future(feed())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.wait({work})


def folded(stream: ScriptedStream, positions: dict[str, Position]) -> dict[str, Any]:
    """What must be stored when exactly the records up to these positions were written:
    id → (version, new image or None)."""
    rows: dict[str, Any] = {}
    for shard in stream.shards():
        position = positions.get(shard.id)
        for record in stream.records(shard.id, 0, stream.count(shard.id)):
            if not _covers(position, record.sequence_number):
                break
            change = orjson.loads(record.payload)["dynamodb"]
            key = change["Keys"]["id"]["S"]
            version = change["ApproximateCreationDateTime"]
            if key not in rows or rows[key][0] < version:
                image = change.get("NewImage")
                rows[key] = (version, image and image["made"]["N"])
    return rows


def _covers(position: Position | None, sequence_number: str) -> bool:
    if position is None:
        return False
    if position.kind is PositionKind.SHARD_END:
        return True
    if position.sequence_number is None:
        return False
    return int(sequence_number) <= int(position.sequence_number)


async def stored(dsn: str) -> tuple[dict[str, Position], dict[str, Any]]:
    """Positions and rows as one snapshot shows them."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            positions = await connection.fetch("SELECT shard, position FROM replicator_positions")
            rows = await connection.fetch(f"SELECT id, version, item->>'made' AS made FROM {TABLE}")
    except asyncpg.UndefinedTableError:
        return {}, {}
    finally:
        await connection.close()
    return (
        {row["shard"]: Position.parse(row["position"]) for row in positions if row["position"]},
        {row["id"]: (int(row["version"]), row["made"]) for row in rows},
    )


async def test_sigkill_leaves_no_position_behind_or_ahead_of_its_data(
    postgres_dsn: str, tmp_path: Path
) -> None:
    rng = random.Random(2026)
    stream = ScriptedStream(2)
    feeder = Feeder(Shop(seed=21, keys=80), stream)
    server = KinesisServer(
        stream,
        name=TABLE,
        tables=TABLES,
        event_records=15,
        heartbeat_seconds=0.5,
        subscribe_interval_seconds=0.01,
    )
    before: dict[str, Position] = {}

    async def is_at_work() -> bool:
        positions, _ = await stored(postgres_dsn)
        return positions != before

    async with server, feeder.feeding():
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(
            limits={"batch_delay_ms_max": 5}, leases={"kind": "sqlite", "duration_seconds": 1}
        )
        for kill in range(KILLS):
            async with run_worker(config, tmp_path / "log") as worker:
                # Three of four at work, however slow the machine is; the fourth at any moment.
                if kill % 4:
                    await until(is_at_work)
                await asyncio.sleep(rng.uniform(0.0, 0.5 if kill % 4 else 2.5))
                await worker.stop(signal.SIGKILL)
            if kill in {5, 11}:
                feeder.split()
            if (kill + 1) % 3:
                shutil.rmtree(tmp_path / "state", ignore_errors=True)
            positions, rows = await stored(postgres_dsn)
            assert rows == folded(stream, positions), f"after kill {kill}"
            before = positions
    async with server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        async with run_worker(stack.config(), tmp_path / "log") as worker:
            await stack.until_equal(feeder.shop.plain())
            assert await worker.stop() == 0
    positions, rows = await stored(postgres_dsn)
    assert rows == folded(stream, positions)
