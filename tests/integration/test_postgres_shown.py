"""Filters and projections of the Postgres sink at a real server."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from replicator._core import Pattern, Projection
from replicator.errors import FatalError
from tests.changes import STREAM, put
from tests.warehouse import opened, product, rows, write

PAID = Pattern('{"dynamodb": {"NewImage": {"state": {"S": ["paid"]}}}}')


async def test_only_items_that_match_are_there(postgres_dsn: str) -> None:
    def change(id_: str, us: int, state: str, old: str | None = None) -> bytes:
        before = None if old is None else {"id": {"S": id_}, "state": {"S": old}}
        return put("products", {"id": {"S": id_}}, us, before, state={"S": state})

    async with opened(postgres_dsn, pattern=PAID) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        first = await write(sink, fence, [change("a", 1, "paid"), change("b", 2, "new")])
        second = await write(sink, fence, [change("a", 3, "returned", "paid")], 3)
        live = await rows(postgres_dsn, "SELECT id FROM products_live")
        third = await write(
            sink,
            fence,
            # What is older than a delete by the filter doesn't come back.
            [change("a", 2, "paid"), change("b", 4, "paid", "new"), change("c", 5, "paid")],
            4,
        )
    assert live == []
    assert [result.filtered for result in (first, second, third)] == [1, 1, 0]
    assert await rows(postgres_dsn, "SELECT id, item, version FROM products WHERE deleted") == [
        ("a", None, Decimal(3))
    ]
    assert await rows(postgres_dsn, "SELECT id FROM products_live ORDER BY id") == [("b",), ("c",)]


async def test_a_change_that_leaves_the_filter_at_the_very_same_instant(postgres_dsn: str) -> None:
    """Each in a write of its own; what doesn't match is no item to begin with."""
    states = ["new", "paid", "lost"]

    def change(n: int) -> bytes:
        before = {"id": {"S": "a"}, "n": {"N": str(n)}, "state": {"S": states[n]}}
        return put(
            "products",
            {"id": {"S": "a"}},
            7,
            before,
            n={"N": str(n + 1)},
            state={"S": states[n + 1]},
        )

    async with opened(postgres_dsn, pattern=PAID) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [change(0)])
        assert await rows(postgres_dsn, "SELECT item ->> 'n' FROM products_live") == [("1",)]
        result = await write(sink, fence, [change(1)], 2)
    assert (result.filtered, result.ambiguous) == (1, 0)
    assert await rows(postgres_dsn, "SELECT 1 FROM products_live") == []


async def test_what_is_hidden_is_nowhere_in_the_table(postgres_dsn: str) -> None:
    projection = Projection(
        exclude=["card"], mask=["address.street"], hash=["email"], key=b"0123456789abcdef"
    )
    hidden: dict[str, Any] = {
        "card": {"N": "4711471147114711"},
        "address": {"M": {"street": {"S": "Storgatan 1"}, "city": {"S": "Umeå"}}},
        "email": {"S": "a@example.com"},
        "state": {"S": "paid"},
    }
    async with opened(postgres_dsn, pattern=PAID, projection=projection) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1, **hidden)])
        await write(sink, fence, [product("a", 2, **hidden, more={"BOOL": True})], 2)
    ((text,),) = await rows(postgres_dsn, "SELECT item::text FROM products_live")
    item = orjson.loads(text)
    assert item["address"] == {"street": "***", "city": "Umeå"}
    assert "card" not in item
    assert len(item["email"]) == 64
    for secret in ("4711471147114711", "Storgatan", "example"):
        assert secret not in text


async def test_a_projection_that_would_change_the_key_is_refused(postgres_dsn: str) -> None:
    with pytest.raises(FatalError, match=r"attributes, table products: .id. is an attribute") as e:
        async with opened(postgres_dsn, projection=Projection(mask=["id"])):
            pass
    assert e.value.code == "projected_key"
