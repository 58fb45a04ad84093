"""The Postgres sink at a real server: shapes, refusals, poison."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import traceback
from decimal import Decimal
from typing import Any

import pytest

from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END, TableSchema, WriteResult, after
from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_payload import ARRAYS_BYTES_MAX
from replicator.testing.servers import PostgresServer
from tests.changes import STREAM, number, pending, put, remove
from tests.warehouse import (
    PRODUCTS,
    connected,
    opened,
    product,
    rows,
    settings,
    write,
)

MANY = ARRAYS_BYTES_MAX // 100
"""More rows than go as arrays."""

# ---- shapes


async def test_the_table_and_its_view_are_made_as_documented(postgres_dsn: str) -> None:
    async with opened(postgres_dsn):
        columns = await rows(
            postgres_dsn,
            "SELECT column_name::text, data_type::text, is_nullable::text FROM"
            " information_schema.columns WHERE table_name = 'products' ORDER BY ordinal_position",
        )
        ((collation,),) = await rows(
            postgres_dsn,
            "SELECT collation_name::text FROM information_schema.columns"
            " WHERE table_name = 'products' AND column_name = 'id'",
        )
    assert columns == [
        ("id", "text", "NO"),
        ("item", "jsonb", "YES"),
        ("generation", "bigint", "NO"),
        ("version", "numeric", "NO"),
        ("deleted", "boolean", "NO"),
        ("chain", "bytea", "YES"),
    ]
    assert collation == "C"


async def test_the_view_shows_live_rows_only(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(
            sink,
            fence,
            [product("a", 1), product("b", 2), remove("products", {"id": {"S": "a"}}, 3)],
        )
    assert await rows(postgres_dsn, "SELECT id, item::text, version FROM products_live") == [
        ("b", '{"id": "b"}', Decimal(2))
    ]
    assert await rows(postgres_dsn, "SELECT id, item FROM products WHERE deleted") == [("a", None)]


async def test_items_are_compressed_by_lz4_where_the_server_has_it(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        planned = await sink.plan([PRODUCTS])
    ((version, methods),) = await rows(
        postgres_dsn,
        "SELECT current_setting('server_version_num')::int,"
        " (SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression')",
    )
    assert planned.has_lz4 == (version >= 140000 and "lz4" in methods)
    if version >= 140000:
        ((method,),) = await rows(
            postgres_dsn,
            "SELECT attcompression::text FROM pg_attribute"
            " WHERE attrelid = 'products'::regclass AND attname = 'item'",
        )
        assert method == ("l" if planned.has_lz4 else "")


async def test_lz4_is_written_into_the_ddl() -> None:
    from replicator.sink.postgres_layout import document_tables
    from replicator.sink.statements import fill, statements

    (table,) = document_tables([PRODUCTS], "{table}", "public")
    for name in ("create_table", "create_staging"):
        ddl = fill(statements("document")[name], table.identifiers(has_lz4=True))
        assert "item jsonb COMPRESSION lz4," in ddl


async def test_names_that_need_quoting_and_keys_of_every_type(postgres_dsn: str) -> None:
    odd = TableSchema("eu.shop-orders_1", (('say "hi"', "N"), ("version", "B")))
    most = "1234567890123456789012345678901234567.8"
    blob = bytes(range(256))
    key: Any = {'say "hi"': {"N": most}, "version": {"B": base64.b64encode(blob).decode()}}
    async with opened(postgres_dsn, [odd, PRODUCTS], table="odd-schema.{table}") as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        assert (await write(sink, fence, [put(odd.name, key, 1), product("a", 2)])).rows == 2
        assert (await write(sink, fence, [remove(odd.name, key, 3)], first=3)).rows == 1
    found = await rows(
        postgres_dsn,
        'SELECT "say ""hi""", "key_version", deleted FROM "odd-schema"."eu.shop-orders_1"',
    )
    assert found == [(Decimal(most), blob, True)]
    assert await rows(postgres_dsn, 'SELECT id FROM "odd-schema".products_live') == [("a",)]


