"""What a shard remembers at its end, over the wire: at each log sink its children begin with it,
whoever begins them and however often."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from replicator.core.windows import Windows
from replicator.errors import TransientError
from replicator.model import SHARD_END, TRIM_HORIZON, Fence, after
from replicator.sink.kafka import KafkaSink
from replicator.sink.kafka_positions import MEMORY_SECONDS, Stored
from replicator.sink.s3 import S3Sink
from replicator.testing.json_server import Refusal
from replicator.testing.kafka_server import KafkaServer
from replicator.testing.s3_server import Request, S3Server
from tests import archive
from tests.archive import NOON_US, lines, opened, plans, times_each
from tests.changes import STREAM, number, pending, put
from tests.kafka_rig import BASE_US, Rig, kafka_rig, product, write


@pytest.fixture
async def rig(kafka_server: KafkaServer) -> AsyncIterator[Rig]:
    async with kafka_rig(kafka_server) as made:
        yield made


@pytest.fixture
async def bucket(credentials: None) -> AsyncIterator[S3Server]:
    async with S3Server() as running:
        yield running


async def begun(sink: Any, shard: str, parents: Sequence[str] = (), owner: str = "me") -> Fence:
    """A fence with its position read, as a reader does it."""
    fence: Fence = await sink.fence(STREAM, shard, owner)
    sink.inherit(fence, parents)
    await sink.position(fence)
    return fence


# ---- Kafka


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_copy_in_a_child_is_left_out_of_kafka(rig: Rig, delivery: str) -> None:
    changes = [product(n) for n in range(6)]
    sink = await rig.worker(delivery=delivery)
    for shard, some in (("left", changes[:3]), ("right", changes[3:])):
        await write(sink, pending(await begun(sink, shard), some, then=SHARD_END))
    # Another worker takes the child, and is taken over itself: it reads from the beginning.
    for behind in ([], [changes[1], changes[4]]):
        other = await rig.worker(delivery=delivery)
        child = await begun(other, "child", ["left", "right", "unknown"])
        result = await write(other, pending(child, [changes[0], changes[3], *behind]))
        assert result.duplicates == 2
    # So the grandchild knows, too: of the child, and of its parents by it.
    new = product(6)
    await write(other, pending(child, [new], first=5, then=SHARD_END))
    grandchild = await begun(other, "grandchild", ["child"])
    result = await write(other, pending(grandchild, [changes[5], new, product(7)]))
    assert result.duplicates == 2
    assert await rig.seen() == [n * 1_000_000 for n in range(8)]


async def test_an_older_change_in_a_child_undoes_nothing_in_a_compacted_topic(rig: Rig) -> None:
    key = {"id": {"S": "a"}}
    older, newer = (put("products", key, BASE_US + n, n={"N": str(n)}) for n in (1, 2))
    sink = await rig.worker(cleanup="compact")
    await write(sink, pending(await begun(sink, "parent"), [newer], then=SHARD_END))
    child = await begun(sink, "child", ["parent"])
    result = await write(sink, pending(child, [older]))
    assert result.superseded == 1
    assert await rig.seen() == [2]


async def test_a_long_memory_lies_in_several_records_and_is_removed_in_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.sink.kafka_positions._PART_BYTES", 100)
    sink = await rig.worker()
    changes = [product(n) for n in range(20)]
    await write(sink, pending(await begun(sink, "parent"), changes, then=SHARD_END))
    other = await rig.worker()
    child = await begun(other, "child", ["parent"])
    assert parts(other, "parent") > 10
    result = await write(other, pending(child, changes, then=after(number(20))))
    assert result.duplicates == 20
    sibling = await begun(other, "sibling", ["parent"])
    now_us = other._now_us()
    other._now_us = lambda: now_us + (MEMORY_SECONDS + 1) * 1_000_000
    for ending, removed in ((child, False), (sibling, False), (await begun(other, "last"), True)):
        await write(other, pending(ending, [], first=21, then=SHARD_END))
        await begun(sink, "grandchild", ["child"])
        await begun(other, "grandchild", ["child"])
        assert (parts(sink, "parent") == 0) == removed
    assert parts(sink, "child") > 10
    assert await rig.seen() == [n * 1_000_000 for n in range(20)]


@pytest.mark.parametrize("families", [{"child": ["parent"]}, {"merged": ["parent", "other"]}, {}])
async def test_a_child_that_begins_months_later_knows_what_its_parent_wrote(
    rig: Rig, families: dict[str, list[str]]
) -> None:
    """Regression: a week after a shard's end the next one's removed what it had remembered, though
    a stream may keep a child's changes for a year: here the second of a split, which waits for
    somebody, and both parents of a merge, of which one is far behind."""
    sink = await rig.worker()
    now_us = sink._now_us()
    await write(sink, pending(await begun(sink, "parent"), [product(1)], then=SHARD_END))
    for name, parents in families.items():
        if len(parents) == 1:
            child = await begun(sink, name, parents)
            await write(sink, pending(child, [product(2)], then=SHARD_END))
    sink._now_us = lambda: now_us + 300 * 86_400 * 1_000_000
    for name in ("other", "another"):
        await write(sink, pending(await begun(sink, name), [], then=SHARD_END))
        await sink.positions(STREAM)
    late = await begun(sink, "late", families.get("merged", ["parent"]))
    assert (await write(sink, pending(late, [product(1)], then=SHARD_END))).duplicates == 1
    # Longer than any stream keeps the beginning of a child.
    sink._now_us = lambda: now_us + 367 * 86_400 * 1_000_000
    await write(sink, pending(await begun(sink, "end"), [], then=SHARD_END))
    await sink.positions(STREAM)
    assert parts(sink, "parent") == 0


async def test_a_shard_that_ends_again_much_later_is_remembered_again(rig: Rig) -> None:
    """Regression: its end removed what it had remembered long ago behind what it remembered now."""
    sink = await rig.worker()
    now_us = sink._now_us()
    await write(sink, pending(await begun(sink, "parent"), [product(1)], then=SHARD_END))
    sink._now_us = lambda: now_us + (MEMORY_SECONDS + 60) * 1_000_000
    await sink.move(STREAM, {"parent": TRIM_HORIZON}, "operator")
    await write(sink, pending(await begun(sink, "parent"), [product(1)], then=SHARD_END))
    child = await begun(sink, "child", ["parent"])
    assert (await write(sink, pending(child, [product(1)]))).duplicates == 1


def parts(sink: KafkaSink, shard: str) -> int:
    found = [parts for key, parts in sink._positions._parts.items() if key[3] == shard]
    return sum(map(len, found))


async def test_what_is_gone_is_not_waited_for(rig: Rig) -> None:
    """As after an upgrade, or where somebody removed it."""
    sink = await rig.worker()
    await write(sink, pending(await begun(sink, "parent"), [product(1)], then=SHARD_END))
    for parts in (9, 0):
        for key, stored in list(sink._positions._shards.items()):
            sink._positions._shards[key] = Stored.of(
                json.loads(stored.to_bytes()) | {"parts": parts}
            )
        fence = await sink.fence(STREAM, f"child-{parts}", "me")
        sink.inherit(fence, ["parent"])
        assert await sink.position(fence) is None


async def test_a_key_that_was_quarantined_stays_so_in_the_children(rig: Rig) -> None:
    settings = {"max.message.bytes": "2000", "retention.ms": "-1"}
    sink = await rig.worker(compression="none", topic_settings=settings)
    keys = [{"id": {"S": key}} for key in ("a", "b")]
    large = put("products", keys[0], BASE_US, n={"S": "x" * 3_000})
    await write(sink, pending(await begun(sink, "parent"), [large], then=SHARD_END))
    later = [put("products", key, BASE_US + 1_000_000) for key in keys]
    for shard, parent, payloads in (("child", "parent", []), ("grandchild", "child", later)):
        fence = await begun(sink, shard, [parent])
        result = await write(sink, pending(fence, payloads, then=SHARD_END))
    assert (result.rows, dict(result.rejected_by_code)) == (1, {"key_quarantined": 1})
    assert [letter.value for letter in await rig.letters()] == [large, later[0]]


# ---- S3


def item(n: int) -> bytes:
    return put("products", {"id": {"S": f"item-{n}"}}, NOON_US + n * 1_000_000)


async def test_a_copy_in_a_child_is_left_out_of_the_bucket(bucket: S3Server) -> None:
    changes = [item(n) for n in range(6)]
    sink = await opened(bucket)
    for shard, some in (("left", changes[:3]), ("right", changes[3:])):
        fence = await begun(sink, shard)
        await archive.write(sink, pending(fence, some, then=SHARD_END))
    await sink.close()
    for behind in ([item(6)], [item(6), changes[1], changes[4]]):
        sink = await opened(bucket)
        child = await begun(sink, "child", ["left", "right", "unknown"])
        result = await archive.write(sink, pending(child, [changes[0], changes[3], *behind]))
        assert result.duplicates == 2
        if len(behind) == 1:
            await sink.close()
    await archive.write(sink, pending(child, [], first=6, then=SHARD_END))
    grandchild = await begun(sink, "grandchild", ["child"])
    again = pending(grandchild, [changes[5], item(6), item(7)], then=SHARD_END)
    await archive.write(sink, again)
    assert sorted(times_each(bucket).values()) == [1] * 8
    await sink.close()


async def test_who_its_parents_are_is_not_forgotten_while_others_begin(bucket: S3Server) -> None:
    """Regression: a child that moved on meanwhile, as by a worker that was just fenced, began
    without its parents."""
    sink = await opened(bucket)
    await archive.write(sink, pending(await begun(sink, "parent"), [item(1)], then=SHARD_END))
    child = await sink.fence(STREAM, "child", "me")
    usual = bucket.before

    async def moved(request: Request) -> None:
        bucket.before = usual
        sink.writer(child).end()
        await sink.fence(STREAM, "other", "me")

    bucket.before = moved
    sink.inherit(child, ["parent"])
    await sink.position(child)
    result = await archive.write(sink, pending(child, [item(1)], then=SHARD_END))
    assert result.duplicates == 1
    await sink.close()


async def test_a_plan_of_a_child_is_completed_with_what_its_parent_remembered(
    bucket: S3Server,
) -> None:
    """Its worker dies before its object; who completes it knows the copies that were left out."""
    changes = [item(n) for n in range(3)]
    first = await opened(bucket)
    parent = await begun(first, "parent")
    await archive.write(first, pending(parent, changes, then=SHARD_END))
    child = await begun(first, "child", ["parent"])

    usual = bucket.before

    async def gone(request: Request) -> None:
        if request.operation == "PutObject" and request.key.startswith("data/"):
            raise Refusal("ServiceUnavailable", "as scripted", 503)

    bucket.before = gone
    range_ = [changes[0], item(3), changes[2], item(9)]
    with pytest.raises(TransientError):
        await archive.write(first, pending(child, range_))
    await first.close()
    bucket.before = usual
    second = await opened(bucket)
    child = await begun(second, "child", ["parent"], "another")
    assert await second.position(child) is None
    for n, change in enumerate(range_, 1):
        await archive.write(second, pending(child, [change], first=n))
    await archive.write(second, pending(child, [], first=5, then=SHARD_END))
    assert sorted(times_each(bucket).values()) == [1] * 5
    counted = {plan["ordinal"]: plan for plan in plans(bucket) if plan["shard_id"] == "child"}
    assert counted[1]["known"] == 2
    assert sum(each["count"] for each in counted[1]["objects"]) == 1
    await second.close()


async def test_a_plan_that_was_decided_without_a_memory_is_completed_without_it(
    bucket: S3Server,
) -> None:
    """Regression: by a worker of another version, say. What it didn't know was taken for missing,
    and the shard stopped."""
    first = await opened(bucket)
    await archive.write(first, pending(await begun(first, "parent"), [item(1)], then=SHARD_END))
    (key,) = bucket.objects(prefix="_replicator/memories/")
    stored = bucket.buckets["archive"][key]
    body, stored.body = stored.body, b"rwindow9 and more"
    child = await begun(first, "child", ["parent"])
    usual = bucket.before

    async def gone(request: Request) -> None:
        if request.operation == "PutObject" and request.key.startswith("data/"):
            raise Refusal("ServiceUnavailable", "as scripted", 503)

    bucket.before = gone
    with pytest.raises(TransientError):
        await archive.write(first, pending(child, [item(1), item(2)], then=SHARD_END))
    await first.close()
    bucket.before, stored.body = usual, body
    second = await opened(bucket)
    child = await begun(second, "child", ["parent"], "another")
    await archive.write(second, pending(child, [item(1), item(2)], then=SHARD_END))
    assert await second.positions(STREAM) == {"parent": SHARD_END, "child": SHARD_END}
    assert sum(times_each(bucket).values()) == 3
    await second.close()


async def test_a_memory_that_somebody_removed_is_not_waited_for(bucket: S3Server) -> None:
    sink = await opened(bucket)
    await archive.write(sink, pending(await begun(sink, "parent"), [item(1)], then=SHARD_END))
    (key,) = bucket.objects(prefix="_replicator/memories/")
    del bucket.buckets["archive"][key]
    child = await begun(sink, "child", ["parent"])
    await archive.write(sink, pending(child, [item(2)], then=SHARD_END))
    assert sorted(times_each(bucket).values()) == [1, 1]
    await sink.close()


async def test_an_end_without_its_memory_is_not_complete(bucket: S3Server) -> None:
    first = await opened(bucket)
    parent = await begun(first, "parent")

    usual = bucket.before

    async def gone(request: Request) -> None:
        if request.operation == "PutObject" and "/memories/" in request.key:
            raise Refusal("ServiceUnavailable", "as scripted", 503)

    bucket.before = gone
    end = pending(parent, [item(1)], then=SHARD_END)
    with pytest.raises(TransientError):
        await archive.write(first, end)
    assert await first.positions(STREAM) == {}
    await first.close()
    bucket.before = usual
    second = await opened(bucket)
    parent = await begun(second, "parent", owner="another")
    await archive.write(second, pending(parent, [item(1)], then=SHARD_END))
    assert await second.positions(STREAM) == {"parent": SHARD_END}
    child = await begun(second, "child", ["parent"])
    assert (await archive.write(second, pending(child, [item(1)], then=SHARD_END))).duplicates == 1
    assert len(lines(bucket)) == 1
    await second.close()


# ---- memory that is short


@pytest.mark.parametrize(
    ("there", "here"), [(1 << 30, 0), (12_000, 0), (0, 1 << 30), (12_000, 1 << 30)]
)
async def test_a_plan_is_completed_as_it_is_however_much_memory_there_is(
    bucket: S3Server, there: int, here: int
) -> None:
    """What was given early there belongs to the plan, what would be early here doesn't."""

    async def worker(windows: int) -> S3Sink:
        sink = S3Sink(archive.settings(bucket.url), windows=Windows(windows))
        await sink.open([archive.PRODUCTS])
        return sink

    times = [*range(0, 500_000, 25_000), *range(2_000_000, 2_500_000, 25_000)]
    changes = [put("products", {"id": {"S": f"item-{us}"}}, NOON_US + us) for us in times]
    usual = bucket.before

    async def gone(request: Request) -> None:
        if request.operation == "PutObject" and request.key.startswith("data/"):
            raise Refusal("ServiceUnavailable", "as scripted", 503)

    first = await worker(there)
    fence = await begun(first, "shard")
    bucket.before = gone
    fetches = [
        pending(fence, changes[at : at + 5], first=at + 1) for at in range(0, len(changes), 5)
    ]
    with pytest.raises(TransientError):
        await archive.write(first, *fetches)
    assert first._windows.held == 0, "it is of no use any more"
    await first.close()
    bucket.before = usual
    second = await worker(here)
    fence = await begun(second, "shard", owner="another")
    for at in range(0, len(changes), 8):
        some = changes[at : at + 8]
        await archive.write(second, pending(fence, some, first=at + 1))
    (plan,) = plans(bucket)
    counted = sum(each["count"] for each in plan["objects"])
    assert len(times_each(bucket)) == counted
    assert counted == (20 if there > 12_000 else 40 if not there else counted)
    assert counted >= 20
    await archive.write(second, pending(fence, [], first=len(changes) + 1, then=SHARD_END))
    assert sorted(times_each(bucket).values()) == [1] * len(changes)
    assert second._windows.held == 0
    await second.close()


