"""Several pipelines in one process: one that fails harms no other, and mends without a restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from replicator import config as configuration
from replicator.aws import AWSSettings, aws_client
from replicator.service import Service, SystemClock
from replicator.supervisor import RETRY_SECONDS
from replicator.tagged import DISCOVERY_SECONDS
from tests.integration.test_admin import admin_of
from tests.stack import PATIENCE_SECONDS, Stack, run_worker, until

pytestmark = pytest.mark.usefixtures("credentials")


class Hurried(SystemClock):
    """Waits for the next attempt as long as a test can."""

    async def sleep(self, seconds: float) -> None:
        is_long = seconds in {RETRY_SECONDS, DISCOVERY_SECONDS}
        await super().sleep(0.1 if is_long else seconds)


@dataclass
class Rig:
    """An emulator with tables that have streams of their own, and a database."""

    stack: Stack
    dynamodb: Any

    async def make_table(self, name: str) -> None:
        await self.dynamodb.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )

    async def put(self, table: str, key: str) -> None:
        await self.dynamodb.put_item(TableName=table, Item={"id": {"S": key}})

    async def until_there(self, table: str, *keys: str) -> None:
        async def there() -> bool:
            rows = await self.stack.fetch(f'SELECT id FROM "{table}_live" ORDER BY id')
            return [row["id"] for row in rows] == sorted(keys)

        await until(there)

    def config(self, *tables: str, **overrides: Any) -> Path:
        """A pipeline for each table, of the table's name."""
        return self.stack.config(
            pipelines=[
                {
                    "name": table,
                    "tables": [table],
                    "source": {"kind": "streams"},
                    "sinks": [{"name": "w", "kind": "postgres", "dsn": self.stack.dsn}],
                }
                for table in tables
            ],
            **overrides,
        )


@pytest.fixture
async def rig(ministack_url: str, postgres_dsn: str, tmp_path: Path) -> AsyncIterator[Rig]:
    settings = AWSSettings(region="us-east-1", endpoint_url=ministack_url)
    async with aws_client(settings, "dynamodb") as dynamodb:
        yield Rig(Stack(ministack_url, postgres_dsn, tmp_path, None), dynamodb)


@asynccontextmanager
async def serving(config: Path) -> AsyncIterator[Service]:
    """The service in this process, with a clock that hurries; drained at the end."""
    service, stopping = Service(configuration.load(config, {}), Hurried()), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(service.run(stopping))
        try:
            yield service
        finally:
            stopping.set()


async def test_one_that_cannot_begin_harms_no_other_and_mends_by_itself(rig: Rig) -> None:
    await rig.make_table("orders")
    async with serving(rig.config("orders", "users")) as service:
        await rig.put("orders", "a")
        await rig.until_there("orders", "a")
        users = next(each for each in service.watched if each.pipeline == "users")

        async def failed_twice() -> bool:
            return users.stats.retries["resource_missing"] >= 2

        await until(failed_twice)
        assert "begun anew every 30 s: DescribeTable of users failed" in users.unready()
        await rig.make_table("users")
        await rig.put("users", "b")
        await rig.until_there("users", "b")
        assert (users.unready(), users.failure()) == ("", None)
        await rig.put("orders", "c")
        await rig.until_there("orders", "a", "c")


async def test_a_stop_during_the_wait_drains_the_others(rig: Rig, tmp_path: Path) -> None:
    await rig.make_table("orders")
    config = rig.config("orders", "users")
    async with run_worker(config, tmp_path / "log") as worker:
        await rig.put("orders", "a")
        await rig.until_there("orders", "a")
        admin = await admin_of(worker)
        body = await admin.until_code("/healthz", 503)
        (failed,) = body["failed"]
        assert (failed["pipeline"], failed["code"]) == ("users", "resource_missing")
        assert "DescribeTable of users" in failed["why"]
        assert list((await admin.until_code("/readyz", 503))["reasons"]) == ["users"]
        _, status = await admin.json("/status")
        assert (
            "DescribeTable"
            in next(p for p in status["pipelines"] if p["name"] == "users")["unready"]
        )
        (said,) = (
            json.loads(line) for line in worker.log.splitlines() if "pipeline_failed" in line
        )
        assert (said["pipeline"], said["wait_seconds"]) == ("users", 30.0)
        async with asyncio.timeout(25):
            assert await worker.stop() == 0
        assert '"drained"' in worker.log


async def test_none_that_can_begin_ends_the_process(rig: Rig, tmp_path: Path) -> None:
    async with run_worker(rig.config("orders", "users"), tmp_path / "log") as worker:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await worker.process.wait() == 1
        assert '"failed"' in worker.log
