"""The CrateDB sink over the wire: what the contract of sinks doesn't tell. A real server where
`CRATEDB_URL` names one, else the stand-in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from replicator.errors import FatalError, TransientError
from replicator.model import SinkHeld, Stream, TableSchema, after
from replicator.sink.crate import CrateSink
from replicator.sink.crate_errors import CrateError, mapped
from replicator.sink.crate_merge import CrateMerge
from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.testing.crate_server import CrateServer
from replicator.testing.crate_types import Refused
from tests.certificates import certificate
from tests.changes import STREAM, number, pending, put, remove
from tests.crate_database import REAL, CrateDatabase, crate_database
from tests.warehouse import write

PRODUCTS = TableSchema("products", (("id", "S"),))
only_the_stand_in = pytest.mark.skipif(bool(REAL), reason="a real server shows no fault at will")


@pytest.fixture
async def database() -> AsyncIterator[CrateDatabase]:
    async with crate_database() as database:
        yield database


@asynccontextmanager
async def opened(
    database: CrateDatabase,
    tables: Sequence[TableSchema] = (PRODUCTS,),
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    **changes: Any,
) -> AsyncIterator[CrateSink]:
    sink = CrateSink(database.settings(**changes), sleep=sleep)
    try:
        await sink.open(tables)
        yield sink
    finally:
        await sink.close()


def product(id_: str, us: int, **attributes: Any) -> bytes:
    return put("products", {"id": {"S": id_}}, us, **attributes)


async def items(database: CrateDatabase) -> dict[str, Any]:
    return {row["id"]: row["item"] for row in await database.rows("products")}


# ---- what is stored


async def test_an_item_is_there_twice_for_queries_and_exact(database: CrateDatabase) -> None:
    async with opened(database) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        digits = "12345678901234567890123456789012345678"
        made = product(
            "a",
            1_700_000_000_123_456,
            price={"N": "5"},
            big={"N": "9007199254740993"},
            huge={"N": digits},
            tags={"SS": ["b", "a"]},
            mixed={"L": [{"N": "1"}, {"S": "x"}]},
            long={"S": "x" * 40_000},
            **{"dotted.name": {"M": {"in[0]": {"NULL": True}}}},
        )
        assert (await write(sink, fence, [made])).rows == 1
        (row,) = await database.rows("products")
    assert row["item"] == {
        "id": "a",
        "price": 5.0,
        "big": 9007199254740993,
        "huge": digits,
        "tags": ["a", "b"],
        "dotted%2Ename": {"in%5B0]": None},
    }
    exact = json.loads(row["exact"])
    assert f'"huge":{digits}' in row["exact"]
    assert exact["mixed"] == [1, "x"]
    assert exact["dotted.name"] == {"in[0]": None}
    assert row["version"] == f"0000000000-{'0' * 27}1700000000123.456"
    assert row["deleted"] is False


async def test_ignored_objects_hold_items_as_they_are(database: CrateDatabase) -> None:
    async with opened(database, dynamic=False) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        changes = [
            product("a", 1, v={"N": "5"}, mixed={"L": [{"N": "1"}, {"S": "x"}]}),
            product("b", 1, v={"S": "text"}, **{"a.b": {"BOOL": True}}),
            product("c", 1, v={"N": "5.5"}),
        ]
        result = await write(sink, fence, changes)
    assert (result.rows, result.dead_letters) == (3, ())
    assert await items(database) == {
        "a": {"id": "a", "v": 5, "mixed": [1, "x"]},
        "b": {"id": "b", "v": "text", "a.b": True},
        "c": {"id": "c", "v": 5.5},
    }


async def test_removed_attributes_disappear_and_a_number_is_never_cut(
    database: CrateDatabase,
) -> None:
    """Regression elsewhere: removed attributes stayed (cratedb-toolkit 276); and the first whole
    number of a column had CrateDB cut all later ones."""
    async with opened(database) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("a", 1, price={"N": "5"}, old={"M": {"x": {"N": "1"}}})])
        await write(sink, fence, [product("a", 2, price={"N": "5.5"})], first=2)
    assert await items(database) == {"a": {"id": "a", "price": 5.5}}


async def test_keys_of_every_type_and_a_name_that_is_taken(database: CrateDatabase) -> None:
    table = TableSchema("things", (("item", "B"), ("n", "N")))
    async with opened(database, [table]) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        key = {"item": {"B": "AAE="}, "n": {"N": "1.50E+3"}}
        same = {"item": {"B": "AAE="}, "n": {"N": "1500"}}
        await write(sink, fence, [put("things", key, 1)])
        await write(sink, fence, [remove("things", same, 2)], first=2)
        (row,) = await database.rows("things")
    assert (row["item_"], row["n"], row["deleted"]) == ("AAE=", "1500", True)
    assert (row["item"], row["exact"]) == (None, None)


# ---- what is refused


@pytest.mark.parametrize("split", [True, False])
async def test_a_value_of_another_type_is_a_dead_letter_and_its_neighbours_arrive(
    database: CrateDatabase, split: bool
) -> None:
    async with opened(database) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        first = [product("first", 1, v={"N": "5"})]
        rest = [product(f"p{n}", 1, v={"N": str(n)}) for n in range(20)]
        rest[7] = product("p7", 1, v={"M": {}})
        rest[13] = product("p13", 1, v={"L": [{"S": "x"}]})
        if split:  # the column is there before: the whole request is refused, not the rows
            await write(sink, fence, first)
            result = await write(sink, fence, rest, first=2)
        else:
            result = await write(sink, fence, first + rest)
        letters = await database.rows("replicator_dead_letters")
        assert result.rows == (18 if split else 19)
        assert {letter.rejection.code for letter in result.dead_letters} == {"crate_type"}
        assert [row["sequence_number"] for row in letters] == [number(9), number(15)]
        assert all("Cannot cast" in row["message"] for row in letters)
        assert set(await items(database)) == {"first"} | {
            f"p{n}" for n in range(20) if n not in {7, 13}
        }
        assert await sink.position(fence) == after(number(21))


async def test_in_place_of_a_refused_change_comes_the_one_before(database: CrateDatabase) -> None:
    async with opened(database) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        await write(sink, fence, [product("seed", 1, v={"N": "5"})])
        changes = [
            product("a", 10_000, v={"N": "1"}),
            product("a", 20_000, v={"M": {}}),
            product("b", 10_000, v={"N": "2"}),
        ]
        result = await write(sink, fence, changes, first=2)
        assert (result.rows, result.duplicates, result.superseded) == (2, 0, 0)
        assert (await items(database))["a"] == {"id": "a", "v": 1.0}
        # A redelivery finds all as it is.
        again = await write(sink, fence, changes, first=5)
        assert (again.rows, again.duplicates, len(again.dead_letters)) == (0, 2, 1)


async def test_a_change_that_is_refused_when_its_instant_is_settled(
    database: CrateDatabase,
) -> None:
    async with opened(database) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        key = {"id": {"S": "a"}}
        before = {**key, "v": {"N": "1"}}
        await write(sink, fence, [product("a", 7, v={"N": "1"}), product("b", 1, v={"N": "1"})])
        changes = [put("products", key, 7, before, v={"M": {}}), product("b", 9_000)]
        result = await write(sink, fence, changes, first=3)
        assert (result.rows, result.rejected_by_code) == (1, {"crate_type": 1})
        assert (await items(database))["a"]["v"] == 1.0
        assert await sink.position(fence) == after(number(4))


async def test_many_refused_rows_have_their_reasons(database: CrateDatabase) -> None:
    """Regression: the server tells no more than ten reasons a shard of the table."""
    async with opened(database) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        values: list[dict[str, Any]] = [{"N": "1"}] + [{"M": {}} for _ in range(25)]
        changes = [product(f"p{n}", 1, v=value) for n, value in enumerate(values)]
        result = await write(sink, fence, changes)
    assert result.rejected_by_code == {"crate_type": 25}
    assert all("Cannot cast" in letter.rejection.message for letter in result.dead_letters)


async def test_a_table_that_changed_is_no_poison(database: CrateDatabase) -> None:
    async with opened(database) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        if database.stand_in is None:
            await database.session.execute(
                f'ALTER TABLE "{database.schema}"."products" DROP COLUMN exact'
            )
        else:
            database.stand_in.tables.drop_column(database.schema, "products", "exact")
        with pytest.raises(FatalError) as refused:
            await write(sink, fence, [product("a", 1)])
        assert refused.value.code == "crate_refused"
        assert await database.rows("replicator_dead_letters") == []
        assert await sink.position(fence) is None


async def test_a_statement_that_is_wrong_is_no_poison(database: CrateDatabase) -> None:
    """The server says the same of it as of wrong data."""
    async with opened(database) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        writer = sink.writer(fence)
        (merge,) = writer._merges.values()
        merge._sql = {**merge._sql, "upsert": merge._sql["upsert"].replace("LEFT(", "LEFFT((")}
        with pytest.raises(FatalError) as refused:
            await write(sink, fence, [product("a", 1), product("b", 1)])
        assert refused.value.code == "crate_refused"
        assert "doesn't take rows any more" in refused.value.message
        assert await database.rows("replicator_dead_letters") == []


@only_the_stand_in
@pytest.mark.parametrize("count", [1, 12])
async def test_a_server_in_trouble_is_no_poison_and_a_value_is(
    database: CrateDatabase, count: int
) -> None:
    """Regression: for both the server has one code; of a single row it answers for the request."""
    assert database.stand_in is not None
    async with opened(database) as sink:
        tables = database.stand_in.tables
        fence = await sink.fence(STREAM, "shard-1", "me")
        changes = [product(f"p{n}", 1) for n in range(count)]

        def refuse(message: str) -> Callable[[Sequence[Any]], Refused | None]:
            return lambda args: Refused(5000, message) if args[0] == "p0" else None

        tables.refuse = refuse("CircuitBreakingException[[parent] Data too large]")
        with pytest.raises(TransientError, match="Data too large"):
            await write(sink, fence, changes)
        assert await database.rows("replicator_dead_letters") == []
        assert await sink.position(fence) is None
        tables.refuse = refuse("ClassCastException[String cannot be cast to Double]")
        result = await write(sink, fence, changes)
        assert result.rejected_by_code == {"crate_type": 1}
        assert result.rows + result.duplicates == count - 1
        assert await sink.position(fence) == after(number(count))


# ---- late and repeated changes


async def test_hundreds_of_redelivered_rows_are_counted(database: CrateDatabase) -> None:
    table = TableSchema("orders", (("customer", "S"), ("n", "N")))
    async with opened(database, [table]) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        keys = [{"customer": {"S": "ann"}, "n": {"N": str(n)}} for n in range(60)]
        changes = [put("orders", key, 1_000_000) for key in keys]
        assert (await write(sink, fence, changes)).rows == 60
        late = [put("orders", key, 500_000) for key in keys[:30]]
        newer = [put("orders", key, 2_000_000) for key in keys[30:40]]
        result = await write(sink, fence, late + newer + changes[40:], first=100)
    assert (result.rows, result.superseded, result.duplicates) == (10, 30, 20)


# ---- the fence


@pytest.mark.parametrize("counts", [False, True])
async def test_who_lost_the_shard_in_the_middle_of_a_write_moves_no_position(
    database: CrateDatabase, counts: bool
) -> None:
    """The rows of the write may be there: a version decides, so they harm nobody."""
    if database.stand_in is not None:
        database.stand_in.tables.counts_conflicts = counts
    async with opened(database) as mine, opened(database) as others:
        old = await mine.fence(STREAM, "shard-1", "me")
        writer = mine.writer(old)
        payload = writer.encode([pending(old, [product("a", 1, v={"N": "1"})])])
        merge = writer._merges[f'"{database.schema}"."products"']
        the_real_one = merge.merge

        async def paused(*args: Any) -> Any:
            new = await others.fence(STREAM, "shard-1", "another")
            newer = [product("a", 2, v={"N": "2"}), product("b", 3)]
            assert (await write(others, new, newer)).rows == 2
            return await the_real_one(*args)

        merge.merge = paused  # type: ignore[method-assign, assignment]
        result = await writer.write(payload)
        assert result.lost == {"shard-1"}
        assert (await items(database))["a"]["v"] == 2.0
        positions = await others.positions(STREAM)
        assert positions == {"shard-1": after(number(2))}
        with pytest.raises(Exception, match="fenced"):
            await mine.position(old)


async def test_who_is_never_quicker_waits_longer_each_time_and_gives_up(
    database: CrateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it asked again and again without a pause."""
    waits: list[float] = []

    async def slept(seconds: float) -> None:
        waits.append(seconds)

    conflict = {"code": 4092, "message": "another was quicker"}

    async def quicker(body: bytes) -> dict[str, Any]:
        asked = json.loads(body)
        if "bulk_args" in asked:
            return {"results": [{"rowcount": -2, "error": conflict} for _ in asked["bulk_args"]]}
        if asked["stmt"].startswith("SELECT"):
            return {"rows": [], "rowcount": 0}
        raise CrateError.of(conflict)

    async with opened(database, sleep=slept) as sink:
        fence = await sink.fence(STREAM, "shard-1", "me")
        monkeypatch.setattr(sink._session, "_post", quicker)
        with pytest.raises(TransientError) as lost:
            await sink.fence(STREAM, "shard-1", "me")
        assert "another was quicker" in str(lost.value)
        assert 5 <= len(waits) <= 10
        assert waits[0] < 0.1 < waits[-1] <= 1.0
        waits.clear()
        writer = sink.writer(fence)
        payload = writer.encode([pending(fence, [product("a", 1)])])
        (part,) = payload.tables
        merge = CrateMerge(part.table)
        with pytest.raises(TransientError) as contended:
            await merge.merge(sink._session, part)
        assert contended.value.code == "crate_contended"
        assert 5 <= len(waits) <= 20
        assert waits[0] < 0.1 < waits[-1] <= 1.0


