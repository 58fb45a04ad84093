"""One shard's changes, dead letters and position, in one transaction.

The walk of `write`: take what is due from the shard's memory, encode it by table, send it all,
commit. With `at_least_once` the records go by a producer that all shards share, outside of the
transaction, between the position and its commit.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from replicator._core import ChangeBatch, Rejection, Schema
from replicator.core.windows import Windows
from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END, DeadLetter, Fence, Pending, WriteResult
from replicator.sink.in_thread import in_thread
from replicator.sink.kafka_batch import FinishedBatch
from replicator.sink.kafka_client import Fenced, mapped
from replicator.sink.kafka_letters import letter_headers, letter_key
from replicator.sink.kafka_payload import Aside, Encoded, Values, encode
from replicator.sink.kafka_positions import PARTITION, Begun, Key, Stored, key_bytes, parts_of
from replicator.sink.kafka_producer import KafkaProducers, Producer
from replicator.sink.kafka_schemas import KafkaSchemas
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.kafka_topics import Topic
from replicator.sink.log_shard import LogPosition, LogShard, Taken, growth
from replicator.sink.matched import matched
from replicator.sink.position import tip_age_seconds

# A position that moved while nothing was written is stored this often: far more often than any
# retention ends, and seldom enough that thousands of idle shards cost nothing.
IDLE_POSITION_SECONDS: Final = 600.0
# What is around a dead letter's own bytes: names, a message, a number.
_LETTER_HEADERS_BYTES: Final = 8_192


@dataclass(slots=True)
class KafkaShard:
    """One shard under one fence. `log` is there once the position was read behind the fence."""

    fence: Fence
    key: Key
    producer: Producer
    log: LogShard | None = None
    stored: Stored | None = None
    stored_at: float = float("-inf")
    is_over: bool = False
    """Nothing more is written under this fence."""
    is_lost: bool = False
    """It is known to be somebody else's."""
    parents: tuple[str, ...] = ()

    @property
    def is_finished(self) -> bool:
        """True once its end is committed."""
        log = None if self.stored is None else self.stored.log
        return log is not None and log.position == SHARD_END

    def is_passed(self, stored: Stored) -> bool:
        """True when this is a later claim than its own."""
        return (
            self.stored is not None
            and stored.owner != self.fence.owner
            and stored.epoch > self.fence.epoch
        )

    def claim(self, position: LogPosition | None, before: Stored | None) -> Stored:
        """What says that the shard is ours, at the position where it stands."""
        before = before or Stored(None, 0, "")
        return replace(
            before,
            log=position,
            epoch=self.fence.epoch,
            owner=self.fence.owner,
            parents=self.parents or before.parents,
        )


@dataclass(frozen=True, slots=True)
class Room:
    """What the writers of one sink share. `topics` may change when they are looked at again."""

    config: KafkaConfig
    topics: Mapping[str, Topic]
    """By table."""
    letters: Mapping[str, Topic]
    """That of the dead letters, by its name."""
    producers: KafkaProducers
    schemas: KafkaSchemas | None
    look_again: Callable[[], Awaitable[None]]
    windows: Windows
    outdated: Callable[[], Sequence[bytes]]
    """Keys of the positions topic that are needed no more."""
    monotonic: Callable[[], float]
    now_us: Callable[[], int]

    @property
    def limits(self) -> Mapping[str, int]:
        """What each topic takes, as far as is known."""
        topics = (*self.topics.values(), *self.letters.values())
        return {topic.name: topic.bytes_max for topic in topics}


@dataclass(frozen=True, slots=True)
class _Due:
    """What one write makes durable."""

    changes: ChangeBatch
    rejections: tuple[Rejection, ...]
    position: LogPosition
    duplicates: int
    superseded: int
    unmatched: int
    is_holding: bool
    remembered: bytes


