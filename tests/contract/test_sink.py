"""What `protocols.Sink` and `protocols.Writer` promise, over every implementation: those that hold
the newest item of each key, and those that hold every change."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from replicator.errors import LeaseLost, TransientError
from replicator.model import (
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    Fence,
    Position,
    WriteResult,
    after,
    at_timestamp,
)
from tests.changes import STREAM, number, pending, put
from tests.sink_rig import ORDERS, PRODUCTS, RECREATED, AnySink, Rig, fenced, write

APPLE: Any = {"id": {"S": "apple"}}


async def begun(sink: AnySink, starts: dict[str, Position]) -> bool:
    """As the coordinator begins: what may pass is tried again."""
    while True:
        try:
            return await sink.begin(STREAM, starts)
        except TransientError:
            await asyncio.sleep(0)


# ---- the stream's beginning


async def test_a_start_is_stored_once(rig: Rig) -> None:
    sink = await rig.worker()
    assert not await sink.is_known(STREAM)
    assert await sink.begun() == []
    starts = {"shard-1": at_timestamp(1_700_000_000_000_000), "shard-2": TRIM_HORIZON}
    assert await sink.begin(STREAM, starts)
    other = await rig.worker()
    assert await other.is_known(STREAM)
    assert not await other.begin(STREAM, {"shard-1": LATEST, "shard-3": LATEST})
    assert await other.positions(STREAM) == starts


async def test_two_workers_begin_together_and_one_of_them_does(rig: Rig) -> None:
    sinks = [await rig.worker() for _ in range(2)]
    done = await asyncio.gather(
        *(begun(sink, {"shard-1": at_timestamp(start)}) for start, sink in enumerate(sinks, 1))
    )
    assert sorted(done) == [False, True]
    assert await sinks[0].positions(STREAM) == {"shard-1": at_timestamp(done.index(True) + 1)}


async def test_a_stream_created_again_is_another_stream(rig: Rig) -> None:
    sink = await rig.worker()
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
    fence = await fenced(sink, "shard-1")
    assert not await sink.is_known(RECREATED)
    assert await sink.begun() == [STREAM.arn]
    assert await sink.positions(RECREATED) == {}
    assert await sink.position(await sink.fence(RECREATED, "shard-1", "me")) is None
    assert await sink.position(fence) == TRIM_HORIZON, "its fences are others too"


async def test_streams_of_another_pipeline_into_the_same_place_are_known(rig: Rig) -> None:
    """Regression: a table that another pipeline had filled from a stream of another kind was
    taken for nobody's."""
    mine = await rig.worker()
    await mine.begin(STREAM, {"shard-1": TRIM_HORIZON})
    theirs = await rig.worker(pipeline="other")
    assert not await theirs.is_known(STREAM)
    assert await theirs.begun() == [STREAM.arn]
    newer = replace(STREAM, arn=STREAM.arn + "-newer")
    await theirs.begin(newer, {"shard-1": TRIM_HORIZON})
    assert await mine.begun() == [STREAM.arn, newer.arn]
    await theirs.begin(STREAM, {"shard-1": TRIM_HORIZON})
    assert sorted(await mine.begun()) == [STREAM.arn, newer.arn], "each once"


async def test_data_without_a_position_is_seen(rig: Rig) -> None:
    sink = await rig.worker()
    assert not await sink.holds_data()
    fence = await fenced(sink, "shard")
    await write(sink, pending(fence, [put("products", APPLE, 1)], then=SHARD_END))
    assert await (await rig.worker()).holds_data()


# ---- fences and positions


async def test_a_raised_fence_kills_the_older_one(rig: Rig) -> None:
    mine, others = await rig.worker(), await rig.worker()
    await mine.begin(STREAM, {"shard-1": at_timestamp(5)})
    old = await mine.fence(STREAM, "shard-1", "me")
    assert await mine.position(old) == at_timestamp(5)
    new = await others.fence(STREAM, "shard-1", "another")
    assert new.epoch > old.epoch
    with pytest.raises(LeaseLost):
        await mine.position(old)
    assert await others.position(new) == at_timestamp(5)


async def test_fences_raised_at_once_are_all_different(rig: Rig) -> None:
    sinks = [await rig.worker() for _ in range(3)] * 3
    fences = await asyncio.gather(
        *(sink.fence(STREAM, "shard-1", f"worker-{n}") for n, sink in enumerate(sinks))
    )
    assert len({fence.epoch for fence in fences}) == len(fences)
    newest = max(fences, key=lambda fence: fence.epoch)
    for sink, fence in zip(sinks, fences, strict=True):
        if fence == newest:
            assert await sink.position(fence) is None
        else:
            with pytest.raises(LeaseLost):
                await sink.position(fence)


async def test_a_shard_found_later_has_no_position(rig: Rig) -> None:
    sink = await rig.worker()
    await sink.begin(STREAM, {"shard-1": LATEST})
    fence = await sink.fence(STREAM, "shard-2", "me")
    assert await sink.position(fence) is None
    assert await sink.positions(STREAM) == {"shard-1": LATEST}


