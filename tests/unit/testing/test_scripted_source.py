from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from replicator.errors import PositionLost, TransientError
from replicator.model import LATEST, SHARD_END, TRIM_HORIZON, Fetch, Position, after, at_timestamp
from replicator.testing.clock import VirtualClock
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream

SHARD = "shardId-000000000000"


def numbered(lo: int, hi: int) -> list[bytes]:
    return [f"record {number}".encode() for number in range(lo, hi)]


def make(records: int = 0, fetch_records: int = 2, fetch_bytes: int = 1_000) -> ScriptedSource:
    source = ScriptedSource(
        VirtualClock(), fetch_records=fetch_records, fetch_bytes=fetch_bytes, heartbeat_seconds=0.01
    )
    source.stream.append(SHARD, numbered(0, records))
    return source


async def take(
    source: ScriptedSource, fetches: int, position: Position = TRIM_HORIZON
) -> list[Fetch]:
    async with asyncio.timeout(60), aclosing(source.read(SHARD, position)) as reading:
        return [await anext(reading) for _ in range(fetches)]


def sizes(fetches: list[Fetch]) -> list[int]:
    return [len(fetch.records) for fetch in fetches]


async def test_fetches_have_the_given_size() -> None:
    assert sizes(await take(make(5), 4)) == [2, 2, 1, 0]
    # "record 0" is 8 bytes: one record always fits.
    assert sizes(await take(make(3, fetch_bytes=1), 3)) == [1, 1, 1]
    assert sizes(await take(make(5, fetch_records=9, fetch_bytes=17), 3)) == [2, 2, 1]


async def test_an_error_comes_at_the_call_it_was_written_for() -> None:
    source = make(6)
    source.fail("shards", 2, TransientError("scripted", "as asked"))
    source.fail("fetch", 2, TransientError("scripted", "as asked"), shard_id=SHARD)
    await source.shards()
    with pytest.raises(TransientError):
        await source.shards()
    await source.shards()
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        first = await anext(reading)
        with pytest.raises(TransientError):
            await anext(reading)
    assert sizes(await take(source, 2, first.next)) == [2, 2]
    assert source.readers[SHARD] == 0


async def test_another_shards_fetches_do_not_count() -> None:
    source = make(4)
    other = source.stream.add_shard()
    source.fail("fetch", 1, TransientError("scripted", "as asked"), shard_id=other)
    assert sizes(await take(source, 2)) == [2, 2]


async def test_records_are_delivered_again() -> None:
    source = make(4)
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        first = await anext(reading)
        source.redeliver(SHARD, 1)
        second = await anext(reading)
    assert sizes([first, second]) == [2, 3]
    assert second.records.first_sequence_number == first.records.last_sequence_number


async def test_a_stalled_shard_gives_nothing_until_it_is_resumed() -> None:
    source = make(2)
    source.stall(SHARD)
    waiting = asyncio.ensure_future(take(source, 1))
    await asyncio.sleep(0.03)
    assert not waiting.done()
    source.resume(SHARD)
    assert sizes(await waiting) == [2]


async def test_the_end_comes_with_the_last_records_or_alone() -> None:
    source = make(2)
    async with aclosing(source.read(SHARD, TRIM_HORIZON)) as reading:
        assert (await anext(reading)).next != SHARD_END
        children = source.stream.split(SHARD)
        last = await anext(reading)
        with pytest.raises(StopAsyncIteration):
            await anext(reading)
    assert sizes([last]) == [0]
    assert tuple(child.id for child in last.children) == children
    (both,) = await take(source, 1)
    assert sizes([both]) == [2]
    assert both.next == SHARD_END


async def test_records_are_made_when_they_are_read() -> None:
    made: list[int] = []

    def payload(index: int) -> bytes:
        made.append(index)
        return bytes(1_000)

    source = make(0, fetch_bytes=2_000)
    source.stream.generate(SHARD, 10**9, payload)
    assert sizes(await take(source, 3)) == [2, 2, 2]
    assert len(made) <= 9


def test_positions_find_their_place() -> None:
    stream = ScriptedStream(1)
    numbers = stream.append(SHARD, numbered(0, 2), arrival_ms=1_000)
    stream.append(SHARD, numbered(2, 4), arrival_ms=2_000)
    assert stream.place(SHARD, TRIM_HORIZON) == 0
    assert stream.place(SHARD, LATEST) == 4
    assert stream.place(SHARD, after(numbers[1])) == 2
    assert stream.place(SHARD, at_timestamp(1_000_000)) == 0
    assert stream.place(SHARD, at_timestamp(1_001_000)) == 2
    assert stream.place(SHARD, at_timestamp(2_001_000)) == 4
    assert stream.place(SHARD, stream.continuation(SHARD, 0)) == 0
    with pytest.raises(PositionLost):
        stream.place(SHARD, after("7"))
