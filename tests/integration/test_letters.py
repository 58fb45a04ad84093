"""Dead letters in Postgres and CrateDB, by command and beside whoever writes there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from replicator.errors import TransientError
from replicator.model import TRIM_HORIZON, TableSchema
from replicator.testing.crate_server import Fate
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.changes import STREAM, remove
from tests.crate_database import REAL, crate_database
from tests.engine import TABLES
from tests.integration.test_check import replicator
from tests.integration.test_cratedb import opened as opened_crate
from tests.shop import TABLE, Shop
from tests.stack import Stack, run_worker, until
from tests.warehouse import PRODUCTS, connected, opened, product, rows, until_waiting, write

REFUSE = "ALTER TABLE products ADD CONSTRAINT good CHECK (item->'bad' IS NULL)"
MEND = "ALTER TABLE products DROP CONSTRAINT good"


async def describe() -> list[TableSchema]:
    return [PRODUCTS]


async def execute(dsn: str, sql: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute(sql)


@pytest.mark.timeout(180)
async def test_the_command_beside_a_worker(postgres_dsn: str, tmp_path: Path) -> None:
    stream, shop = ScriptedStream(1), Shop(seed=7)
    (shard,) = stream.shards()
    us = 4_000_000_000_000_000  # later than all of the shop's
    bad = {"bad": {"S": "x"}}
    async with KinesisServer(stream, name=TABLE, tables=TABLES) as server:
        stack = Stack(server.url, postgres_dsn, tmp_path, None)
        config = stack.config()

        async def said(*words: str, code: int = 0, output: str = "json") -> Any:
            given = ("dead-letters", *words, "--config", config, "--output", output)
            found, out, err = await replicator(*given)
            assert found == code, (out, err)
            return json.loads(out) if out and output == "json" else out or err

        async def there(sql: str, count: int) -> bool:
            return len(await stack.fetch(sql)) == count

        assert "no dead letters" in await said("list", output="text")
        async with run_worker(config, tmp_path / "log") as worker:
            stream.append(shard.id, [data for _, data in shop.changes(100)])
            await stack.until_equal(shop.plain())
            await execute(postgres_dsn, REFUSE)
            for refused in (
                product("new", us, **bad),
                product("gone", us, **bad),
                b"broken",
                product("never", us, **bad),
            ):
                stream.append(shard.id, [refused])
            await until(lambda: there("SELECT FROM replicator_dead_letters", 4))
            stream.append(shard.id, [remove("products", {"id": {"S": "gone"}}, us + 1_000)])
            await until(lambda: there("SELECT FROM products WHERE id = 'gone'", 1))
            listed = (await said("list"))["dead_letters"]
            ids = {row["key"]: row["id"] for row in listed}
            new, never = (ids[f'{{"id":{{"S":"{key}"}}}}'] for key in ("new", "never"))
            shown = await said("show", new)
            assert (shown["code"], shown["table"]) == ("postgres_constraint", TABLE)
            assert json.loads(shown["raw"])["dynamodb"]["NewImage"]["bad"] == {"S": "x"}
            assert "Say --yes" in await said("redrive", "--all", code=2)
            assert "say which" in await said("redrive", "--yes", code=2)
            again = await said("redrive", new, "--yes", code=1)
            assert [row["outcome"] for row in again["dead_letters"]] == ["refused"]
            assert again["dead_letters"][0]["reason"].startswith("postgres_constraint: ")
            dropped = await said("drop", never, "--yes")
            assert [row["outcome"] for row in dropped["dead_letters"]] == ["dropped"]
            await execute(postgres_dsn, MEND)
            told = await said("redrive", "--all", "--yes", code=1, output="text")
            assert told.startswith("redriven: 2; 1 stay\n")
            assert "  written\n" in told
            assert "superseded: a newer change of its key is there: nothing was written" in told
            assert "refused: malformed_json: " in told
            assert [row["code"] for row in (await said("list"))["dead_letters"]] == [
                "malformed_json"
            ]
            # The worker never noticed.
            stream.append(shard.id, [data for _, data in shop.changes(100)])
            await stack.until_equal({**shop.plain(), "new": {"id": "new", "bad": "x"}})
            assert await worker.stop() == 0
        assert '"level": "error"' not in worker.log


async def test_what_somebody_else_ends_meanwhile_is_not_written(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
        fence = await sink.fence(STREAM, "shard-1", "me")
        await execute(postgres_dsn, REFUSE)
        await write(sink, fence, [product("a", 1, bad={"S": "x"})])
        await execute(postgres_dsn, MEND)
        async with connected(postgres_dsn) as other:
            dropping = other.transaction()
            await dropping.start()
            await other.execute("DELETE FROM replicator_dead_letters")
            ending = asyncio.ensure_future(anext(sink.redrive_letters([], "operator", describe)))
            await until_waiting(postgres_dsn)
            await dropping.commit()
            assert (await ending).outcome == "gone"
    assert await rows(postgres_dsn, "SELECT id FROM products") == []


async def test_a_refusal_at_the_commit_leaves_it_too(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
        fence = await sink.fence(STREAM, "shard-1", "me")
        await execute(postgres_dsn, REFUSE)
        await write(sink, fence, [product(id_, 1, bad={"S": "x"}) for id_ in ("a", "b")])
        await execute(postgres_dsn, MEND)
        await execute(
            postgres_dsn,
            """
            CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'not %', NEW.id; END $$;
            CREATE CONSTRAINT TRIGGER never AFTER INSERT ON products DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW WHEN (NEW.id = 'a') EXECUTE FUNCTION never()
            """,
        )
        ended = [each async for each in sink.redrive_letters([], "operator", describe)]
    assert [each.outcome for each in ended] == ["refused", "written"]
    assert ended[0].reason.startswith("postgres_trigger: ")
    assert await rows(postgres_dsn, "SELECT id FROM products") == [("b",)]
    kept = "SELECT code, attempts FROM replicator_dead_letters"
    assert await rows(postgres_dsn, kept) == [("postgres_trigger", 2)]


@pytest.mark.skipif(bool(REAL), reason="a real server shows no fault at will")
@pytest.mark.parametrize("fate", ["unavailable", "cut_before", "cut_after"])
async def test_what_ends_between_row_and_letter_is_ended_by_the_next(fate: Fate) -> None:
    async with crate_database() as database, opened_crate(database) as sink:
        assert database.stand_in is not None
        await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("seed", 1, v={"N": "5"})])
        await write(sink, fence, [product("a", 1, v={"M": {}})], first=2)
        database.stand_in.tables._tables[database.schema, "products"].types.clear()

        async def fails(_: int, statement: str) -> Fate:
            return fate if statement.startswith("DELETE") else None

        database.stand_in.on_request = fails
        with pytest.raises(TransientError):
            await anext(sink.redrive_letters([], "operator", describe))
        assert {row["id"] for row in await database.rows("products")} == {"seed", "a"}
        database.stand_in.on_request = None
        ended = [each async for each in sink.redrive_letters([], "operator", describe)]
        assert [each.outcome for each in ended] == ([] if fate == "cut_after" else ["duplicate"])
        assert await database.rows("replicator_dead_letters") == []
