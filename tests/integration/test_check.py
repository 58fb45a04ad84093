"""`replicator check` and `status` against both sides: what they find, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from replicator.testing.streams_server import StreamsServer, ViewType, table_stream
from tests.shop import TABLE, Shop
from tests.stack import CREDENTIALS, Stack, make_stack, run_worker


@pytest.fixture
async def stack(ministack_url: str, postgres_dsn: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with make_stack(ministack_url, postgres_dsn, tmp_path, shards=2) as made:
        yield made


async def replicator(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of a command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "replicator",
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **CREDENTIALS},
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def findings(config: Path) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit code of `check` and its findings by level."""
    code, out, err = await replicator("check", "--config", config, "--output", "json")
    assert err == ""
    report = json.loads(out)
    by_level: dict[str, list[dict[str, Any]]] = {}
    for finding in report["findings"]:
        by_level.setdefault(finding["level"], []).append(finding)
    assert report["ok"] == ("problem" not in by_level)
    return code, by_level


async def test_before_the_first_run_it_says_what_run_would_do(stack: Stack) -> None:
    config = stack.config()
    code, found = await findings(config)
    assert code == 0
    assert {finding["subject"] for finding in found["ok"]} >= {"table", "source", "sink"}
    assert {finding["subject"] for finding in found["todo"]} >= {"source", "sink"}
    assert any("CREATE TABLE" in finding["ddl"] for finding in found["todo"])
    assert await stack.live() == {}, "it only looked"
    summary = await stack.kinesis.describe_stream_summary(StreamName=TABLE)
    arn = summary["StreamDescriptionSummary"]["StreamARN"]
    assert (await stack.kinesis.list_stream_consumers(StreamARN=arn))["Consumers"] == []
    code, text, _ = await replicator("check", "--config", config)
    assert code == 0
    assert f"table {TABLE}: key id (S)" in text
    assert text.splitlines()[-1] == "ready to run"


async def test_after_a_run_nothing_is_left_to_do(stack: Stack, tmp_path: Path) -> None:
    shop, config = Shop(seed=41), stack.config()
    await stack.put(shop.changes(30))
    async with run_worker(config, tmp_path / "log") as worker:
        await stack.until_equal(shop.plain())
        code, out, _ = await replicator("status", "--config", config, "--output", "json")
        assert code == 0
        (pipeline,) = json.loads(out)["pipelines"]
        assert len(pipeline["shards"]) == 2
        assert all(shard["lease_owner"] for shard in pipeline["shards"])
        assert await worker.stop() == 0
    code, found = await findings(config)
    assert code == 0
    assert "todo" not in found
    code, out, _ = await replicator("status", "--config", config, "--output", "json")
    (pipeline,) = json.loads(out)["pipelines"]
    assert [shard["lease_owner"] for shard in pipeline["shards"]] == [None, None]
    assert pipeline["dead_letters"] == {}


async def test_a_problem_is_one_line_with_a_code_and_ends_in_one(stack: Stack) -> None:
    pipeline = {
        "name": "p",
        "tables": [TABLE, "nowhere"],
        "source": {"kind": "kinesis", "stream": "no-stream"},
        "sinks": [{"name": "w", "kind": "postgres", "dsn": stack.dsn, "create": False}],
    }
    code, found = await findings(stack.config(pipelines=[pipeline]))
    assert code == 1
    assert {finding["subject"] for finding in found["problem"]} == {"table", "source"}
    assert all(finding["code"] and finding["message"] for finding in found["problem"])
    pipeline |= {"tables": [TABLE], "source": {"kind": "kinesis", "stream": TABLE}}
    config = stack.config(pipelines=[pipeline])
    code, found = await findings(config)
    assert code == 1
    assert {finding["subject"] for finding in found["problem"]} == {"sink"}
    assert any("CREATE TABLE" in finding["ddl"] for finding in found["problem"])
    code, text, _ = await replicator("check", "--config", config)
    assert code == 1
    assert "PROBLEM" in text
    assert text.splitlines()[-1].startswith("not ready")


async def test_a_secret_stays_one_when_the_sink_cannot_be_reached(stack: Stack) -> None:
    sink = {"name": "w", "kind": "postgres", "dsn": "postgresql://me:ge-heim@127.0.0.1:9/db"}
    pipeline = {
        "name": "p",
        "tables": [TABLE],
        "source": {"kind": "kinesis", "stream": TABLE},
        "sinks": [sink],
    }
    config = stack.config(pipelines=[pipeline])
    for form in ("text", "json"):
        for command in ("check", "status"):
            code, out, err = await replicator(command, "--config", config, "--output", form)
            assert code == 1
            assert "postgres_unavailable" in out or "PROBLEM" in out
            assert "ge-heim" not in out + err


