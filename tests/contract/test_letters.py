"""Dead letters as an operator sees them, and ends those of sinks that hold the newest items (law
11)."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from replicator._core import Pattern, Projection, Records, decode
from replicator.errors import FatalError
from replicator.model import (
    TRIM_HORIZON,
    EndedLetter,
    Fence,
    LetterOutcome,
    Pending,
    Stream,
    TableSchema,
    after,
)
from replicator.sink.crate import CrateSink
from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_settings import PostgresSettings
from replicator.sink.statements import quoted
from replicator.testing.crate_types import Refused
from tests.aggregates import aggregate
from tests.changes import STREAM, number, pending, put, received, remove
from tests.crate_database import crate_database
from tests.sink_rig import (
    LOG_SINKS,
    ORDERS,
    PRODUCTS,
    STATE_SINKS,
    Content,
    Rig,
    StateRig,
    crate_rig,
    fenced,
    postgres_rig,
    write,
)
from tests.warehouse import connected

Sink = PostgresSink | CrateSink
Image = dict[str, dict[str, Any]]
APPLE: Image = {"id": {"S": "apple"}}
BAD: Image = {"bad": {"S": "x"}}
STREAMS_ARN = (
    "arn:aws:dynamodb:eu-north-1:123456789012:table/products/stream/2026-01-02T03:04:05.678"
)


@dataclass(frozen=True, slots=True)
class Place:
    """A destination that refuses items with the attribute `bad` until it is `mended`. `sink` is
    not opened."""

    rig: StateRig
    sink: Callable[..., Sink]
    refusing: Callable[[], Awaitable[None]]
    mended: Callable[[], Awaitable[None]]

    async def worker(self, stream: Stream = STREAM) -> tuple[Any, Fence]:
        """One that reads a shard, at a destination that refuses."""
        sink: Any = await self.rig.worker()
        await sink.begin(stream, {"shard-1": TRIM_HORIZON})
        fence = await sink.fence(stream, "shard-1", "me")
        await sink.position(fence)
        await self.refusing()
        return sink, fence

    async def waiting(self) -> list[str]:
        return [one.code for one in await self.sink().letters()]


@pytest.fixture(params=["postgres", "cratedb"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        if request.param == "postgres":
            server = request.getfixturevalue("postgres_server")
            dsn = request.getfixturevalue("postgres_dsn")

            async def execute(sql: str) -> None:
                async with connected(dsn) as connection:
                    await connection.execute(sql)

            async def refusing() -> None:
                await execute(
                    "ALTER TABLE products ADD CONSTRAINT good CHECK (item->'bad' IS NULL) NOT VALID"
                )

            async def mended() -> None:
                await execute("ALTER TABLE products DROP CONSTRAINT good")

            def sink(**changes: Any) -> Sink:
                given: dict[str, Any] = {"pipeline": "shop", "dsn": dsn, **changes}
                made = PostgresSink(PostgresSettings("warehouse", **given))
                stack.push_async_callback(made.close)
                return made

            yield Place(postgres_rig(stack, server, dsn), sink, refusing, mended)
            return
        database = await stack.enter_async_context(crate_database())
        if database.stand_in is None:
            column = f"{quoted(database.schema, 'products')} %s item['bad']"

            async def refusing_crate() -> None:  # what is no number
                await mended_crate()
                await database.session.execute(f"ALTER TABLE {column % 'ADD COLUMN'} BIGINT")

            async def mended_crate() -> None:
                await database.session.execute(f"ALTER TABLE {column % 'DROP COLUMN IF EXISTS'}")

        else:
            tables = database.stand_in.tables

            def refused(args: Sequence[Any]) -> Refused | None:
                is_bad = any(isinstance(value, dict) and "bad" in value for value in args)
                return Refused(4000, "SQLParseException[it is bad]") if is_bad else None

            async def refusing_crate() -> None:
                tables.refuse = refused

            async def mended_crate() -> None:
                tables.refuse = lambda _: None

        def crate_sink(**changes: Any) -> Sink:
            made = CrateSink(database.settings(**changes))
            stack.push_async_callback(made.close)
            return made

        yield Place(crate_rig(stack, database), crate_sink, refusing_crate, mended_crate)


async def describe() -> Sequence[TableSchema]:
    return [ORDERS, PRODUCTS]


async def redriven(sink: Sink, *ids: str) -> list[EndedLetter]:
    return [each async for each in sink.redrive_letters(ids, "operator", describe)]


async def outcomes(sink: Sink, *ids: str) -> list[str]:
    return [each.outcome for each in await redriven(sink, *ids)]


def apple(us: int, **attributes: Any) -> bytes:
    return put("products", APPLE, us, **attributes)


@pytest.mark.parametrize(
    "rig", [each for each in (*STATE_SINKS, *LOG_SINKS) if each != "memory"], indirect=True
)
async def test_every_sink_lists_its_own(rig: Rig) -> None:
    """Of this pipeline, each once, with the record's bytes."""
    sinks: dict[str, Any] = {}
    wrong = put("products", {"id": {"N": "5"}}, 1000)  # the table's key is a text
    for pipeline in ("shop", "shop-1"):
        sink: Any = await rig.worker(pipeline)
        sinks[pipeline] = sink
        assert not await sink.letters()
        await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
        fence = await fenced(sink, "shard-1")
        records = [b"broken", wrong] if pipeline == "shop" else [b"other"]
        writer = sink.writer(fence)
        payload = writer.encode([pending(fence, [apple(1000), *records])])
        for _ in range(2):
            await writer.write(payload)
    found = await sinks["shop"].letters()
    expected: list[tuple[Any, ...]] = [("malformed_json", None, b"broken", number(2))]
    if len(found) > 1:  # a log keeps every change, whatever its table's key
        expected.append(("key_mismatch", '{"id":{"N":"5"}}', wrong, number(3)))
    assert [(one.code, one.key, one.raw, one.position) for one in found] == expected
    assert {(one.stream, one.shard) for one in found} == {(STREAM.arn, "shard-1")}
    assert found[0].id == f"shard-1/{number(2)}/0"
    assert [one.raw for one in await sinks["shop-1"].letters()] == [b"other"]