async def test_the_state_may_have_a_schema_of_its_own(postgres_dsn: str) -> None:
    async with opened(postgres_dsn, state_schema="replicator") as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1), b"broken"])
        report = await sink.report()
    assert [row["position"] for row in report.positions] == [str(after(number(2)))]
    assert report.dead_letters == {"malformed_json": 1}
    assert await rows(postgres_dsn, "SELECT code FROM replicator.replicator_dead_letters") == [
        ("malformed_json",)
    ]


async def test_a_report_before_the_first_start_is_empty(postgres_dsn: str) -> None:
    sink = PostgresSink(settings(postgres_dsn))
    report = await sink.report()
    await sink.close()
    assert (report.positions, dict(report.dead_letters)) == ((), {})


async def test_a_position_says_when_it_was_last_heard_of(postgres_dsn: str) -> None:
    sink = PostgresSink(settings(postgres_dsn), monotonic=lambda: 60.0)
    await sink.open([PRODUCTS])
    fence = await sink.fence(STREAM, "shard-1", "me")
    writer = sink.writer(fence)
    behind = pending(fence, [product("a", 1)], behind_ms=5)
    await writer.write(writer.encode([behind]))
    select = (
        "SELECT extract(epoch FROM last_arrival_at), sequence_number,"
        " extract(epoch FROM updated_at - tip_at) FROM replicator_positions"
    )
    assert await rows(postgres_dsn, select) == [
        (Decimal("1700000000.001"), Decimal(number(1)), Decimal("60.005"))
    ]
    await writer.write(writer.encode([pending(fence, [product("b", 2)], first=2, then=SHARD_END)]))
    ((arrival, sequence_number, tip_age),) = await rows(postgres_dsn, select)
    assert arrival == Decimal("1700000000.002")
    assert sequence_number == Decimal(number(2))
    assert tip_age > Decimal("60.005"), "the end says nothing of the tip"
    await sink.close()


# ---- refusals of the operator's database


async def test_create_false_refuses_with_ddl_that_can_be_run(postgres_dsn: str) -> None:
    with pytest.raises(FatalError) as refused:
        async with opened(postgres_dsn, create=False):
            pass
    assert refused.value.code == "table_missing"
    _, ddl = refused.value.message.split(":\n", 1)
    async with connected(postgres_dsn) as connection:
        assert await connection.fetchval("SELECT to_regclass('products')") is None
        await connection.execute(ddl)
    async with opened(postgres_dsn, create=False) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        assert (await write(sink, fence, [product("a", 1)])).rows == 1


@pytest.mark.parametrize(
    ("ddl", "shown"),
    [
        ("id numeric PRIMARY KEY, {own}", '"id" numeric'),
        ("sku text PRIMARY KEY, {own}", '"sku" text'),
        ("id text, sku text, {own}, PRIMARY KEY (id, sku)", 'PRIMARY KEY ("id", "sku")'),
        ("id text, {own}", '"id" text'),
        ("id varchar(10) PRIMARY KEY, {own}", '"id" character varying(10)'),
        ("id text PRIMARY KEY, price int", '"price" integer'),
        ("id text PRIMARY KEY, {own}, must text NOT NULL", '"must" text'),
    ],
)
async def test_a_table_of_another_shape_is_refused_with_both(
    postgres_dsn: str, ddl: str, shown: str
) -> None:
    own = (
        "item jsonb, generation bigint NOT NULL DEFAULT 0, version numeric NOT NULL,"
        " deleted boolean NOT NULL, chain bytea"
    )
    async with connected(postgres_dsn) as connection:
        await connection.execute(f"CREATE TABLE products ({ddl.format(own=own)})")
    with pytest.raises(FatalError) as refused:
        async with opened(postgres_dsn):
            pass
    assert refused.value.code == "table_differs"
    needed, found = refused.value.message.split("\n")[1:]
    assert needed.startswith('  needed: "id" text, "item" jsonb,')
    assert needed.endswith('PRIMARY KEY ("id")')
    assert found.startswith("  found:  ")
    assert shown in found


