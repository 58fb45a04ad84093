"""The Kafka sink beside brokers that refuse, without any."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidTimestampError,
    InvalidTransactionTimeout,
    KafkaError,
    ProducerFenced,
)

from replicator.aws import AWSSettings
from replicator.core.windows import Windows
from replicator.errors import FatalError, TransientError
from replicator.model import TRIM_HORIZON, Fence, after
from replicator.sink.kafka import KafkaSink
from replicator.sink.kafka_client import Fenced, mapped
from replicator.sink.kafka_positions import Stored, key_of
from replicator.sink.kafka_producer import KafkaProducers, Producer
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.kafka_topics import MESSAGE_BYTES_MAX, Topic, Wanted, _topic
from replicator.sink.kafka_writer import KafkaShard, KafkaWriter, Room
from replicator.sink.log_shard import LogPosition, LogShard
from replicator.sink.place import SinkPlace
from tests.changes import STREAM, pending, put


@pytest.mark.parametrize("refusal", [ProducerFenced, InvalidProducerEpoch])
def test_a_fence_that_another_raise_overtakes_is_tried_again(
    refusal: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it ended the process. Brokers say so when they end a transaction whose time is
    over while its id is taken over."""

    async def refused(_producer: Producer) -> None:
        raise refusal

    monkeypatch.setattr(Producer, "opened", refused)

    async def main() -> None:
        sink = _sink()
        with pytest.raises(TransientError, match="kafka_fenced"):
            await sink.fence(STREAM, "shard-0", "me")

    asyncio.run(main())


@pytest.mark.parametrize(("epoch", "is_kept"), [(3, True), (4, True), (5, False)])
def test_a_shard_that_another_worker_claimed_is_forgotten(
    epoch: int, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: what was remembered of it stayed until the process ended."""

    async def main() -> None:
        sink = _sink()
        key = key_of("p", STREAM, "shard-0")
        fence = Fence(STREAM, "shard-0", 4, "me/1")
        log = LogPosition(after("7"))
        shard = KafkaShard(fence, key, Producer("id", {}, 1.0), stored=Stored(log, 4, "me/1"))
        sink._shards[STREAM, "shard-0"] = shard
        sink.writer(fence)

        async def refresh() -> None:
            owner = "me/1" if epoch == 4 else "another/1"
            sink._positions._shards[key] = Stored(log, epoch, owner)

        monkeypatch.setattr(sink._positions, "refresh", refresh)
        assert await sink.positions(STREAM) == {"shard-0": after("7")}
        assert bool(sink._shards) is bool(sink._writers) is is_kept

    asyncio.run(main())


def test_what_stops_a_shard_leaves_the_shared_producer_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression: what others had on its way was given up with it."""

    class Driver:
        async def partitions_for(self, _topic: str) -> set[int]:
            return {0}

    async def opened(_producer: Producer) -> Any:
        return Driver()

    monkeypatch.setattr(Producer, "opened", opened)

    async def main() -> None:
        config = KafkaConfig(
            name="k", delivery="at_least_once", quarantine_max=0, compression="none"
        )
        producers = KafkaProducers({}, open_max=1, timeout_seconds=1.0)
        topics = {"products": Topic("products", 1, 1_000, "delete")}
        letters = {config.dead_letters_topic: Topic("letters", 1, 1_000_000, "delete")}
        fence = Fence(STREAM, "shard-0", 1, "me/1")
        shard = KafkaShard(
            fence,
            key_of("p", STREAM, "shard-0"),
            Producer("id", {}, 1.0),
            LogShard(LogPosition(TRIM_HORIZON), reorder_us=0),
            Stored(None, 1, "me/1"),
        )

        async def look_again() -> None: ...

        room = Room(
            config,
            topics,
            letters,
            producers,
            None,
            look_again,
            Windows(1 << 20),
            list,
            lambda: 0.0,
            lambda: 0,
        )
        shared = producers.shared()
        large = put("products", {"id": {"S": "a"}}, 1_000, text={"S": "x" * 2_000})
        later = put("products", {"id": {"S": "b"}}, 9_000_000)
        with pytest.raises(FatalError, match="quarantine_full"):
            await KafkaWriter(shard, room).write((pending(fence, [large, later], first=1),))
        assert shard.is_over
        assert producers.shared() is shared

    asyncio.run(main())


class Slow:
    """A producer of the driver's that takes its time to start and to stop."""

    def __init__(self) -> None:
        self.begins, self.may = asyncio.Event(), asyncio.Event()
        self.is_stopped = False
        self._txn_manager = self
        self._sequence_numbers: dict[Any, int] = {}

    async def stop(self) -> None:
        self.begins.set()
        await self.may.wait()
        self.is_stopped = True


def test_a_close_that_is_cancelled_closes_all_the_same() -> None:
    """Regression: who was cancelled while it made room for itself left a producer behind, with
    its connections and its task."""

    async def main() -> None:
        producers = KafkaProducers({}, open_max=1, timeout_seconds=60.0, monotonic=lambda: 0.0)
        slow, idle = Slow(), producers.make("idle")
        idle._open = slow
        producers._idle[idle] = 0.0

        async def use() -> None:
            async with producers.use(producers.make("other")):
                pass

        using = asyncio.ensure_future(use())
        await slow.begins.wait()
        using.cancel()
        await asyncio.wait({using})
        slow.may.set()
        await producers.close()
        assert slow.is_stopped

    asyncio.run(main())


@pytest.mark.parametrize(("is_shared", "error"), [(False, Fenced), (True, KafkaError)])
def test_a_producer_that_was_given_up_while_it_started_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, *, is_shared: bool, error: type[Exception]
) -> None:
    """Regression: a sink that was closed meanwhile never closed it, and who shared it with
    another's failed write was told that its shard is somebody else's."""
    made: list[Any] = []
    begins, may = asyncio.Event(), asyncio.Event()

    async def start(producer: Any) -> None:
        made.append(producer)
        begins.set()
        await may.wait()

    monkeypatch.setattr(AIOKafkaProducer, "start", start)

    async def main() -> None:
        producers = KafkaProducers({}, open_max=1, timeout_seconds=60.0)
        producer = producers.shared() if is_shared else producers.make("id")
        opening = asyncio.ensure_future(producer.opened())
        await begins.wait()
        await producers.drop(producer)
        may.set()
        with pytest.raises(error):
            await opening
        assert not producer.is_open
        assert made[0]._closed

    asyncio.run(main())


