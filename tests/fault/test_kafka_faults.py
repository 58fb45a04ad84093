"""Kafka's sink when its process dies at any step, when the broker goes away, and when a worker
wakes that was thought dead: careful readers see each change once."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import replicator
from replicator.testing.kafka_server import KafkaServer, start_kafka
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.changes import STREAM
from tests.engine import TABLES
from tests.fault.test_kafka_kill import reading
from tests.fault.test_kill import Feeder
from tests.kafka_child import BASE_US, sink_of, write
from tests.kafka_records import committed
from tests.kafka_stack import check, kafka_config, made, seen
from tests.shop import TABLE, Shop
from tests.stack import Stack, run_worker, until

pytestmark = pytest.mark.timeout(400)

CHANGES = 9
# Calls of the driver have a step before and one after. Fence and claim take the first eight, each
# write the following eight: begin, records, position, commit.
STEPS = (3, 7, 9, 11, 13, 15, 16, 17, 22)


@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_any_step_each_change_is_seen_once(
    kafka_server: KafkaServer, step: int
) -> None:
    prefix = f"t{secrets.token_hex(5)}"
    settings = child_settings(kafka_server, prefix)
    process = await child(settings, step, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL, "it must be killed at work"
    await write(settings, CHANGES + 1)
    # The newest waits until time goes on.
    assert await changes(kafka_server, prefix) == list(range(1, CHANGES + 1))


# Steps of the second and of the third write.
@pytest.mark.parametrize("step", [20, 23, 26, 29])
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_who_is_paused_at_any_step_adds_at_most_that_write(
    kafka_server: KafkaServer, step: int, delivery: str
) -> None:
    prefix = f"t{secrets.token_hex(5)}"
    settings = child_settings(kafka_server, prefix, delivery=delivery)
    zombie = await child(settings, step, signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, zombie.pid, os.WSTOPPED | os.WNOWAIT)
    await write(settings, CHANGES + 1)
    reader = sink_of(settings)
    try:
        before = await reader.positions(STREAM)
        zombie.send_signal(signal.SIGCONT)
        assert await zombie.wait() == 0, "it finds out and leaves in order"
        assert await reader.positions(STREAM) == before
    finally:
        await reader.close()
    found = await changes(kafka_server, prefix)
    assert sorted(set(found)) == list(range(1, CHANGES + 1))
    if delivery == "exactly_once":
        assert len(found) == CHANGES
    else:
        assert len(found) <= CHANGES + 3, "nothing but what it was writing as it was paused"


def child_settings(server: KafkaServer, prefix: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "bus",
        "bootstrap_servers": server.address,
        "topic": f"{prefix}.{{table}}",
        "positions_topic": f"{prefix}.positions",
        "dead_letters_topic": f"{prefix}.dead",
        "partitions": 2,
        "reorder_window_seconds": 0,
        "topic_settings": {"retention.ms": "-1"},
        **more,
    }


async def child(
    settings: dict[str, Any], step: int, sent: signal.Signals
) -> asyncio.subprocess.Process:
    root = Path(__file__).resolve().parents[2]
    package = Path(replicator.__file__).resolve().parents[1]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.kafka_child", json.dumps(settings), str(step), str(CHANGES), sent.name),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (root, package)))},
    )


async def changes(server: KafkaServer, prefix: str) -> list[int]:
    """The second of every change that a careful reader sees, sorted."""
    found = await committed(server, f"{prefix}.products")
    return sorted((int(record.headers["version"]) - BASE_US) // 1_000_000 for record in found)


@pytest.fixture
def broker() -> Iterator[KafkaServer]:
    """A broker of the test's own, which it may stop."""
    with start_kafka() as server:
        yield server


def served(stream: ScriptedStream) -> KinesisServer:
    options: dict[str, Any] = {"event_records": 15, "heartbeat_seconds": 0.3}
    return KinesisServer(
        stream, name=TABLE, tables=TABLES, subscribe_interval_seconds=0.01, **options
    )


async def test_a_broker_that_goes_and_comes_back_holds_each_change_once(
    broker: KafkaServer, tmp_path: Path
) -> None:
    stream = ScriptedStream(2)
    feeder = Feeder(Shop(seed=31, keys=40), stream)
    async with served(stream) as server:
        config = kafka_config(tmp_path, server.url, broker, "gone")
        async with run_worker(config, tmp_path / "log") as worker:
            async with feeder.feeding():
                await until(reading(worker))
                await asyncio.sleep(1)
                await asyncio.to_thread(broker.stop)
                await asyncio.sleep(1)
                await asyncio.to_thread(broker.start)
                await asyncio.sleep(1)
            expected = made(stream)

            async def complete() -> bool:
                return len(await seen(broker, "gone", is_patient=False)) >= len(expected)

            await until(complete, seconds=150)
            assert await worker.stop() == 0
        check(await seen(broker, "gone"), expected)


async def test_a_worker_that_wakes_from_a_pause_adds_nothing(
    kafka_server: KafkaServer, tmp_path: Path
) -> None:
    prefix = f"t{secrets.token_hex(5)}"
    stream = ScriptedStream(2)
    feeder = Feeder(Shop(seed=32, keys=40), stream)
    async with served(stream) as server:
        config = kafka_config(tmp_path, server.url, kafka_server, prefix)
        async with run_worker(config, tmp_path / "one") as paused:
            async with feeder.feeding():
                await until(reading(paused))
                await asyncio.sleep(1)
                paused.process.send_signal(signal.SIGSTOP)
                async with run_worker(config, tmp_path / "two") as other:
                    await until(reading(other))
                    await asyncio.sleep(1)
                    paused.process.send_signal(signal.SIGCONT)
                    await asyncio.sleep(1)
                    feeder.feed(50)
                    expected_at_least = made(stream)

                    async def moved() -> bool:
                        return (
                            len(await seen(kafka_server, prefix, is_patient=False))
                            > len(expected_at_least) // 2
                        )

                    await until(moved)
                    assert await other.stop() == 0
            expected = made(stream)

            async def complete() -> bool:
                return len(await seen(kafka_server, prefix, is_patient=False)) >= len(expected)

            await until(complete, seconds=150)
            assert await paused.stop() == 0
        check(await seen(kafka_server, prefix), expected)


async def test_beside_a_postgres_that_goes_on_while_the_broker_is_away(
    broker: KafkaServer, postgres_dsn: str, tmp_path: Path
) -> None:
    stream = ScriptedStream(2)
    shop = Shop(seed=33, keys=40)
    feeder = Feeder(shop, stream)
    async with served(stream) as server:
        beside = [{"name": "w", "kind": "postgres", "dsn": postgres_dsn}]
        config = kafka_config(tmp_path, server.url, broker, "both", beside)
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        async with run_worker(config, tmp_path / "log") as worker:
            feeder.feed(200)
            await stack.until_equal(shop.plain())
            await asyncio.to_thread(broker.stop)
            feeder.feed(200)
            await stack.until_equal(shop.plain())
            await asyncio.to_thread(broker.start)
            feeder.feed(200)
            expected = made(stream)

            async def complete() -> bool:
                return len(await seen(broker, "both", is_patient=False)) >= len(expected)

            await until(complete, seconds=150)
            await stack.until_equal(shop.plain())
            assert await worker.stop() == 0
        check(await seen(broker, "both"), expected)
