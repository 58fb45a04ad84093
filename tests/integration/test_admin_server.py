"""The admin server over HTTP, its pipelines set up by hand."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from replicator.admin import SHARDS_NAMED, Admin, serving
from replicator.config import AdminConfig
from replicator.core.budget import Budget
from replicator.core.liveness import Liveness, Phase, ShardView
from replicator.core.trouble import Trouble
from replicator.errors import FatalError
from replicator.model import TRIM_HORIZON
from replicator.telemetry.metrics import SHARDS_SHOWN, Metrics
from replicator.telemetry.stats import Stats
from replicator.telemetry.watched import Watched, WatchedSink
from tests.packaging.dockerfile import parse

ANY_PORT = AdminConfig(port=0)


class Rig:
    """One pipeline whose shards and reasons a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.alive = Liveness("w", deadline_seconds=90.0)
        self.stats = Stats()
        self.unready = ""
        self.trouble: Trouble | None = None
        self.watched = [
            Watched(
                "p",
                [WatchedSink("w", self.stats, trouble=lambda: self.trouble)],
                Stats(),
                Budget(1_000),
                self.views,
                lambda: self.unready,
                dict,
            )
        ]
        self.admin = Admin("shop", "me", self.watched)

    def views(self) -> list[ShardView]:
        return [self.alive.view(shard, life, self.now) for shard, life in self.alive.lives()]

    def own(self, count: int) -> None:
        for number in range(count):
            life = self.alive.own(f"shardId-{number:012d}", self.now)
            life.arrived(TRIM_HORIZON, number, self.now)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        with capture_logs() as logs:
            async with serving(ANY_PORT, self.admin):
                (said,) = [log for log in logs if log["event"] == "admin_listening"]
                yield f"http://127.0.0.1:{said['port']}"


async def get(url: str) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, json.loads(await response.read())


async def test_health_turns_red_and_green_by_itself() -> None:
    rig = Rig()
    async with rig.served() as url:
        assert (await get(f"{url}/healthz"))[0] == 200, "nothing is owned yet"
        rig.own(2)
        assert await get(f"{url}/healthz") == (200, rig.admin.health())
        rig.now += 90
        code, body = await get(f"{url}/healthz")
        assert (code, body["late_count"]) == (503, 2)
        assert "no answer of the source for 90 s" in body["late"][0]["why"]
        for _, life in rig.alive.lives():
            life.arrived(TRIM_HORIZON, 0, rig.now)
        assert (await get(f"{url}/healthz"))[0] == 200


async def test_the_list_of_late_shards_is_short_and_their_number_is_said() -> None:
    rig = Rig()
    rig.own(1_000)
    rig.now += 90
    body = rig.admin.health()
    assert (body["late_count"], len(body["late"])) == (1_000, SHARDS_NAMED)


async def test_readiness_says_what_is_missing() -> None:
    rig = Rig()
    async with rig.served() as url:
        rig.unready = "it has not begun"
        assert await get(f"{url}/readyz") == (
            503,
            {"ready": False, "reasons": {"p": "it has not begun"}},
        )
        rig.unready = ""
        assert await get(f"{url}/readyz") == (200, {"ready": True, "reasons": {}})
        rig.watched.clear()
        assert (await get(f"{url}/readyz"))[0] == 503, "before its pipelines are made"


async def test_a_port_in_use_says_what_to_do() -> None:
    rig = Rig()
    async with rig.served() as url:
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(FatalError, match="admin.port") as caught:
            async with serving(AdminConfig(port=port), rig.admin):
                pass
        assert caught.value.code == "admin_port_in_use"


async def test_an_address_that_is_not_here_says_what_to_do() -> None:
    with pytest.raises(FatalError) as caught:
        async with serving(AdminConfig(host="192.0.2.1", port=0), Rig().admin):
            pass
    assert caught.value.code == "admin_unavailable"


async def test_without_settings_nothing_listens() -> None:
    with capture_logs() as logs:
        async with serving(None, Rig().admin):
            pass
    assert logs == []


