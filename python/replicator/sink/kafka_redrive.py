"""The dead letters of a topic, read back and ended.

A letter is over once a record without a value follows it under its key, in the transaction that
wrote its change where it belongs, or dropped it. Of a quarantined key all that wait go together, in
their order, and with them the quarantine: both are in that transaction, which only the shard's
newest fence can commit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from aiokafka import AIOKafkaConsumer, TopicPartition

from replicator._core import ChangeBatch, KafkaBatch
from replicator.errors import FatalError
from replicator.model import StoredLetter, Stream, TableSchema
from replicator.sink import kafka_topics
from replicator.sink.kafka_batch import FinishedBatch
from replicator.sink.kafka_client import Options, mapped, started
from replicator.sink.kafka_payload import Values, encode
from replicator.sink.kafka_positions import ABORT_SECONDS, KafkaPositions, Key
from replicator.sink.kafka_producer import KafkaProducers
from replicator.sink.kafka_schemas import KafkaSchemas
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.kafka_topics import Topic
from replicator.sink.kafka_writer import KafkaShard, Sent, send_position
from replicator.sink.letters import changes_of, key_of

# Those that only their key's earlier ones keep from the topic.
_HELD_CODES: Final = frozenset({"record_too_large", "key_quarantined"})
_POLL_MS: Final = 200


Quarantine: TypeAlias = tuple[Key, str | None, str | None]
"""Of a table's key, in a whole stream: children begin with their parents'."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A letter that waits, where it stands in its topic, and its shard's place among the
    positions. `is_late`: its change came after a newer one of its key had been given."""

    letter: StoredLetter
    partition: int
    record_key: bytes
    place: Key
    is_late: bool

    @property
    def held_by(self) -> Quarantine | None:
        """What it waits for the end of, if it does."""
        letter = self.letter
        return (_whole(self.place), letter.table, letter.key) if letter.is_held else None


@dataclass(frozen=True, slots=True)
class Meant:
    """What an operator ends: these letters (without ids all), the quarantines of their keys, and
    the shards of both. Parents come before their children, whose changes are newer: a service's ids
    of shards rise."""

    ids: frozenset[str]
    quarantines: frozenset[Quarantine]
    places: tuple[Key, ...]


class KafkaLetters:
    """Those of one sink."""

    def __init__(
        self,
        config: KafkaConfig,
        options: Options,
        pipeline: str,
        positions: KafkaPositions,
        producers: KafkaProducers,
        schemas: KafkaSchemas | None,
    ) -> None:
        self._config = config
        self._options = options
        self._pipeline = pipeline
        self._positions = positions
        self._producers = producers
        self._schemas = schemas

    async def waiting(self) -> Sequence[Waiting]:
        """All that was committed before the call and isn't over. Raises TransientError and
        FatalError."""
        _, topics = await kafka_topics.plan(self._options, self._config, ())
        if (topic := topics.get(self._config.dead_letters_topic)) is None:
            return ()
        await self._positions.refresh()
        shards = {(key[1], key[3]): key for key in self._positions.shards(self._pipeline)}
        timeout = self._config.transaction_timeout_seconds + ABORT_SECONDS
        with mapped(f"reading topic {topic.name}"):
            messages = await _messages(self._options, topic, timeout)
        found: dict[bytes, Waiting] = {}
        for message in messages:
            if ("pipeline", self._pipeline.encode()) not in message.headers:
                continue  # of anybody
            headers = {name: value.decode() for name, value in message.headers}
            if message.value is None:
                found.pop(message.key, None)
            elif (place := shards.get((headers["stream"], headers["shard"]))) is not None:
                letter = self._letter(message, headers, place)
                found[message.key] = Waiting(
                    letter, message.partition, message.key, place, headers.get("late") == "true"
                )
        return tuple(found.values())

    def _letter(self, message: Any, headers: dict[str, str], place: Key) -> StoredLetter:
        table, stored = headers.get("table"), self._positions.shard(place)
        letter = StoredLetter(
            id="/".join(message.key.decode().rsplit("/", 3)[1:]),
            stream=headers["stream"],
            shard=headers["shard"],
            position=headers.get("position", ""),
            index=int(headers["index"]),
            code=headers["code"],
            message=headers.get("message", ""),
            table=table,
            key=None,
            at=datetime.fromtimestamp(message.timestamp / 1_000, UTC).isoformat(),
            is_held=False,
            raw=message.value,
        )
        key = key_of(letter)
        is_held = letter.code in _HELD_CODES and stored is not None and (table, key) in stored.aside
        return replace(letter, key=key, is_held=is_held)

    async def meant(self, ids: Sequence[str]) -> Meant:
        """What these ids stand for; without ids all keys that are quarantined are meant, too.
        Raises FatalError for one that isn't there."""
        waiting = await self.waiting()
        known = {one.letter.id for one in waiting}
        for missing in (each for each in ids if each not in known):
            raise FatalError("usage_letter", f"no dead letter {missing} waits here")
        named = [one for one in waiting if not ids or one.letter.id in ids]
        quarantines = {one.held_by for one in named if one.held_by is not None}
        places = {one.place for one in waiting if one in named or one.held_by in quarantines}
        for place, stored in self._positions.shards(self._pipeline).items():
            aside = ((_whole(place), *each) for each in stored.aside)
            if any(not ids or each in quarantines for each in aside):
                places.add(place)
        return Meant(frozenset(ids), frozenset(quarantines), tuple(sorted(places)))

    async def end(
        self, place: Key, shard: KafkaShard, meant: Meant, *, redrive: bool
    ) -> Sequence[StoredLetter]:
        """Ends those of one shard (with `redrive` and no ids, all that are held) under its fence,
        which was just raised. Raises Fenced when that is no longer the newest."""
        ids = meant.ids
        ending = [
            one
            for one in await self.waiting()
            if one.place == place
            if one.letter.id in ids
            or (one.held_by in meant.quarantines if ids else one.letter.is_held or not redrive)
        ]
        letters = [one.letter for one in ending]
        stored = shard.claim(self._positions.log(place), self._positions.shard(place))
        kept = (each for each in stored.aside if ids)
        stored = replace(
            stored,
            aside=tuple(each for each in kept if (_whole(place), *each) not in meant.quarantines),
            dead_letters=Counter(stored.dead_letters) - Counter(one.code for one in letters),
        )
        batches = await self._batches(ending) if redrive else ()
        pipeline = self._pipeline.encode()
        with mapped(f"ending dead letters of {place[3]}"):
            async with self._producers.use(shard.producer) as driver:
                await driver.begin_transaction()
                sent = Sent(shard.producer)
                for topic, batch in batches:
                    finished = FinishedBatch(batch, transactional=True)
                    sent.add(await driver.send_batch(finished, topic, partition=batch.partition))
                for one in ending:
                    sent.add(
                        await driver.send(
                            self._config.dead_letters_topic,
                            None,
                            one.record_key,
                            partition=one.partition,
                            headers=[("pipeline", pipeline)],
                        )
                    )
                sent.add(await send_position(driver, self._positions.topic, place, stored))
                await sent.acknowledged()
                await driver.commit_transaction()
        return letters

    async def _batches(self, ending: Sequence[Waiting]) -> Sequence[tuple[str, KafkaBatch]]:
        """Their changes, as they would have been written."""
        config = self._config
        letters = [one.letter for one in ending]
        for one in letters:
            if not one.is_held:
                raise FatalError(
                    "letter_unwritable",
                    f"dead letter {one.id} ({one.code}) can't be written again: drop it",
                )
        if not letters:
            return ()
        tables = [TableSchema(name, ()) for name in dict.fromkeys(str(x.table) for x in letters)]
        _, found = await kafka_topics.plan(self._options, config, tables)
        topics = {table.name: found[config.topic_of(table.name)] for table in tables}
        changes = _changes_of(ending)
        if (pattern := config.pattern()) is not None:
            changes = changes.filter(pattern)
        if (projection := config.projection()) is not None:
            changes = changes.project(projection)
        partitions = {topic.name: topic.partitions for topic in topics.values()}
        known = {} if self._schemas is None else await self._schemas.current(changes, list(topics))
        encoded = encode(changes, Values(config, known), topics, partitions, ())
        if encoded.aside:
            table, key = encoded.aside[0]
            raise FatalError(
                "letter_unwritable",
                f"a change of {key} is larger than topic {topics[table].name} takes: raise its "
                "max.message.bytes, or drop the letter",
            )
        return encoded.batches


