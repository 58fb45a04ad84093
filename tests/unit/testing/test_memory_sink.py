"""The faults that the sink in memory makes on order; its contract has a suite of its own."""

from __future__ import annotations

import asyncio

import pytest

from replicator.errors import TransientError
from replicator.model import TableSchema, after
from replicator.testing.sink import MemorySink, MemoryStore
from tests.changes import STREAM, number, pending, put

PRODUCTS = TableSchema("products", (("id", "S"),))


async def opened(store: MemoryStore) -> MemorySink:
    sink = MemorySink("shop", store)
    await sink.open([PRODUCTS])
    return sink


@pytest.mark.parametrize(("when", "is_there"), [("before", False), ("after", True)])
async def test_an_ordered_failure_says_nothing_of_the_outcome(when: str, is_there: bool) -> None:
    sink = await opened(MemoryStore())
    fence = await sink.fence(STREAM, "shard-1", "me")
    writer = sink.writer(fence)
    payload = writer.encode([pending(fence, [put("products", {"id": {"S": "apple"}}, 1)])])
    sink.fail_write(1, "before" if when == "before" else "after")
    with pytest.raises(TransientError):
        await writer.write(payload)
    assert (("apple",) in sink.items("products")) == is_there
    assert await sink.position(fence) == (after(number(1)) if is_there else None)
    assert (await writer.write(payload)).duplicates == int(is_there)


async def test_a_stalled_sink_holds_its_writes() -> None:
    sink = await opened(MemoryStore())
    fence = await sink.fence(STREAM, "shard-1", "me")
    writer = sink.writer(fence)
    sink.flowing.clear()
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(writer.write(writer.encode([pending(fence, [])])))
        await asyncio.sleep(0)
        assert not writing.done()
        sink.flowing.set()
    assert await sink.position(fence) == after(number(0))
