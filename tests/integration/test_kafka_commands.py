"""`check`, `status` and `positions` where the sink is Kafka."""

from __future__ import annotations

import secrets
from pathlib import Path

import yaml

from replicator.testing.kafka_server import KafkaServer
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES
from tests.fault.test_kill import Feeder
from tests.integration.test_check import findings, replicator
from tests.kafka_stack import check, kafka_config, made, seen
from tests.shop import TABLE, Shop
from tests.stack import Worker, run_worker, until


async def test_a_stream_that_keeps_more_than_the_topic_is_told_of(
    kafka_server: KafkaServer, tmp_path: Path
) -> None:
    """By `check`, and once by who begins it."""
    prefix = f"t{secrets.token_hex(5)}"
    kinesis = KinesisServer(ScriptedStream(1), name=TABLE, tables=TABLES)

    async def warned(config: Path) -> list[str]:
        code, found = await findings(config)
        assert code == 0
        return [each["code"] for each in found.get("warning", ()) if each["subject"] == "start"]

    async with kinesis as server:
        server.retention_hours = 30 * 24
        week = {"retention.ms": str(7 * 86_400_000)}
        config = kafka_config(tmp_path, server.url, kafka_server, prefix, topic_settings=week)
        settings = yaml.safe_load(config.read_text())
        for start, codes in (
            ("LATEST", []),
            ("6d ago", []),
            ("8d ago", ["kafka_retention"]),
            ("TRIM_HORIZON", ["kafka_retention"]),
        ):
            settings["pipelines"][0]["source"]["start"] = start
            config.write_text(yaml.safe_dump(settings))
            assert await warned(config) == codes
        for run in range(2):
            async with run_worker(config, tmp_path / f"log{run}") as worker:
                await until(lambda: has(worker, "subscribed"))
                assert await worker.stop() == 0
            assert worker.log.count('"kafka_retention"') == (not run)
        assert await warned(config) == ["kafka_retention"]


async def has(worker: Worker, text: str) -> bool:
    return text in worker.log


async def test_what_commands_say_before_and_after_a_run(
    kafka_server: KafkaServer, tmp_path: Path
) -> None:
    prefix = f"t{secrets.token_hex(5)}"
    stream = ScriptedStream(2)
    Feeder(Shop(seed=5), stream).feed(40)
    kinesis = KinesisServer(
        stream, name=TABLE, tables=TABLES, heartbeat_seconds=0.3, subscribe_interval_seconds=0.01
    )
    async with kinesis as server:
        config = kafka_config(tmp_path, server.url, kafka_server, prefix)
        code, found = await findings(config)
        assert code == 0
        missing = [finding["ddl"] for finding in found["todo"] if finding["ddl"]]
        assert len(missing) == 3
        assert all(ddl.startswith("kafka-topics.sh --bootstrap-server ") for ddl in missing)
        refusing = kafka_config(tmp_path, server.url, kafka_server, prefix, create=False)
        code, found = await findings(refusing)
        assert (code, {each["subject"] for each in found["problem"]}) == (1, {"sink"})

        config = kafka_config(tmp_path, server.url, kafka_server, prefix)
        async with run_worker(config, tmp_path / "log") as worker:

            async def complete() -> bool:
                return "subscribed" in worker.log and len(await seen(kafka_server, prefix)) >= len(
                    made(stream)
                )

            await until(complete)
            assert await worker.stop() == 0
        check(await seen(kafka_server, prefix), made(stream))

        code, found = await findings(config)
        assert code == 0
        said = [finding["message"] for finding in found["ok"]]
        assert any(f"topic {prefix}.{TABLE}: 3 partitions" in message for message in said)
        code, out, err = await replicator("status", "--config", config, "--output", "json")
        assert (code, err) == (0, "")
        assert "AFTER_SEQUENCE_NUMBER:" in out
        command = ("positions", "show", "--config", config, "--output", "json")
        code, out, _ = await replicator(*command)
        assert code == 0
        assert {shard.id for shard in stream.shards()} <= set(out.split('"'))
