"""Several tables in one Kinesis stream, listed and found; and what discovery does when it fails."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from replicator import config as configuration
from replicator import tables
from replicator.aws import AWSSettings
from replicator.errors import FatalError
from replicator.model import TableSchema
from replicator.source.tagged import active_destination, tagged_tables
from replicator.testing.stream import ScriptedStream
from replicator.testing.tagging_server import TaggingServer
from tests.changes import put
from tests.integration.test_pipelines import serving
from tests.stack import Stack, until

pytestmark = pytest.mark.usefixtures("credentials")

SCHEMAS = [TableSchema(name, (("id", "S"),)) for name in ("orders", "users")]
YES = {"replicate": "yes"}
SHARD = "shardId-000000000000"


class Rig:
    """One stream that carries the changes of two tables."""

    def __init__(self, server: TaggingServer, stack: Stack) -> None:
        self.server = server
        self.stack = stack
        self._instants = itertools.count(1_700_000_000_000_000, 1_000)

    def put(self, table: str, key: str) -> None:
        record = put(table, {"id": {"S": key}}, next(self._instants))
        self.server.stream.append(SHARD, [record])

    async def until_there(self, table: str, *keys: str) -> None:
        async def there() -> bool:
            rows = await self.stack.fetch(f'SELECT id FROM "{table}_live" ORDER BY id')
            return [row["id"] for row in rows] == sorted(keys)

        await until(there)

    def config(self, *pipelines: tuple[str, Any], stream: str | None = "shared") -> Path:
        source = {"kind": "kinesis", "mode": "polling"} | ({"stream": stream} if stream else {})
        sink = {"name": "w", "kind": "postgres", "dsn": self.stack.dsn}
        return self.stack.config(
            pipelines=[
                {"name": name, "tables": found, "source": source, "sinks": [sink]}
                for name, found in pipelines
            ]
        )


@pytest.fixture
async def rig(postgres_dsn: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with TaggingServer(
        ScriptedStream(1), name="shared", tables=SCHEMAS, reads_per_second=50
    ) as server:
        yield Rig(server, Stack(server.url, postgres_dsn, tmp_path, None))


async def test_two_tables_of_one_stream_in_one_pipeline(rig: Rig) -> None:
    async with serving(rig.config(("shop", ["orders", "users"]))) as service:
        rig.put("orders", "a")
        rig.put("users", "b")
        rig.put("others", "c")
        await rig.until_there("orders", "a")
        await rig.until_there("users", "b")

        async def dropped() -> bool:
            return service.stats.dropped["unknown_table"] == 1

        await until(dropped)


async def test_two_pipelines_of_one_stream(rig: Rig) -> None:
    """Each has positions, leases and counters of its own."""
    async with serving(rig.config(("first", ["orders"]), ("second", ["users"]))) as service:
        rig.put("orders", "a")
        rig.put("users", "b")
        await rig.until_there("orders", "a")
        await rig.until_there("users", "b")

        async def both_read_all() -> bool:
            return [each.stats.records for each in service.watched] == [2, 2]

        await until(both_read_all)
    found = await rig.stack.fetch("SELECT pipeline FROM replicator_positions ORDER BY 1")
    assert [row["pipeline"] for row in found] == ["test/first/w", "test/second/w"]


async def test_a_shared_streams_run_begins_anew_with_what_is_found(rig: Rig) -> None:
    rig.server.table_tags["orders"] = YES
    async with serving(rig.config(("shop", {"tags": YES}))) as service:
        rig.put("orders", "a")
        rig.put("users", "before")
        await rig.until_there("orders", "a")
        rig.server.table_tags["users"] = YES

        async def restarted() -> bool:
            rows = await rig.stack.fetch("SELECT 1 FROM pg_tables WHERE tablename = 'users'")
            return bool(rows) and not service.watched[1].unready()

        await until(restarted)
        rig.put("users", "b")
        rig.put("orders", "c")
        await rig.until_there("users", "b")
        await rig.until_there("orders", "a", "c")
        del rig.server.table_tags["users"]

        async def narrowed() -> bool:
            rig.put("users", "dropped")
            await asyncio.sleep(0.05)
            return service.watched[1].stats.dropped["unknown_table"] > 0

        await until(narrowed)
        rig.put("orders", "d")
        await rig.until_there("orders", "a", "c", "d")
    found = await rig.stack.fetch("SELECT DISTINCT pipeline FROM replicator_positions")
    assert [row["pipeline"] for row in found] == ["test/shop/shared/w"]


async def test_each_tables_own_destination_and_one_that_is_read_already(rig: Rig) -> None:
    rig.server.table_tags |= {"orders": YES, "users": YES}
    rig.server.table_destinations["users"] = {rig.server.arn: "DISABLED"}
    async with serving(rig.config(("shop", {"tags": YES}), stream=None)) as service:
        rig.put("orders", "a")
        await rig.until_there("orders", "a")

        def failure() -> str | None:
            found = next(each for each in service.watched if each.pipeline == "shop/users")
            error = found.failure()
            return error.code if error is not None else None

        async def failed(code: str) -> bool:
            return failure() == code

        await until(lambda: failed("destination_missing"))
        rig.server.table_destinations["users"] = {rig.server.arn: "ACTIVE"}
        await until(lambda: failed("stream_shared"))


async def test_discovery_that_fails_changes_nothing(rig: Rig) -> None:
    rig.server.table_tags["orders"] = YES
    async with serving(rig.config(("shop", {"tags": YES}))) as service:
        rig.put("orders", "a")
        await rig.until_there("orders", "a")
        shop = service.watched[0]

        async def told() -> bool:
            return "GetResources" in shop.unready()

        for code in ("ThrottledException", "AccessDeniedException"):
            for _ in range(4):  # more than the driver repeats
                rig.server.refuse("GetResources", code)
            await until(told)
            assert shop.failure() is None
            assert len(service.watched) == 2
            rig.put("orders", code)

            async def well() -> bool:
                return not shop.unready()

            await until(well)
        await rig.until_there("orders", "a", "ThrottledException", "AccessDeniedException")


async def test_a_first_look_that_is_denied_ends_the_process(rig: Rig) -> None:
    rig.server.refuse("GetResources", "AccessDeniedException")
    with pytest.raises(ExceptionGroup) as caught:
        async with serving(rig.config(("shop", {"tags": YES}))):
            await asyncio.sleep(30)
    (error,) = caught.value.exceptions
    assert isinstance(error, FatalError)
    assert error.code == "access_denied"


async def test_all_pages_are_read_and_filters_kept(rig: Rig) -> None:
    settings = AWSSettings(region="eu-north-1", endpoint_url=rig.server.url)
    names = [f"t{number:03}" for number in range(250)]
    rig.server.table_tags = {name: {"replicate": "yes", "n": name[-1]} for name in names}
    rig.server.table_tags["other"] = {"replicate": "no"}
    assert await tagged_tables(settings, {"replicate": ("yes",)}) == names
    assert len(rig.server.called("GetResources")) == 3
    assert await tagged_tables(settings, {"replicate": None}) == ["other", *names]
    odd = await tagged_tables(settings, {"replicate": ("yes",), "n": ("1", "3")})
    assert odd == [name for name in names if name[-1] in "13"]
    rig.server.pages_of = 7
    assert await tagged_tables(settings, {"replicate": ("yes", "no")}) == ["other", *names]


async def test_several_destinations_are_named(rig: Rig) -> None:
    settings = AWSSettings(region="eu-north-1", endpoint_url=rig.server.url)
    other = rig.server.arn.replace("shared", "other")
    rig.server.table_destinations["users"] = {rig.server.arn: "ACTIVE", other: "ACTIVE"}
    with pytest.raises(FatalError, match="other.*shared") as caught:
        await active_destination(settings, "users")
    assert caught.value.code == "destination_ambiguous"
    rig.server.table_tags["users"] = YES
    loaded = configuration.load(rig.config(("shop", {"tags": YES}), stream=None), {})
    with pytest.raises(FatalError, match="several Kinesis streams"):
        await tables.chosen(loaded, "shop/users")