def test_ten_thousand_shards_make_no_more_series_than_two_hundred() -> None:
    rig = Rig()
    rig.own(10_000)
    for number in (3, 5_000):
        rig.alive.drop(f"shardId-{number:012d}")
    rig.alive.own("late", rig.now - 500).asks(rig.now)
    text = Metrics(rig.watched).text().decode()
    found = list(text_string_to_metric_families(text))
    samples = {s.name: s for family in found for s in family.samples if "shard" not in s.labels}
    of_shards = [s for family in found for s in family.samples if "shard" in s.labels]
    assert len(of_shards) <= 3 * SHARDS_SHOWN
    assert "late" in {s.labels["shard"] for s in of_shards}, "the worst are shown"
    assert "shardId-000000009999" in {s.labels["shard"] for s in of_shards}
    assert samples["replicator_lag_seconds"].value == 9.999, "of all of them"
    assert samples["replicator_shards_late"].value == 1
    phases = {
        s.labels["phase"]: s.value
        for f in found
        for s in f.samples
        if f.name == "replicator_shards"
    }
    assert phases == dict.fromkeys(Phase, 0.0) | {"reading": 9_999.0, "starting": 0.0}
    assert len(text) < 200_000


def test_counters_are_those_of_the_stats() -> None:
    rig = Rig()
    rig.stats.changes = 7
    rig.stats.gaps_by_cause["age"] += 1
    rig.stats.retries["throttled"] += 3
    rig.stats.observe_latency(0.02, 6)
    rig.stats.observe_latency(2.0, 1)
    metrics = Metrics(rig.watched)
    for _ in range(2):  # a scrape changes nothing
        found = {
            (
                sample.name,
                sample.labels.get("code") or sample.labels.get("cause"),
                sample.labels.get("le"),
            ): sample.value
            for family in text_string_to_metric_families(metrics.text().decode())
            for sample in family.samples
        }
        assert found["replicator_changes_total", None, None] == 7
        assert found["replicator_gaps_total", "age", None] == 1
        assert found["replicator_gaps_total", "vanished", None] == 0, "from the beginning"
        assert found["replicator_retries_total", "throttled", None] == 3
        assert found["replicator_latency_seconds_bucket", None, "0.01"] == 0
        assert found["replicator_latency_seconds_bucket", None, "0.025"] == 6
        assert found["replicator_latency_seconds_bucket", None, "2.5"] == 7
        assert found["replicator_latency_seconds_bucket", None, "+Inf"] == 7
        assert found["replicator_latency_seconds_sum", None, None] == pytest.approx(2.12, rel=0.02)


def test_all_pipelines_together_are_the_sum() -> None:
    one, two = Stats(), Stats()
    one.changes, two.changes = 2, 3
    one.retries["cut"] += 1
    two.retries["cut"] += 1
    one.observe_latency(1.0, 1)
    two.observe_latency(0.001, 99)
    both = Stats.total([one, two])
    assert (both.changes, both.retries) == (5, {"cut": 2})
    assert both.latency_ms(0.5) == pytest.approx(1, rel=0.03)
    assert (one.changes, one.retries) == (2, {"cut": 1}), "they stay as they were"


async def test_the_images_health_check_asks_at_the_configured_port() -> None:
    file = Path(__file__).parents[2] / "Dockerfile"
    said = {instruction.word: instruction.rest for instruction in parse(file.read_text())}
    port = str(AdminConfig().port)
    assert said["EXPOSE"] == port
    command = json.loads(said["HEALTHCHECK"].partition(" CMD ")[2])
    assert command[0] == "python"
    rig = Rig()
    rig.own(1)
    async with rig.served() as url:
        assert f"'{port}'" in command[-1], "the default"
        environment = {**os.environ, "REPLICATOR_ADMIN__PORT": url.rpartition(":")[2]}

        async def exit_code() -> int:
            asked = await asyncio.to_thread(
                subprocess.run, [sys.executable, *command[1:]], env=environment, stderr=-3
            )
            return asked.returncode

        assert await exit_code() == 0
        rig.now += 90
        assert await exit_code() == 1
    assert await exit_code() == 1
