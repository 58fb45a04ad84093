"""The admin server of the real `run`: what it says while a source hangs, while Postgres stands
still, and at the end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from replicator.testing.kinesis_server import KinesisServer, Mute, Serve, Stall
from replicator.testing.servers import PostgresServer
from replicator.testing.stream import ScriptedStream
from tests.engine import TABLES
from tests.shop import TABLE, Shop
from tests.stack import CREDENTIALS, Stack, Worker, run_worker, until

FIRST, SECOND = "shardId-000000000000", "shardId-000000000001"
DEADLINE = 3


def serve(stream: ScriptedStream) -> KinesisServer:
    return KinesisServer(
        stream,
        name=TABLE,
        tables=TABLES,
        heartbeat_seconds=0.3,
        subscribe_interval_seconds=0.05,
    )


def put(stream: ScriptedStream, shard_id: str, shop: Shop, count: int) -> None:
    stream.append(shard_id, [data for _, data in shop.changes(count)])


class Admin:
    """The admin address of a worker, found in its log."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.port = 0

    async def listening(self) -> None:
        async def said() -> bool:
            found = re.search(r'"port": (\d+), "event": "admin_listening"', self._worker.log)
            self.port = int(found.group(1)) if found else 0
            return found is not None

        await until(said)

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def json(self, path: str) -> tuple[int, dict[str, Any]]:
        code, text = await self.get(path)
        return code, json.loads(text)

    async def shard(self, shard_id: str) -> dict[str, Any]:
        _, status = await self.json("/status")
        (pipeline,) = status["pipelines"]
        return next((each for each in pipeline["shards"] if each["shard"] == shard_id), {})

    async def until_code(self, path: str, code: int) -> dict[str, Any]:
        body: dict[str, Any] = {}

        async def answered() -> bool:
            nonlocal body
            found, body = await self.json(path)
            return found == code

        await until(answered)
        return body


async def admin_of(worker: Worker) -> Admin:
    admin = Admin(worker)
    await admin.listening()
    return admin


async def test_healthz_is_red_while_a_connection_is_half_open(
    postgres_dsn: str, tmp_path: Path
) -> None:
    stream, shop = ScriptedStream(2), Shop(seed=51)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config(limits={"silence_seconds_max": DEADLINE})
        # Half a dozen events, then silence; and nothing at all for those who ask again.
        server.script(FIRST, Serve(6), Stall())
        server.script(FIRST, Mute())
        async with run_worker(config, tmp_path / "log") as worker:
            admin = await admin_of(worker)
            assert (await admin.until_code("/readyz", 200))["ready"]
            put(stream, SECOND, shop, 20)
            await stack.until_equal(shop.plain())
            body = await admin.until_code("/healthz", 503)
            assert [late["shard"] for late in body["late"]] == [FIRST]
            assert "no answer of the source" in body["late"][0]["why"]
            put(stream, SECOND, shop, 20)
            await stack.until_equal(shop.plain())  # the other one goes on
            assert (await admin.until_code("/healthz", 200))["late"] == []
            put(stream, FIRST, shop, 20)
            await stack.until_equal(shop.plain())
            _, text = await admin.get("/metrics")
            assert samples(text)["replicator_reader_cuts_total", ()] >= 1
            assert "reader_cut" in worker.log
            assert "gave no answer" in worker.log
            assert await worker.stop() == 0


