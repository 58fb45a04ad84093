"""The Kafka sink: positions, fences and writers. `kafka_writer` writes.

A shard has a transactional id of its own. A fence is a new epoch of it (law 6): the broker refuses
every older producer from then on, also for a shard that is idle. The position is read after that,
and claimed by a record that only the newest epoch can commit.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from replicator.core.start import Brought, Joining, joining, require_comparable
from replicator.errors import FatalError, TransientError
from replicator.model import (
    SHARD_END,
    TRIM_HORIZON,
    EndedLetter,
    Fence,
    LetterOutcome,
    Position,
    Reached,
    SinkFinding,
    SinkHeld,
    SinkPlan,
    SinkReport,
    StoredLetter,
    Stream,
    TableSchema,
)
from replicator.protocols import Describe
from replicator.sink import kafka_topics
from replicator.sink.fences import fence_lost, marked
from replicator.sink.kafka_client import Fenced, mapped, options
from replicator.sink.kafka_positions import (
    Begun,
    KafkaPositions,
    Key,
    Stored,
    key_of,
    reached,
)
from replicator.sink.kafka_producer import KafkaProducers, Producer
from replicator.sink.kafka_redrive import KafkaLetters, Meant, stream_of
from replicator.sink.kafka_schemas import KafkaSchemas
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.kafka_topics import Topic
from replicator.sink.kafka_writer import KafkaShard, KafkaWriter, Room, Sent, send_position
from replicator.sink.letters import chosen, refused
from replicator.sink.log_shard import LogPosition, LogShard
from replicator.sink.place import SinkPlace
from replicator.sink.projected import require_keys

# https://kafka.apache.org/protocol: a string may have 32,767 bytes, but people read these.
_ID_CHARACTERS_MAX: Final = 200
_TRIES_MAX: Final = 3


class KafkaSink:
    """Writes every change to the topic of its table (`KafkaConfig.topic`), keyed and partitioned
    by the item's key. Positions are in `positions_topic`."""

    def __init__(
        self,
        config: KafkaConfig,
        place: SinkPlace,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        """`monotonic` is the clock that fetches were received by. Kafka has no clock that could
        be asked: `now_us` is this machine's."""
        self._config = config
        self._pipeline = place.pipeline
        self._windows = place.windows
        self._options = options(config, place.aws)
        self._monotonic = monotonic
        self._now_us = now_us
        self._positions = KafkaPositions(
            self._options, config.positions_topic, wait_seconds=config.transaction_timeout_seconds
        )
        self._producers = KafkaProducers(
            self._options,
            open_max=config.producers_max,
            timeout_seconds=config.transaction_timeout_seconds,
            monotonic=monotonic,
        )
        self._schemas = KafkaSchemas(config) if config.is_registered else None
        self._dead = KafkaLetters(
            config, self._options, place.pipeline, self._positions, self._producers, self._schemas
        )
        self._tables: tuple[TableSchema, ...] = ()
        self._topics: dict[str, Topic] = {}
        self._letters: dict[str, Topic] = {}
        self._shards: dict[tuple[Stream, str], KafkaShard] = {}
        self._writers: dict[Fence, KafkaWriter] = {}

    # ---- what is there

    async def plan(self, tables: Sequence[TableSchema]) -> SinkPlan:
        require_keys(self._config.name, self._config.projection(), tables)
        planned, _ = await kafka_topics.plan(self._options, self._config, tables)
        if self._schemas is None:
            return planned
        found = await self._schemas.findings(tables)
        return replace(planned, findings=(*planned.findings, *found))

    async def expiring(self, tables: Sequence[TableSchema], reach_us: int) -> Sequence[SinkFinding]:
        return await kafka_topics.expiring(self._options, self._config, tables, reach_us)

    async def held(self, stream: Stream, tables: Sequence[TableSchema]) -> SinkHeld:
        _, found = await kafka_topics.plan(self._options, self._config, tables)
        names = {self._config.topic_of(table.name) for table in tables}
        topics = [topic for name, topic in found.items() if name in names]
        doing = f"looking into the topics of sink {self._config.name}"
        holds_data = await kafka_topics.holds_records(self._options, topics, doing)
        if self._config.positions_topic not in found:
            return SinkHeld(is_known=False, begun=(), holds_data=holds_data)
        return SinkHeld(
            is_known=await self.is_known(stream),
            begun=tuple(await self._begun({topic.name for topic in topics})),
            holds_data=holds_data,
            rivals=await self._rivals(self._joined(stream, topics), topics),
        )

    async def report(self) -> SinkReport:
        try:
            await self._positions.refresh()
        except FatalError as error:
            if error.code == "kafka_topic_missing":
                return SinkReport()
            raise
        now_us, letters = self._now_us(), Counter[str]()
        rows: dict[Key, dict[str, Any]] = {}
        for key, begun in self._positions.streams().items():
            if key[0] == self._pipeline:
                for shard_id in begun.starts:
                    at = (*key[:3], shard_id)
                    rows[at] = _row(at, None, begun.log(shard_id), now_us)
        for key, stored in self._positions.shards(self._pipeline).items():
            rows[key] = _row(key, stored, self._positions.log(key), now_us)
            letters.update(stored.dead_letters)
        return SinkReport(tuple(rows[key] for key in sorted(rows)), letters)

    async def open(self, tables: Sequence[TableSchema]) -> None:
        require_keys(self._config.name, self._config.projection(), tables)
        if self._schemas is not None:
            self._schemas.require_subjects(tables)
        self._tables = tuple(tables)
        await self._look_again(made=True)

    async def _look_again(self, *, made: bool = False) -> None:
        """The topics as they are now."""
        if made:
            found = await kafka_topics.make(self._options, self._config, self._tables)
        else:
            _, found = await kafka_topics.plan(self._options, self._config, self._tables)
        letters = self._config.dead_letters_topic
        if letters in found:
            self._letters[letters] = found[letters]
        for table in self._tables:
            if (topic := found.get(self._config.topic_of(table.name))) is not None:
                self._topics[table.name] = topic

    async def holds_data(self) -> bool:
        topics = tuple({topic.name: topic for topic in self._topics.values()}.values())
        doing = f"looking into the topics of sink {self._config.name}"
        return await kafka_topics.holds_records(self._options, topics, doing)

    # ---- streams

    async def begin(self, stream: Stream, starts: Mapping[str, Position]) -> bool:
        key, doing = key_of(self._pipeline, stream), f"beginning stream {stream.name}"
        topics = tuple(sorted({topic.name for topic in self._topics.values()}))
        async with self._alone(stream, doing) as producer:
            if self._positions.begun(key) is not None:
                return False
            now_us = self._now_us()
            begun = Begun(dict(sorted(starts.items())), topics, now_us, now_us)
            await self._store(producer, key, begun, doing)
        return True

    @asynccontextmanager
    async def _alone(self, stream: Stream, doing: str) -> AsyncIterator[Producer]:
        """Two that begin together have one transactional id: the second ends what the first did
        not commit, and sees what it did."""
        producer = self._producers.make(self._transactional_id(stream, "begin"))
        try:
            with mapped(doing):
                async with self._producers.use(producer):
                    pass
            await self._positions.refresh()
            yield producer
        except Fenced as error:
            raise TransientError("kafka_begun_twice", f"{doing}: another worker does it") from error
        finally:
            await self._producers.drop(producer)

    async def is_known(self, stream: Stream) -> bool:
        await self._positions.refresh()
        return self._positions.begun(key_of(self._pipeline, stream)) is not None

    async def add_tables(self, stream: Stream) -> Sequence[str]:
        await self._positions.refresh()
        topics = tuple(self._topics.values())
        if not self._joined(stream, topics).is_needed:
            return ()
        key, doing = key_of(self._pipeline, stream), f"adding tables to stream {stream.name}"
        async with self._alone(stream, doing) as producer:
            found, begun = self._joined(stream, topics), self._positions.begun(key)
            if begun is None or not found.is_needed:  # another worker did it
                return ()
            require_comparable(stream.arn, await self._rivals(found, topics))
            # Behind all others, whatever their clocks said.
            newest = max(each.joined_us for each in self._positions.streams().values())
            joined_us = max(self._now_us(), newest + 1)
            after = replace(begun, topics=found.tables(begun.topics), joined_us=joined_us)
            await self._store(producer, key, after, doing)
        return found.added

    def _joined(self, stream: Stream, topics: Sequence[Topic]) -> Joining:
        """What the stream finds in the topics, as of the last reading."""
        mine = key_of(self._pipeline, stream)
        brought = [
            Brought(key[1], frozenset(begun.topics), is_mine=key == mine)
            for key, begun in self._positions.streams().items()
        ]
        return joining(stream.arn, {topic.name for topic in topics}, brought, is_log=True)

    async def _rivals(self, found: Joining, topics: Sequence[Topic]) -> tuple[str, ...]:
        """Those in topics that hold records."""
        names = {topic.name: topic for topic in topics}
        doing = f"looking into the topics of sink {self._config.name}"
        holding = [
            name
            for name in found.rivals
            if await kafka_topics.holds_records(self._options, [names[name]], doing)
        ]
        return found.rivals_in(holding)

    async def begun(self) -> Sequence[str]:
        return await self._begun({topic.name for topic in self._topics.values()})

    async def _begun(self, mine: set[str]) -> Sequence[str]:
        await self._positions.refresh()
        arns = (
            key[1]
            for key, begun in self._positions.streams().items()
            if key[0] == self._pipeline or not mine.isdisjoint(begun.topics)
        )
        return list(dict.fromkeys(arns))

    async def positions(self, stream: Stream) -> Mapping[str, Position]:
        await self._positions.refresh()
        logs = self._positions.logs(self._pipeline, stream)
        # A shard that left this worker is claimed elsewhere: its memory isn't needed here.
        others = [
            shard
            for shard in self._shards.values()
            if (stored := self._positions.shard(shard.key)) is not None and shard.is_passed(stored)
        ]
        for shard_id, log in logs.items():
            shard = self._shards.get((stream, shard_id))
            if log.position == SHARD_END and shard is not None and shard.is_finished:
                others.append(shard)
        for shard in others:
            await self._forget(shard)
        return {shard_id: log.position for shard_id, log in logs.items()}

    async def reached(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Reached]:
        await self._positions.refresh()
        logs = self._positions.logs(self._pipeline, stream)
        found = {shard: reached(logs[shard]) for shard in shard_ids if shard in logs}
        return {shard: each for shard, each in found.items() if each != Reached()}

    # ---- fences

    async def fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        producer = self._producers.make(self._transactional_id(stream, shard_id))
        try:
            with mapped(f"raising the fence of {shard_id}"):
                async with self._producers.use(producer):
                    pass
        except Fenced as error:
            raise TransientError("kafka_fenced", str(error)) from error
        fence = Fence(stream, shard_id, producer.epoch + 1, marked(owner))
        shard = KafkaShard(fence, key_of(self._pipeline, stream, shard_id), producer)
        known = self._shards.get((stream, shard_id))
        if known is not None and known.producer.follows(producer):
            # Raised here meanwhile.
            known, shard = shard, known
        self._shards[stream, shard_id] = shard
        await self._forget(known)
        return fence

    def inherit(self, fence: Fence, parents: Sequence[str]) -> None:
        """See `protocols.Inheriting`."""
        shard = self._shards.get((fence.stream, fence.shard_id))
        if shard is not None and shard.fence == fence:
            shard.parents = tuple(parents)

    async def position(self, fence: Fence) -> Position | None:
        shard = self._shards.get((fence.stream, fence.shard_id))
        if shard is None or shard.fence != fence or shard.is_lost:
            raise fence_lost(fence)
        await self._positions.refresh()
        log, before = self._positions.log(shard.key), self._positions.shard(shard.key)
        if shard.is_over:
            # After a write whose outcome was unknown: the brokers answer again. To write takes
            # another fence.
            if before is not None and before.owner not in {"", fence.owner} and shard.stored:
                await self._forget(shard)
                raise fence_lost(fence)
            return None if log is None else log.start
        claim = shard.claim(log, before or self._inherited(shard))
        memory = shard.log
        if memory is None:
            memory = await self._memory(shard, log or LogPosition(TRIM_HORIZON))
        try:
            await self._store(shard.producer, shard.key, claim, f"claiming {fence.shard_id}")
        except Fenced:
            await self._forget(shard)
            raise fence_lost(fence) from None
        except BaseException:
            shard.is_over = True
            raise
        shard.stored = claim
        if shard.log is None:
            shard.log = memory
            if not shard.is_over:
                self._windows.begin(memory)
        return None if log is None else log.start

    async def move(
        self, stream: Stream, positions: Mapping[str, Position], owner: str
    ) -> Mapping[str, Position | None]:
        old: dict[str, Position | None] = {}
        for shard_id, position in positions.items():
            fence = await self.fence(stream, shard_id, owner)
            shard = self._shards[stream, shard_id]
            try:
                await self._positions.refresh()
                before = self._positions.log(shard.key)
                now_us = self._now_us()
                tip_us = min(now_us, position.timestamp_us or now_us)
                moved = LogPosition(position, tip_us=tip_us, begun_us=now_us)
                claim = shard.claim(moved, self._positions.shard(shard.key))
                await self._store(shard.producer, shard.key, claim, f"moving {shard_id}")
            except Fenced:
                raise fence_lost(fence) from None
            finally:
                await self._forget(shard)
            old[shard_id] = None if before is None else before.position
        return old

    # ---- dead letters

    async def letters(self) -> Sequence[StoredLetter]:
        return [one.letter for one in await self._dead.waiting()]

    async def redrive_letters(
        self,
        ids: Sequence[str],
        owner: str,
        describe: Describe,
    ) -> AsyncGenerator[EndedLetter, None]:
        named = chosen(await self.letters(), ids)
        for letter in (one for one in named if not one.is_held):
            yield refused(letter, letter.code, letter.message)
        held = [one.id for one in named if one.is_held]
        if held or not ids:  # without ids keys that wait with no letter are meant, too
            async for letter in self.end_letters(ids and held, owner, redrive=True):
                yield EndedLetter(letter, LetterOutcome.WRITTEN)

    async def drop_letters(
        self, ids: Sequence[str], owner: str
    ) -> AsyncGenerator[EndedLetter, None]:
        async for letter in self.end_letters(ids, owner, redrive=False):
            yield EndedLetter(letter, LetterOutcome.DROPPED)

    async def end_letters(
        self, ids: Sequence[str], owner: str, *, redrive: bool
    ) -> AsyncGenerator[StoredLetter, None]:
        """Both; each is given once its shard's transaction is committed. Raises FatalError for one
        that can't be written again."""
        meant = await self._dead.meant(ids)
        for place in meant.places:
            for letter in await self._end_letters(place, meant, owner, redrive=redrive):
                yield letter

    async def _end_letters(
        self, place: Key, meant: Meant, owner: str, *, redrive: bool
    ) -> Sequence[StoredLetter]:
        stream = stream_of(place)
        tries = 0
        while True:
            tries += 1
            fence = await self.fence(stream, place[3], owner)
            shard = self._shards[stream, place[3]]
            try:
                return await self._dead.end(place, shard, meant, redrive=redrive)
            except Fenced:
                # Whoever lost the shard to us may have been quick to take it again.
                if tries == _TRIES_MAX:
                    raise fence_lost(fence) from None
            finally:
                await self._forget(shard)

    def writer(self, fence: Fence) -> KafkaWriter:
        """The fence's own: each shard has transactions of its own."""
        if (known := self._writers.get(fence)) is not None:
            return known
        shard = self._shards.get((fence.stream, fence.shard_id))
        assert shard is not None, f"{fence} was not raised here"
        room = Room(
            self._config,
            self._topics,
            self._letters,
            self._producers,
            self._schemas,
            self._look_again,
            self._windows,
            lambda: self._positions.outdated(self._pipeline, self._now_us()),
            self._monotonic,
            self._now_us,
        )
        writer = self._writers[fence] = KafkaWriter(shard, room)
        return writer

    async def close(self) -> None:
        shards, self._shards = self._shards, {}
        self._writers.clear()
        for shard in shards.values():
            shard.is_over = True
            self._release(shard)
        await asyncio.gather(self._producers.close(), self._positions.close())
        if self._schemas is not None:
            await self._schemas.close()

    # ----

    async def _store(
        self, producer: Producer, key: Key, stored: Stored | Begun, doing: str
    ) -> None:
        with mapped(doing):
            async with self._producers.use(producer) as driver:
                await driver.begin_transaction()
                sent = Sent(producer)
                sent.add(await send_position(driver, self._positions.topic, key, stored))
                await sent.acknowledged()
                await driver.commit_transaction()

    async def _forget(self, shard: KafkaShard | None) -> None:
        """Its fence is dead."""
        if shard is None:
            return
        shard.is_over = shard.is_lost = True
        self._release(shard)
        self._writers.pop(shard.fence, None)
        place = (shard.fence.stream, shard.fence.shard_id)
        if self._shards.get(place) is shard:
            del self._shards[place]
        await self._producers.drop(shard.producer)

    def _release(self, shard: KafkaShard) -> None:
        if shard.log is not None:
            self._windows.release(shard.log)

    def _inherited(self, shard: KafkaShard) -> Stored:
        """What a shard begins with that nobody claimed before: keys that were quarantined in its
        parents stay so."""
        parents = (self._positions.shard((*shard.key[:3], each)) for each in shard.parents)
        aside = (each for parent in parents if parent is not None for each in parent.aside)
        return Stored(None, 0, "", tuple(dict.fromkeys(aside)))

    async def _memory(self, shard: KafkaShard, stored: LogPosition) -> LogShard:
        config = self._config
        parents = shard.parents if stored.inherits else ()
        keys = [(*shard.key[:3], parent) for parent in parents]
        return LogShard(
            stored,
            reorder_us=round(config.reorder_window_seconds * 1_000_000),
            duplicate_us=round(config.duplicate_window_seconds * 1_000_000),
            compacted=config.cleanup == "compact",
            inherited=[await self._positions.remembered(key) for key in keys],
        )

    def _transactional_id(self, stream: Stream, shard_id: str) -> str:
        """The same on every machine, and of nobody else."""
        digest = hashlib.sha256(f"{stream.arn}\0{stream.created_at_s}".encode()).hexdigest()[:12]
        text = f"{self._pipeline}/{stream.name}/{digest}/{shard_id}"
        if len(text) <= _ID_CHARACTERS_MAX:
            return text
        whole = hashlib.sha256(text.encode()).hexdigest()
        return f"{text[: _ID_CHARACTERS_MAX - len(whole) - 1]}/{whole}"


def _row(key: Key, stored: Stored | None, log: LogPosition | None, now_us: int) -> dict[str, Any]:
    """One line of `SinkReport.positions`."""
    times = Reached() if log is None else reached(log)
    stored_us = None if stored is None else stored.stored_us or None
    return {
        "stream_arn": key[1],
        "shard": key[3],
        "position": None if log is None else str(log.position),
        "epoch": 0 if stored is None else stored.epoch,
        "owner": None if stored is None else stored.owner,
        "last_arrival_at": _shown(times.last_arrival_us),
        "tip_at": _shown(times.tip_us),
        "updated_at": _shown(stored_us),
        "age_seconds": _age(times.last_arrival_us, now_us),
        "lag_seconds": _age(times.us, now_us),
        "stored_seconds": _age(stored_us, now_us),
    }


def _shown(us: int | None) -> str | None:
    return None if us is None else datetime.fromtimestamp(us / 1_000_000, UTC).isoformat()


def _age(us: int | None, now_us: int) -> float | None:
    return None if us is None else max(now_us - us, 0) / 1_000_000