async def test_columns_that_fill_themselves_do_no_harm(postgres_dsn: str) -> None:
    async with opened(postgres_dsn):
        pass
    async with connected(postgres_dsn) as connection:
        await connection.execute(
            "ALTER TABLE products ADD loaded_at timestamptz NOT NULL DEFAULT now(), ADD note text,"
            " ADD name text GENERATED ALWAYS AS (item->>'name') STORED"
        )
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1, name={"S": "Apple"})])
    assert await rows(postgres_dsn, "SELECT name FROM products") == [("Apple",)]


async def test_something_else_under_our_names_is_refused(postgres_dsn: str) -> None:
    async with connected(postgres_dsn) as connection:
        await connection.execute("CREATE TABLE replicator_positions (a int)")
        await connection.execute("CREATE TABLE products_live (a int)")
    sink = PostgresSink(settings(postgres_dsn))
    planned = await sink.plan([PRODUCTS])
    await sink.close()
    assert [finding.code for finding in planned.problems] == [
        "state_table_differs",
        "table_differs",
    ]


async def test_missing_rights_are_found_before_anything_is_done(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    role = f"reader_{os.urandom(4).hex()}"
    async with opened(postgres_dsn):
        pass
    async with connected(postgres_dsn) as connection:
        await connection.execute(f"CREATE ROLE {role} LOGIN")
        await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    dsn = postgres_dsn.replace("postgres:@", f"{role}:@")
    more = TableSchema("more", (("id", "S"),))
    sink = PostgresSink(settings(dsn))
    planned = await sink.plan([PRODUCTS, more])
    messages = {finding.subject: finding.message for finding in planned.problems}
    assert (
        f'GRANT INSERT, UPDATE ON "public"."products" TO "{role}"'
        in messages['"public"."products"']
    )
    assert 'may not create it in "public"' in messages['"public"."more"']
    with pytest.raises(FatalError) as refused:
        await sink.open([PRODUCTS])
    assert refused.value.code == "permission_denied"
    await sink.close()
    postgres_server.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", postgres_dsn)


async def test_a_worker_needs_no_right_to_end_dead_letters(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    """But the commands do, and `check` tells."""
    role = f"worker_{os.urandom(4).hex()}"
    async with opened(postgres_dsn):
        pass
    async with connected(postgres_dsn) as connection:
        await connection.execute(
            f"CREATE ROLE {role} LOGIN;"
            f" GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"
        )
    async with opened(postgres_dsn.replace("postgres:@", f"{role}:@")) as sink:
        planned = await sink.plan([PRODUCTS])
    assert planned.problems == ()
    (told,) = (each.message for each in planned.findings if each.is_warning)
    assert told.endswith(f'GRANT DELETE ON "public"."replicator_dead_letters" TO "{role}"')
    postgres_server.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", postgres_dsn)


async def test_a_plan_changes_nothing_and_says_what_open_will_do(postgres_dsn: str) -> None:
    sink = PostgresSink(settings(postgres_dsn))
    before = await sink.plan([PRODUCTS])
    ours = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert await rows(postgres_dsn, ours) == []
    assert not before.problems
    assert [ddl.split(" (")[0] for ddl in before.ddl][-2] == 'CREATE TABLE "public"."products"'
    await sink.open([PRODUCTS])
    after_open = await sink.plan([PRODUCTS])
    await sink.close()
    assert after_open.ddl == ()
    assert not after_open.problems


async def test_two_sinks_may_open_at_the_same_time(postgres_dsn: str) -> None:
    sinks = [PostgresSink(settings(postgres_dsn)) for _ in range(4)]
    await asyncio.gather(*(sink.open([PRODUCTS]) for sink in sinks))
    for sink in sinks:
        await sink.close()


async def test_a_missing_database_is_fatal_and_a_missing_server_is_not(
    postgres_dsn: str, tmp_path: Any
) -> None:
    secret = "hunter2"
    gone = postgres_dsn.replace("/test_", "/gone_").replace("postgres:@", f"postgres:{secret}@")
    sink = PostgresSink(settings(gone))
    with pytest.raises(FatalError, match="create the database"):
        await sink.open([PRODUCTS])
    assert secret not in repr(settings(gone))
    sink = PostgresSink(settings(f"postgresql://postgres:{secret}@/postgres?host={tmp_path}"))
    with pytest.raises(TransientError) as failed:
        await sink.open([PRODUCTS])
    assert secret not in str(failed.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://loader:hunter2/x@127.0.0.1:1/shop",
        "postgresql://loader:hunter2?x@127.0.0.1:1/shop",
        "postgresql://loader:hunter2#x@127.0.0.1:1/shop",
        "postgresql://loader:hunter2@x@127.0.0.1:1/shop",
        "postgresql://loader:[hunter2@127.0.0.1:1/shop",
        # What is left looks like a host, a port and a database.
        "postgresql://loader:1234/hunter2@127.0.0.1:1/shop",
        "postgresql://loader:1234#hunter2@127.0.0.1:1/shop",
        "postgresql://loader@127.0.0.1:hunter2/shop",
    ],
)
async def test_a_dsn_that_was_not_encoded_is_refused_without_the_secret(dsn: str) -> None:
    sink = PostgresSink(settings(dsn))
    with pytest.raises(FatalError) as refused:
        await sink.open([PRODUCTS])
    assert refused.value.code == "postgres_settings"
    assert "percent-encoded" in refused.value.message
    told = "".join(traceback.format_exception(refused.value))
    assert "hunter2" not in told
    assert refused.value.__context__ is None


async def test_an_encoded_password_is_taken(postgres_dsn: str) -> None:
    dsn = postgres_dsn.replace("postgres:@", "postgres:%2F%3F%23%40%5B@")
    async with opened(dsn) as sink:
        assert not await sink.holds_data()


# ---- poison


@pytest.mark.parametrize("count", [100, MANY + 100])
async def test_poison_in_mid_batch_goes_to_the_dead_letters_alone(
    postgres_dsn: str, count: int
) -> None:
    payloads = [product(f"p{n}", 1000 + n, name={"S": "x" * n}) for n in range(count)]
    payloads[37] = product("nul\0", 1037)
    payloads[73] = b"not json"
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        result = await write(sink, fence, payloads)
        assert await sink.position(fence) == after(number(count))
        assert (result.rows, dict(result.rejected_by_code)) == (
            count - 2,
            {"malformed_json": 1, "postgres_text": 1},
        )
        # Afterwards all goes on as if nothing had been.
        assert (await write(sink, fence, [product("nul", 2000)], first=count + 1)).rows == 1
    assert await rows(
        postgres_dsn,
        "SELECT pipeline, table_name, stream, shard, sequence_number, record_index, code, raw,"
        " attempts FROM replicator_dead_letters ORDER BY sequence_number",
    ) == [
        (
            "shop",
            "products",
            STREAM.arn,
            "shard-1",
            number(38),
            0,
            "postgres_text",
            payloads[37],
            1,
        ),
        ("shop", None, STREAM.arn, "shard-1", number(74), 0, "malformed_json", payloads[73], 1),
    ]
    ((message,),) = await rows(
        postgres_dsn, "SELECT message FROM replicator_dead_letters WHERE code = 'postgres_text'"
    )
    assert "22021" in message
    ((stored,),) = await rows(postgres_dsn, "SELECT count(*) FROM products_live")
    assert stored == count - 1


async def test_behind_a_poisoned_newest_change_comes_the_next_one(postgres_dsn: str) -> None:
    bad: Any = {"S": "bad"}
    async with opened(postgres_dsn) as sink:
        async with connected(postgres_dsn) as connection:
            await connection.execute("ALTER TABLE products ADD CHECK (item->>'name' <> 'bad')")
        fence = await sink.fence(STREAM, "shard-1", "me")
        result = await write(
            sink,
            fence,
            [
                product("a", 1000, stock={"N": "1"}),
                product("a", 2000, stock={"N": "2"}),
                product("a", 3000, name=bad),
                product("a", 4000, name=bad),
                product("b", 1000),
                product("c", 1000, name=bad),
            ],
        )
    assert (result.rows, dict(result.rejected_by_code)) == (2, {"postgres_constraint": 3})
    assert await rows(postgres_dsn, "SELECT id, item->>'stock', version FROM products") == [
        ("a", "2", Decimal(2000)),
        ("b", None, Decimal(1000)),
    ]


@pytest.mark.parametrize("count", [8, MANY])
async def test_poison_that_only_settling_an_instant_shows(postgres_dsn: str, count: int) -> None:
    """Regression: of a stored row's instant the merge touches nothing, so the probe of each half
    went well, and the shard stopped."""
    key: Any = {"id": {"S": "tied"}}
    first: Any = {"price": {"N": "1"}}
    tied = put("products", key, 9_000_000, {**key, **first}, price={"S": "no number"})
    others = [product(f"p{n}", 1000 + n, price={"N": "2"}) for n in range(count)]
    async with opened(postgres_dsn) as sink:
        async with connected(postgres_dsn) as connection:
            await connection.execute("CREATE INDEX ON products (((item->>'price')::int))")
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [put("products", key, 9_000_000, None, **first)])
        result = await write(sink, fence, [*others, tied], first=2)
        assert (result.rows, len(result.dead_letters)) == (count, 1)
        assert await sink.position(fence) == after(number(count + 2))
    [(raw, message)] = await rows(postgres_dsn, "SELECT raw, message FROM replicator_dead_letters")
    assert raw == tied
    assert "a change of its instant that came before it" in message
    stored = "SELECT item->>'price', version FROM products WHERE id = 'tied'"
    assert await rows(postgres_dsn, stored) == [("1", Decimal(9_000_000))]