async def test_a_plan_that_is_being_completed_forgets_nothing_for_others(bucket: S3Server) -> None:
    """Regression: another shard that wanted room had it forget what the plan left out."""
    changes = [item(n) for n in range(40)]
    usual = bucket.before

    async def gone(request: Request) -> None:
        if request.operation == "PutObject" and request.key.startswith("data/"):
            raise Refusal("ServiceUnavailable", "as scripted", 503)

    first = await opened(bucket)
    fence = await begun(first, "shard")
    await archive.write(first, pending(fence, changes))
    bucket.before = gone
    with pytest.raises(TransientError):
        await archive.write(first, pending(fence, [*changes, item(45)], first=41))
    await first.close()
    bucket.before = usual
    second = S3Sink(archive.settings(bucket.url), windows=Windows(10_000))
    await second.open([archive.PRODUCTS])
    fence = await begun(second, "shard", owner="another")
    other = await begun(second, "other", owner="another")
    for at, some in ((1, changes), (41, [*changes, item(45)])):
        await archive.write(second, pending(fence, some, first=at))
        await archive.write(second, pending(other, [item(1_000 + at)], first=at))
    for one in (fence, other):
        await archive.write(second, pending(one, [], first=82, then=SHARD_END))
    assert set(times_each(bucket).values()) == {1}
    assert len(times_each(bucket)) == 43
    await second.close()