async def _messages(options: Options, topic: Topic, timeout_seconds: float) -> list[Any]:
    """All records, by partition in order. Raises TimeoutError when nothing more comes for that
    long: an open transaction hides the rest."""
    places = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
    found: list[Any] = []
    reader: Any = AIOKafkaConsumer(
        **options,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    watermarks: Any = AIOKafkaConsumer(**options, enable_auto_commit=False)
    try:
        await started(reader, options)
        await started(watermarks, options)
        reader.assign(places)
        # Under read_committed these would be the ends of what is decided.
        ends = await watermarks.end_offsets(places)
        async with asyncio.timeout(timeout_seconds) as deadline:
            for place in places:
                read = -1
                while (position := await reader.position(place)) < ends[place]:
                    if position > read:
                        read = position
                        now = asyncio.get_running_loop().time()
                        deadline.reschedule(now + timeout_seconds)
                    polled = await reader.getmany(place, timeout_ms=_POLL_MS)
                    found += polled.get(place, ())
    finally:
        await reader.stop()
        await watermarks.stop()
    return found


def _whole(place: Key) -> Key:
    """That of the shard's stream."""
    return (*place[:3], "")


def stream_of(place: Key) -> Stream:
    """The stream that a position is of. Both kinds' ARNs have its name (the table's, of DynamoDB
    Streams) behind the kind of thing that it is."""
    _, arn, created_at_s, _ = place
    return Stream(arn.split(":", 5)[5].split("/")[1], arn, created_at_s)


def _changes_of(ending: Sequence[Waiting]) -> ChangeBatch:
    """What they hold, and which of it is late, in order of arrival."""
    return ChangeBatch.concat(
        [
            changes_of(one.letter).marked_late() if one.is_late else changes_of(one.letter)
            for one in ending
        ]
    )