async def test_what_takes_the_place_of_a_small_poisoned_row_may_be_large(postgres_dsn: str) -> None:
    """Regression: few bytes go without the staging table, which was made for no others."""
    large: Any = {"price": {"N": "1"}, "text": {"S": "x" * ARRAYS_BYTES_MAX}}
    changes = [product("a", 1, **large), product("a", 2, price={"S": "no number"})]
    async with opened(postgres_dsn) as sink:
        async with connected(postgres_dsn) as connection:
            await connection.execute("CREATE INDEX ON products (((item->>'price')::int))")
        fence = await sink.fence(STREAM, "shard-1", "me")
        result = await write(sink, fence, changes)
    assert (result.rows, len(result.dead_letters)) == (1, 1)


@pytest.mark.parametrize("count", [3, MANY + 3])
async def test_the_nul_character_in_a_document_survives(postgres_dsn: str, count: int) -> None:
    """`jsonb` refuses it: another character stands for it, and a member without a name, which
    no item has, tells which. A key that holds it is no `text`, and a dead letter."""
    many = [product(f"p{n}", 1) for n in range(count - 3)]
    name: Any = {"S": "a\0b"}
    nested: Any = {"M": {"x\0": {"SS": ["\0", "␀"]}}}
    made: Any = {"id": {"S": "b"}, "name": {"S": "x\0"}}
    literal: Any = {"S": "back\\slash \\u0000"}
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        result = await write(
            sink,
            fence,
            [
                *many,
                product("a", 7, name=name),
                put("products", {"id": {"S": "b"}}, 7, made, nested=nested),
                product("c", 7, literal=literal),
                product("\0", 7),
            ],
        )
        assert (result.rows, dict(result.rejected_by_code)) == (count, {"postgres_text": 1})
        # And they are still known as the item that was before.
        old: Any = {"id": {"S": "a"}, "name": name}
        later = put("products", {"id": {"S": "a"}}, 7, old, name={"S": "c"})
        early = put("products", {"id": {"S": "b"}}, 7, name=made["name"])
        result = await write(sink, fence, [later, early], first=count + 2)
        assert (result.rows, result.superseded, result.ambiguous) == (1, 1, 0)
    found = await rows(
        postgres_dsn, "SELECT id, item::text FROM products WHERE id < 'p' ORDER BY id"
    )
    assert [(id_, json.loads(item)) for id_, item in found] == [
        ("a", {"id": "a", "name": "c"}),
        ("b", {"id": "b", "nested": {"x␁": ["␁", "␀"]}, "": "␁"}),
        ("c", {"id": "c", "literal": "back\\slash \\u0000"}),
    ]