def test_a_producer_that_is_given_up_amid_a_retry_leaves_no_complaint() -> None:
    """Regression: the driver's callback missed the batch that it had put back for another try."""

    async def main() -> list[object]:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        driver = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1", enable_idempotence=True)
        driver._txn_manager.set_pid_and_epoch(1, 0)
        waiting, place = driver._message_accumulator, TopicPartition("t", 0)
        sent = await waiting.add_message(place, b"key", b"value", 1)
        waiting.reenqueue(waiting._pop_batch(place))
        producer = Producer("id", {}, 1.0)
        producer._open = driver
        await producer.give_up()
        with pytest.raises(KafkaError):
            await sent
        return complaints

    assert asyncio.run(main()) == []


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"max.message.bytes": "900", "segment.bytes": "5000"}, (900, True)),
        ({"max.message.bytes": "9000", "segment.bytes": "5000"}, (5_000, True)),
        ({"max.message.bytes": "900", "retention.ms": "1"}, (900, True)),
        ({"retention.ms": "1"}, (MESSAGE_BYTES_MAX, False)),
    ],
)
def test_a_topic_that_shows_some_settings_only_is_taken_as_it_is(
    settings: dict[str, str], limit: tuple[int, bool]
) -> None:
    topic = _topic(Wanted("t", "table", None, {}), [{"replicas": [1, 2, 3]}], settings)
    assert (topic.bytes_max, topic.is_seen) == limit


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidTransactionTimeout(), "kafka_settings"),
        (InvalidTimestampError(), "kafka_time_refused"),
    ],
)
def test_what_only_an_operator_can_mend_is_not_tried_again_and_again(
    error: Exception, code: str
) -> None:
    with pytest.raises(FatalError) as refused, mapped("writing"):
        raise error
    assert refused.value.code == code


def _sink() -> KafkaSink:
    config = KafkaConfig(name="k", bootstrap_servers="127.0.0.1:1")
    return KafkaSink(config, SinkPlace("p", "me", "", AWSSettings()))
