"""Decoded changes made and sent to a real broker, beside librdkafka and aiokafka's own `send`.

Ours has the core encode, pack and compress whole chunks, and sends the finished batches. The
others are handed the very same keys, values, headers and timestamps, ready-made: librdkafka
through confluent-kafka, in a process of its own, and aiokafka, record by record. All are idempotent
and wait until everything is durable; with transactions each chunk is one.
"""

from __future__ import annotations

import asyncio
import pickle
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.record.default_records import DefaultRecordBatch

from bench import records
from bench.kafka import Codec
from bench.peers.child import running
from bench.peers.known import BUILT, HERE
from bench.timing import Ratio, Timing, cpu_seconds, interleaved, ratio
from replicator import _core
from replicator.sink.kafka_batch import FinishedBatch
from replicator.sink.kafka_sender import hastened
from replicator.testing.kafka_server import KafkaServer

# Rounds of a quarter of a second and more: what begins and ends them has little say.
SIZES: Final = {"small": 100_000, "nested": 24_000}
CODECS: Final[tuple[Codec, ...]] = ("zstd", "lz4", "none")
PEERS: Final = ("ours", "librdkafka", "aiokafka")
PARTITIONS: Final = 4
CHUNK: Final = 2_500
BATCH_BYTES_MAX: Final = 1_000_000
_INTERPRETER = BUILT / "python" / "bin" / "python"

Record = tuple[int, bytes, bytes | None, list[tuple[str, bytes]]]


@dataclass(frozen=True, slots=True)
class Result:
    """Of one shape, codec and way: records a second and CPU microseconds a record by the
    middle round; how many times as many records as each peer, and our share of its CPU."""

    rates: dict[str, float]
    cpu_us: dict[str, float]
    speed: dict[str, Ratio]
    cpu_share: dict[str, float]


def has_librdkafka() -> bool:
    """True when the peers' environment has it."""
    return any(BUILT.glob("python/lib/python*/site-packages/confluent_kafka"))


def measure(
    broker: KafkaServer, shape: str, codec: Codec, *, transactions: bool, is_quick: bool
) -> Result:
    """One shape and codec, with transactions or without."""
    chunks = _chunks(shape, is_quick=is_quick)
    ready = [_ready_made(chunk) for chunk in chunks]
    count = sum(map(len, ready))
    topics = {
        peer: f"{peer}-{shape}-{codec}-{'transactions' if transactions else 'plain'}"
        for peer in PEERS
    }
    cpu: dict[str, list[float]] = {peer: [] for peer in PEERS}

    def timed(peer: str, send: Callable[[], object], pid: int = 0) -> Callable[[], float]:
        def turn() -> float:
            began, cpu_began = time.perf_counter(), cpu_seconds(pid)
            send()
            took = time.perf_counter() - began
            cpu[peer].append(cpu_seconds(pid) - cpu_began)
            return took

        return turn

    with asyncio.Runner() as runner, ExitStack() as stack:
        runner.run(_create(broker, topics.values()))
        stack.callback(lambda: runner.run(_delete(broker, topics.values())))
        variants = {}
        for peer, send in (("ours", _send_ours), ("aiokafka", _send_theirs)):
            producer = runner.run(_producer(broker, topics[peer], codec, transactions=transactions))
            if peer == "ours":
                hastened(producer)
            stack.callback(partial(_run, runner, producer.stop))
            sender = send(producer, topics[peer], codec, chunks, ready, transactions)
            variants[peer] = timed(peer, partial(_run, runner, sender))
        if has_librdkafka():
            ask, pid = stack.enter_context(
                _librdkafka(broker, topics["librdkafka"], codec, ready, transactions=transactions)
            )
            variants["librdkafka"] = timed("librdkafka", ask, pid)
        rounds = 3 if is_quick else 7
        timings = interleaved(variants, rounds)
        # One round warms up.
        written = {peer: runner.run(_written(broker, topics[peer])) for peer in variants}
        assert all(found >= count * (rounds + 1) for found in written.values()), written
    return _result(timings, {peer: cpu[peer][1:] for peer in variants}, count)


def _run(runner: asyncio.Runner, work: Callable[[], Any]) -> None:
    runner.run(work())


def _result(timings: dict[str, Timing], cpu: dict[str, list[float]], count: int) -> Result:
    others = [peer for peer in timings if peer != "ours"]
    return Result(
        rates={peer: count / timing.median for peer, timing in timings.items()},
        cpu_us={peer: statistics.median(taken) / count * 1e6 for peer, taken in cpu.items()},
        speed={peer: ratio(timings["ours"], timings[peer]) for peer in others},
        cpu_share={
            peer: statistics.median(
                ours / theirs for ours, theirs in zip(cpu["ours"], cpu[peer], strict=True)
            )
            for peer in others
        },
    )