async def test_what_waits_is_listed_with_its_key_and_why(place: Place) -> None:
    assert not await place.sink().letters()
    worker, fence = await place.worker()
    bad = apple(2000, **BAD)
    await write(worker, pending(fence, [apple(1000), b"broken", bad]))
    first, second = await place.sink().letters()
    assert (first.code, first.key, first.raw) == ("malformed_json", None, b"broken")
    assert (second.table, second.key, second.raw) == (
        "products",
        json.dumps(APPLE, separators=(",", ":")),
        bad,
    )
    assert (second.id, second.stream, second.position) == (
        f"shard-1/{number(3)}/0",
        STREAM.arn,
        number(3),
    )
    assert (first.is_held, second.is_held) == (False, False)


async def test_a_change_is_written_once_it_is_taken_and_its_worker_goes_on(place: Place) -> None:
    worker, fence = await place.worker()
    await write(worker, pending(fence, [apple(1000), apple(2000, **BAD), apple(3000, **BAD)]))
    assert await place.rig.content(PRODUCTS) == {("apple",): ({"id": "apple"}, Decimal(1000))}
    operator = place.sink()
    assert await outcomes(operator) == ["refused", "refused"]
    letters = await place.rig.dead_letters()
    assert [attempts for _, _, attempts in letters.values()] == [2, 2]
    await place.mended()
    assert await outcomes(operator) == ["written", "written"]
    expected: Content = {("apple",): ({"id": "apple", "bad": "x"}, Decimal(3000))}
    assert await place.rig.content(PRODUCTS) == expected
    assert await place.waiting() == []
    # No fence was raised, and no position moved.
    result = await write(worker, pending(fence, [apple(4000)], first=4))
    assert (result.rows, result.lost) == (1, frozenset())
    assert await worker.position(fence) == after(number(4))


