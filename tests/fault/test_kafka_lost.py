"""The Kafka sink at a cluster that loses what it had acknowledged, and at one without room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    suppress,
)

import pytest

from replicator.errors import TransientError
from replicator.model import TRIM_HORIZON, after
from replicator.testing.kafka_server import KafkaServer, start_kafka
from tests.changes import STREAM, number, pending
from tests.kafka_rig import Rig, fenced, kafka_rig, product, write
from tests.stack import until

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def broker() -> Iterator[KafkaServer]:
    """A broker of the test's own, which it may stop."""
    with start_kafka() as server:
        yield server


@pytest.fixture
async def rig(broker: KafkaServer) -> AsyncIterator[Rig]:
    async with kafka_rig(broker) as made:
        yield made


@asynccontextmanager
async def threaded(state: AbstractContextManager[None]) -> AsyncIterator[None]:
    await asyncio.to_thread(state.__enter__)
    yield
    await asyncio.to_thread(state.__exit__, None, None, None)


def losing(broker: KafkaServer, topic: str) -> AbstractAsyncContextManager[None]:
    return threaded(broker.losing(topic))


@pytest.mark.parametrize("is_refilled", [False, True])
async def test_positions_that_are_gone_are_written_again(
    rig: Rig, broker: KafkaServer, is_refilled: bool
) -> None:
    """Regression: what was read of the topic before stood for what is there now, so a position
    that was lost passed changes that were lost with it."""
    settings = {"duplicate_window_seconds": 0}
    sink, reader, other = [await rig.worker(**settings) for _ in range(3)]
    fence = await fenced(sink)
    await write(sink, pending(fence, [product(1)]))
    async with losing(broker, f"{rig.prefix}.positions"):
        await write(sink, pending(fence, [product(2)], first=2))
        await write(sink, pending(fence, [product(3)], first=3))
        assert await reader.positions(STREAM) == {"shard-1": after(number(3))}
    if is_refilled:
        for n in range(5):
            await fenced(other, f"shard-{n + 2}")
    with pytest.raises(TransientError) as gone:
        await write(sink, pending(fence, [product(4)], first=4))
    assert gone.value.code == "kafka_went_back"
    for each in (sink, reader):
        assert (await each.positions(STREAM))["shard-1"] == after(number(1))
    fence = await sink.fence(STREAM, "shard-1", "me")
    assert await sink.position(fence) in {after(number(1)), TRIM_HORIZON}
    await write(sink, pending(fence, [product(n) for n in range(1, 5)]))
    assert set(await rig.seen()) == {n * 1_000_000 for n in range(1, 5)}


async def test_records_that_are_gone_are_said(rig: Rig, broker: KafkaServer) -> None:
    sink = await rig.worker(partitions=1)
    fence = await fenced(sink)
    await write(sink, pending(fence, [product(1)]))
    async with losing(broker, f"{rig.prefix}.products"):
        await write(sink, pending(fence, [product(2)], first=2))
    with pytest.raises(TransientError) as gone:
        await write(sink, pending(fence, [product(3)], first=3))
    assert gone.value.code == "kafka_went_back"
    assert "positions set" in gone.value.message


async def test_that_all_of_a_producer_is_gone_is_seen_by_its_offsets(
    rig: Rig, broker: KafkaServer
) -> None:
    """The broker knows nothing of it any more, and takes whatever comes."""
    sink = await rig.worker()
    async with losing(broker, f"{rig.prefix}.positions"):
        fence = await fenced(sink)
        await write(sink, pending(fence, [product(1)]))
    with pytest.raises(TransientError) as gone:
        await write(sink, pending(fence, [product(2)], first=2))
    assert gone.value.code == "kafka_went_back"


async def test_fences_are_raised_on_when_the_brokers_forgot_them(
    rig: Rig, broker: KafkaServer
) -> None:
    """Brokers do so a week after an id's last transaction, too: it has another producer id and
    begins at epoch 0 then."""
    sink = await rig.worker(duplicate_window_seconds=0)
    await fenced(sink, "shard-2")
    async with losing(broker, "__transaction_state"):
        for _ in range(5):
            fence = await fenced(sink)
        await write(sink, pending(fence, [product(1)]))
    fence = await sink.fence(STREAM, "shard-1", "me")
    assert await sink.position(fence) == after(number(1))
    await write(sink, pending(fence, [product(2)], first=2))
    assert await rig.seen() == [1_000_000, 2_000_000]


async def test_a_broker_without_room_is_waited_for(rig: Rig, broker: KafkaServer) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    sink = await rig.worker(transaction_timeout_seconds=3)
    fence = await fenced(sink)
    await write(sink, pending(fence, [product(1)]))
    # The broker ends a transaction in each partition after its answer to the commit. Where the disk
    # keeps it from that, the transaction hangs, and only an operator can end it.
    assert await rig.seen() == [1_000_000]
    assert await sink.positions(STREAM) == {"shard-1": after(number(1))}
    async with threaded(broker.full()):
        with pytest.raises(TransientError):
            await write(sink, pending(fence, [product(2)], first=2))
        with pytest.raises(TransientError):
            await sink.fence(STREAM, "shard-1", "me")

    async def goes_on() -> bool:
        with suppress(TransientError):
            fence = await fenced(sink)
            await write(sink, pending(fence, [product(n) for n in range(1, 4)]))
            return True
        return False

    await until(goes_on, seconds=150)
    assert await rig.seen() == [1_000_000, 2_000_000, 3_000_000]
    assert complaints == []
