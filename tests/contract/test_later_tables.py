"""Law 3 over tables that a pipeline lists later, at every sink that keeps them apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END, TRIM_HORIZON, Stream
from replicator.sink.kafka_positions import key_of
from tests.changes import STREAM, pending, put
from tests.sink_rig import LOG_SINKS, ORDERS, PRODUCTS, STATE_SINKS, AnySink, Rig, fenced, write

by_table = pytest.mark.parametrize("rig", [*STATE_SINKS, "kafka"], indirect=True)
of_items = pytest.mark.parametrize("rig", STATE_SINKS, indirect=True)
of_changes = pytest.mark.parametrize("rig", LOG_SINKS, indirect=True)

ANOTHER_KIND = Stream(
    "products",
    "arn:aws:dynamodb:eu-north-1:123456789012:table/products/stream/2026-01-01T00:00:00.000",
    1_700_000_000,
)


async def filled(rig: Rig, stream: Stream, pipeline: str) -> None:
    """Another pipeline writes to PRODUCTS what this stream brings."""
    theirs = await rig.worker(pipeline, tables=[PRODUCTS])
    await theirs.begin(stream, {"shard": TRIM_HORIZON})
    fence = await theirs.fence(stream, "shard", "them")
    await theirs.position(fence)
    await write(
        theirs, pending(fence, [put("products", {"id": {"S": "theirs"}}, 5)], then=SHARD_END)
    )


async def added(sink: AnySink) -> None:
    """As the coordinator does it: what may pass is tried again."""
    while True:
        try:
            await sink.add_tables(STREAM)
        except TransientError:
            await asyncio.sleep(0)
        else:
            return


@by_table
async def test_a_later_table_with_what_cannot_be_compared_is_refused(rig: Rig) -> None:
    """Regression: only the tables of a stream's beginning were looked at (law 3)."""
    await filled(rig, ANOTHER_KIND, "other")
    before = await rig.worker(tables=[ORDERS])
    await before.begin(STREAM, {"shard-1": TRIM_HORIZON})
    assert await before.add_tables(STREAM) == ()
    for _ in range(2):  # nothing of it was stored
        mine = await rig.worker(tables=[ORDERS, PRODUCTS])
        with pytest.raises(FatalError) as refused:
            await mine.add_tables(STREAM)
        assert refused.value.code == "stream_replaced"
        assert ANOTHER_KIND.arn in refused.value.message
    assert await before.add_tables(STREAM) == (), "its own go on"


@by_table
async def test_a_later_table_is_the_streams_from_then_on(rig: Rig) -> None:
    before = await rig.worker(tables=[ORDERS])
    await before.begin(STREAM, {"shard-1": TRIM_HORIZON})
    theirs = await rig.worker("other", tables=[PRODUCTS])
    assert await theirs.begun() == []
    mine = await rig.worker(tables=[ORDERS, PRODUCTS])
    (added,) = await mine.add_tables(STREAM)
    assert "products" in added
    assert await mine.add_tables(STREAM) == (), "once"
    assert await theirs.begun() == [STREAM.arn]
    # A worker with fewer tables takes none away.
    assert await before.add_tables(STREAM) == ()
    assert await theirs.begun() == [STREAM.arn]


@by_table
async def test_a_later_table_with_what_can_be_compared_is_taken(rig: Rig) -> None:
    await filled(rig, replace(STREAM, arn=f"{STREAM.arn}-2"), "other")
    before = await rig.worker(tables=[ORDERS])
    await before.begin(STREAM, {"shard-1": TRIM_HORIZON})
    mine = await rig.worker(tables=[ORDERS, PRODUCTS])
    assert len(await mine.add_tables(STREAM)) == 1


@of_items
async def test_an_empty_table_goes_to_who_comes_last(rig: Rig) -> None:
    mine = await rig.worker(tables=[ORDERS, PRODUCTS])
    await mine.begin(STREAM, {"shard-1": TRIM_HORIZON})
    theirs = await rig.worker("other", tables=[PRODUCTS])
    await theirs.begin(ANOTHER_KIND, {"shard": TRIM_HORIZON})
    assert await theirs.add_tables(ANOTHER_KIND) == ()
    # Empty, so it is mine again, and nothing is new.
    assert await mine.add_tables(STREAM) == ()
    fence = await fenced(mine, "shard-1")
    await write(mine, pending(fence, [put("products", {"id": {"S": "mine"}}, 5)], then=SHARD_END))
    assert await mine.add_tables(STREAM) == ()
    with pytest.raises(FatalError, match="can't be compared"):
        await theirs.add_tables(ANOTHER_KIND)
    fewer = await rig.worker(tables=[ORDERS])
    assert await fewer.add_tables(STREAM) == ()


