"""Parquet's columns that follow the items: shared by workers, kept by plans, and read by others."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from replicator.core.plan import Encoding
from replicator.core.prefix import Prefix
from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END
from replicator.settings import AttributesConfig
from replicator.sink.s3 import S3Sink
from replicator.testing.json_server import Refusal
from replicator.testing.s3_server import Request, S3Server, StoredObject
from tests.archive import NOON_US, ORDERS, PRODUCTS, opened, plans, rows, schemas, settings, write
from tests.changes import STREAM, pending, put, remove
from tests.columns import exact, expected

Attributes = Mapping[str, Mapping[str, Any]]
SHARDS = itertools.count()
BY_TABLE = Prefix.parse("data/{table}/")


@pytest.fixture
async def server(credentials: None) -> AsyncIterator[S3Server]:
    async with S3Server() as running:
        yield running


class Worker:
    """A sink that writes whole shards, each in one cut."""

    def __init__(self, sink: S3Sink, written: int) -> None:
        self._sink, self._written = sink, written

    @classmethod
    async def of(cls, server: S3Server, **overrides: Any) -> Worker:
        told = {"prefix": BY_TABLE, "encoding": Encoding("parquet"), **overrides}
        return cls(await opened(server, **told), len(items(server)))

    async def put(self, *several: Attributes, shard: str | None = None) -> None:
        """Writes items of these attributes, each of the next key."""
        first = self._written + 1
        self._written += len(several)
        records = [
            put("products", {"id": {"S": f"{n:03d}"}}, NOON_US + n, **each)
            for n, each in enumerate(several, first)
        ]
        await self.give(records, shard)

    async def give(self, records: list[bytes], shard: str | None = None) -> None:
        fence = await self._sink.fence(STREAM, shard or f"shard-{next(SHARDS):03d}", "me")
        await write(self._sink, pending(fence, records, then=SHARD_END))


def items(server: S3Server, prefix: str = "data/") -> dict[str, dict[str, Any]]:
    """All rows by their item's key."""
    return {exact(row["key"])["id"]: row for some in rows(server, prefix).values() for row in some}


def folder_of(server: S3Server, path: Path) -> Path:
    for n, body in enumerate(server.objects(prefix="data/").values()):
        (path / f"{n}.parquet").write_bytes(body)
    return path


async def test_columns_grow_in_mid_stream_and_others_read_all(
    server: S3Server, tmp_path: Path
) -> None:
    worker = await Worker.of(server)
    await worker.put({"stock": {"N": "5"}})
    await worker.put({"stock": {"N": "0.10000000000000000000000000000000000001"}})
    await worker.put({"colour": {"S": "red"}, "tags": {"SS": ["b", "a"]}})
    first = {"id": "text", "stock": "numeric"}
    assert schemas(server) == [first, {**first, "colour": "text", "tags": "text[]"}]
    told = [[name for name, _ in plan["columns"]["products"]] for plan in plans(server)]
    assert told == [["id", "stock"], ["id", "stock"], ["id", "stock", "colour", "tags"]]
    path = folder_of(server, tmp_path)
    sql = f"SELECT id, stock, colour, tags FROM read_parquet('{path}/*', union_by_name = true)"
    found = duckdb.connect().execute(f"{sql} ORDER BY id").fetchall()
    assert found == [
        ("001", "5", None, None),
        ("002", "0.10000000000000000000000000000000000001", None, None),
        ("003", None, "red", ["a", "b"]),
    ]
    read = pq.ParquetFile(io.BytesIO(server.objects(prefix="data/").popitem()[1])).read()
    assert read.column("tags").to_pylist() == [["a", "b"]]


async def test_a_restart_goes_on_with_the_same_columns(server: S3Server) -> None:
    await (await Worker.of(server)).put({"stock": {"N": "5"}, "none": {"NULL": True}})
    before = schemas(server)
    worker = await Worker.of(server)
    await worker.put({"stock": {"S": "many"}}, {"stock": {"N": "7"}}, {"id": {"S": "003"}})
    assert schemas(server) == before == [{"id": "text", "stock": "numeric"}]
    found = items(server)
    assert [found[key]["stock"] for key in sorted(found)] == ["5", None, "7", None]
    assert exact(found["001"]["extra"]) == {"none": None}
    assert exact(found["002"]["extra"]) == {"stock": "many"}