@pytest.mark.parametrize("newer", [apple(3000, n={"N": "1"}), remove("products", APPLE, 3000)])
async def test_what_is_not_newer_does_nothing_and_says_so(place: Place, newer: bytes) -> None:
    worker, fence = await place.worker()
    await write(worker, pending(fence, [apple(2000, **BAD)]))
    await write(worker, pending(fence, [newer], first=2))
    before = await place.rig.content(PRODUCTS)
    assert before["apple",][1] == Decimal(3000)
    await place.mended()
    assert await outcomes(place.sink()) == ["superseded"]
    assert await place.rig.content(PRODUCTS) == before
    assert await place.waiting() == []


async def test_of_one_instant_a_letter_is_what_arrived_first(place: Place) -> None:
    """Regression: an item that was made and deleted within a millisecond was back for good. What
    ends where it began is put in order by its arrival, and the redrive's was taken for that."""
    worker, fence = await place.worker()
    full: Image = {**APPLE, **BAD}
    await write(worker, pending(fence, [apple(2000, **BAD)]))
    await write(worker, pending(fence, [remove("products", APPLE, 2000, full)], first=2))
    await place.mended()
    assert await outcomes(place.sink()) == ["superseded"]
    assert await place.rig.content(PRODUCTS) == {("apple",): (None, Decimal(2000))}
    # Where the images tell the order, it is the last nevertheless.
    await write(worker, pending(fence, [apple(3000)], first=3))
    await place.refusing()
    await write(worker, pending(fence, [put("products", APPLE, 3000, APPLE, **BAD)], first=4))
    await place.mended()
    assert await outcomes(place.sink()) == ["written"]
    ((item, _),) = (await place.rig.content(PRODUCTS)).values()
    assert item == {"id": "apple", "bad": "x"}


async def test_what_was_read_again_meanwhile_is_there_already(place: Place) -> None:
    worker, fence = await place.worker()
    bad = apple(2000, **BAD)
    await write(worker, pending(fence, [bad]))
    await place.mended()
    await write(worker, pending(fence, [bad]))
    assert await outcomes(place.sink()) == ["duplicate"]
    assert await place.waiting() == []


async def test_what_nobody_can_decode_stays_and_says_so(place: Place) -> None:
    worker, fence = await place.worker()
    await write(worker, pending(fence, [b"broken", apple(2000, **BAD)]))
    await place.mended()
    first, second = await redriven(place.sink())
    assert (first.outcome, second.outcome) == ("refused", "written")
    assert first.reason.startswith("malformed_json: ")
    assert await place.waiting() == ["malformed_json"]


async def test_only_what_is_named_is_ended(place: Place) -> None:
    worker, fence = await place.worker()
    several = [put("products", {"id": {"S": f"p{n}"}}, 1000, **BAD) for n in range(3)]
    await write(worker, pending(fence, several))
    operator = place.sink()
    first, second, third = await operator.letters()
    for ending in (
        operator.redrive_letters(["shard-1/7/0"], "operator", describe),
        operator.drop_letters([first.id, "shard-1/7/0"], "operator"),
    ):
        with pytest.raises(FatalError, match="no dead letter shard-1/7/0 waits here"):
            await anext(ending)
    await place.mended()
    assert await outcomes(operator, second.id) == ["written"]
    ended = [each async for each in operator.drop_letters([third.id], "operator")]
    assert ended == [EndedLetter(third, LetterOutcome.DROPPED)]
    assert await operator.letters() == [first]
    assert [each.outcome async for each in operator.drop_letters([], "operator")] == ["dropped"]
    assert list(await place.rig.content(PRODUCTS)) == [("p1",)]
    assert await outcomes(operator) == []