async def test_a_fence_that_was_never_raised_is_lost(rig: Rig) -> None:
    sink = await rig.worker()
    with pytest.raises(LeaseLost):
        await sink.position(Fence(STREAM, "shard-9", 1))


# ---- writing


async def test_changes_and_position_are_there_after_a_write(rig: Rig) -> None:
    sink = await rig.worker()
    fence = await fenced(sink, "shard-1")
    changes = [
        put("products", APPLE, 1000, stock={"N": "3"}),
        put("orders", {"customer": {"S": "ann"}, "number": {"N": "7"}}, 1001),
        put("elsewhere", {"id": {"S": "x"}}, 1002),
    ]
    assert await write(sink, pending(fence, changes, then=SHARD_END)) == WriteResult(rows=2)
    assert await rig.keys(PRODUCTS) == ["apple"]
    assert await rig.keys(ORDERS) == ["ann"]
    assert await sink.positions(STREAM) == {"shard-1": SHARD_END}


async def test_a_position_moves_without_changes(rig: Rig) -> None:
    sink = await rig.worker()
    fence = await fenced(sink, "shard-1")
    result = await write(sink, pending(fence, [], then=after(number(99))))
    assert result == WriteResult()
    assert await sink.position(fence) == after(number(99))


async def test_a_position_never_goes_back(rig: Rig) -> None:
    sink = await rig.worker()
    await sink.begin(STREAM, {"shard-1": at_timestamp(7)})
    fence = await fenced(sink, "shard-1")
    await write(sink, pending(fence, [], then=TRIM_HORIZON))
    assert await sink.position(fence) == at_timestamp(7)
    await write(sink, pending(fence, [], then=after(number(100))))
    await write(sink, pending(fence, [], then=after(number(20))))
    assert await sink.position(fence) == after(number(100))
    await write(sink, pending(fence, [], then=SHARD_END))
    assert await sink.position(fence) == SHARD_END
    await write(sink, pending(fence, [], then=after(number(200))))
    assert await sink.position(fence) == SHARD_END


async def test_a_payload_written_twice_changes_nothing_more(rig: Rig) -> None:
    sink = await rig.worker()
    fence = await fenced(sink, "shard-1")
    writer: Any = sink.writer(fence)
    changes = [put("products", APPLE, 1000), b"broken", put("products", {"id": {"S": "b"}}, 2000)]
    payload = writer.encode([pending(fence, changes, then=SHARD_END)])
    assert (await writer.write(payload)).rows == 2
    for _ in range(2):
        assert await rig.keys(PRODUCTS) == ["apple", "b"]
        assert await rig.refused() == {("shard-1", number(2), 0): ("malformed_json", b"broken")}
        assert await sink.position(fence) == SHARD_END
        assert (await writer.write(payload)).rows == 0


async def test_a_refused_record_is_a_dead_letter_and_the_position_passes_it(rig: Rig) -> None:
    sink = await rig.worker()
    fence = await fenced(sink, "shard-1")
    result = await write(sink, pending(fence, [b"broken"], first=7))
    assert [letter.shard_id for letter in result.dead_letters] == ["shard-1"]
    assert result.rejected_by_code == {"malformed_json": 1}
    assert await rig.refused() == {("shard-1", number(7), 0): ("malformed_json", b"broken")}
    assert await sink.position(fence) == after(number(7))


async def test_when_all_is_lost_nothing_is_written(rig: Rig) -> None:
    mine, others = await rig.worker(), await rig.worker()
    fence = await fenced(mine, "shard-1")
    await others.fence(STREAM, "shard-1", "another")
    result = await write(
        mine, pending(fence, [put("products", APPLE, 1), b"broken"], then=SHARD_END)
    )
    assert result == WriteResult(lost=frozenset({"shard-1"}))
    assert await rig.keys(PRODUCTS) == []
    assert await rig.refused() == {}


async def test_changes_of_two_fences_of_a_shard_are_lost_together(rig: Rig) -> None:
    sink = await rig.worker()
    older = await fenced(sink, "shard-1")
    newer = await fenced(sink, "shard-1")
    result = await write(
        sink,
        pending(older, [put("products", APPLE, 1)]),
        pending(newer, [put("products", APPLE, 2)], first=2, then=SHARD_END),
    )
    assert result == WriteResult(lost=frozenset({"shard-1"}))
    assert await rig.keys(PRODUCTS) == []


async def test_a_worker_that_comes_back_goes_on_at_the_position(rig: Rig) -> None:
    first = await rig.worker()
    fence = await fenced(first, "shard-1")
    await write(first, pending(fence, [], then=after(number(1))))
    await first.close()
    await first.close()
    second = await rig.worker()
    assert await second.position(await second.fence(STREAM, "shard-1", "me")) == after(number(1))


async def test_opening_again_disturbs_nothing(rig: Rig) -> None:
    sink = await rig.worker()
    fence = await fenced(sink, "shard-1")
    writer: Any = sink.writer(fence)
    await sink.open([ORDERS, PRODUCTS])
    payload = writer.encode([pending(fence, [put("products", APPLE, 1)], then=SHARD_END)])
    assert (await writer.write(payload)).rows == 1
