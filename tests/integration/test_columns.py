"""COPY by a column plan, at a real Postgres."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import asyncpg
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import ChangeBatch, Columns, Records, decode
from tests.changes import put, remove
from tests.columns import COLUMNS, KEYS, PLAN, TABLE, batch_of, exact, expected, items, without_nul


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def table(dsn: str, columns: Columns) -> asyncpg.Connection:
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET timezone TO 'UTC'")
    planned = [f"{quoted(name)} {kind}" for name, kind in columns.columns]
    ends = ["extra jsonb", "version numeric", "deleted boolean", "chain bytea", "ordinal int"]
    await connection.execute(f"CREATE TABLE t ({', '.join(['id text', *planned, *ends])})")
    return connection


async def copied(
    connection: asyncpg.Connection, batch: ChangeBatch, columns: Columns
) -> list[tuple[Any, ...]]:
    """The table's rows by key, after a COPY into it while it was empty."""
    stream = batch.newest(TABLE, KEYS).copy(columns=columns)
    await connection.execute("TRUNCATE t")
    await connection.copy_to_table("t", source=io.BytesIO(stream), format="binary")
    # Behind the flag come our own: the chain, and the row's place.
    return [tuple(row)[:-2] for row in await connection.fetch("SELECT * FROM t ORDER BY id")]


def parsed(row: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """Per column its value, and the rest."""
    doc = 1 + list(PLAN.values()).index("jsonb")
    values = list(row)
    values[doc] = None if values[doc] is None else exact(values[doc])
    return values[1:-3], exact(values[-3])


def test_rows_equal_the_items(postgres_dsn: str) -> None:
    with asyncio.Runner() as runner:
        connection = runner.run(table(postgres_dsn, COLUMNS))

        # U+0000 has a form of its own in jsonb, which is tested with the document layout.
        @settings(max_examples=100)
        @given(st.lists(items().map(without_nul), min_size=1, max_size=4))
        def check(found: list[Any]) -> None:
            rows = runner.run(copied(connection, batch_of(found), COLUMNS))
            assert [row[0] for row in rows] == [str(i) for i in range(len(found))]
            for item, row in zip(found, rows, strict=True):
                assert parsed(row) == expected(item)

        check()
        runner.run(connection.close())


async def test_numbers_keep_all_their_digits(postgres_dsn: str) -> None:
    columns = Columns([("n", "numeric"), ("ns", "numeric[]"), ("i", "bigint")])
    connection = await table(postgres_dsn, columns)
    numbers = ["0", "-1E-130", "1E-130", "-9.9E-5", "12345.678", "9" * 38, "9" * 38 + "E88"]
    payload = put(
        TABLE,
        {"id": {"S": "a"}},
        1,
        n={"N": "1.2345678901234567890123456789012345678E-92"},
        ns={"NS": numbers},
        i={"N": "-9223372036854775808"},
    )
    await copied(connection, decode(Records.pack([payload])), columns)
    (row,) = await connection.fetch(
        "SELECT n = 1.2345678901234567890123456789012345678E-92 AND i = -9223372036854775808,"
        f" ns = ARRAY[{', '.join(sorted(numbers, key=float))}]::numeric[], extra::text FROM t"
    )
    await connection.close()
    assert tuple(row) == (True, True, "{}")


async def test_a_delete_has_no_columns(postgres_dsn: str) -> None:
    columns = Columns([("a", "text")])
    connection = await table(postgres_dsn, columns)
    batch = decode(
        Records.pack(
            [
                put(TABLE, {"id": {"S": "x"}}, 5, a={"S": ""}, b={"NULL": True}),
                remove(TABLE, {"id": {"S": "y"}}, 6),
            ]
        )
    )
    rows = await copied(connection, batch, columns)
    await connection.close()
    assert rows == [("x", "", '{"b": null}', 5, False), ("y", None, None, 6, True)]
