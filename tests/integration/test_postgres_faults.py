"""The Postgres sink when others get in its way: stalls, crashes, other owners."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import pytest

from replicator.errors import FatalError, TransientError
from replicator.model import WriteResult, after
from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_session import PostgresSession
from replicator.testing.servers import PostgresServer
from tests.changes import STREAM, number
from tests.stack import PATIENCE_SECONDS
from tests.warehouse import (
    PRODUCTS,
    attempt,
    connected,
    opened,
    product,
    rows,
    settings,
    until_fenced,
    until_waiting,
    write,
)


async def test_a_fence_waits_for_the_write_under_way_and_then_sees_its_position(
    postgres_dsn: str,
) -> None:
    async with opened(postgres_dsn) as mine, opened(postgres_dsn) as others:
        fence = await mine.fence(STREAM, "shard-1", "me")
        async with connected(postgres_dsn) as blocker, asyncio.TaskGroup() as group:
            await blocker.execute("BEGIN; LOCK TABLE products IN EXCLUSIVE MODE")
            writing = group.create_task(write(mine, fence, [product("a", 1)]))
            await until_waiting(postgres_dsn)
            fencing = group.create_task(others.fence(STREAM, "shard-1", "another"))
            await until_waiting(postgres_dsn, sessions=2)
            assert not writing.done()
            assert not fencing.done()
            await blocker.execute("ROLLBACK")
        assert writing.result().rows == 1
        assert await others.position(fencing.result()) == after(number(1))
        stale = await write(mine, fence, [product("a", 2)], first=2)
    assert stale == WriteResult(lost=frozenset({"shard-1"}))


# ---- broken connections


async def test_a_server_that_crashes_in_mid_write(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1)])
        blocker = await asyncpg.connect(postgres_dsn)
        await blocker.execute("BEGIN; LOCK TABLE products IN EXCLUSIVE MODE")
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(attempt(sink, fence, [product("a", 2)], first=2))
            await until_waiting(postgres_dsn)
            await asyncio.to_thread(postgres_server.restart, "immediate")
        blocker.terminate()
        assert isinstance(writing.result(), TransientError)
        fence = await until_fenced(sink)
        assert await sink.position(fence) == after(number(1))
        assert (await write(sink, fence, [product("a", 2)], first=2)).rows == 1
        assert await sink.position(fence) == after(number(2))


async def test_a_server_that_stops_in_order_in_mid_write(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1)])
        await asyncio.to_thread(postgres_server.stop, "fast")
        try:
            assert isinstance(await attempt(sink, fence, [product("a", 2)]), TransientError)
            assert isinstance(await attempt(sink, fence, [product("a", 2)]), TransientError)
        finally:
            await asyncio.to_thread(postgres_server.start)
        fence = await until_fenced(sink)
        assert (await write(sink, fence, [product("a", 2)], first=2)).rows == 1


async def test_a_stalled_server_is_waited_for_and_blocks_nothing_else(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1)])
        async with asyncio.TaskGroup() as group:
            with postgres_server.stalled():
                began = time.monotonic()
                writing = group.create_task(
                    attempt(sink, fence, [product("b", 2, text={"S": "x" * 300_000})], first=2)
                )
                for _ in range(20):
                    await asyncio.sleep(0.025)
                assert time.monotonic() - began < 5
                assert not writing.done()
        result = writing.result()
        assert isinstance(result, WriteResult)
        assert result.rows == 1


async def test_a_statement_that_takes_too_long_is_transient(postgres_dsn: str) -> None:
    async with opened(postgres_dsn, lock_timeout_seconds=0.2) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        async with connected(postgres_dsn) as blocker:
            await blocker.execute("BEGIN; LOCK TABLE products IN EXCLUSIVE MODE")
            failed = await attempt(sink, fence, [product("a", 1)])
            assert isinstance(failed, TransientError)
            assert "55P03" in failed.message
            await blocker.execute("ROLLBACK")
        assert (await write(sink, fence, [product("a", 1)])).rows == 1


async def test_a_server_that_stays_stalled_is_transient(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    limits: dict[str, Any] = {"command_timeout_seconds": 3.0, "lock_timeout_seconds": 0.2}
    async with opened(postgres_dsn, **limits) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1)])
        with postgres_server.stalled():
            failed = await attempt(sink, fence, [product("b", 1)], first=2)
        assert isinstance(failed, TransientError)
        assert failed.code == "postgres_timeout"
        fence = await until_fenced(sink)
        assert await sink.position(fence) in {after(number(1)), after(number(2))}


async def test_a_cancelled_write_leaves_nothing_half_done(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        async with connected(postgres_dsn) as blocker:
            await blocker.execute("BEGIN; LOCK TABLE products IN EXCLUSIVE MODE")
            writing = asyncio.ensure_future(write(sink, fence, [product("a", 1)]))
            await until_waiting(postgres_dsn)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            await blocker.execute("ROLLBACK")
        fence = await sink.fence(STREAM, "shard-1", "me")
        assert await sink.position(fence) is None
        assert (await write(sink, fence, [product("a", 1)])).rows == 1


async def test_a_table_dropped_under_way_is_fatal_and_says_so(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1)])
        async with connected(postgres_dsn) as connection:
            await connection.execute("DROP TABLE products CASCADE")
        failed = await attempt(sink, fence, [product("a", 2)], first=2)
        assert isinstance(failed, FatalError)
        assert "42P01" in failed.message
        assert await sink.position(fence) == after(number(1))


# ---- what a connection leaves on the server

OURS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name LIKE 'replicator%' AND query {} ORDER BY pid"
)


async def staging_owners(dsn: str) -> list[tuple[Any, ...]]:
    """The temporary schemas that hold staging tables: one for each session."""
    return await rows(
        dsn,
        "SELECT relnamespace::regnamespace::text FROM pg_class"
        " WHERE relname LIKE 'replicator_staging%' AND relpersistence = 't'",
    )


async def test_a_writer_connection_is_replaced_between_writes_when_it_is_old(
    postgres_dsn: str,
) -> None:
    """Regression: staging tables of a session that lasts for months hold back the freeze
    horizon, and autovacuum can't help."""
    now = 1000.0
    sink = PostgresSink(
        settings(postgres_dsn, connections=1, connection_age_seconds_max=600.0),
        monotonic=lambda: now,
    )
    await sink.open([PRODUCTS])
    fence = await sink.fence(STREAM, "shard-1", "me")
    writers = []
    for at, seconds in enumerate((0, 500, 100, 500), 1):
        now += seconds
        assert (await write(sink, fence, [product("a", at)], first=at)).rows == 1
        writers.append(await rows(postgres_dsn, OURS.format("= 'COMMIT'")))
    assert [len(pids) for pids in writers] == [1] * 4
    assert writers[0] == writers[1] != writers[2] == writers[3]
    await sink.close()


