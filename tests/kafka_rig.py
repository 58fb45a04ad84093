"""A Kafka cluster as the tests of its sink need it: workers at it, and what careful readers see."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from replicator.aws import AWSSettings
from replicator.model import Fence, Pending, TableSchema, WriteResult
from replicator.sink.kafka import KafkaSink
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.place import SinkPlace
from replicator.testing.kafka_server import KafkaServer
from tests.changes import STREAM, pending, put
from tests.kafka_records import Record, committed
from tests.stack import until

PRODUCTS = TableSchema("products", (("id", "S"),))
ORDERS = TableSchema("orders", (("customer", "S"), ("number", "N")))
# When the source says that nothing more came, by the clock that fetches are received by.
LATER = 10.0
BASE_US = 1_700_000_000_000_000


@dataclass(frozen=True, slots=True)
class Rig:
    """A cluster with topics of this test's own."""

    server: KafkaServer
    prefix: str
    worker: Callable[..., Awaitable[KafkaSink]]

    async def records(self, table: str = "products") -> list[Record]:
        return await committed(self.server, f"{self.prefix}.{table}")

    async def letters(self) -> list[Record]:
        return await committed(self.server, f"{self.prefix}.dead")

    async def seen(self, table: str = "products") -> list[int]:
        """Each change that a careful reader sees, by its time; sorted."""
        found = await self.records(table)
        return sorted(
            int(record.headers["version"]) - BASE_US for record in found if record.value is not None
        )


@asynccontextmanager
async def kafka_rig(kafka_server: KafkaServer) -> AsyncIterator[Rig]:
    """Topics of the test's own; its workers are closed at the end."""
    prefix = f"t{secrets.token_hex(5)}"
    async with AsyncExitStack() as stack:

        async def worker(
            pipeline: str = "shop", tables: Sequence[TableSchema] = (PRODUCTS, ORDERS), **more: Any
        ) -> KafkaSink:
            settings: dict[str, Any] = {
                "name": "bus",
                "bootstrap_servers": kafka_server.address,
                "topic": f"{prefix}.{{table}}",
                "positions_topic": f"{prefix}.positions",
                "dead_letters_topic": f"{prefix}.dead",
                "partitions": 2,
                "topic_settings": {"retention.ms": "-1"},
                "reorder_window_seconds": 0,
                **more,
            }
            sink = KafkaSink(
                KafkaConfig.model_validate(settings),
                SinkPlace(pipeline, "me", "", AWSSettings()),
            )
            stack.push_async_callback(sink.close)
            await sink.open(tables)
            return sink

        yield Rig(kafka_server, prefix, worker)


async def fenced(sink: KafkaSink, shard: str = "shard-1", owner: str = "me") -> Fence:
    """A fence with its position read, as a reader does it."""
    fence = await sink.fence(STREAM, shard, owner)
    await sink.position(fence)
    return fence


async def write(sink: KafkaSink, *several: Pending) -> WriteResult:
    """Writes them, and then that time goes by: nothing is held any more."""
    last = several[-1]
    idle = replace(pending(last.fence, [], then=last.next), received_at=LATER)
    writer = sink.writer(last.fence)
    return await writer.write(writer.encode([*several, idle]))


def product(n: int) -> bytes:
    """The change of the n-th millisecond; ten keys."""
    return put("products", {"id": {"S": f"p{n % 10}"}}, BASE_US + n * 1_000_000, n={"N": str(n)})


async def configured(rig: Rig, topic: str, settings: dict[str, str]) -> None:
    """Returns when the broker goes by them, which it does a while after its answer. What it does
    show may not be applied yet, but all that came before."""
    admin = AIOKafkaAdminClient(bootstrap_servers=rig.server.address)
    await admin.start()

    async def shown(expected: dict[str, str]) -> bool:
        asked = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(expected))
        (answer,) = await admin.describe_configs([asked])
        ((_, _, _, _, entries),) = answer.resources
        return {name: value for name, value, *_ in entries} == expected

    try:
        for some in (settings, settings | {"flush.ms": "3600000"}):
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, some)])
            await until(partial(shown, some))
    finally:
        await admin.close()