@of_items
async def test_who_goes_on_to_another_table_takes_none_back(rig: Rig) -> None:
    """Regression: a stream that came to one table came anew to all that it ever had, also to those
    that another one had filled since (law 3)."""
    before = await rig.worker(tables=[PRODUCTS])
    await before.begin(STREAM, {"shard-1": TRIM_HORIZON})
    await filled(rig, ANOTHER_KIND, "other")  # the table was empty
    moved_on = await rig.worker(tables=[ORDERS])
    assert len(await moved_on.add_tables(STREAM)) == 1
    theirs = await rig.worker("other", tables=[PRODUCTS])
    assert await theirs.add_tables(ANOTHER_KIND) == (), "it goes on"
    again = await rig.worker(tables=[ORDERS, PRODUCTS])
    with pytest.raises(FatalError, match="can't be compared"):
        await again.add_tables(STREAM)
    assert await moved_on.add_tables(STREAM) == ()


@by_table
async def test_workers_that_add_tables_together_keep_them_all(rig: Rig) -> None:
    first = await rig.worker(tables=[])
    await first.begin(STREAM, {"shard-1": TRIM_HORIZON})
    workers = [await rig.worker(tables=[table]) for table in (ORDERS, PRODUCTS)]
    await asyncio.gather(*map(added, workers))
    for each in workers:
        assert await each.add_tables(STREAM) == ()
    for table in (ORDERS, PRODUCTS):
        assert await (await rig.worker("other", tables=[table])).begun() == [STREAM.arn]


@pytest.mark.parametrize("rig", ["kafka"], indirect=True)
async def test_who_comes_second_to_add_a_table_stores_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: each of many workers that began together stored it again, and fenced the next."""
    first = await rig.worker(tables=[ORDERS])
    await first.begin(STREAM, {"shard-1": TRIM_HORIZON})
    mine: Any = await rig.worker(tables=[ORDERS, PRODUCTS])
    other = await rig.worker(tables=[ORDERS, PRODUCTS])
    alone, key = mine._alone, key_of("shop", STREAM)

    @asynccontextmanager
    async def later(stream: Stream, doing: str) -> AsyncIterator[Any]:
        """Between its look and its turn."""
        assert len(await other.add_tables(STREAM)) == 1
        async with alone(stream, doing) as producer:
            begun.append(mine._positions.begun(key))
            yield producer

    begun: list[Any] = []
    monkeypatch.setattr(mine, "_alone", later)
    assert await mine.add_tables(STREAM) == ()
    await mine.is_known(STREAM)
    assert [mine._positions.begun(key)] == begun


@by_table
async def test_who_only_looks_is_told_the_same(rig: Rig) -> None:
    await filled(rig, ANOTHER_KIND, "other")
    before: Any = await rig.worker(tables=[ORDERS])
    if not hasattr(before, "held"):
        pytest.skip("the one in memory isn't shown by commands")
    await before.begin(STREAM, {"shard-1": TRIM_HORIZON})
    assert (await before.held(STREAM, [ORDERS])).rivals == ()
    looking: Any = await rig.worker(tables=[ORDERS, PRODUCTS])
    assert (await looking.held(STREAM, [ORDERS, PRODUCTS])).rivals == (ANOTHER_KIND.arn,)


@of_changes
async def test_streams_that_came_to_one_log_together_go_on(rig: Rig) -> None:
    """Each table's own stream has a pipeline; in a log their changes lie side by side."""
    mine: Any = await rig.worker()
    await mine.begin(STREAM, {"shard-1": TRIM_HORIZON})
    theirs = await rig.worker("other")
    await theirs.begin(ANOTHER_KIND, {"shard": TRIM_HORIZON})
    for sink, stream in ((mine, STREAM), (theirs, ANOTHER_KIND)):
        fence = await sink.fence(stream, "shard-1", "me")
        await sink.position(fence)
        change = put("products", {"id": {"S": stream.name}}, 5)
        await write(sink, pending(fence, [change], then=SHARD_END))
    for pipeline, stream in (("shop", STREAM), ("other", ANOTHER_KIND)):
        again: Any = await rig.worker(pipeline)
        assert await again.add_tables(stream) == ()
        assert (await again.held(stream, [ORDERS, PRODUCTS])).rivals == ()