async def test_a_second_lease_store_is_refused_while_the_first_is_at_work(
    database: CrateDatabase,
) -> None:
    async with opened(database, store_id="one") as one, opened(database, store_id="two") as two:
        await one.fence(STREAM, "shard-1", "me")
        with pytest.raises(TransientError) as refused:
            await two.fence(STREAM, "shard-1", "me")
        assert refused.value.code == "foreign_lease_store"
        assert "'one'" in refused.value.message
    async with opened(database, store_id="two", foreign_store_seconds=0.0) as two:
        assert (await two.fence(STREAM, "shard-1", "me")).epoch == 2


@only_the_stand_in
async def test_a_fence_raised_while_positions_are_read_is_not_forgotten(
    database: CrateDatabase,
) -> None:
    """Regression: what the search didn't show yet was taken for another worker's."""
    assert database.stand_in is not None
    async with opened(database) as sink:
        fences = [await sink.fence(STREAM, "shard-1", "me")]

        async def between(_: int, statement: str) -> Any:
            if statement.startswith("SELECT shard, position, epoch") and len(fences) == 1:
                fences.append(await sink.fence(STREAM, "shard-1", "me"))

        database.stand_in.on_request = between
        assert await sink.positions(STREAM) == {}
        old, new = fences
        assert (await write(sink, new, [product("a", 1)])).rows == 1
        assert (await write(sink, old, [product("a", 2)])).lost == {"shard-1"}