async def test_what_is_too_long_for_the_index_or_breaks_a_constraint(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        async with connected(postgres_dsn) as connection:
            await connection.execute(
                "ALTER TABLE products ADD CHECK (item->>'stock' IS NULL"
                " OR (item->>'stock')::numeric >= 0)"
            )
        fence = await sink.fence(STREAM, "shard-1", "me")
        # It doesn't compress, and a key may have 2,048 bytes in DynamoDB, not over the wire.
        long = "".join(chr(0x4E00 + (n * 7919) % 20000) for n in range(2700))
        result = await write(
            sink,
            fence,
            [product("a", 1), product(long, 2), product("b", 3, stock={"N": "-1"})],
        )
    assert result.rows == 1
    assert dict(result.rejected_by_code) == {"postgres_too_large": 1, "postgres_constraint": 1}


async def test_all_poison_is_all_dead_letters(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        result = await write(sink, fence, [product(f"{n}\0", n) for n in range(1, 21)])
        assert await sink.position(fence) == after(number(20))
    assert (result.rows, len(result.dead_letters)) == (0, 20)


async def test_without_its_dead_letters_a_shard_stops(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        async with connected(postgres_dsn) as connection:
            await connection.execute(
                "ALTER TABLE replicator_dead_letters ADD CHECK (code <> 'malformed_json')"
            )
        with pytest.raises(FatalError) as stopped:
            await write(sink, fence, [product("a", 1), b"broken"])
        assert stopped.value.code == "dead_letter_refused"
        assert await sink.position(fence) is None
        # Nothing of it was written; what needs no dead letter still can be.
        assert await rows(postgres_dsn, "SELECT id FROM products") == []
        assert (await write(sink, fence, [product("b", 1)])).rows == 1


# ---- large and concurrent writes


async def test_a_payload_of_many_chunks(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        payloads = [product(f"p{n}", n, text={"S": os.urandom(2000).hex()}) for n in range(1, 1001)]
        assert (await write(sink, fence, payloads)).rows == 1000
    ((count, size),) = await rows(
        postgres_dsn, "SELECT count(*), sum(length(item->>'text')) FROM products"
    )
    assert (count, size) == (1000, 4_000_000)


async def test_writers_share_their_shards_and_may_meet_at_a_key(postgres_dsn: str) -> None:
    async with opened(postgres_dsn, connections=3) as sink:
        fences = [await sink.fence(STREAM, f"shard-{n}", "me") for n in range(6)]
        writers = [sink.writer(fence) for fence in fences]
        assert [sink.writer(fence) for fence in fences] == writers
        assert sorted(writers.count(writer) for writer in writers) == [2] * 6
        results = await asyncio.gather(
            *(
                write(sink, fence, [product(f"p{n}", 100 * n + at) for n in range(50)])
                for at, fence in enumerate(fences)
            )
        )
    assert sum(result.rows + result.superseded for result in results) == 300
    found = await rows(postgres_dsn, "SELECT version::int % 100 FROM products")
    assert found == [(5,)] * 50


@pytest.mark.parametrize("way", ["ended", "lost", "taken"])
async def test_a_shard_that_is_gone_is_no_load_of_its_writer(postgres_dsn: str, way: str) -> None:
    """Regression: a shard stayed with its writer for ever, so that new ones all went to
    the others."""
    async with opened(postgres_dsn) as sink, opened(postgres_dsn) as others:
        fences = [await sink.fence(STREAM, f"shard-{n}", "me") for n in range(4)]
        writers = [sink.writer(fence) for fence in fences]
        gone = [fences[0], fences[2]]
        assert writers[0] is writers[2]
        if way == "ended":
            waiting = [pending(fence, [], then=SHARD_END) for fence in gone]
            await writers[0].write(writers[0].encode(waiting))
        else:
            for fence in gone:
                await others.fence(STREAM, fence.shard_id, "me")
        if way == "lost":
            result = await writers[0].write(writers[0].encode([pending(one, []) for one in gone]))
            assert result == WriteResult(lost=frozenset({"shard-0", "shard-2"}))
        elif way == "taken":
            await sink.positions(STREAM)  # as discovery does
        for n in range(4, 6):
            assert sink.writer(await sink.fence(STREAM, f"shard-{n}", "me")) is writers[0]
        assert sink.writer(fences[1]) is writers[1]
        assert len(sink._writer_of) == 4