# ---- memories that children begin with


async def test_what_is_inherited_counts_at_once_and_is_given_back(
    rig: Rig, bucket: S3Server
) -> None:
    """Regression: nobody knew of it before the child's first write."""
    windows = Windows(1 << 30)
    archived = S3Sink(archive.settings(bucket.url), windows=windows)
    await archived.open([archive.PRODUCTS])
    kafka = await rig.worker()
    kafka._windows = windows
    sinks: list[tuple[Any, bytes]] = [(archived, item(1)), (kafka, product(1))]
    for sink, change in sinks:
        fence = await begun(sink, "parent")
        writer = sink.writer(fence)
        await writer.write(writer.encode([pending(fence, [change], then=SHARD_END)]))
        assert windows.held == 0
        child = await begun(sink, "child", ["parent"])
        await sink.position(child)
        assert windows.held > 100
        windows.limit = 100
        await begun(sink, "child", ["parent"])
        assert windows.held <= 100
        windows.limit = 1 << 30
        await sink.close()
        assert windows.held == 0


async def test_a_memory_of_another_version_is_passed_over(
    rig: Rig, bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it ended the worker, with an error of no class."""
    sink = await opened(bucket)
    await archive.write(sink, pending(await begun(sink, "parent"), [item(1)], then=SHARD_END))
    (key,) = bucket.objects(prefix="_replicator/memories/")
    bucket.buckets["archive"][key].body = b"rwindow9 and more"
    child = await begun(sink, "child", ["parent"])
    assert (await archive.write(sink, pending(child, [item(2)], then=SHARD_END))).rows == 1
    await sink.close()

    async def remembered(_: Any) -> bytes:
        return b"rwindow9 and more"

    kafka = await rig.worker()
    monkeypatch.setattr(kafka._positions, "remembered", remembered)
    child = await begun(kafka, "child", ["parent"])
    assert (await write(kafka, pending(child, [product(2)]))).rows == 1