def of_streams(stack: Stack, *, name: str = "p", **source: str) -> Path:
    sink = {"name": "w", "kind": "postgres", "dsn": stack.dsn}
    pipeline = {
        "name": name,
        "tables": [TABLE],
        "source": {"kind": "streams", **source},
        "sinks": [sink],
    }
    return stack.config(pipelines=[pipeline])


@pytest.mark.parametrize("view_type", ["KEYS_ONLY", "OLD_IMAGE"])
async def test_a_view_type_that_cannot_feed_the_sink_is_a_problem(
    view_type: ViewType, postgres_dsn: str, tmp_path: Path
) -> None:
    async with StreamsServer(table_stream(1), view_type=view_type) as server:
        code, found = await findings(of_streams(Stack(server.url, postgres_dsn, tmp_path, None)))
    assert code == 1
    (problem,) = found["problem"]
    assert problem["code"] == "view_type_unusable"
    assert view_type in problem["message"]
    assert "NEW_AND_OLD_IMAGES" in problem["message"]


async def test_what_a_stream_carries_and_who_may_read_it_is_said(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with StreamsServer(table_stream(3), view_type="NEW_IMAGE") as server:
        config = of_streams(Stack(server.url, postgres_dsn, tmp_path, None))
        code, found = await findings(config)
        assert code == 0
        told = " ".join(finding["message"] for finding in found["ok"])
        assert f"stream {server.arn}: 3 shards, 3 open" in told
        assert "view type NEW_IMAGE" in told
        assert "two processes" in told
        assert "destination" not in {each["subject"] for of in found.values() for each in of}
        server.refuse("GetRecords", "AccessDeniedException", "not allowed to GetRecords")
        code, found = await findings(config)
        assert code == 1
        assert [(each["code"], each["subject"]) for each in found["problem"]] == [
            ("access_denied", "source")
        ]
        server.disable()
        code, found = await findings(config)
        assert (code, [each["code"] for each in found["warning"]]) == (0, ["stream_disabled"])
        old = server.arn
        server.delete()
        code, found = await findings(config)
        assert (code, [each["code"] for each in found["problem"]]) == (1, ["stream_disabled"])
        code, found = await findings(
            of_streams(Stack(server.url, postgres_dsn, tmp_path, None), stream=old)
        )
        assert (code, [each["code"] for each in found["problem"]]) == (1, ["resource_missing"])


async def test_what_run_would_refuse_of_a_stream_is_a_problem(
    postgres_dsn: str, tmp_path: Path
) -> None:
    """By what stands in the tables, whichever pipeline wrote it."""
    async with StreamsServer(table_stream(1)) as server:
        stack, shop = Stack(server.url, postgres_dsn, tmp_path, None), Shop(seed=42)
        old, config = server.arn, of_streams(stack)
        (shard,) = server.stream.shards()
        server.stream.append(shard.id, [data for _, data in shop.changes(30)])
        async with run_worker(config, tmp_path / "log") as worker:
            await stack.until_equal(shop.plain())
            assert await worker.stop() == 0
        code, _ = await findings(config)
        assert code == 0
        other = "arn:aws:kinesis:eu-north-1:000000000000:stream/other"
        await stack.fetch(
            "INSERT INTO replicator_streams"
            " (pipeline, stream_arn, stream_created_at, starts, tables)"
            f" SELECT 'other', '{other}', now(), starts, tables FROM replicator_streams"
        )
        code, found = await findings(config)
        (problem,) = found["problem"]
        assert (code, problem["code"], problem["subject"]) == (1, "stream_replaced", "start")
        assert other in problem["message"]
        await stack.fetch("DELETE FROM replicator_streams WHERE pipeline = 'other'")
        server.disable()
        new = server.enable(table_stream(1))
        for name in ("p", "other"):
            code, found = await findings(of_streams(stack, name=name))
            (problem,) = found["problem"]
            assert (code, problem["code"], problem["subject"]) == (1, "stream_replaced", "start")
            assert old in problem["message"]
            assert new in problem["message"]
        code, found = await findings(of_streams(stack, name="other", stream=old))
        assert (code, [each["code"] for each in found["problem"]]) == (1, ["position_missing"])
        code, found = await findings(
            of_streams(stack, name="other", stream=old, start="TRIM_HORIZON")
        )
        assert code == 0
        await stack.fetch(f"TRUNCATE {TABLE}")
        code, found = await findings(of_streams(stack))
        (warning,) = found["warning"]
        assert (code, warning["code"]) == (0, "stream_replaced")
        assert f"the rest of {old} isn't read" in warning["message"]