def _chunks(shape: str, *, is_quick: bool) -> list[_core.ChangeBatch]:
    payloads = records.payloads(shape, SIZES[shape] // (4 if is_quick else 1))
    return [
        _core.decode(
            _core.Records.pack(
                payloads[at : at + CHUNK],
                [f"{at + n:056d}" for n in range(len(payloads[at : at + CHUNK]))],
            )
        )
        for at in range(0, len(payloads), CHUNK)
    ]


def _ready_made(changes: _core.ChangeBatch) -> list[Record]:
    return [
        (record.timestamp, record.key, record.value, record.headers)
        for batch in changes.kafka(1)
        for record in DefaultRecordBatch(batch.bytes())
    ]


async def _in_chunks(
    producer: AIOKafkaProducer,
    chunks: Sequence[Any],
    send: Callable[[Any], Awaitable[list[Any]]],
    *,
    transactions: bool,
) -> None:
    """All of them until they are durable; with transactions each is one."""
    sent = []
    for chunk in chunks:
        if transactions:
            async with producer.transaction():
                await asyncio.gather(*await send(chunk))
        else:
            sent += await send(chunk)
    await asyncio.gather(*sent)


def _send_ours(
    producer: AIOKafkaProducer,
    topic: str,
    codec: Codec,
    chunks: Sequence[_core.ChangeBatch],
    _: object,
    transactions: bool,  # noqa: FBT001 - as its neighbour
) -> Callable[[], Any]:
    async def send(chunk: _core.ChangeBatch) -> list[Any]:
        batches = await asyncio.to_thread(
            chunk.kafka, PARTITIONS, compression=codec, batch_bytes_max=BATCH_BYTES_MAX
        )
        return [
            await producer.send_batch(
                FinishedBatch(batch, transactional=transactions), topic, partition=batch.partition
            )
            for batch in batches
        ]

    return partial(_in_chunks, producer, chunks, send, transactions=transactions)


def _send_theirs(
    producer: AIOKafkaProducer,
    topic: str,
    _codec: Codec,
    _: object,
    ready: Sequence[Sequence[Record]],
    transactions: bool,  # noqa: FBT001 - as its neighbour
) -> Callable[[], Any]:
    async def send(chunk: Sequence[Record]) -> list[Any]:
        return [
            await producer.send(topic, value, key=key, headers=headers, timestamp_ms=timestamp)
            for timestamp, key, value, headers in chunk
        ]

    return partial(_in_chunks, producer, ready, send, transactions=transactions)


@contextmanager
def _librdkafka(
    broker: KafkaServer,
    topic: str,
    codec: Codec,
    ready: Sequence[Sequence[Record]],
    *,
    transactions: bool,
) -> Iterator[tuple[Callable[[], None], int]]:
    """One round of it as a function, and its process."""
    with tempfile.NamedTemporaryFile(prefix="replicator-bench-") as file:
        file.write(pickle.dumps(ready))
        file.flush()
        command = [
            str(_INTERPRETER),
            str(HERE / "python" / "librdkafka.py"),
            file.name,
            broker.address,
            topic,
            codec,
            str(int(transactions)),
        ]
        with running(command) as child:
            assert child.answer().strip() == "ready"

            def ask() -> None:
                child.ask()
                assert child.answer().strip() == "sent"

            yield ask, child.pid


async def _producer(
    broker: KafkaServer, topic: str, codec: Codec, *, transactions: bool
) -> AIOKafkaProducer:
    producer = AIOKafkaProducer(
        bootstrap_servers=broker.address,
        enable_idempotence=True,
        transactional_id=topic if transactions else None,
        compression_type=None if codec == "none" else codec,
        # As librdkafka's own.
        linger_ms=5,
        max_batch_size=BATCH_BYTES_MAX,
        max_request_size=4_000_000,
    )
    await producer.start()
    return producer


async def _create(broker: KafkaServer, topics: Any) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in topics])
    await admin.close()


async def _delete(broker: KafkaServer, topics: Any) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    await admin.delete_topics(list(topics))
    await admin.close()


async def _written(broker: KafkaServer, topic: str) -> int:
    """Records of the topic; with transactions, their markers too."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.address)
    await consumer.start()
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    ends = await consumer.end_offsets(partitions)
    await consumer.stop()
    return sum(ends.values())