async def test_the_server_ends_a_writer_that_is_idle_for_long(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    if int(postgres_server.execute("SHOW server_version_num")) < 140000:
        pytest.skip("idle_session_timeout came with Postgres 14")
    async with opened(postgres_dsn, connection_age_seconds_max=1.0) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1)])
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await staging_owners(postgres_dsn):
                await asyncio.sleep(0.02)
        assert (await write(sink, fence, [product("a", 2)], first=2)).rows == 1
        assert await sink.position(fence) == after(number(2))


async def test_a_statement_whose_client_is_gone_ends_soon(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    """Regression: it went on until its deadline, with all its locks."""
    if int(postgres_server.execute("SHOW server_version_num")) < 140000:
        pytest.skip("client_connection_check_interval came with Postgres 14")
    session = PostgresSession(settings(postgres_dsn))

    async def sleep() -> None:
        with pytest.raises(TransientError):
            async with session.use("sleeping") as connection:
                await connection.execute("SELECT pg_sleep(50)")

    sleeping = OURS.format("LIKE '%pg_sleep%'")
    async with asyncio.timeout(40), asyncio.TaskGroup() as group:
        group.create_task(sleep())
        while not await rows(postgres_dsn, sleeping):
            await asyncio.sleep(0.02)
        session.discard()
        while await rows(postgres_dsn, sleeping):
            await asyncio.sleep(0.1)


async def test_a_deferred_constraint_is_fatal_and_not_taken_for_a_failover(
    postgres_dsn: str,
) -> None:
    async with opened(postgres_dsn) as sink:
        async with connected(postgres_dsn) as connection:
            await connection.execute(
                "CREATE TABLE shelf (id text PRIMARY KEY); ALTER TABLE products ADD FOREIGN KEY"
                " (id) REFERENCES shelf DEFERRABLE INITIALLY DEFERRED"
            )
        fence = await sink.fence(STREAM, "shard-1", "me")
        failed = await attempt(sink, fence, [product("a", 1)])
        assert isinstance(failed, FatalError)
        assert "23503" in failed.message
        async with connected(postgres_dsn) as connection:
            await connection.execute("INSERT INTO shelf VALUES ('a')")
        assert (await write(sink, fence, [product("a", 1)])).rows == 1


# ---- two lease stores at one sink


async def test_a_second_lease_store_is_refused_while_the_first_is_alive(postgres_dsn: str) -> None:
    now = 1000.0
    async with opened(postgres_dsn, store_id="first") as first:
        await first.fence(STREAM, "shard-1", "me")
        async with opened(postgres_dsn, store_id="first") as same:
            assert (await same.fence(STREAM, "shard-1", "me too")).epoch == 2
        second = PostgresSink(settings(postgres_dsn, store_id="second"), monotonic=lambda: now)
        await second.open([PRODUCTS])
        with pytest.raises(TransientError) as early:
            await second.fence(STREAM, "shard-1", "other")
        assert early.value.code == "foreign_lease_store"
        now += 46
        with pytest.raises(FatalError) as late:
            await second.fence(STREAM, "shard-1", "other")
        assert late.value.code == "foreign_lease_store"
        assert (await second.fence(STREAM, "shard-2", "other")).epoch == 1
    # A fresh container, whose lease file is new too, begins at once.
    assert (await second.fence(STREAM, "shard-1", "other")).epoch == 3
    await second.close()
