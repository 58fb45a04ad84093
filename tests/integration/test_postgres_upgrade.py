"""The Postgres sink on state tables of an earlier version."""

from __future__ import annotations

import pytest

from replicator.errors import FatalError
from replicator.model import TRIM_HORIZON, Position, PositionKind
from replicator.sink.postgres import PostgresSink
from replicator.testing.servers import PostgresServer
from tests.changes import STREAM, number
from tests.warehouse import PRODUCTS, connected, opened, product, rows, settings, write

EARLIER = (
    "ALTER TABLE replicator_positions DROP COLUMN begun_at;"
    " ALTER TABLE replicator_streams DROP COLUMN tables"
)
SHARD = "shard-1"


async def begun_earlier(dsn: str) -> None:
    """A stream was begun and read by a version that knew fewer columns."""
    async with opened(dsn) as sink:
        await sink.begin(STREAM, {SHARD: TRIM_HORIZON})
        await write(sink, await sink.fence(STREAM, SHARD, "me"), [product("a", 1)])
    async with connected(dsn) as connection:
        await connection.execute(EARLIER)


async def test_what_an_earlier_version_lacks_is_added_and_reading_goes_on(
    postgres_dsn: str,
) -> None:
    await begun_earlier(postgres_dsn)
    async with opened(postgres_dsn) as sink:
        assert await sink.is_known(STREAM)
        assert await sink.begun() == [STREAM.arn]
        fence = await sink.fence(STREAM, SHARD, "me")
        assert await sink.position(fence) == Position(
            PositionKind.AFTER_SEQUENCE_NUMBER, sequence_number=number(1)
        )
        assert (await sink.reached(STREAM, [SHARD]))[SHARD].begun_us is None
        await write(sink, fence, [product("b", 2)], first=2)
        await sink.begin(STREAM, {SHARD: TRIM_HORIZON})
    assert await rows(postgres_dsn, "SELECT id FROM products ORDER BY id") == [("a",), ("b",)]


async def test_create_false_names_the_columns_and_the_ddl_can_be_run(postgres_dsn: str) -> None:
    await begun_earlier(postgres_dsn)
    with pytest.raises(FatalError, match="column begun_at of .* missing") as refused:
        async with opened(postgres_dsn, create=False):
            pass
    assert refused.value.code == "table_missing"
    _, ddl = refused.value.message.split(":\n", 1)
    async with connected(postgres_dsn) as connection:
        await connection.execute(ddl)
    async with opened(postgres_dsn, create=False) as sink:
        assert await sink.is_known(STREAM)


async def test_who_does_not_own_the_tables_is_told_before(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    await begun_earlier(postgres_dsn)
    role = "writer_of_an_earlier_version"
    async with connected(postgres_dsn) as connection:
        await connection.execute(
            f"CREATE ROLE {role} LOGIN; GRANT CREATE, USAGE ON SCHEMA public TO {role};"
            f" GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
        )
    sink = PostgresSink(settings(postgres_dsn.replace("postgres:@", f"{role}:@")))
    planned = await sink.plan([PRODUCTS])
    await sink.close()
    assert {finding.code for finding in planned.problems} == {"permission_denied"}
    assert "ADD COLUMN begun_at" in planned.problems[0].message
    postgres_server.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", postgres_dsn)
