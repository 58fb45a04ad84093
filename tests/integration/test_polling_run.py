"""`replicator run` that polls, or changes over to polling, in a process of its own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from replicator.aws import AWSSettings, aws_client
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES
from tests.shop import TABLE, Shop
from tests.stack import CREDENTIALS, Stack, make_stack, run_worker


async def test_fan_out_and_polling_go_on_where_the_other_stood(
    ministack_url: str, postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    shop = Shop(seed=51)
    async with make_stack(ministack_url, postgres_dsn, tmp_path) as stack:
        changes = 0
        for run, mode in enumerate(["polling", "fan_out", "polling"]):
            await stack.put(shop.changes(300))
            log = tmp_path / f"log{run}"
            async with run_worker(stack.config(mode=mode), log) as worker:
                await stack.until_equal(shop.plain())
                assert await worker.stop() == 0
            entries = [json.loads(line) for line in worker.log.splitlines() if line[:1] == "{"]
            (source,) = [entry for entry in entries if entry["event"] == "source"]
            assert source["mode"] == mode
            (drained,) = [entry for entry in entries if entry["event"] == "drained"]
            changes += drained["changes"]
        assert changes == 900, "nothing twice"
        async with aws_client(
            AWSSettings("us-east-1", endpoint_url=stack.url), "kinesis"
        ) as client:
            summary = await client.describe_stream_summary(StreamName=TABLE)
            arn = summary["StreamDescriptionSummary"]["StreamARN"]
            listed = await client.list_stream_consumers(StreamARN=arn)
        assert len(listed["Consumers"]) == 1, "only fan-out needs one"


@pytest.mark.parametrize("operation", ["RegisterStreamConsumer", "SubscribeToShard"])
async def test_a_worker_without_the_permission_polls_and_says_so_once(
    operation: str, postgres_dsn: str, tmp_path: Path
) -> None:
    stream, shop = ScriptedStream(3), Shop(seed=52)
    async with KinesisServer(stream, name=TABLE, tables=TABLES) as server:
        for _ in range(100):
            server.refuse(operation, "AccessDeniedException")
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        async with run_worker(stack.config(), tmp_path / "log") as worker:
            for place, (_, data) in enumerate(shop.changes(200)):
                stream.append(f"shardId-{place % 3:012d}", [data])
            await stack.until_equal(shop.plain())
            assert await worker.stop() == 0
    assert worker.log.count("fan_out_unavailable") == 1
    assert "What to do" in worker.log
    assert '"level": "error"' not in worker.log
    assert server.called("GetRecords")


async def test_check_says_which_way_a_stream_would_be_read(
    postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replicator import config, preflight

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with KinesisServer(name=TABLE, tables=TABLES) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)

        async def said(mode: str) -> tuple[str, str]:
            loaded = config.load(stack.config(mode=mode), {})
            report = await asyncio.to_thread(preflight.check, loaded)
            (finding,) = [each for each in report.findings if f"mode {mode}:" in each.message]
            return finding.level, finding.message

        level, message = await said("polling")
        assert level == "ok"
        assert "GetRecords" in message
        for mode in ("auto", "fan_out"):
            level, message = await said(mode)
            assert level == "todo"
            assert "would be registered" in message
            assert ("polled" in message) == (mode == "auto")
        server.refuse("DescribeStreamConsumer", "AccessDeniedException")
        level, message = await said("auto")
        assert level == "warning"
        assert "would be polled" in message
        assert not server.called("RegisterStreamConsumer")