class KafkaWriter:
    """Writes one shard, one write at a time."""

    def __init__(self, shard: KafkaShard, room: Room) -> None:
        self._shard = shard
        self._room = room
        self._pattern = room.config.pattern()
        self._projection = room.config.projection()

    def encode(self, pending: Sequence[Pending]) -> tuple[Pending, ...]:
        """As they are: what is due depends on what came before."""
        return tuple(pending)

    async def write(self, payload: tuple[Pending, ...]) -> WriteResult:
        shard = self._shard
        lost = WriteResult(lost=frozenset({shard.fence.shard_id}))
        if shard.is_over or shard.log is None or any(o.fence != shard.fence for o in payload):
            return lost
        try:
            with self._room.windows.taking(shard.log, growth(payload)):
                nbytes = sum(one.batch.nbytes for one in payload)
                due = await in_thread(nbytes, self._take, payload)
            if self._is_idle(due):
                return replace(self._result(due, due.rejections), is_asked=False)
            with mapped(f"writing changes of {shard.fence.shard_id}"):
                result = await self._write(due)
        except BaseException as error:
            # Its memory is ahead of what is stored: the next fence begins with another.
            shard.is_over = True
            self._room.windows.release(shard.log)
            if isinstance(error, Fenced):
                shard.is_lost = True
                return lost
            raise
        if shard.is_finished:
            self._room.windows.release(shard.log)
        return result

    def _is_idle(self, due: _Due) -> bool:
        stored = self._shard.stored
        log = None if stored is None else stored.log
        if len(due.changes) or due.rejections or log is None:
            return False
        if due.position == log:
            return True
        before, now = log.position, due.position.position
        if now == SHARD_END or (now.sequence_number and not before.sequence_number):
            return False
        return self._room.monotonic() - self._shard.stored_at < IDLE_POSITION_SECONDS

    def _take(self, payload: Sequence[Pending]) -> _Due:
        log = self._shard.log
        assert log is not None
        left_out = log.counts["left_out"]
        taken: list[Taken] = []
        for one in payload:
            age = tip_age_seconds(one, self._room.monotonic())
            tip_us = None if age is None else self._room.now_us() - round(age * 1_000_000)
            taken.append(log.take(one, tip_us))
        found = sum(each.changes.duplicates for each in taken)
        known = sum(one.batch.duplicates for one in payload)
        batches = [each.changes for each in taken if len(each.changes)] or [taken[-1].changes]
        changes = batches[0] if len(batches) == 1 else ChangeBatch.concat(batches)
        rejections = [rejection for each in taken for rejection in each.rejections]
        changes, unmatched = matched(changes, self._room.topics, self._pattern, self._projection)
        return _Due(
            changes,
            tuple(rejections),
            log.stored,
            max(found - known, 0),
            log.counts["left_out"] - left_out,
            unmatched,
            taken[-1].is_holding,
            taken[-1].remembered,
        )

    async def _write(self, due: _Due) -> WriteResult:
        shard, room = self._shard, self._room
        is_once = room.config.delivery == "exactly_once"
        present = due.changes.tables  # looks at every change
        tables = [table for table in room.topics if table in present]
        producer = shard.producer if is_once else room.producers.shared()
        async with room.producers.use(producer) as driver:
            partitions = await self._partitions(driver, tables)
        limits = room.limits
        # What stops this shard here must not end a producer that others write by, too.
        encoded = await self._encoded(partitions, due.changes, tables)
        rejections = (*due.rejections, *encoded.rejections)
        self._check_letters(rejections)
        parts = parts_of(shard.key, due.remembered)
        stored = self._stored(due.position, rejections, encoded.aside, len(parts))
        async with room.producers.use(shard.producer) as driver:
            await driver.begin_transaction()
            sent, topic = Sent(shard.producer), room.config.positions_topic
            for key, value in (*self._outdated(due), *parts):
                sent.add(await driver.send(topic, value, key, partition=PARTITION))
            sent.add(await send_position(driver, topic, shard.key, stored))
            if is_once:
                await self._send(driver, encoded, rejections, sent, limits)
            else:
                # The brokers take it of the newest fence only, and it counts with the commit: who
                # was fenced before this write finds out here, and sends nothing.
                await sent.acknowledged()
                async with room.producers.use(room.producers.shared()) as carrier:
                    await self._send(carrier, encoded, rejections, Sent(), limits)
            await driver.commit_transaction()
        shard.stored, shard.stored_at = stored, room.monotonic()
        return replace(self._result(due, rejections), rows=encoded.rows)

    async def _send(
        self,
        driver: Any,
        encoded: Encoded,
        rejections: Sequence[Rejection],
        sent: Sent,
        limits: Mapping[str, int],
    ) -> None:
        """Returns when they are acknowledged, with all that was sent before. `limits` are those
        that they were encoded for."""
        is_once = self._room.config.delivery == "exactly_once"
        try:
            for topic, batch in encoded.batches:
                finished = FinishedBatch(batch, transactional=is_once)
                sent.add(await driver.send_batch(finished, topic, partition=batch.partition))
            for one in rejections:
                sent.add(await self._send_letter(driver, one))
            await sent.acknowledged()
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            room = self._room
            await room.look_again()
            if room.limits == limits:
                raise FatalError(
                    "kafka_limit_unknown",
                    f"a topic takes smaller records than is known: {error}; grant DescribeConfigs "
                    "on the topics where that is missing, else raise max.message.bytes of "
                    f"{room.config.positions_topic}",
                ) from error
            raise TransientError(
                "kafka_limit_changed",
                f"a topic takes smaller records than it said: {error}; it was asked again",
                retry_after_seconds=0.0,
            ) from error

    async def _partitions(self, driver: Any, tables: Sequence[str]) -> Mapping[str, int]:
        """Those of now: others' producers use a new one at once, too."""
        topics = self._room.topics
        names = {topics[table].name for table in tables}
        return {name: len(await driver.partitions_for(name)) for name in names}

    async def _encoded(
        self, partitions: Mapping[str, int], changes: ChangeBatch, tables: Sequence[str]
    ) -> Encoded:
        room, stored = self._room, self._shard.stored
        assert stored is not None, "the position is read before the first write"
        known: Mapping[str, Schema] = {}
        if room.schemas is not None:
            known = await room.schemas.current(changes, tables)
        values = Values(room.config, known)
        encoded: Encoded = await in_thread(
            changes.nbytes, encode, changes, values, room.topics, partitions, stored.aside
        )
        return encoded

    def _outdated(self, due: _Due) -> Sequence[tuple[bytes, None]]:
        """What the ends of other shards left, with this one's: as much as comes goes."""
        is_end = due.position.position == SHARD_END
        return [(key, None) for key in self._room.outdated()] if is_end else ()

    def _stored(
        self, position: LogPosition, rejections: Sequence[Rejection], aside: Aside, parts: int
    ) -> Stored:
        before = self._shard.stored
        assert before is not None
        counts = Counter(before.dead_letters) + Counter(one.code for one in rejections)
        now_us = self._room.now_us()
        return replace(
            before,
            log=position,
            aside=aside,
            dead_letters=counts,
            stored_us=now_us,
            parts=parts,
        )

    def _result(self, due: _Due, rejections: Sequence[Rejection]) -> WriteResult:
        shard_id = self._shard.fence.shard_id
        return WriteResult(
            duplicates=due.duplicates,
            superseded=due.superseded,
            unmatched=due.unmatched,
            dead_letters=tuple(DeadLetter(shard_id, one.table, one) for one in rejections),
            holding=frozenset({shard_id} if due.is_holding else ()),
        )

    def _check_letters(self, rejections: Sequence[Rejection]) -> None:
        name = self._room.config.dead_letters_topic
        room = self._room.letters[name].bytes_max - _LETTER_HEADERS_BYTES
        largest = max((len(one.raw) for one in rejections), default=0)
        if largest > room:
            raise FatalError(
                "dead_letter_refused",
                f"a dead letter of {largest} bytes doesn't fit into topic {name}, so the shard "
                f"stops: set its max.message.bytes to {largest + _LETTER_HEADERS_BYTES} or more",
            )

    async def _send_letter(self, driver: Any, rejection: Rejection) -> asyncio.Future[Any]:
        fence, topic = self._shard.fence, self._room.config.dead_letters_topic
        # One shard's are in one partition, in order.
        place = zlib.crc32(f"{fence.stream.arn}/{fence.shard_id}".encode())
        sent: asyncio.Future[Any] = await driver.send(
            topic,
            rejection.raw,
            letter_key(fence, rejection),
            partition=place % len(await driver.partitions_for(topic)),
            headers=letter_headers(self._shard.key[0], fence, rejection),
        )
        return sent


async def send_position(
    driver: Any, topic: str, key: Key, stored: Stored | Begun
) -> asyncio.Future[Any]:
    """Puts a record of the positions topic on its way."""
    sent: asyncio.Future[Any] = await driver.send(
        topic, stored.to_bytes(), key_bytes(key), partition=PARTITION
    )
    return sent


class Sent:
    """What is on its way. Whatever ends the wait, an error of each is seen."""

    def __init__(self, producer: Producer | None = None) -> None:
        """`producer` tells whether what it sent before is still there. Of one that several
        write by, nobody knows what came before."""
        self._producer = producer
        self._futures: list[asyncio.Future[Any]] = []

    def add(self, future: asyncio.Future[Any]) -> None:
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._futures.append(future)

    async def acknowledged(self) -> None:
        """Returns when all are. Raises the first error."""
        found, self._futures = await asyncio.gather(*self._futures), []
        if self._producer is not None:
            for each in found:
                self._producer.saw(each.topic_partition, each.offset)
