"""What the sinks that hold the newest item of each key promise besides (laws 2 and 3)."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import Any

import pytest

from replicator.errors import LeaseLost, TransientError
from replicator.model import (
    SHARD_END,
    WriteResult,
    after,
)
from tests.aggregates import aggregate
from tests.changes import STREAM, number, pending, put, received, remove
from tests.sink_rig import (
    ORDERS,
    PRODUCTS,
    STATE_SINKS,
    Content,
    StateRig,
    write,
)

pytestmark = pytest.mark.parametrize("rig", STATE_SINKS, indirect=True)


@pytest.mark.parametrize("split", [(1, 2), (2, 1), (1, 1, 1)])
async def test_changes_of_one_instant_follow_the_chain_of_images_across_writes(
    rig: StateRig, split: tuple[int, ...]
) -> None:
    key = {"id": {"S": "1"}}
    first, second = {**key, "n": {"N": "1.0"}}, {**key, "n": {"N": "2"}}
    history = [
        put("products", key, 7, n={"N": "1"}),
        put("products", key, 7, first, n={"N": "2.0"}),
        put("products", key, 7, second, n={"N": "3"}),
    ]
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard", "worker")
    at = 0
    for length in split:
        result = await write(sink, pending(fence, history[at : at + length], first=at + 1))
        assert (result.rows, result.duplicates, result.superseded) == (1, 0, 0)
        at += length
    expected: Content = {("1",): ({"id": "1", "n": Decimal(3)}, Decimal(7))}
    assert await rig.content(PRODUCTS) == expected
    again = await write(sink, pending(fence, history[1:2], first=9))
    assert (again.rows, again.duplicates) == (0, 1), "what came before it is still known"
    again = await write(sink, pending(fence, history[2:], first=10))
    assert (again.rows, again.duplicates) == (0, 1)
    gone = await write(
        sink, pending(fence, [remove("products", key, 7, {**key, "n": {"N": "3"}})], first=11)
    )
    assert gone.rows == 1
    assert await rig.content(PRODUCTS) == {("1",): (None, Decimal(7))}


# ---- writing


async def test_changes_and_position_become_visible_together(rig: StateRig) -> None:
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    result = await write(
        sink,
        pending(
            fence,
            [
                put("products", {"id": {"S": "apple"}}, 1000, stock={"N": "3"}),
                put("orders", {"customer": {"S": "ann"}, "number": {"N": "7"}}, 1001),
                put("elsewhere", {"id": {"S": "x"}}, 1002),
            ],
        ),
    )
    assert result == WriteResult(rows=2)
    assert await rig.content(PRODUCTS) == {
        ("apple",): ({"id": "apple", "stock": Decimal(3)}, Decimal(1000))
    }
    assert await rig.content(ORDERS) == {
        ("ann", Decimal(7)): ({"customer": "ann", "number": Decimal(7)}, Decimal(1001))
    }
    assert await sink.position(fence) == after(number(3))


async def test_writing_twice_is_writing_once(rig: StateRig) -> None:
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    writer: Any = sink.writer(fence)
    apple: Any = {"id": {"S": "apple"}}
    payload = writer.encode(
        [pending(fence, [put("products", apple, 1000), b"broken", put("products", apple, 2000)])]
    )
    first: WriteResult = await writer.write(payload)
    content = await rig.content(PRODUCTS)
    again: WriteResult = await writer.write(payload)
    assert (first.rows, first.duplicates) == (1, 0)
    assert (again.rows, again.duplicates, again.superseded) == (0, 1, 0)
    assert await rig.content(PRODUCTS) == content
    assert await sink.position(fence) == after(number(3))
    letters = await rig.dead_letters()
    assert letters == {("shard-1", number(2), 0): ("malformed_json", b"broken", 2)}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_the_newest_version_wins_in_any_order(rig: StateRig, order: tuple[int, ...]) -> None:
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    apple: Any = {"id": {"S": "apple"}}
    history = [
        put("products", apple, 1000, stock={"N": "1"}),
        remove("products", apple, 2000),
        put("products", apple, 3000, stock={"N": "2"}),
        remove("products", apple, 4000),
    ]
    total = 0
    for place, index in enumerate(order):
        result = await write(sink, pending(fence, [history[index]], first=place + 1))
        total += result.rows + result.superseded
    assert total == len(history)
    assert await rig.content(PRODUCTS) == {("apple",): (None, Decimal(4000))}


async def test_a_tombstone_keeps_an_older_change_out(rig: StateRig) -> None:
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    apple: Any = {"id": {"S": "apple"}}
    await write(sink, pending(fence, [remove("products", apple, 2000)]))
    late = await write(sink, pending(fence, [put("products", apple, 1000)], first=2))
    assert (late.rows, late.superseded) == (0, 1)
    again = await write(sink, pending(fence, [put("products", apple, 3000)], first=3))
    assert again.rows == 1
    assert await rig.content(PRODUCTS) == {("apple",): ({"id": "apple"}, Decimal(3000))}


async def test_changes_of_several_shards_in_one_write(rig: StateRig) -> None:
    sink = await rig.worker()
    fences = [await sink.fence(STREAM, f"shard-{n}", "me") for n in range(1, 4)]
    apple: Any = {"id": {"S": "apple"}}
    waiting = [
        pending(fence, [put("products", apple, us), put("products", {"id": {"S": str(us)}}, us)])
        for fence, us in zip(fences, (3000, 1000, 2000), strict=True)
    ]
    result = await write(sink, *waiting)
    assert result.rows == 4
    content = await rig.content(PRODUCTS)
    assert content["apple",][1] == Decimal(3000)
    assert len(content) == 4
    assert set((await sink.positions(STREAM)).values()) == {after(number(2))}


async def test_what_comes_again_in_another_fetch_of_the_write_is_counted(rig: StateRig) -> None:
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    apple: Any = {"id": {"S": "apple"}}
    made, other = put("products", apple, 1000), put("products", apple, 2000)
    # Of a table that isn't ours; each copy of it is dropped, and counted there.
    stranger = put("strangers", apple, 1000)
    # Two writes of one instant, neither of which begins with the other.
    ripe, green = (
        put("products", {"id": {"S": "pear"}}, 7, None, stock={"N": stock}) for stock in "12"
    )
    result = await write(
        sink,
        pending(fence, [made, other, made, ripe, stranger]),
        pending(fence, [other, made, green, stranger], first=10),
    )
    assert (result.rows, result.duplicates, result.ambiguous) == (2, 2, 2)


async def test_a_lost_shard_is_returned_and_nothing_of_it_written(rig: StateRig) -> None:
    mine, others = await rig.worker(), await rig.worker()
    lost = await mine.fence(STREAM, "shard-1", "me")
    kept = await mine.fence(STREAM, "shard-2", "me")
    apple: Any = {"id": {"S": "apple"}}
    # The lost shard holds the newest change of a key that the other has too.
    waiting = [
        pending(lost, [put("products", apple, 5000), b"broken there"]),
        pending(kept, [put("products", apple, 4000), b"broken here"], first=10),
    ]
    taken = await others.fence(STREAM, "shard-1", "another")
    result = await write(mine, *waiting)
    assert result.lost == {"shard-1"}
    assert result.rows == 1
    assert await rig.content(PRODUCTS) == {("apple",): ({"id": "apple"}, Decimal(4000))}
    assert await mine.positions(STREAM) == {"shard-2": after(number(11))}
    assert await others.position(taken) is None
    assert {raw for _, raw, _ in (await rig.dead_letters()).values()} == {b"broken here"}


async def test_a_record_with_the_wrong_key_is_a_dead_letter(rig: StateRig) -> None:
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    wrong = put("products", {"id": {"N": "5"}}, 1000)
    result = await write(sink, pending(fence, [put("products", {"id": {"S": "5"}}, 1000), wrong]))
    assert result.rows == 1
    assert [letter.shard_id for letter in result.dead_letters] == ["shard-1"]
    assert [letter.table for letter in result.dead_letters] == ["products"]
    assert sum(result.rejected_by_code.values()) == 1
    assert list(await rig.content(PRODUCTS)) == [("5",)]
    ((at, (_, raw, attempts)),) = (await rig.dead_letters()).items()
    assert (at, raw, attempts) == (("shard-1", number(2), 0), wrong, 1)


async def test_user_records_of_an_aggregate_are_told_apart(rig: StateRig) -> None:
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    apple: Any = {"id": {"S": "apple"}}
    broken = [f"broken {n} {'-' * 30}".encode() for n in range(3)]
    # Two changes of one instant, and nothing but their places says which is the later.
    first, second = (put("products", apple, 1000, n={"N": n}) for n in ("1", "2"))
    together = aggregate([broken[0], first, broken[1], broken[2], second])
    result = await write(sink, received(fence, [together], first=7))
    assert len(result.dead_letters) == 3
    assert await rig.content(PRODUCTS) == {("apple",): ({"id": "apple", "n": 2}, Decimal(1000))}
    assert await sink.position(fence) == after(number(7))
    wanted = {
        ("shard-1", number(7), index): ("malformed_json", raw, 1)
        for index, raw in zip((0, 2, 3), broken, strict=True)
    }
    assert await rig.dead_letters() == wanted
    # Read again, and with others before it: the same dead letters.
    pear = put("products", {"id": {"S": "pear"}}, 1000)
    await write(sink, received(fence, [b"broken", pear, together], first=5))
    again = {at: (code, raw, 2) for at, (code, raw, _) in wanted.items()}
    broken_before = {("shard-1", number(5), 0): ("malformed_json", b"broken", 1)}
    assert await rig.dead_letters() == again | broken_before


# ---- a failover that lost the last transactions


async def test_a_write_after_a_lossy_failover_is_refused_before_anything_of_it(
    rig: StateRig,
) -> None:
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    assert await sink.position(fence) is None
    history = [put("products", {"id": {"S": str(n)}}, n) for n in range(1, 5)]
    await write(sink, pending(fence, history[:1]))
    await rig.copied()
    # A new connection alone is nothing to stop for.
    assert (await write(sink, pending(fence, history[1:2], first=2))).rows == 1
    await rig.failed_over()
    for _ in range(2):
        with pytest.raises(TransientError) as moved:
            await write(sink, pending(fence, [history[2], b"broken"], first=3))
        assert moved.value.code == "position_moved"
    assert set(await rig.content(PRODUCTS)) == {("1",)}
    assert await rig.dead_letters() == {}
    # The fence is still ours there, so it is enough to look and to read again.
    assert await sink.position(fence) == after(number(1))
    assert (await write(sink, pending(fence, history[1:], first=2))).rows == 3
    assert await sink.position(fence) == after(number(4))


async def test_what_was_lost_at_the_end_of_a_shard_is_missed_too(rig: StateRig) -> None:
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    await rig.copied()
    await write(sink, pending(fence, [put("products", {"id": {"S": "1"}}, 1)], then=SHARD_END))
    await rig.failed_over()
    with pytest.raises(TransientError) as moved:
        await write(sink, pending(fence, [], then=SHARD_END))
    assert moved.value.code == "position_moved"
    assert await sink.position(fence) is None


async def test_one_shard_that_moved_stops_the_whole_write(rig: StateRig) -> None:
    sink = await rig.worker()
    kept = await sink.fence(STREAM, "shard-1", "me")
    moving = await sink.fence(STREAM, "shard-2", "me")
    await rig.copied()
    await write(sink, pending(moving, [put("products", {"id": {"S": "1"}}, 1)]))
    await rig.failed_over()
    with pytest.raises(TransientError):
        await write(
            sink,
            pending(kept, [put("products", {"id": {"S": "2"}}, 2)]),
            pending(moving, [put("products", {"id": {"S": "3"}}, 3)], first=2),
        )
    assert await rig.content(PRODUCTS) == {}
    assert await sink.positions(STREAM) == {}


@pytest.mark.parametrize("other", ["another", "me"])
async def test_an_epoch_raised_again_after_a_lossy_failover_kills_the_lost_fence(
    rig: StateRig, other: str
) -> None:
    mine, others = await rig.worker(), await rig.worker()
    await rig.copied()
    lost = await mine.fence(STREAM, "shard-1", "me")
    await rig.failed_over()
    newest = await others.fence(STREAM, "shard-1", other)
    assert newest.epoch == lost.epoch
    with pytest.raises(LeaseLost):
        await mine.position(lost)
    result = await write(mine, pending(lost, [put("products", {"id": {"S": "1"}}, 1)]))
    assert result == WriteResult(lost=frozenset({"shard-1"}))
    assert await others.position(newest) is None


async def test_a_fence_that_the_failover_lost_is_lost(rig: StateRig) -> None:
    sink = await rig.worker()
    await sink.fence(STREAM, "shard-1", "me")
    await rig.copied()
    fence = await sink.fence(STREAM, "shard-1", "me")
    await rig.failed_over()
    with pytest.raises(LeaseLost):
        await sink.position(fence)
    assert (await write(sink, pending(fence, []))).lost == {"shard-1"}


# ---- changes of one instant that nobody can order


async def test_a_put_and_a_delete_of_one_instant_are_ambiguous_and_delivered_again_known(
    rig: StateRig,
) -> None:
    """Regression: the delete left nothing, the INSERT begins with nothing, so a copy of it
    seemed to be the later one."""
    apple: Any = {"id": {"S": "apple"}}
    made = put("products", apple, 7, stock={"N": "3"})
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [made]))
    gone = await write(
        sink, pending(fence, [remove("products", apple, 7, {**apple, "stock": {"N": "3"}})])
    )
    assert (gone.rows, gone.ambiguous) == (1, 1), "a circle: the arrival decides"
    again = await write(
        sink, pending(fence, [made, put("products", {"id": {"S": "pear"}}, 7)], first=3)
    )
    assert (again.rows, again.duplicates, again.ambiguous) == (1, 1, 0)
    assert (await rig.content(PRODUCTS))["apple",] == (None, Decimal(7))
    # A second later it is an item of its own again.
    assert (await write(sink, pending(fence, [put("products", apple, 8)], first=5))).rows == 1


async def test_a_change_that_the_images_do_order_is_not_ambiguous(rig: StateRig) -> None:
    apple: Any = {"id": {"S": "apple"}}
    first = {**apple, "n": {"N": "1"}}
    sink = await rig.worker()
    fence = await sink.fence(STREAM, "shard-1", "me")
    await write(sink, pending(fence, [put("products", apple, 7, first, n={"N": "2"})]))
    early = await write(sink, pending(fence, [put("products", apple, 7, n={"N": "1"})], first=2))
    assert (early.rows, early.superseded, early.ambiguous) == (0, 1, 0)
