"""Where the demo's table arrives: a server to start, the sink that a configuration file would
name, and what a reader finds there, for the judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from typing import Any, Protocol

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from replicator.demo import compare
from replicator.demo.archive import ArchivePlace
from replicator.demo.child import TABLE
from replicator.demo.crate import CratePlace
from replicator.testing.kafka_server import KafkaServer, start_kafka
from replicator.testing.servers import PostgresServer, start_postgres


class Place(Protocol):
    """One destination that is up."""

    name: str
    """As people call it."""
    sink: Mapping[str, Any]
    """What a configuration file would say of it."""

    async def make(self) -> None:
        """What has to be there before the first change."""
        ...

    async def open(self) -> None:
        """Connects a reader."""
        ...

    async def close(self) -> None:
        """May be called twice, and without `open`."""
        ...

    async def count(self) -> int:
        """Items that are there now."""
        ...

    async def items(self) -> dict[str, Any]:
        """Every item that is there, plain, by its key."""
        ...

    async def faults(self) -> list[str]:
        """What is wrong with what was read, whatever the table holds."""
        ...

    async def ending(self) -> list[str]:
        """What it can show at the end, line by line."""
        ...

    def way_in(self) -> str:
        """A command for a shell that looks into it."""
        ...


class PostgresPlace:
    """The newest image of each key is a row."""

    name = "Postgres"

    def __init__(self, server: PostgresServer, psql: str) -> None:
        self.sink: Mapping[str, Any] = {"name": "warehouse", "kind": "postgres", "dsn": server.dsn}
        self._dsn = server.dsn
        self._psql = psql
        self._reader: Any = None

    async def make(self) -> None:
        """The sink does."""

    async def open(self) -> None:
        self._reader = await asyncpg.connect(self._dsn)

    async def close(self) -> None:
        if self._reader is not None:
            await self._reader.close()

    async def count(self) -> int:
        statement = f"SELECT count(*) FROM {TABLE} WHERE NOT deleted"  # noqa: S608 our own name
        count: int = await self._reader.fetchval(statement)
        return count

    async def items(self) -> dict[str, Any]:
        return await compare.select(self._reader, TABLE)

    async def faults(self) -> list[str]:
        return []

    async def ending(self) -> list[str]:
        return []

    def way_in(self) -> str:
        return f"{self._psql} '{self._dsn}' -c 'TABLE {TABLE}_live LIMIT 5'"


class KafkaPlace:
    """Every change is a record; the newest of each key is its item."""

    name = "Kafka"

    def __init__(self, server: KafkaServer) -> None:
        self.sink: Mapping[str, Any] = {
            "name": "bus",
            "kind": "kafka",
            "bootstrap_servers": server.address,
            "partitions": 4,
        }
        self._address = server.address
        self._reader: Any = None
        self._newest: dict[str, tuple[int, Any]] = {}
        self._seen: set[str] = set()
        self._faults: list[str] = []

    async def make(self) -> None:
        """The sink does."""

    async def open(self) -> None:
        self._reader = AIOKafkaConsumer(
            bootstrap_servers=self._address,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await self._reader.start()
        self._reader.assign([TopicPartition(TABLE, number) for number in range(4)])

    async def close(self) -> None:
        if self._reader is not None:
            await self._reader.stop()

    async def count(self) -> int:
        return len(await self.items())

    async def items(self) -> dict[str, Any]:
        places = self._reader.assignment()
        ends = await self._reader.end_offsets(places)
        while any([await self._reader.position(place) < ends[place] for place in places]):
            for messages in (await self._reader.getmany(timeout_ms=100)).values():
                for message in messages:
                    self._take(dict(message.headers), message.value)
        return {key: item for key, (_, item) in self._newest.items() if item is not None}

    def _take(self, headers: Mapping[str, bytes], value: bytes | None) -> None:
        if value is None:
            return  # compaction's word; the record before it said the same
        change = json.loads(value, parse_float=Decimal, parse_int=Decimal)
        event_id, version = headers["event_id"].decode(), int(headers["version"])
        key = change["key"]["id"]
        if event_id in self._seen:
            self._faults.append(f"{key}: change {event_id} came twice")
        self._seen.add(event_id)
        newest = self._newest.get(key)
        if newest is None or newest[0] <= version:
            self._newest[key] = (version, change["item"])

    async def faults(self) -> list[str]:
        return list(self._faults)

    async def ending(self) -> list[str]:
        return []

    def way_in(self) -> str:
        return (
            f"kafka-console-consumer.sh --bootstrap-server {self._address} --topic {TABLE}"
            " --from-beginning --isolation-level read_committed"
        )


# By the name of the demo's sink: its server, and what makes a place of it.
PLACES: Mapping[str, tuple[Callable[[], AbstractContextManager[Any]], Callable[..., Place]]] = {
    "postgres": (start_postgres, PostgresPlace),
    "kafka": (start_kafka, lambda server, _psql: KafkaPlace(server)),
    "cratedb": (nullcontext, lambda _server, _psql: CratePlace()),
    "s3": (nullcontext, lambda _server, _psql: ArchivePlace()),
}
