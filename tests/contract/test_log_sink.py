"""What the sinks that keep every change promise besides (law 2): each distinct change once, in
order per key, whatever comes again and whoever goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from replicator.model import SHARD_END, after
from tests.changes import STREAM, number, pending, put, remove
from tests.sink_rig import LOG_SINKS, PRODUCTS, LogRig, fenced, write

pytestmark = pytest.mark.parametrize("rig", LOG_SINKS, indirect=True)

BASE_US = 1_700_049_600_000_000


def product(name: str, ms: int, **attributes: Any) -> bytes:
    """A change of a product in that millisecond."""
    return put("products", {"id": {"S": name}}, BASE_US + ms * 1_000, **attributes)


async def test_every_change_of_a_key_is_kept_in_order(rig: LogRig) -> None:
    sink = await rig.worker()
    fence = await fenced(sink, "shard-1")
    gone = remove("products", {"id": {"S": "a"}}, BASE_US + 30_000)
    history = [product("a", 10), product("a", 20), gone, product("b", 25), product("a", 40)]
    result = await write(sink, pending(fence, history, then=SHARD_END))
    assert result.rows == 5
    assert await rig.changes(PRODUCTS) == {
        "a": [BASE_US + ms * 1_000 for ms in (10, 20, 30, 40)],
        "b": [BASE_US + 25_000],
    }


async def test_what_comes_out_of_order_within_the_window_is_sorted(rig: LogRig) -> None:
    sink = await rig.worker(reorder_window_seconds=1)
    fence = await fenced(sink, "shard-1")
    await write(sink, pending(fence, [product("a", 500), product("a", 2_400)]))
    await write(sink, pending(fence, [product("a", 2_100)], first=3, then=SHARD_END))
    assert (await rig.changes(PRODUCTS))["a"] == [
        BASE_US + ms * 1_000 for ms in (500, 2_100, 2_400)
    ]


async def test_copies_are_left_out_and_counted_in_another_write_too(rig: LogRig) -> None:
    sink = await rig.worker()
    fence = await fenced(sink, "shard-1")
    changes = [product(f"item-{n}", n) for n in range(3)]
    await write(sink, pending(fence, changes))
    result = await write(sink, pending(fence, changes[:2], first=4, then=SHARD_END))
    assert result.duplicates == 2
    assert await rig.keys(PRODUCTS) == ["item-0", "item-1", "item-2"]


async def test_who_goes_on_writes_the_rest_and_nothing_twice(rig: LogRig) -> None:
    """Also what the first one held back, and copies of what it wrote."""
    changes = [product(f"item-{n}", n * 700) for n in range(6)]
    first = await rig.worker(reorder_window_seconds=1)
    fence = await fenced(first, "shard-1")
    await write(first, pending(fence, changes[:4]))
    await first.close()
    second = await rig.worker(reorder_window_seconds=1)
    fence = await second.fence(STREAM, "shard-1", "another")
    position = await second.position(fence)
    read = position.sequence_number if position is not None else None
    begin = 0 if read is None else int(read) - int(number(0))
    assert begin <= 4
    again = [*changes[begin:], changes[0], changes[5]]
    await write(second, pending(fence, again, first=begin + 1, then=SHARD_END))
    assert await rig.keys(PRODUCTS) == [f"item-{n}" for n in range(6)]


async def test_what_is_held_comes_out_though_the_position_lies_behind_the_last_record(
    rig: LogRig,
) -> None:
    """Regression: a subscription goes on behind the last record, an iterator stays at it. Who took
    the shard over by polling waited for the next record, however long that took."""
    first = await rig.worker(reorder_window_seconds=1)
    fence = await fenced(first, "shard-1")
    behind = pending(fence, [product("a", 1)], then=after(number(50)), behind_ms=1_000)
    await write(first, behind)
    await first.close()
    second = await rig.worker(reorder_window_seconds=1)
    fence = await second.fence(STREAM, "shard-1", "another")
    assert await second.position(fence) != after(number(50)), "what is held is read again"
    await write(second, pending(fence, [product("a", 1)]))
    idle = pending(fence, [], then=after(number(1)))
    await write(second, replace(idle, received_at=100.0))
    assert await rig.keys(PRODUCTS) == ["a"]
    third = await rig.worker(reorder_window_seconds=1)
    assert await third.positions(STREAM) == {"shard-1": after(number(50))}, "it never goes back"


async def test_a_change_of_a_table_that_is_not_ours_is_left_out(rig: LogRig) -> None:
    sink = await rig.worker()
    fence = await fenced(sink, "shard-1")
    stranger = put("strangers", {"id": {"S": "x"}}, BASE_US)
    result = await write(sink, pending(fence, [stranger, product("a", 1)], then=SHARD_END))
    assert result.rows == 1
    assert await rig.keys(PRODUCTS) == ["a"]


async def test_what_a_filter_leaves_out_is_counted(rig: LogRig) -> None:
    sink = await rig.worker(filter=('{"eventName": ["REMOVE"]}',))
    fence = await fenced(sink, "shard-1")
    stranger = put("strangers", {"id": {"S": "x"}}, BASE_US)
    gone = remove("products", {"id": {"S": "b"}}, BASE_US)
    result = await write(sink, pending(fence, [product("a", 1), stranger, gone], then=SHARD_END))
    assert (result.rows, result.unmatched) == (1, 1), "other tables' are counted elsewhere"
    assert await rig.keys(PRODUCTS) == ["b"]


async def test_a_shard_has_a_writer_of_its_own(rig: LogRig) -> None:
    """What is held back of one waits for no other's position."""
    sink = await rig.worker()
    one, other = await fenced(sink, "shard-1"), await fenced(sink, "shard-2")
    assert sink.writer(one) is not sink.writer(other)
    await write(sink, pending(one, [product("a", 1)], then=SHARD_END))
    await write(sink, pending(other, [], then=after(number(9))))
    assert await sink.positions(STREAM) == {"shard-1": SHARD_END, "shard-2": after(number(9))}