async def test_a_mark_without_tables(database: CrateDatabase) -> None:
    """What is stored for tables that tags find."""
    marks = Stream("tables by tag", "tables-by-tag", 0)
    async with opened(database, []) as one, opened(database, []) as another:
        assert await one.begin(marks, {})
        assert not await another.begin(marks, {})
        assert await another.is_known(marks)


@only_the_stand_in
async def test_a_begin_that_was_cut_short_is_completed_by_whoever_looks(
    database: CrateDatabase,
) -> None:
    assert database.stand_in is not None
    starts = {"shard-1": after(number(1)), "shard-2": after(number(2))}
    async with opened(database) as sink:
        at = len(database.stand_in.statements)

        async def cut(count: int, _: str) -> Any:
            return "unavailable" if count == at + 3 else None

        database.stand_in.on_request = cut
        with pytest.raises(TransientError):
            await sink.begin(STREAM, starts)
        assert await sink.is_known(STREAM)
        assert await sink.positions(STREAM) == starts
        assert not await sink.begin(STREAM, {"shard-1": after(number(9))})


# ---- check


async def test_plan_makes_nothing_and_tells_what_would_be_made(database: CrateDatabase) -> None:
    sink = CrateSink(database.settings())
    planned = await sink.plan([PRODUCTS])
    assert planned.server.startswith("CrateDB 6.")
    assert len(planned.ddl) == 4
    assert (await sink.report()).positions == ()
    assert await sink.held(STREAM, [PRODUCTS]) == SinkHeld(False, (), False)
    await sink.open([PRODUCTS])
    again = await sink.plan([PRODUCTS])
    assert (again.ddl, again.problems) == ((), ())
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, fence, [product("a", 1), b"broken"])
    await sink.begin(STREAM, {})
    assert await sink.held(STREAM, [PRODUCTS]) == SinkHeld(True, (STREAM.arn,), True)
    report = await sink.report()
    assert report.dead_letters == {"malformed_json": 1}
    (position,) = report.positions
    assert (position["shard"], position["position"]) == ("shard-1", str(after(number(2))))
    assert position["updated_at"].endswith("+00:00")
    assert position["age_seconds"] > 0
    await sink.close()
    without = CrateSink(database.settings(create=False, schema=f"{database.schema}_x"))
    with pytest.raises(FatalError) as refused:
        await without.open([PRODUCTS])
    assert refused.value.code == "table_missing"
    assert "CREATE TABLE" in refused.value.message
    await without.close()


