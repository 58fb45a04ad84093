"""What every sink keeps of the time until when a shard was read (law 9)."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from replicator.model import SHARD_END, TRIM_HORIZON, Reached, after, at_timestamp
from tests.changes import STREAM, number, pending, put
from tests.sink_rig import Rig, fenced, write


async def test_a_begun_shard_owes_what_comes_from_now_on(rig: Rig) -> None:
    sink = await rig.worker()
    before_us = time.time_ns() // 1_000
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
    reached = (await sink.reached(STREAM, ["shard-1", "unknown"]))["shard-1"]
    assert reached.last_arrival_us is None
    assert reached.tip_us is not None
    assert abs(reached.tip_us - before_us) < 60_000_000, "the clocks of one machine"
    assert reached.begun_us == reached.tip_us


async def test_a_start_by_time_owes_what_came_since_then(rig: Rig) -> None:
    sink = await rig.worker()
    now_us = time.time_ns() // 1_000
    past, to_come = now_us - 7_200_000_000, now_us + 7_200_000_000
    starts = {"shard-1": at_timestamp(past), "shard-2": at_timestamp(to_come)}

    async def require_tips() -> None:
        reached = await sink.reached(STREAM, list(starts))
        assert reached["shard-1"].tip_us == past
        assert abs((reached["shard-2"].tip_us or 0) - now_us) < 60_000_000, "never later than now"

    await sink.begin(STREAM, starts)
    await require_tips()
    await sink.move(STREAM, dict.fromkeys(starts, TRIM_HORIZON), "operator")
    await sink.move(STREAM, starts, "operator")
    await require_tips()


async def test_a_position_carries_its_last_arrival_and_when_nothing_lay_behind_it(rig: Rig) -> None:
    sink = await rig.worker()
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
    fence = await fenced(sink, "shard-1")

    async def reached(**how: Any) -> Reached:
        # Received just now, as far as the sink's own clock is concerned.
        one = replace(pending(fence, **how), received_at=time.monotonic())
        await write(sink, one)
        return (await sink.reached(STREAM, ["shard-1"]))["shard-1"]

    change = put("products", {"id": {"S": "1"}}, 1)
    hour_ms = 3_600_000
    behind = await reached(payloads=[change], first=7, behind_ms=hour_ms)
    assert behind.last_arrival_us == 1_700_000_000_007_000
    ago = time.time_ns() // 1_000 - (behind.tip_us or 0)
    assert abs(ago - hour_ms * 1_000) < 60_000_000, "also when that is before the beginning"
    at_tip = await reached(payloads=[], first=8, then=after(number(8)))
    assert at_tip.last_arrival_us == behind.last_arrival_us
    assert (at_tip.tip_us or 0) > (behind.tip_us or 0) + 3_000_000_000
    unknown = await reached(payloads=[], first=8, then=after(number(8)), behind_ms=None)
    assert unknown == at_tip, "what isn't known moves nothing"
    assert at_tip.begun_us == behind.begun_us is not None
    ended = await reached(payloads=[change], first=9, then=SHARD_END)
    assert ended.last_arrival_us == 1_700_000_000_009_000
    assert ended.tip_us == at_tip.tip_us, "its children may have begun long before its end is read"


async def test_a_position_moved_by_hand_ends_every_fence_and_forgets_its_times(rig: Rig) -> None:
    sink = await rig.worker()
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
    fence = await fenced(sink, "shard-1")
    change = put("products", {"id": {"S": "1"}}, 1)
    await write(sink, pending(fence, [change], first=7, then=SHARD_END))
    hand = await rig.worker()
    wanted = {"shard-1": after(number(3)), "shard-2": TRIM_HORIZON}
    old = await hand.move(STREAM, wanted, "operator")
    assert old == {"shard-1": SHARD_END, "shard-2": None}
    another = put("products", {"id": {"S": "2"}}, 2)
    assert (await write(sink, pending(fence, [another], first=8))).lost == {"shard-1"}
    other = await rig.worker()
    assert await other.positions(STREAM) == wanted
    reached = await other.reached(STREAM, ["shard-1", "shard-2"])
    assert [reached[shard].last_arrival_us for shard in wanted] == [None, None]
    assert all(reached[shard].tip_us for shard in wanted)
    again = await other.fence(STREAM, "shard-1", "me")
    assert again.epoch > fence.epoch + 1
    assert await other.position(again) == after(number(3))
    assert (await write(other, pending(again, [change], first=4))).lost == frozenset()
