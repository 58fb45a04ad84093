"""From the table's own stream to Kinesis, as the real service does it between the two.

The emulator's Kinesis destination writes whole seconds and random partition keys, so
one item's changes would be spread over all shards without an order. This bridge reads
the emulator's DynamoDB Streams, whose images are right, and puts records of the real
shape: microseconds of a strictly increasing clock, a partition key made of the item's
keys. It also does what the real service is allowed to: records come twice, and late.
Run as a process of its own: `python -m replicator.demo.bridge '{"seed": 1, …}'`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import heapq
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from replicator.demo.child import STREAM, TABLE, client, orders, run, say

PUT_RECORDS_MAX = 500
PUT_BYTES_MAX = 4_000_000
READ_SECONDS = 0.04
READ_SECONDS_IDLE = 0.25
IDLE_READS = 100
DELAY_SECONDS = (0.1, 1.0)
# A held record that nothing overtakes is let go this much later: it was only slow.
PATIENCE_SECONDS = 0.5


class Instants:
    """UTC microseconds that rise with every call, however fast the calls come."""

    def __init__(self) -> None:
        self._last = 0

    def next(self, now_us: int) -> int:
        """The instant of the next change: `now_us`, or just after the one before."""
        self._last = max(now_us, self._last + 1)
        return self._last


@dataclass(frozen=True, slots=True)
class Entry:
    """One record on its way to Kinesis."""

    partition_key: str
    data: bytes


def shape(record: dict[str, Any], event_us: int) -> Entry:
    """A Streams record as Kinesis Data Streams for DynamoDB carries it.

    Source of the shape: "Working with a Kinesis data stream" in the DynamoDB
    developer's guide.
    """
    change = record["dynamodb"]
    images = {name: change[name] for name in ("Keys", "NewImage", "OldImage") if change.get(name)}
    keys = _dumps(images["Keys"], sort=True)
    body = {
        "awsRegion": record["awsRegion"],
        "eventID": record["eventID"],
        "eventName": record["eventName"],
        "userIdentity": record.get("userIdentity"),
        "recordFormat": "application/json",
        "tableName": TABLE,
        "dynamodb": {
            "ApproximateCreationDateTime": event_us,
            **images,
            "SizeBytes": len(_dumps(images)),
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
        },
        "eventSource": "aws:dynamodb",
    }
    return Entry(hashlib.md5(keys, usedforsecurity=False).hexdigest().upper(), _dumps(body))


def _dumps(value: object, *, sort: bool = False) -> bytes:
    # The client library has decoded binary values; JSON carries them in base64.
    return orjson.dumps(
        value,
        default=lambda binary: base64.b64encode(binary).decode("ascii"),
        option=orjson.OPT_SORT_KEYS if sort else None,
    )


@dataclass(slots=True)
class _Held:
    entry: Entry
    until: float
    is_overtaken: bool = False


class Disturber:
    """Repeats some records and holds some back. Pure: time comes in as an argument.

    A repeated record is byte for byte the same. A late one keeps its true, earlier
    instant and comes after a newer change of its item.
    """

    def __init__(self, chance: random.Random, duplicate_share: float, late_share: float) -> None:
        self._chance = chance
        self._duplicate_share = duplicate_share
        self._late_share = late_share
        self._repeats: list[tuple[float, int, Entry]] = []
        self._held: dict[str, _Held] = {}
        self._serial = 0
        self.is_calm = True
        self.duplicates = 0
        self.late = 0

    @property
    def waiting(self) -> int:
        """Records that are still to be let go."""
        return len(self._repeats) + len(self._held)

    def feed(self, entry: Entry, now: float) -> list[Entry]:
        """What to put for a new change; nothing when it is held back."""
        if self.is_calm:
            return [entry]
        if held := self._held.get(entry.partition_key):
            held.is_overtaken = True
        elif self._chance.random() < self._late_share:
            self._held[entry.partition_key] = _Held(entry, self._later(now))
            return []
        if self._chance.random() >= self._duplicate_share:
            return [entry]
        if self._chance.random() < 0.5:
            self.duplicates += 1
            return [entry, entry]
        self._serial += 1
        heapq.heappush(self._repeats, (self._later(now), self._serial, entry))
        return [entry]

    def due(self, now: float) -> list[Entry]:
        """What was held back or kept for repeating and is to be put by now; when calm
        was ordered, all of it."""
        entries = []
        for key, held in list(self._held.items()):
            wait = 0.0 if held.is_overtaken else PATIENCE_SECONDS
            if self.is_calm or held.until + wait <= now:
                del self._held[key]
                entries.append(held.entry)
                self.late += held.is_overtaken
        while self._repeats and (self.is_calm or self._repeats[0][0] <= now):
            entries.append(heapq.heappop(self._repeats)[2])
            self.duplicates += 1
        return entries

    def _later(self, now: float) -> float:
        return now + self._chance.uniform(*DELAY_SECONDS)


def batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """The entries in the portions that one PutRecords takes."""
    batch: list[Entry] = []
    nbytes = 0
    for entry in entries:
        if len(batch) == PUT_RECORDS_MAX or (batch and nbytes + len(entry.data) > PUT_BYTES_MAX):
            yield batch
            batch, nbytes = [], 0
        batch.append(entry)
        nbytes += len(entry.data)
    if batch:
        yield batch


class Bridge:
    """Reads the table's stream and puts into Kinesis, one call at a time, in order."""

    def __init__(self, streams: Any, kinesis: Any, disturber: Disturber) -> None:
        self._streams = streams
        self._kinesis = kinesis
        self._disturber = disturber
        self._instants = Instants()
        self._is_settling = False
        self._empty_reads = 0
        self.changes = 0
        self.put = 0

    def take_order(self, order: str) -> None:
        """`disturb`: repeat and delay from now on. `settle`: stop that, let everything
        go, and report `settled` when all that was read has been put."""
        self._disturber.is_calm = order != "disturb"
        self._is_settling = order == "settle"

    async def run(self, stream_arn: str) -> None:
        """Copies until cancelled."""
        iterator = await self._first_iterator(stream_arn)
        say(ready=True)
        while True:
            began = time.monotonic()
            was_settling = self._is_settling
            iterator, count = await self._step(iterator)
            if count:
                self._report()
            elif was_settling and not self._disturber.waiting:
                self._is_settling = False
                self._report(settled=True)
            self._empty_reads = 0 if count else self._empty_reads + 1
            if count < 1_000:
                is_idle = self._empty_reads > IDLE_READS
                pause = READ_SECONDS_IDLE if is_idle else READ_SECONDS
                await asyncio.sleep(max(0.0, began + pause - time.monotonic()))

    async def _step(self, iterator: str) -> tuple[str, int]:
        """One read and its puts: the next iterator, and how many records it read."""
        answer = await self._streams.get_records(ShardIterator=iterator, Limit=1_000)
        now = time.monotonic()
        entries: list[Entry] = []
        for record in answer["Records"]:
            entry = shape(record, self._instants.next(time.time_ns() // 1_000))
            entries += self._disturber.feed(entry, now)
        entries += self._disturber.due(now)
        for batch in batches(entries):
            await self._put(batch)
        self.changes += len(answer["Records"])
        return answer["NextShardIterator"], len(answer["Records"])

    async def _put(self, batch: Sequence[Entry]) -> None:
        waiting = list(batch)
        while waiting:
            answer = await self._kinesis.put_records(
                StreamName=STREAM,
                Records=[{"Data": e.data, "PartitionKey": e.partition_key} for e in waiting],
            )
            waiting = [
                entry
                for entry, result in zip(waiting, answer["Records"], strict=True)
                if result.get("ErrorCode")
            ]
        self.put += len(batch)

    def _report(self, **more: object) -> None:
        disturber = self._disturber
        say(
            changes=self.changes,
            put=self.put,
            duplicates=disturber.duplicates,
            late=disturber.late,
            **more,
        )

    async def _first_iterator(self, stream_arn: str) -> str:
        description = await self._streams.describe_stream(StreamArn=stream_arn)
        # The emulator's table stream is one shard for ever.
        (shard,) = description["StreamDescription"]["Shards"]
        answer = await self._streams.get_shard_iterator(
            StreamArn=stream_arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )
        iterator: str = answer["ShardIterator"]
        return iterator


async def _serve(stream_arn: str, seed: int, duplicate_share: float, late_share: float) -> None:
    disturber = Disturber(random.Random(seed), duplicate_share, late_share)  # noqa: S311 no secret
    async with client("dynamodbstreams") as streams, client("kinesis") as kinesis:
        bridge = Bridge(streams, kinesis, disturber)
        async with asyncio.TaskGroup() as group:
            copying = group.create_task(bridge.run(stream_arn))
            await orders(bridge.take_order)
            copying.cancel()


if __name__ == "__main__":
    run(_serve(**orjson.loads(sys.argv[1])))