async def test_a_postgres_that_stands_still_is_named_and_nothing_is_red(
    postgres_dsn: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    stream, shop = ScriptedStream(2), Shop(seed=52, filler=3_000)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        limits = {"silence_seconds_max": DEADLINE, "memory_bytes_max": 1_048_576}
        async with run_worker(stack.config(limits=limits), tmp_path / "log") as worker:
            admin = await admin_of(worker)
            put(stream, FIRST, shop, 20)
            await stack.until_equal(shop.plain())
            with postgres_server.stalled():
                put(stream, FIRST, shop, 1_000)

                async def paused() -> bool:
                    return bool((await admin.shard(FIRST)).get("phase") == "paused")

                await until(paused)
                seen_at = asyncio.get_running_loop().time()
                while asyncio.get_running_loop().time() < seen_at + 3 * DEADLINE:
                    code, body = await admin.json("/healthz")
                    assert code == 200, body
                    await asyncio.sleep(0.2)
                (waiting,) = [w for w in body["waiting_for_sink"] if w["shard"] == FIRST]
                assert waiting["sink"] == "w"
                shard = await admin.shard(FIRST)
                assert shard["waits_for_sink"] == "w"
                assert shard["lag_seconds"] > 2 * DEADLINE
                assert "waits for sink w: room in the memory budget" in shard["why"]
            await stack.until_equal(shop.plain())
            assert (await admin.shard(FIRST))["waits_for_sink"] is None
            assert "reader_cut" not in worker.log
            with postgres_server.stalled():
                put(stream, FIRST, shop, 20)

                async def read() -> bool:
                    return "not durable at sink w" in (await admin.shard(FIRST))["why"]

                await until(read)
                stopped = asyncio.ensure_future(worker.stop())
                body = await admin.until_code("/readyz", 503)  # a drain is watched to its end
                assert body["reasons"] == {"p": "it stops"}
                assert (await admin.json("/healthz"))[0] == 200
            assert await stopped == 0
        await stack.until_equal(shop.plain())


async def test_metrics_agree_with_the_summary(postgres_dsn: str, tmp_path: Path) -> None:
    stream, shop = ScriptedStream(2), Shop(seed=53)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        async with run_worker(stack.config(), tmp_path / "log") as worker:
            admin = await admin_of(worker)
            stream.append(FIRST, [data for _, data in shop.disturbed(1_000)])
            stream.append(SECOND, [b'{"no": "change"', b"\xff\xfe"])
            await stack.until_equal(shop.plain())

            found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

            async def all_counted() -> bool:
                """Rows are seen before their writer has heard that they are stored; copies at the
                end change no row."""
                nonlocal found
                _, text = await admin.get("/metrics")
                found = samples(text)
                read = ("changes", "duplicates", "dead_letters")
                counts = [found[f"replicator_{name}_total", ()] for name in read]
                return sum(counts) == 1_052 and not found["replicator_budget_used_bytes", ()]

            await until(all_counted)
            code, status = await admin.json("/status")
            assert code == 200
            assert await worker.stop() == 0
            (line,) = (text for text in worker.log.splitlines() if '"drained"' in text)
            drained = json.loads(line)
    for name in ("changes", "rows", "duplicates", "superseded", "dead_letters"):
        assert found[f"replicator_{name}_total", ()] == drained[name], name
    assert drained["changes"] + drained["duplicates"] == 1_050
    assert sum(n for (name, _), n in found.items() if name == "replicator_rejections_total") == 2
    assert found["replicator_latency_seconds_count", ()] >= drained["changes"]
    assert found["replicator_write_seconds_count", ()] >= 1
    assert found["replicator_write_seconds_sum", ()] > 0
    assert found["replicator_shards", (("phase", "reading"),)] == 2
    assert found["replicator_shards_late", ()] == 0
    assert found["replicator_budget_used_bytes", ()] == 0
    assert found["replicator_ready", ()] == 1
    assert 0 <= found["replicator_shard_lag_seconds", (("shard", FIRST),)] < 60
    (pipeline,) = status["pipelines"]
    assert pipeline["changes"] == drained["changes"]
    assert sum(pipeline["dead_letters"].values()) == 2
    assert [shard["phase"] for shard in pipeline["shards"]] == ["reading", "reading"]


async def test_status_asks_the_process_and_falls_back_to_the_stores(
    postgres_dsn: str, tmp_path: Path
) -> None:
    stream, shop = ScriptedStream(1), Shop(seed=54)
    async with serve(stream) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        async with run_worker(stack.config(), tmp_path / "log") as worker:
            put(stream, FIRST, shop, 20)
            await stack.until_equal(shop.plain())
            admin = await admin_of(worker)
            config = stack.config(admin={"port": admin.port})
            code, out = await replicator("status", "--config", config, "--output", "json")
            answer = json.loads(out)
            assert code == 0
            assert answer["from"] == f"http://127.0.0.1:{admin.port}"
            (shard,) = answer["pipelines"][0]["shards"]
            assert (shard["shard"], shard["phase"]) == (FIRST, "reading")
            assert shard["position"].startswith("AFTER_SEQUENCE_NUMBER")
            code, out = await replicator("status", "--config", config)
            assert f"{FIRST}  reading  AFTER_SEQUENCE_NUMBER:" in out
            assert "lag " in out
            assert "calls/h" in out
            # A second process at the same address says what to do.
            async with run_worker(config, tmp_path / "second") as second:
                async with asyncio.timeout(30):
                    assert await second.process.wait() == 1
                assert "admin_port_in_use" in second.log
                assert "admin: null" in second.log
            assert await worker.stop() == 0
        code, out = await replicator("status", "--config", config)
        assert code == 0
        assert out.startswith(
            f"from the stores: no process answers at http://127.0.0.1:{admin.port}"
        )
        assert f"{FIRST}  AFTER_SEQUENCE_NUMBER:" in out


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Name and labels (but pipeline and sink) to value."""
    return {
        (
            sample.name,
            tuple(
                sorted((k, v) for k, v in sample.labels.items() if k not in {"pipeline", "sink"})
            ),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def replicator(*arguments: object) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "replicator",
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **CREDENTIALS},
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()