async def test_nothing_is_lost_whatever_comes(server: S3Server) -> None:
    kinds: list[Mapping[str, Any]] = [
        {"S": "text"},
        {"S": "nul \0"},
        {"N": "1E+125"},
        {"N": "-0.00000000000000000000000000000000000001"},
        {"BOOL": True},
        {"NULL": True},
        {"B": "AAEC"},
        {"M": {"deep": {"L": [{"N": "1.50"}, {"NULL": True}]}}},
        {"L": []},
        {"SS": ["b", "a"]},
        {"NS": ["10", "9"]},
        {"BS": ["AQ==", "AA=="]},
    ]
    wanted: list[dict[str, Any]] = []
    for cut in range(4):
        worker = await Worker.of(server, columns_max=9)
        some = [
            {f"a{n % 11}": kinds[(n * (cut + 1) + cut) % len(kinds)] for n in range(first, last)}
            for first, last in ((0, 4), (3, 9), (5, 11))
        ]
        await worker.put(*some)
        wanted += some
    columns = schemas(server)[-1]
    assert len(columns) == 9
    found = items(server)
    assert len(found) == len(wanted)
    for n, item in enumerate(wanted, 1):
        row = found[f"{n:03d}"]
        own = {name: kind for name, kind in columns.items() if name in row}
        values, rest = expected({"id": {"S": f"{n:03d}"}, **item}, own)
        assert exact(row["extra"]) == rest, n
        for (name, kind), value in zip(own.items(), values, strict=True):
            written = row[name]
            if written is not None and kind in {"numeric", "jsonb"}:
                written = exact(written)
            if written is not None and kind == "numeric[]":
                written = [exact(each) for each in written]
            assert written == value, (n, name, kind)


async def test_workers_that_grow_at_once_come_to_one_schema(server: S3Server) -> None:
    one, two = await Worker.of(server), await Worker.of(server)
    await one.put({"stock": {"N": "5"}})
    both = asyncio.Event()
    waiting: list[str] = []

    async def together(request: Request) -> None:
        if request.operation == "PutObject" and "/schemas/" in request.key:
            waiting.append(request.key)
            if len(waiting) == 2:
                both.set()
            await both.wait()

    server.before = together
    await asyncio.gather(
        one.put({"b": {"S": "1"}, "both": {"BOOL": True}}),
        two.put({"c": {"S": "1"}, "both": {"BOOL": True}}),
    )
    assert waiting[0] == waiting[1] != waiting[2], "the second goes on behind the first"
    versions = schemas(server)
    assert len(versions) == 3
    assert versions[-1].keys() == {"id", "stock", "b", "c", "both"}
    for older, newer in itertools.pairwise(versions):
        assert list(newer.items())[: len(older)] == list(older.items())
    server.requests.clear()
    await one.put({"c": {"S": "2"}})
    await two.put({"b": {"S": "2"}})
    assert schemas(server) == versions, "what another one added is found"


@pytest.mark.parametrize("where", ["/plans/", "data/"])
async def test_killed_behind_the_schema_or_the_plan(server: S3Server, where: str) -> None:
    """The columns are there already, or the plan keeps its own, whatever grew meanwhile."""
    await (await Worker.of(server)).put({"stock": {"N": "5"}})
    item: Attributes = {"late": {"N": "1"}, "stock": {"S": "none"}}
    server.before = refusing(where)
    with pytest.raises(FatalError):
        await (await Worker.of(server)).put(item, shard="torn")
    server.before = _pass
    grown = schemas(server)[-1]
    assert list(grown) == ["id", "stock", "late"]
    other = await Worker.of(server)
    await other.put({"more": {"S": "x"}})
    assert list(schemas(server)[-1]) == [*grown, "more"]
    switched = await Worker.of(server, columns_max=0)  # whatever is told by then
    last = switched if where == "data/" else await Worker.of(server)
    await last.put(item, shard="torn")
    (key,) = [key for key in server.objects(prefix="data/") if "-torn-" in key]
    (row,) = rows(server, key)[key]
    assert (row["late"], row["stock"]) == ("1", None)
    assert exact(row["extra"]) == {"stock": "none"}
    assert ("more" in row) == (where == "/plans/"), "nothing was decided, so the newest columns"
    assert len(schemas(server)) == 3


async def test_a_zombie_adds_columns_and_nothing_else(server: S3Server) -> None:
    zombie = await Worker.of(server)
    reached, release = asyncio.Event(), asyncio.Event()

    async def stall(request: Request) -> None:
        if request.operation == "PutObject" and "/schemas/" in request.key:
            server.before = _pass
            reached.set()
            await release.wait()

    server.before = stall
    asleep = asyncio.ensure_future(zombie.put({"z": {"S": "1"}}, shard="its"))
    await reached.wait()
    await (await Worker.of(server)).put({"b": {"S": "1"}}, shard="its")
    release.set()
    with pytest.raises(TransientError, match="decided by another worker"):
        await asleep
    assert [list(each) for each in schemas(server)] == [["id", "b"], ["id", "b", "z"]]
    ((row,),) = rows(server).values()
    assert (row["b"], "z" in row) == ("1", False)


async def test_told_types_win_now_and_later(server: S3Server) -> None:
    told = Encoding("parquet", columns=(("stock", "bigint"), ("at", "timestamptz")))
    worker = await Worker.of(server, encoding=told)
    await worker.put({"stock": {"N": "5"}, "price": {"N": "1.5"}})
    assert schemas(server) == [
        {"stock": "bigint", "at": "timestamptz", "id": "text", "price": "numeric"}
    ]
    told = Encoding("parquet", columns=(("price", "numeric(12,2)"),))
    worker = await Worker.of(server, encoding=told)
    await worker.put({"stock": {"N": "1.5"}, "price": {"N": "2.5"}})
    assert schemas(server)[1:] == [
        {"stock": "bigint", "at": "timestamptz", "id": "text", "price": "numeric(12,2)"}
    ]
    last = items(server)["002"]
    assert (str(last["price"]), last["stock"], exact(last["extra"])["stock"]) == (
        "2.50",
        None,
        exact("1.5"),
    )


