"""How the S3 sink's plans, fences and positions lie in the bucket: what looking at them costs, and
who else may write there at the same time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from replicator.core.lineage import Discovered, Lineage
from replicator.core.plan import Encoding, Plan, numbered
from replicator.core.prefix import Prefix
from replicator.errors import FatalError, TransientError
from replicator.model import LATEST, SHARD_END, TRIM_HORIZON, Shard, WriteResult, after
from replicator.settings import AttributesConfig
from replicator.sink.clocks import Clocks
from replicator.sink.log_shard import LogPosition
from replicator.sink.s3 import S3Sink
from replicator.testing.json_server import Refusal
from replicator.testing.s3_server import Request, S3Server, StoredObject
from tests.archive import HOUR_US, NOON_US, ORDERS, PRODUCTS, opened, plans, settings, write
from tests.changes import STREAM, number, pending, put, remove

PRODUCT = put("products", {"id": {"S": "a"}}, NOON_US)


@pytest.fixture
async def server(credentials: None) -> AsyncIterator[S3Server]:
    async with S3Server() as running:
        yield running


async def plans_folder(sink: S3Sink, server: S3Server) -> str:
    """Where the plans of the stream's shards lie."""
    await write(sink, pending(await sink.fence(STREAM, "first", "me"), [], then=after(number(1))))
    (key,) = server.objects(prefix="_replicator/plans/")
    return key.partition("first/")[0]


async def test_finished_shards_are_not_asked_again_however_many(server: S3Server) -> None:
    """Regression: each round of discovery asked for every shard that ever was."""
    sink = await opened(server)
    folder = await plans_folder(sink, server)
    count = 1_200
    for n in range(count):
        end = Plan(f"shard-{n:04d}", 1, "", LogPosition(SHARD_END).to_json(), "me")
        key = f"{folder}{end.shard_id}/{numbered(1)}.json"
        server.buckets["archive"][key] = StoredObject(orjson.dumps(end.as_dict()), {})
    assert len(await sink.positions(STREAM)) == count + 1
    other = await opened(server)
    server.requests.clear()
    found = await other.positions(STREAM)
    assert sum(position == SHARD_END for position in found.values()) == count
    assert found["first"] == after(number(1))
    # Folders and marks in pages of a thousand, where it began, and the one that isn't finished.
    assert len(server.requests) <= 3 + 1 + 2
    server.requests.clear()
    assert len((await S3Sink(settings(server.url)).report()).positions) == 0, "it was never begun"
    await other.begin(STREAM, {})
    assert len((await other.report()).positions) == count + 1
    assert {request.operation for request in server.requests} <= {
        "ListObjectsV2",
        "GetObject",
        "PutObject",
    }
    assert len(server.requests) < 20
    await sink.close()
    await other.close()


async def test_a_child_that_begins_years_later_finds_its_parents_finished(
    server: S3Server,
) -> None:
    """Regression: what had ended 400 days before the newest end was not told any more, and who
    came then took the parent of a child that had waited all the time for one that was lost."""
    sink = await opened(server)
    folder, count = await plans_folder(sink, server), 600
    for n in range(count):
        end = Plan(f"a-{n:04d}", 1, "", LogPosition(SHARD_END).to_json(), "me")
        at = datetime.now(UTC) - timedelta(days=600)
        body = StoredObject(orjson.dumps(end.as_dict()), {}, at)
        server.buckets["archive"][f"{folder}{end.shard_id}/{numbered(1)}.json"] = body
        server.buckets["archive"][f"{folder}{end.shard_id}!{numbered(1)}.ended"] = body
    await write(sink, pending(await sink.fence(STREAM, "b", "me"), [PRODUCT], then=SHARD_END))
    for _ in range(3):  # the end is seen, marked, and seen by its mark
        assert len(await sink.positions(STREAM)) == count + 2
    other = await opened(server)
    positions = await other.positions(STREAM)
    graph = Lineage(positions)
    graph.step(Discovered([Shard("b"), Shard("c", ("a-0599", "b"))], positions))
    assert graph.readable() == ("c",)
    await sink.close()
    await other.close()


async def test_a_finished_shard_that_was_moved_is_seen_where_it_was_moved_to(
    server: S3Server,
) -> None:
    sink = await opened(server)
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON, "shard-2": LATEST})
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [PRODUCT], then=SHARD_END))
    ended = {"shard-1": SHARD_END, "shard-2": LATEST}
    assert await sink.positions(STREAM) == ended
    await sink.move(STREAM, {"shard-1": TRIM_HORIZON}, "operator")
    other = await opened(server)
    for each in (sink, other):
        assert await each.positions(STREAM) == {"shard-1": TRIM_HORIZON, "shard-2": LATEST}
    fence = await other.fence(STREAM, "shard-1", "me")
    await write(other, pending(fence, [PRODUCT], then=SHARD_END))
    await other.move(STREAM, {"shard-2": SHARD_END}, "operator")
    for each in (sink, other, await opened(server)):
        assert await each.positions(STREAM) == dict.fromkeys(ended, SHARD_END)
        await each.close()