async def test_where_nothing_was_made_nothing_is_ended(place: Place) -> None:
    """Regression: Postgres missed the table of what was to be dropped."""
    operator = place.sink()
    assert await outcomes(operator) == []
    assert [each async for each in operator.drop_letters([], "operator")] == []


async def test_the_sinks_filter_and_attributes_hold(place: Place) -> None:
    worker, fence = await place.worker()
    changes = [
        put("products", {"id": {"S": id_}}, 1000, n={"N": n}, secret={"S": "s"}, **BAD)
        for id_, n in (("kept", "1"), ("left", "2"))
    ]
    await write(worker, pending(fence, changes))
    await place.mended()
    pattern = Pattern('{"dynamodb": {"NewImage": {"n": {"N": [{"numeric": ["<", 2]}]}}}}')
    operator = place.sink(pattern=pattern, projection=Projection(exclude=["secret"]))
    assert await outcomes(operator) == ["written", "written"]
    assert await place.rig.content(PRODUCTS) == {
        ("kept",): ({"id": "kept", "n": Decimal(1), "bad": "x"}, Decimal(1000)),
        ("left",): (None, Decimal(1000)),
    }


async def test_records_of_an_aggregate_are_written_each(place: Place) -> None:
    worker, fence = await place.worker()
    several = [put("products", {"id": {"S": f"p{n}"}}, 1000, **BAD) for n in range(2)]
    await write(worker, received(fence, [aggregate(several)], first=1))
    await place.mended()
    assert [one.index for one in await place.sink().letters()] == [0, 1]
    assert await outcomes(place.sink()) == ["written", "written"]
    assert sorted(await place.rig.content(PRODUCTS)) == [("p0",), ("p1",)]


async def test_a_record_that_names_no_table_is_of_the_one_that_it_came_of(place: Place) -> None:
    """As those of DynamoDB Streams, whose version is their sequence number."""
    stream = Stream("products", STREAMS_ARN, STREAM.created_at_s)
    worker, fence = await place.worker(stream)
    for n, more in enumerate((BAD, BAD, {}, BAD), 1):
        record = {
            "eventID": str(n),
            "eventName": "INSERT",
            "eventSource": "aws:dynamodb",
            "dynamodb": {
                "ApproximateCreationDateTime": 1_700_000_000,
                "Keys": APPLE,
                "NewImage": {**APPLE, **more, "n": {"N": str(n)}},
                "SequenceNumber": f"{n}00000000000000000001",
                "StreamViewType": "NEW_AND_OLD_IMAGES",
            },
        }
        position = f"{n}00000000000000000001"
        records = Records.pack([json.dumps(record).encode()], [position])
        batch = decode(records, table="products")
        await write(worker, Pending(fence, batch, after(position), None, 0.0))
    await place.mended()
    letters = await place.sink().letters()
    assert [one.key for one in letters] == ['{"id":{"S":"apple"}}'] * 3
    assert await outcomes(place.sink()) == ["superseded", "superseded", "written"]
    ((item, _),) = (await place.rig.content(PRODUCTS)).values()
    assert item == {"id": "apple", "bad": "x", "n": Decimal(4)}


async def test_a_stream_whose_versions_say_nothing_here_is_left_alone(place: Place) -> None:
    worker, fence = await place.worker()
    await write(worker, pending(fence, [apple(9000, **BAD), b"broken"]))
    await place.mended()
    other = Stream("products", STREAMS_ARN, STREAM.created_at_s)
    await worker.begin(other, {"shard-1": TRIM_HORIZON})
    ended = await redriven(place.sink())
    assert [each.reason.partition(":")[0] for each in ended] == [
        "stream_replaced",
        "malformed_json",
    ]
    assert {each.outcome for each in ended} == {LetterOutcome.REFUSED}
    assert await place.rig.content(PRODUCTS) == {}
    assert len(await place.waiting()) == 2