async def test_the_limit_and_the_switch(server: S3Server) -> None:
    worker = await Worker.of(server, columns_max=3)
    await worker.put({f"k{n}": {"N": str(n)} for n in range(20)})
    await worker.put({"k50": {"N": "1"}})
    (columns,) = schemas(server)
    assert list(columns) == ["id", "k0", "k1"]
    assert len(exact(items(server)["001"]["extra"])) == 18
    worker = await Worker.of(server, columns_max=0)
    await worker.put({"new": {"N": "1"}})
    assert len(schemas(server)) == 1
    row = items(server)["003"]
    assert exact(row["item"]) == {"id": "003", "new": 1}
    assert not row.keys() & {"new", "id", "extra"}


async def test_names_are_told_apart_by_readers_that_know_no_capitals(server: S3Server) -> None:
    worker = await Worker.of(server)
    item = {name: {"S": name} for name in ("Stock", "stock", "Event", "event", "Extra", "extra")}
    await worker.put(item)
    (columns,) = schemas(server)
    assert list(columns) == ["id", "Stock", "event"]
    row = items(server)["001"]
    assert (row["event"], row["event_"], row["Stock"]) == ("INSERT", "event", "Stock")
    assert exact(row["extra"]).keys() == {"stock", "Event", "Extra", "extra"}


async def test_what_a_sink_may_not_see_has_no_column(server: S3Server) -> None:
    worker = await Worker.of(server, attributes=AttributesConfig(exclude=("secret",)))
    await worker.put({"secret": {"S": "x"}, "open": {"S": "y"}})
    assert schemas(server) == [{"id": "text", "open": "text"}]
    assert not any(b"secret" in body for body in server.objects(prefix="data/").values())


async def test_tables_have_a_schema_each_or_one_where_they_lie_together(server: S3Server) -> None:
    async def both(**overrides: Any) -> None:
        worker = await Worker.of(server, **overrides)
        order = put("orders", {"customer": {"S": "ann"}, "number": {"N": "1"}}, NOON_US)
        product = put("products", {"id": {"S": "001"}}, NOON_US, number={"S": "n"})
        removed = remove("products", {"id": {"S": "002"}}, NOON_US + 1)
        await worker.give([product, order, removed])

    await both()
    assert schemas(server) == [{"id": "text", "number": "text"}]
    assert schemas(server, "orders") == [{"customer": "text", "number": "numeric"}]
    server.buckets["archive"].clear()
    await both(prefix=Prefix.parse("data/"))
    (columns,) = schemas(server, "!")
    assert columns.keys() == {"id", "customer", "number"}
    (together,) = rows(server).values()
    assert sorted(str(row["table"]) for row in together) == ["orders", "products", "products"]
    numbers = {row["number"] or exact(row["extra"]).get("number") for row in together[:2]}
    assert {str(each) for each in numbers} == {"1", "n"}


@pytest.mark.parametrize("body", [b"", b"[]", b'{"schema":2}', b'{"schema":1,"columns":[["a"]]}'])
async def test_what_somebody_else_put_there_is_named(server: S3Server, body: bytes) -> None:
    worker = await Worker.of(server)
    await worker.put({"a": {"S": "1"}})
    (key,) = server.objects(prefix="_replicator/schemas/")
    server.buckets["archive"][key] = StoredObject(body, {})
    worker = await Worker.of(server)
    with pytest.raises(FatalError) as found:
        await worker.put({"a": {"S": "1"}})
    assert (found.value.code, key in found.value.message) == ("state_unreadable", True)


async def test_a_check_tells_of_the_columns(server: S3Server) -> None:
    await (await Worker.of(server)).put({"a": {"S": "1"}})

    async def said(**overrides: Any) -> list[str]:
        sink = S3Sink(settings(server.url, **{"encoding": Encoding("parquet"), **overrides}))
        planned = await sink.plan([PRODUCTS, ORDERS])
        return [each.message for each in planned.findings if each.subject == "schema"]

    assert await said(prefix=BY_TABLE) == [
        "objects of products: version 1, with 2 columns",
        "objects of orders: no columns yet",
    ]
    assert await said() == ["objects of all tables: no columns yet"]
    assert await said(columns_max=0) == await said(encoding=Encoding()) == []


def refusing(where: str) -> Callable[[Request], Awaitable[None]]:
    async def refuse(request: Request) -> None:
        if request.operation == "PutObject" and where in request.key:
            raise Refusal("AccessDenied", "no", 403)

    return refuse


async def _pass(_: Request) -> None:
    """As usual."""
