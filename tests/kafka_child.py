"""A process that writes to Kafka and sends itself a signal at its n-th step:
`python -m tests.kafka_child`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from aiokafka import AIOKafkaProducer

from replicator.aws import AWSSettings
from replicator.model import TableSchema
from replicator.sink.kafka import KafkaSink
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.place import SinkPlace
from tests.changes import STREAM, pending, put

PRODUCTS = TableSchema("products", (("id", "S"),))
# What a writer asks of its producer, in order; each is a step before and a step after.
STEPS = ("start", "begin_transaction", "send_batch", "send", "commit_transaction")
BASE_US = 1_700_000_000_000_000


def change(n: int) -> bytes:
    return put("products", {"id": {"S": f"p{n % 5}"}}, BASE_US + n * 1_000_000, n={"N": str(n)})


class Steps:
    """Counts the calls of the driver, and is killed or stopped at one."""

    def __init__(self, last: int, sent: signal.Signals = signal.SIGKILL) -> None:
        self._left = last
        self._signal = sent

    def pass_one(self) -> None:
        self._left -= 1
        if self._left == -1:
            os.kill(os.getpid(), self._signal)

    def watch(self, name: str) -> None:
        before = getattr(AIOKafkaProducer, name)

        async def counted(producer: Any, *arguments: Any, **more: Any) -> Any:
            self.pass_one()
            answer = await before(producer, *arguments, **more)
            self.pass_one()
            return answer

        setattr(AIOKafkaProducer, name, counted)


def sink_of(settings: dict[str, Any]) -> KafkaSink:
    place = SinkPlace("shop", "me", "", AWSSettings())
    return KafkaSink(KafkaConfig.model_validate(settings), place)


async def write(settings: dict[str, Any], count: int) -> None:
    """Reads the stream of `count` changes from the sink's position on, three at a time, until
    the fence is lost."""
    sink = sink_of(settings)
    try:
        await sink.open([PRODUCTS])
        fence = await sink.fence(STREAM, "shard-1", "me")
        position = await sink.position(fence)
        number = None if position is None else position.sequence_number
        writer = sink.writer(fence)
        at = 0 if number is None else int(number[-6:])
        while at < count:
            end = min(at + 3, count)
            batch = pending(fence, [change(n) for n in range(at + 1, end + 1)], first=at + 1)
            if (await writer.write(writer.encode([batch]))).lost:
                return
            at = end
    finally:
        await sink.close()


if __name__ == "__main__":
    text, last, count, name = sys.argv[1:]
    steps = Steps(int(last), signal.Signals[name])
    for step in STEPS:
        steps.watch(step)
    asyncio.run(write(json.loads(text), int(count)))