async def test_data_is_seen_on_the_first_page(server: S3Server) -> None:
    server.page_size = 2
    sink = await opened(server, prefix=Prefix.parse("!{firehose:random-string}/"))
    for n in range(20):
        server.buckets["archive"][f"folder-{n:02d}/x.jsonl"] = StoredObject(b"", {})
    server.requests.clear()
    assert await sink.holds_data()
    assert len(server.requests) <= 2
    await sink.close()


@pytest.mark.parametrize("kind", ["fences", "plans"])
async def test_who_is_never_quicker_waits_longer_each_time_and_gives_up(
    server: S3Server, kind: str
) -> None:
    """Regression: it asked again and again without a pause."""
    waits: list[float] = []

    async def slept(seconds: float) -> None:
        waits.append(seconds)

    async def quicker(request: Request) -> None:
        if request.operation == "PutObject" and f"/{kind}/" in request.key:
            if not request.key.endswith(".json"):
                return
            plan = Plan("shard-1", 1, "", LogPosition(TRIM_HORIZON).to_json(), "another")
            body = orjson.dumps(plan.as_dict())
            server.buckets["archive"].setdefault(request.key, StoredObject(body, {}))

    sink = S3Sink(settings(server.url), clocks=Clocks(sleep=slept))
    server.before = quicker
    with pytest.raises(TransientError) as conflict:
        await sink.move(STREAM, {"shard-1": LATEST}, "operator")
    assert conflict.value.code == "object_conflict"
    assert f"/{kind}/" in str(conflict.value)
    assert 5 <= len(waits) <= 12
    assert waits[0] < 0.1 < waits[4] <= max(waits) <= 1.0


async def test_an_idle_shard_stays_young_by_a_plan_now_and_then(server: S3Server) -> None:
    """Regression: a polled shard's position doesn't move while nothing comes, and its tip was not
    stored then: after the stream's retention it was taken for a gap."""
    now = 1_000.0
    sink = S3Sink(settings(server.url), clocks=Clocks(lambda: now, lambda: int(now * 1_000_000)))
    await sink.open([PRODUCTS])
    fence = await sink.fence(STREAM, "shard-1", "me")

    async def idle(at: float, then: int) -> tuple[int, int | None]:
        nonlocal now
        now = at
        one = replace(pending(fence, [], then=after(number(then))), received_at=now)
        assert await write(sink, one) == WriteResult()
        (reached,) = (await sink.reached(STREAM, ["shard-1"])).values()
        return len(plans(server)), reached.tip_us

    assert await idle(1_000.0, 7) == (1, 1_000_000_000)
    assert await idle(1_500.0, 7) == (1, 1_000_000_000)
    assert await idle(1_600.0, 7) == (2, 1_600_000_000)
    # A subscription's position moves all the time.
    assert await idle(1_700.0, 8) == (2, 1_600_000_000)
    assert await idle(2_200.0, 9) == (3, 2_200_000_000)
    assert await sink.positions(STREAM) == {"shard-1": after(number(9))}
    await write(sink, pending(fence, [], then=SHARD_END))
    assert await sink.positions(STREAM) == {"shard-1": SHARD_END}, "which waits for nothing"
    await sink.close()


@pytest.mark.parametrize(
    ("key", "body"),
    [
        ("fences/{}shard-1/", b""),  # as a console makes folders
        ("plans/{}shard-1/000000000001.json", b"{}"),
        ("plans/{}shard-1!x.ended", b""),
        ("begun/else!where/x.json", b"not JSON"),
    ],
)
async def test_what_somebody_else_put_there_is_named(
    server: S3Server, key: str, body: bytes
) -> None:
    sink = await opened(server)
    folder = (await plans_folder(sink, server)).removeprefix("_replicator/plans/")
    name = f"_replicator/{key.format(folder)}"
    server.buckets["archive"][name] = StoredObject(body, {})
    ask: dict[str, Callable[[], Awaitable[object]]] = {
        "fences": lambda: sink.fence(STREAM, "shard-1", "me"),
        "plans": lambda: sink.positions(STREAM),
        "begun": sink.begun,
    }
    with pytest.raises(FatalError) as raised:
        await ask[key.partition("/")[0]]()
    assert raised.value.code == "state_unreadable"
    assert name in str(raised.value)
    await sink.close()