_SHAPE = {
    "item": "OBJECT(DYNAMIC)",
    "exact": "TEXT",
    "version": "TEXT NOT NULL",
    "deleted": "BOOLEAN",
    "chain": "TEXT",
}


@pytest.mark.parametrize(
    ("columns", "key", "message"),
    [
        ({"version": "TEXT"}, "id", "lacks"),
        (_SHAPE | {"version": "TEXT"}, "id", "without NOT NULL"),
        (_SHAPE, "exact", "primary key"),
        (_SHAPE | {"deleted": "TEXT"}, "id", "deleted is text, not boolean"),
    ],
)
async def test_a_table_of_another_shape_is_refused(
    database: CrateDatabase, columns: dict[str, str], key: str, message: str
) -> None:
    name = f'"{database.schema}"."products"'
    lines = ['"id" TEXT', *(f"{column} {kind}" for column, kind in columns.items())]
    ddl = ",\n".join([*lines, f'PRIMARY KEY ("{key}")'])
    await database.session.execute(f"CREATE TABLE IF NOT EXISTS {name} (\n{ddl}\n)")
    sink = CrateSink(database.settings())
    with pytest.raises(FatalError) as refused:
        await sink.open([PRODUCTS])
    assert refused.value.code == "table_differs"
    assert message in refused.value.message
    await sink.close()


