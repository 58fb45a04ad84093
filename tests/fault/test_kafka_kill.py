"""SIGKILL at random moments, shards that split meanwhile: careful readers of Kafka see each
change once, in order."""

from __future__ import annotations

import asyncio
import random
import secrets
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from replicator.testing.kafka_server import KafkaServer
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES
from tests.fault.test_kill import Feeder
from tests.kafka_stack import check, kafka_config, made, seen
from tests.shop import TABLE, Shop
from tests.stack import Worker, run_worker, until

pytestmark = pytest.mark.timeout(400)

KILLS = 6


async def test_sigkill_and_splits_leave_each_change_once(
    kafka_server: KafkaServer, tmp_path: Path
) -> None:
    rng = random.Random(2026)
    prefix = f"t{secrets.token_hex(5)}"
    stream = ScriptedStream(2)
    feeder = Feeder(Shop(seed=22, keys=80), stream)
    server = KinesisServer(
        stream,
        name=TABLE,
        tables=TABLES,
        event_records=15,
        heartbeat_seconds=0.3,
        subscribe_interval_seconds=0.01,
    )
    async with server:
        config = kafka_config(tmp_path, server.url, kafka_server, prefix)
        moved, before = 0, 0

        async def is_at_work() -> bool:
            return len(await seen(kafka_server, prefix, is_patient=False)) > before

        async with feeder.feeding():
            for kill in range(KILLS):
                async with run_worker(config, tmp_path / "log") as worker:
                    await until(reading(worker))
                    # Every other one at work, however slow the machine is; the rest at any moment.
                    if kill % 2:
                        await until(is_at_work)
                    await asyncio.sleep(rng.uniform(0.1, 1.0))
                    await worker.stop(signal.SIGKILL)
                if kill in {1, 3}:
                    feeder.split()
                if (kill + 1) % 3:
                    shutil.rmtree(tmp_path / "state", ignore_errors=True)
                found = len(await seen(kafka_server, prefix, is_patient=False))
                moved, before = moved + (found != before), found
        assert moved >= KILLS // 2, "the kills must hit a worker at work"
        expected = made(stream)
        async with run_worker(config, tmp_path / "log") as worker:

            async def complete() -> bool:
                return len(await seen(kafka_server, prefix, is_patient=False)) >= len(expected)

            await until(complete, seconds=150)
            assert await worker.stop() == 0
    check(await seen(kafka_server, prefix), expected)


def reading(worker: Worker) -> Callable[[], Awaitable[bool]]:
    """True once it reads, whatever those before it did."""
    before = worker.log.count("subscribed")

    async def reads() -> bool:
        return worker.log.count("subscribed") > before

    return reads