async def test_what_came_to_another_table_says_nothing_of_this_one(place: Place) -> None:
    worker, fence = await place.worker()
    await write(worker, pending(fence, [apple(9000, **BAD)]))
    await place.mended()
    other = place.sink(pipeline="other")
    await other.open([ORDERS])
    stream = Stream("orders", STREAMS_ARN, STREAM.created_at_s)
    await other.begin(stream, {"shard-1": TRIM_HORIZON})
    assert await outcomes(place.sink()) == ["written"]


async def test_a_table_that_the_pipeline_lists_no_more_is_left_alone(place: Place) -> None:
    worker, fence = await place.worker()
    await write(worker, pending(fence, [apple(1000, **BAD)]))

    async def orders() -> Sequence[TableSchema]:
        return [ORDERS]

    (ended,) = [each async for each in place.sink().redrive_letters([], "operator", orders)]
    assert ended.outcome == "refused"
    assert ended.reason.startswith("letter_unwritable: table products is none of the pipeline's")
    assert len(await place.waiting()) == 1


@pytest.mark.parametrize("seed", range(8))
async def test_a_redrive_at_any_moment_never_moves_a_row_back(place: Place, seed: int) -> None:
    """Law 2: whatever is refused, redelivered and written again in whatever order, a row's version
    only rises, and in the end it is the newest of its key."""
    chance = random.Random(seed)
    worker, fence = await place.worker()
    operator, is_refusing = place.sink(), True
    history: list[tuple[str, int, bytes]] = []
    for us in range(1_000, 21_000, 1_000):
        key = chance.choice("abc")
        image: Image = {"id": {"S": key}}
        if chance.random() < 0.25:
            history.append((key, us, remove("products", image, us)))
        else:
            more = BAD if chance.random() < 0.5 else {}
            history.append((key, us, put("products", image, us, n={"N": str(us)}, **more)))
    arrivals = [*history, *chance.choices(history, k=6)]
    chance.shuffle(arrivals)
    seen: dict[str, Decimal] = {}

    async def look() -> None:
        content = await place.rig.content(PRODUCTS)
        for (key,), (_, version) in content.items():
            assert version >= seen.get(key, version), f"{key} went back"
            seen[key] = version

    for at in itertools.count(1):
        match chance.randrange(4):
            case 0 if is_refusing:
                await place.mended()
                is_refusing = False
            case 0:
                await place.refusing()
                is_refusing = True
            case 1:
                for ended in await redriven(operator):
                    assert ended.outcome != LetterOutcome.GONE
            case _ if arrivals:
                _, _, record = arrivals.pop()
                await write(worker, pending(fence, [record], first=at))
            case _:
                break
        await look()
    if is_refusing:
        await place.mended()
    await redriven(operator)
    await look()
    assert await place.waiting() == []
    assert seen == {key: Decimal(us) for key, us, _ in history}


async def test_a_redrive_beside_a_worker_loses_nothing(place: Place) -> None:
    """Both write the same keys at once; each key ends with its newest change."""
    worker, fence = await place.worker()
    keys = [f"p{n}" for n in range(40)]
    refused = [put("products", {"id": {"S": key}}, 2_000, **BAD) for key in keys]
    await write(worker, pending(fence, refused))
    await place.mended()

    async def work() -> None:
        for step, us in enumerate((1_000, 3_000, 1_500)):
            some = [put("products", {"id": {"S": key}}, us) for key in keys[step::2]]
            result = await write(worker, pending(fence, some, first=100 * (step + 1)))
            assert (result.lost, result.dead_letters) == (frozenset(), ())

    ended, _ = await asyncio.gather(redriven(place.sink()), work())
    assert {each.outcome for each in ended} <= {"written", "superseded"}
    content = await place.rig.content(PRODUCTS)
    newest = {key: 3_000 if key in keys[1::2] else 2_000 for key in keys}
    assert {key: version for (key,), (_, version) in content.items()} == newest
    assert await place.waiting() == []
