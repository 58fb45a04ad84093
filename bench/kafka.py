"""Kafka's record batches: ours from decoded changes, beside aiokafka's from ready-made values.

Ours writes key, value and headers of every change, packs, compresses and signs. aiokafka's
`BatchBuilder` is handed the very same keys, values and headers, finished, and packs and compresses
them. Both make one partition's batches of the same records, up to 1 MB before compression.

With a broker both are also sent, by an idempotent producer that waits until all are durable; what
counts is this process's CPU, not the broker's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch

from bench import records
from bench.timing import interleaved
from replicator import _core
from replicator.sink.kafka_batch import FinishedBatch
from replicator.testing.kafka_server import KafkaServer

Codec = Literal["none", "lz4", "zstd"]
SIZES: Final = {"small": 10_000, "nested": 5_000}
# Shape, codec, and whether records carry headers, as ours do by default.
CASES: Final[tuple[tuple[str, Codec, bool], ...]] = (
    ("small", "zstd", True),
    ("small", "zstd", False),
    ("small", "lz4", True),
    ("small", "none", True),
    ("nested", "zstd", True),
    ("nested", "lz4", True),
    ("nested", "none", True),
)
SENT: Final[tuple[tuple[str, Codec, bool], ...]] = (
    ("small", "zstd", True),
    ("small", "none", True),
    ("nested", "zstd", True),
)
BATCH_BYTES_MAX: Final = 1_000_000
_ATTRIBUTES: Final = {"none": 0, "lz4": 3, "zstd": 4}


@dataclass(frozen=True, slots=True)
class Result:
    """Microseconds of CPU a record, by the best round, and the spread."""

    us: dict[str, float]
    spreads: dict[str, float]

    @property
    def share(self) -> float:
        """Ours of aiokafka's."""
        return self.us["ours"] / self.us["aiokafka"]


def measure(shape: str, codec: Codec, *, is_quick: bool, headers: bool = True) -> Result:
    """One shape and codec, made only, both taking turns."""
    changes = _changes(shape, is_quick=is_quick)
    ready = _ready_made(changes, headers=headers)

    def ours() -> list[bytes]:
        return [batch._build() for batch in _ours(changes, codec, headers=headers)]  # noqa: SLF001 as a producer does

    def theirs() -> list[bytes]:
        return [bytes(batch._build()) for batch in _theirs(ready, codec)]  # noqa: SLF001 see above

    return _result({"ours": ours, "aiokafka": theirs}, len(ready), is_quick=is_quick)


def measure_sending(
    broker: KafkaServer, shape: str, codec: Codec, *, is_quick: bool, headers: bool = True
) -> Result:
    """One shape and codec, made and sent."""
    changes = _changes(shape, is_quick=is_quick)
    ready = _ready_made(changes, headers=headers)
    topic = f"{shape}-{codec}-{headers}".lower()

    with asyncio.Runner() as runner:
        producer = runner.run(_producer(broker, topic))

        async def send(batches: Sequence[Any]) -> None:
            sent = [await producer.send_batch(batch, topic, partition=0) for batch in batches]
            await asyncio.gather(*sent)

        try:
            return _result(
                {
                    "ours": lambda: runner.run(send(_ours(changes, codec, headers=headers))),
                    "aiokafka": lambda: runner.run(send(_theirs(ready, codec))),
                },
                len(ready),
                is_quick=is_quick,
            )
        finally:
            runner.run(producer.stop())


async def _producer(broker: KafkaServer, topic: str) -> AIOKafkaProducer:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(
        bootstrap_servers=broker.address, enable_idempotence=True, max_request_size=4_000_000
    )
    await producer.start()
    return producer


def _result(variants: dict[str, Callable[[], object]], count: int, *, is_quick: bool) -> Result:
    timings = interleaved(variants, rounds=5 if is_quick else 15, clock=time.process_time)
    return Result(
        us={name: round(timing.best / count * 1e6, 3) for name, timing in timings.items()},
        spreads={name: timing.spread for name, timing in timings.items()},
    )


def _changes(shape: str, *, is_quick: bool) -> _core.ChangeBatch:
    payloads = records.payloads(shape, SIZES[shape] // (5 if is_quick else 1))
    numbers = [f"{n:056d}" for n in range(len(payloads))]
    return _core.decode(_core.Records.pack(payloads, numbers))


def _ours(changes: _core.ChangeBatch, codec: Codec, *, headers: bool) -> list[FinishedBatch]:
    made = changes.kafka(1, compression=codec, headers=headers, batch_bytes_max=BATCH_BYTES_MAX)
    return [FinishedBatch(batch) for batch in made]


def _theirs(ready: Iterable[tuple[Any, ...]], codec: Codec) -> list[BatchBuilder]:
    """What `create_batch` gives, filled."""
    made = [BatchBuilder(BATCH_BYTES_MAX, _ATTRIBUTES[codec])]
    for timestamp, key, value, headers in ready:
        # One that is full answers None.
        while not made[-1].append(timestamp=timestamp, key=key, value=value, headers=headers):
            made.append(BatchBuilder(BATCH_BYTES_MAX, _ATTRIBUTES[codec]))
    made[-1].close()
    return made


def _ready_made(changes: _core.ChangeBatch, *, headers: bool) -> list[tuple[Any, ...]]:
    """Every record of our batches, as aiokafka reads it: both sides write the same."""
    return [
        (record.timestamp, record.key, record.value, record.headers)
        for batch in changes.kafka(1, headers=headers)
        for record in DefaultRecordBatch(batch.bytes())
    ]