@only_the_stand_in
async def test_errors_of_the_way_are_mapped(database: CrateDatabase) -> None:
    assert database.stand_in is not None
    wrong = CrateSink(database.settings(password="secret-and-wrong"))
    with pytest.raises(FatalError) as refused:
        await wrong.plan([PRODUCTS])
    assert refused.value.code == "crate_refused"
    assert "check user and password" in refused.value.message
    assert "secret" not in str(refused.value) + repr(wrong._settings)
    await wrong.close()
    nowhere = CrateSink(replace(database.settings(), url="http://127.0.0.1:1"))
    with pytest.raises(TransientError) as gone:
        await nowhere.plan([PRODUCTS])
    assert gone.value.code == "crate_unavailable"
    await nowhere.close()
    async with opened(database) as sink:
        for fate in ("unavailable", "cut_before", "cut_after"):

            async def fail(_count: int, _statement: str, fate: Any = fate) -> Any:
                return fate

            database.stand_in.on_request = fail
            with pytest.raises(TransientError) as failed:
                await sink.positions(STREAM)
            assert failed.value.code == "crate_unavailable"
        database.stand_in.on_request = None


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{}", b'{"rows":[],"rowcount":1,"results":[]}', b'{"results":[{},null]}'],
)
async def test_an_answer_that_is_no_cratedbs_counts_for_nothing(body: bytes) -> None:
    """Regression: dead letters without an answer each were taken for stored."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/_sql", answer)
    async with TestServer(app) as server:
        session = CrateSession(CrateSettings("reader", "", str(server.make_url("")).rstrip("/")))
        with pytest.raises(TransientError, match="is it CrateDB"), mapped("trying"):
            await session.bulk("INSERT", [[1], [2]])
        if body == b"{}":
            for ask in (session.fetch, session.execute):
                with pytest.raises(TransientError, match="an answer without"):
                    await ask("SELECT 1")
        await session.close()


@only_the_stand_in
async def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    made = certificate(tmp_path)
    async with CrateServer(tls=made.tls, user="me", password="hush") as server:
        given = CrateSettings("crate", "shop", server.url, user="me", password="hush")
        sink = CrateSink(replace(given, ca_file=made.file))
        await sink.open([PRODUCTS])
        await sink.close()
        for ca_file, word in ((None, "isn't trusted"), (tmp_path / "no.pem", "can't be read")):
            sink = CrateSink(replace(given, ca_file=ca_file))
            with pytest.raises(FatalError) as refused:
                await sink.open([PRODUCTS])
            assert refused.value.code == "crate_certificate"
            assert word in refused.value.message
            await sink.close()