async def test_when_one_look_fails_no_other_goes_on(server: S3Server) -> None:
    sink = await opened(server)
    shards = [f"shard-{n}" for n in range(40)]
    looked = 0

    async def refuse(_: Request) -> None:
        nonlocal looked
        looked += 1
        raise Refusal("AccessDenied", "no", 403)

    server.before = refuse
    with pytest.raises(FatalError) as denied:
        await sink.reached(STREAM, shards)
    assert denied.value.code == "access_denied"
    assert looked < len(shards), "those that waited for their turn never asked"
    await sink.close()


async def test_a_write_of_before_ends_nothing_of_the_newer_fence(server: S3Server) -> None:
    """Regression: it took the shard's new memory along, and the next write had to begin anew."""
    sink = await opened(server)
    old, late = await sink.fence(STREAM, "shard-1", "me"), await sink.fence(STREAM, "shard-1", "me")
    assert await sink.position(late) is None
    assert (await write(sink, pending(old, [PRODUCT]))).lost == {"shard-1"}
    assert (await write(sink, pending(late, [PRODUCT], then=SHARD_END))).rows == 1
    # And one that fails when its shard was fenced anew meanwhile.
    old = await sink.fence(STREAM, "shard-2", "me")
    usual = server.before

    async def fenced(request: Request) -> None:
        nonlocal late
        if request.operation == "PutObject" and "/plans/" in request.key:
            server.before = usual
            late = await sink.fence(STREAM, "shard-2", "me")
            raise Refusal("AccessDenied", "no", 403)

    server.before = fenced
    with pytest.raises(FatalError):
        await write(sink, pending(old, [PRODUCT], then=SHARD_END))
    assert (await write(sink, pending(late, [PRODUCT], then=SHARD_END))).rows == 1
    await sink.close()


# ---- plans that were left incomplete, and another configuration by then

REMOVALS = '{"eventName": ["REMOVE"]}'


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"filters": (REMOVALS,)}),
        ({"filters": (REMOVALS,)}, {}),
        ({}, {"tables": [ORDERS]}),
        ({"tables": [ORDERS]}, {}),
        ({}, {"attributes": AttributesConfig(exclude=("n",))}),
        ({"attributes": AttributesConfig(mask=("n",))}, {}),
        ({"prefix": Prefix.parse("data/{table}/")}, {}),
        ({}, {"prefix": Prefix.parse("data/{table}/!{timestamp:yyyy}/")}),
        ({"encoding": Encoding("plain", "none")}, {}),
        ({}, {"encoding": Encoding("raw", "zstd")}),
        ({}, {"error_prefix": Prefix.parse("elsewhere/")}),
    ],
)
async def test_a_plan_is_completed_by_what_it_was_decided_with(
    server: S3Server, before: dict[str, Any], now: dict[str, Any]
) -> None:
    """Regression: with another filter or list of tables any difference was taken for good, and
    changes of the plan were lost or others written."""
    changes = [
        put("products", {"id": {"S": "a"}}, NOON_US, n={"N": "1"}),
        put("orders", {"customer": {"S": "ann"}, "number": {"N": "7"}}, NOON_US + 1),
        remove("products", {"id": {"S": "b"}}, NOON_US + HOUR_US),
        b"broken",
    ]

    async def written(*, cut: bool, **then: Any) -> dict[str, bytes]:
        """All objects but the plans: of one worker, or of one that began and another one."""
        server.buckets["archive"].clear()
        if cut:
            tables = before.get("tables", [PRODUCTS, ORDERS])
            settings = {name: value for name, value in before.items() if name != "tables"}
            sink = await opened(server, tables, **settings)
            server.before = refuse_data
            fence = await sink.fence(STREAM, "shard-1", "me")
            with pytest.raises(FatalError):
                await write(sink, pending(fence, changes, then=SHARD_END))
            await sink.close()
            server.before = server.after
        tables = then.pop("tables", [PRODUCTS, ORDERS])
        sink = await opened(server, tables, **then)
        fence = await sink.fence(STREAM, "shard-1", "another")
        await write(sink, pending(fence, changes, then=SHARD_END))
        assert await sink.position(fence) == SHARD_END
        await sink.close()
        found = server.objects()
        # Names bear a mark of their worker.
        return {
            key.rpartition("-")[0] + key[key.index(".") :]: body
            for key, body in found.items()
            if not key.startswith("_replicator/")
        }

    expected = await written(cut=False, **before)
    assert await written(cut=True, **now) == expected


async def refuse_data(request: Request) -> None:
    if request.operation == "PutObject" and not request.key.startswith("_replicator/"):
        raise Refusal("AccessDenied", "no", 403)
