"""The positions topic: what is stored of every shard, as records that compaction keeps.

One partition, one key for each shard (and one for each stream that was begun), the newest record
counts. Positions are records and not offsets of a consumer group: those are 64 bits wide and
expire. A reader keeps the topic as a table and reads on from where it stopped.

`read_committed` gives what lies before the oldest open transaction only. Whoever raised a fence
must see all that was committed before it, so `refresh` waits until the *high watermark* of its
beginning is reached: then the transactions that were open are over, the fenced zombie's too. It
waits for as long as it comes nearer: much may lie there that isn't compacted yet.

A cluster that fails over without the last records takes back what was read of them. So every
reading begins with the record that was read last: where that isn't what it was, all is read again.

With a shard's end lies what it remembered, in records of its own: its children ask for that once,
so only where it lies is kept. It is removed once they need it no more (`outdated`).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from replicator.errors import FatalError, TransientError
from replicator.model import Position, Reached, Stream
from replicator.sink.kafka_client import Ends, Options, mapped, started
from replicator.sink.log_shard import LogPosition

log = structlog.get_logger()

PARTITION: Final = 0
_POLL_SECONDS: Final = 0.2
# The broker looks for transactions whose time is over this often, by default
# (transaction.abort.timed.out.transaction.cleanup.interval.ms).
ABORT_SECONDS: Final = 10.0

# What a shard remembered at its end is of use until its children are some minutes further, and
# again when an operator sets one back soon.
MEMORY_SECONDS: Final = 7 * 86_400
# A child's beginning is kept no longer than its stream can keep a record, a year
# (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_IncreaseStreamRetentionPeriod.html).
MEMORY_SECONDS_MAX: Final = 366 * 86_400
# A part of it, which is less than any topic's max.message.bytes.
_PART_BYTES: Final = 256 * 1024
_REMOVED_MAX: Final = 1_000

Key = tuple[str, str, int, str]
"""Pipeline, stream's ARN, its creation time, shard; without a shard it is about the stream."""


def key_of(pipeline: str, stream: Stream, shard_id: str = "") -> Key:
    return (pipeline, stream.arn, stream.created_at_s, shard_id)


def key_bytes(key: Key) -> bytes:
    """The record's key: one spelling, for compaction compares bytes."""
    pipeline, arn, created, shard = key
    members = {"pipeline": pipeline, "stream": arn, "created": created}
    return _dumped(members | ({"shard": shard} if shard else {}))


def parts_of(key: Key, remembered: bytes) -> Sequence[tuple[bytes, bytes]]:
    """What a finished shard remembered, as keys and values of records."""
    starts = range(0, len(remembered), _PART_BYTES)
    return [
        (part_key(key, number), remembered[start : start + _PART_BYTES])
        for number, start in enumerate(starts)
    ]


def part_key(key: Key, number: int) -> bytes:
    """That of one part of it."""
    return _dumped(json.loads(key_bytes(key)) | {"remembered": number})


@dataclass(frozen=True, slots=True)
class Stored:
    """What stands for one shard. `log` is None when it was fenced and never written; `aside`
    are its quarantined keys (table, key), `dead_letters` counts those of it by code; `parts` says
    in how many records lies what it remembered at its end, `parents` whose it began with."""

    log: LogPosition | None
    epoch: int
    owner: str
    aside: tuple[tuple[str, str], ...] = ()
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    stored_us: int = 0
    parts: int = 0
    parents: tuple[str, ...] = ()

    @property
    def is_past_parents(self) -> bool:
        """True when it needs no more what its parents remembered."""
        return self.log is not None and not self.log.inherits

    def to_bytes(self) -> bytes:
        members: dict[str, Any] = {} if self.log is None else json.loads(self.log.to_json())
        members |= {"epoch": self.epoch, "owner": self.owner, "stored_us": self.stored_us}
        if self.aside:
            members["aside"] = self.aside
        if self.dead_letters:
            members["dead_letters"] = self.dead_letters
        if self.parts:
            members["parts"] = self.parts
        if self.parents:
            members["parents"] = self.parents
        return _dumped(members)

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Stored:
        return cls(
            LogPosition.from_json(json.dumps(members)) if "position" in members else None,
            members["epoch"],
            members["owner"],
            tuple((table, key) for table, key in members.get("aside", ())),
            members.get("dead_letters", {}),
            members.get("stored_us", 0),
            members.get("parts", 0),
            tuple(members.get("parents", ())),
        )


