"""Tables by their tags, over the wire: found, added, removed while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from replicator import config as configuration
from replicator import tables
from replicator.errors import FatalError
from replicator.service import Service
from tests.integration.test_pipelines import Rig, rig, serving
from tests.stack import until

__all__ = ["rig"]
pytestmark = pytest.mark.usefixtures("credentials")

TAGS = [{"Key": "replicate", "Value": "yes"}]


def config(rig: Rig, source: dict[str, Any], **patterns: Any) -> Path:
    sink = {"name": "w", "kind": "postgres", "dsn": rig.stack.dsn}
    found = {"tags": {"replicate": "yes"}, **patterns}
    return rig.stack.config(
        pipelines=[{"name": "shop", "tables": found, "source": source, "sinks": [sink]}]
    )


async def arn(rig: Rig, table: str) -> str:
    return str((await rig.dynamodb.describe_table(TableName=table))["Table"]["TableArn"])


async def tag(rig: Rig, table: str) -> None:
    await rig.dynamodb.tag_resource(ResourceArn=await arn(rig, table), Tags=TAGS)


async def untag(rig: Rig, table: str) -> None:
    await rig.dynamodb.untag_resource(ResourceArn=await arn(rig, table), TagKeys=["replicate"])


async def until_runs(service: Service, *names: str) -> None:
    async def runs() -> bool:
        return [each.pipeline for each in service.watched] == ["shop", *names]

    await until(runs)


@asynccontextmanager
async def made(rig: Rig, *names: str) -> AsyncIterator[None]:
    for name in names:
        await rig.make_table(name)
    yield


async def test_tables_come_and_go_with_their_tags(rig: Rig) -> None:
    path = config(rig, {"kind": "streams", "start": "LATEST"}, exclude=["*-tmp"])
    async with made(rig, "orders", "users", "orders-tmp"):
        await tag(rig, "orders")
        await tag(rig, "orders-tmp")
        await rig.put("users", "before")
        async with serving(path) as service:
            await until_runs(service, "shop/orders")

            async def begun() -> bool:
                return not service.watched[1].unready()

            await until(begun)
            await rig.put("orders", "a")
            await rig.until_there("orders", "a")
            await tag(rig, "users")
            # Found later than first: from its oldest record on, whatever `start` says.
            await rig.until_there("users", "before")
            await untag(rig, "orders")
            await until_runs(service, "shop/users")
            await rig.put("users", "after")
            await rig.until_there("users", "before", "after")
            assert service.stats.changes == 3, "what was counted for a removed one still counts"
            await rig.put("orders", "untagged")
        await rig.until_there("orders", "a")
        # A restart knows that it isn't the first look, and goes on where each stands.
        await rig.make_table("stock")
        await rig.put("stock", "early")
        await tag(rig, "stock")
        await tag(rig, "orders")
        async with serving(path):
            await rig.until_there("stock", "early")
            await rig.until_there("orders", "a", "untagged")
    found = await rig.stack.fetch("SELECT DISTINCT pipeline FROM replicator_positions ORDER BY 1")
    assert [row["pipeline"] for row in found] == [
        "test/shop/orders/w",
        "test/shop/stock/w",
        "test/shop/users/w",
    ]


async def test_a_table_that_is_deleted_meanwhile_harms_no_other(rig: Rig) -> None:
    async with made(rig, "orders", "users"):
        await tag(rig, "orders")
        await tag(rig, "users")
        async with serving(config(rig, {"kind": "streams"})) as service:
            await until_runs(service, "shop/orders", "shop/users")
            await rig.dynamodb.delete_table(TableName="users")
            await until_runs(service, "shop/orders")
            await rig.put("orders", "a")
            await rig.until_there("orders", "a")


async def test_commands_find_the_tables_once(rig: Rig) -> None:
    async with made(rig, "orders", "users", "other"):
        await tag(rig, "orders")
        await tag(rig, "users")
        loaded = configuration.load(config(rig, {"kind": "streams"}), {})
        found = await tables.look(loaded)
        assert found.as_dict()["pipelines"] == [
            {"pipeline": "shop", "tables": ["orders", "users"], "problem": ""}
        ]
        assert found.as_text() == "shop: 2 tables\n  orders\n  users"
        expanded = await tables.expanded(loaded)
        assert [each.name for each in expanded.pipelines] == ["shop/orders", "shop/users"]
        await untag(rig, "orders")
        await untag(rig, "users")
        with pytest.raises(FatalError, match="no table carries the tags"):
            await tables.expanded(loaded)