@dataclass(frozen=True, slots=True)
class Begun:
    """A stream that a pipeline began: its shards' first positions, where it goes, and when;
    `joined_us` is when it came to the newest of these topics, UTC microseconds."""

    starts: Mapping[str, Position]
    topics: tuple[str, ...]
    at_us: int
    joined_us: int

    def to_bytes(self) -> bytes:
        starts = {shard: str(position) for shard, position in self.starts.items()}
        members = {"starts": starts, "topics": self.topics, "at_us": self.at_us}
        return _dumped(members | {"joined_us": self.joined_us})

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Begun:
        starts = {shard: Position.parse(text) for shard, text in members["starts"].items()}
        at_us = members["at_us"]
        return cls(starts, tuple(members["topics"]), at_us, members.get("joined_us", at_us))

    def log(self, shard_id: str) -> LogPosition | None:
        """What stands for a shard until it is written for the first time."""
        if (start := self.starts.get(shard_id)) is None:
            return None
        tip_us = min(self.at_us, start.timestamp_us or self.at_us)
        return LogPosition(start, tip_us=tip_us, begun_us=self.at_us)


class KafkaPositions:
    """The topic as a table, as far as it was read. Nothing is connected before `refresh`."""

    def __init__(self, options: Options, topic: str, *, wait_seconds: float) -> None:
        """`wait_seconds`: longest time that a transaction stays open."""
        self.topic = topic
        self._options = options
        self._deadline_seconds = wait_seconds + ABORT_SECONDS
        self._partition = TopicPartition(topic, PARTITION)
        self._reader: AIOKafkaConsumer | None = None
        self._watermarks: AIOKafkaConsumer | None = None
        self._shards: dict[Key, Stored] = {}
        self._streams: dict[Key, Begun] = {}
        # Where each part of what a shard remembered lies.
        self._parts: dict[Key, dict[int, int]] = {}
        self._last: Any = None
        self._ends = Ends()
        self._lock = asyncio.Lock()
        # Whoever asks while somebody reads waits for a later reading, and shares it.
        self._asked = self._served = 0

    async def refresh(self) -> None:
        """Reads all that was committed before the call. Raises TransientError and FatalError."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._served >= mine:
                return
            serves = self._asked
            with mapped(f"reading positions of topic {self.topic}"):
                try:
                    await self._read()
                except BaseException:
                    # A consumer that failed once may never go on.
                    await self._close()
                    raise
            self._served = serves

    def shard(self, key: Key) -> Stored | None:
        """As of the last `refresh`."""
        return self._shards.get(key)

    def log(self, key: Key) -> LogPosition | None:
        """What stands for a shard, by itself or by its stream's beginning."""
        stored = self._shards.get(key)
        if stored is not None and stored.log is not None:
            return stored.log
        begun = self._streams.get((*key[:3], ""))
        return None if begun is None else begun.log(key[3])

    def begun(self, key: Key) -> Begun | None:
        return self._streams.get(key)

    def streams(self) -> Mapping[Key, Begun]:
        """All that were begun, the newest last."""
        return dict(sorted(self._streams.items(), key=lambda item: item[1].joined_us))

    def shards(self, pipeline: str, stream: Stream | None = None) -> Mapping[Key, Stored]:
        """All of a pipeline that were written or fenced, or of one stream of it."""
        return {
            key: stored
            for key, stored in self._shards.items()
            if key[0] == pipeline
            and (stream is None or key[1:3] == (stream.arn, stream.created_at_s))
        }

    def logs(self, pipeline: str, stream: Stream) -> Mapping[str, LogPosition]:
        """What stands for every shard that has a position."""
        key = key_of(pipeline, stream)
        begun = self._streams.get(key)
        shard_ids = {} if begun is None else dict.fromkeys(begun.starts)
        shard_ids |= dict.fromkeys(key[3] for key in self.shards(pipeline, stream))
        found = {shard_id: self.log(key_of(pipeline, stream, shard_id)) for shard_id in shard_ids}
        return {shard_id: log for shard_id, log in found.items() if log is not None}

    async def remembered(self, key: Key) -> bytes:
        """What a finished shard remembered, as of the last `refresh`; b"" when it did not, or
        that was removed. Raises TransientError and FatalError."""
        stored = self._shards.get(key)
        parts = self._parts.get(key, {})
        found: list[bytes | None] = []
        async with self._lock:
            with mapped(f"reading a shard's memory from topic {self.topic}"):
                try:
                    for number in range(0 if stored is None else stored.parts):
                        name = part_key(key, number)
                        found.append(await self._value_at(parts.get(number), name))
                except BaseException:
                    await self._close()
                    raise
        if None in found:
            log.info("memory_gone", shard=key[3], action="its children begin without it")
            return b""
        return b"".join(value for value in found if value is not None)

    def outdated(self, pipeline: str, now_us: int) -> Sequence[bytes]:
        """The keys of parts of what was remembered some time ago and no child begins with any
        more, for tombstones; not too many."""
        kept = {key: parts for key, parts in self._parts.items() if parts and key[0] == pipeline}
        passed = self._passed(pipeline) if kept else set()  # most streams remember nothing

        def is_outdated(key: Key) -> bool:
            if (stored := self._shards.get(key)) is None:
                return True
            seconds = MEMORY_SECONDS if key in passed else MEMORY_SECONDS_MAX
            return stored.stored_us < now_us - seconds * 1_000_000

        keys = (
            part_key(key, number)
            for key, parts in kept.items()
            if is_outdated(key)
            for number in parts
        )
        return list(islice(keys, _REMOVED_MAX))

    def _passed(self, pipeline: str) -> set[Key]:
        """The shards whose children are all past them. Two shards are merged into one, or one is
        split into two: who has another parent is the only child, who has none is one of two."""
        halves = Counter[Key]()
        for key, stored in self.shards(pipeline).items():
            if stored.is_past_parents:
                for parent in stored.parents:
                    halves[*key[:3], parent] += 1 if len(stored.parents) == 1 else 2
        return {key for key, count in halves.items() if count >= 2}

    async def close(self) -> None:
        async with self._lock:
            await self._close()
        await self._ends.all()

    async def _close(self) -> None:
        consumers = (self._reader, self._watermarks)
        self._reader = self._watermarks = None
        self._begin_anew()
        for consumer in consumers:
            if consumer is not None:
                await self._ends.wait_for(_stopped(consumer))

    def _begin_anew(self) -> None:
        self._shards, self._streams, self._parts, self._last = {}, {}, {}, None

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(self._deadline_seconds) as deadline:
                reader, watermarks = await self._consumers()
                # Under read_committed this would be the end of what is decided.
                end = (await watermarks.end_offsets([self._partition]))[self._partition]
                reader.resume(self._partition)
                reader.seek(self._partition, 0 if self._last is None else self._last.offset)
                if not await self._read_to(end, reader, deadline):
                    self._begin_anew()
                    reader.seek(self._partition, 0)
                    await self._read_to(end, reader, deadline)
                reader.pause(self._partition)
        except TimeoutError as error:
            raise TransientError(
                "kafka_positions_pending",
                f"topic {self.topic} gave nothing more for {self._deadline_seconds:.0f} s: "
                "the brokers are slow, or a transaction of another producer is open there",
            ) from error

    async def _value_at(self, offset: int | None, key: bytes) -> bytes | None:
        """The value of one record; None when it isn't there any more."""
        if offset is None:
            return None
        reader, _ = await self._consumers()
        reader.seek(self._partition, offset)
        reader.resume(self._partition)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                while await reader.position(self._partition) <= offset:
                    polled = await reader.getmany(
                        self._partition, timeout_ms=round(_POLL_SECONDS * 1_000), max_records=1
                    )
                    for message in polled.get(self._partition, ()):
                        if message.offset == offset and message.key == key:
                            value: bytes | None = message.value
                            return value
            return None
        except TimeoutError as error:
            raise TransientError(
                "kafka_positions_pending",
                f"topic {self.topic} gave nothing at {offset} for {self._deadline_seconds:.0f} s",
            ) from error
        finally:
            reader.pause(self._partition)

    async def _read_to(self, end: int, reader: Any, deadline: asyncio.Timeout) -> bool:
        """Takes what lies before `end`. False when that begins with another record than the
        one that was read last (also when that was compacted, which is rare: nothing newer had
        come before it was read)."""
        before, read = self._last, -1
        while (position := await reader.position(self._partition)) < end:
            if position > read:
                # What the broker hasn't compacted yet may take long: only an open
                # transaction makes it stand still.
                read = position
                now = asyncio.get_running_loop().time()
                deadline.reschedule(now + self._deadline_seconds)
            polled = await reader.getmany(self._partition, timeout_ms=round(_POLL_SECONDS * 1_000))
            for message in polled.get(self._partition, ()):
                if before is not None:
                    if message != before:
                        return False
                    before = None
                try:
                    self._apply(message.key, message.value, message.offset)
                except (ValueError, KeyError, TypeError) as error:
                    raise FatalError(
                        "kafka_positions_unreadable",
                        f"the record at offset {message.offset} of topic {self.topic} is no "
                        "position: give the sink a positions_topic that nobody else writes to",
                    ) from error
                self._last = message
        return before is None

    async def _consumers(self) -> tuple[Any, Any]:
        if self._reader is None or self._watermarks is None:
            self._reader = AIOKafkaConsumer(
                **self._options,
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
            )
            self._watermarks = AIOKafkaConsumer(**self._options, enable_auto_commit=False)
            await started(self._reader, self._options)
            await started(self._watermarks, self._options)
            known = await self._watermarks.topics()
            if self.topic not in known:
                raise FatalError(
                    "kafka_topic_missing",
                    f"there is no topic {self.topic}, which holds the positions, or it may not be "
                    "seen: run with create: true, create it with one partition and "
                    "cleanup.policy=compact, or grant Describe on it",
                )
            self._reader.assign([self._partition])
        return self._reader, self._watermarks

    def _apply(self, key: bytes, value: bytes | None, offset: int) -> None:
        members = json.loads(key)
        place = (members["pipeline"], members["stream"], members["created"])
        at: Key = (*place, members.get("shard", ""))
        if (number := members.get("remembered")) is not None:
            self._parts.setdefault(at, {})[number] = offset
            if value is None:
                del self._parts[at][number]
        elif value is None:
            self._shards.pop(at, None)
            self._streams.pop(at, None)
        elif at[3]:
            self._shards[at] = Stored.of(json.loads(value))
        else:
            self._streams[at] = Begun.of(json.loads(value))


async def _stopped(consumer: AIOKafkaConsumer) -> None:
    with suppress(KafkaError, OSError):
        await consumer.stop()


def reached(log: LogPosition) -> Reached:
    """Until when a shard was read."""
    return Reached(log.last_arrival_us, log.tip_us, log.begun_us)


def _dumped(members: Mapping[str, Any]) -> bytes:
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()
