"""A stream that splits and merges, a sink with positions, and workers over `Lineage`.

The checks look at the service's truth, never at the lineage's own state: a shard
is read when its parents are durable, each key's records arrive once and in order,
and in the end nothing is missing.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

from replicator.core.holes import HASH_KEY_END, Audit, Hole, find
from replicator.core.lineage import (
    Action,
    Discovered,
    DurableEnd,
    Ended,
    Forgotten,
    Lineage,
    ListAgain,
    ParentVanished,
    ShardState,
    Started,
    Stopped,
    Stored,
)
from replicator.core.start import first_starts, position_to_read
from replicator.model import SHARD_END, Position, PositionKind, Shard, after

KEYS = 16
SHARE = HASH_KEY_END // KEYS


@dataclass
class ServiceShard:
    id: str
    parents: tuple[str, ...]
    keys: range
    born: int
    records: list[tuple[int, int]] = field(default_factory=list)  # (number, key)
    closed: int | None = None
    is_trimmed: bool = False


class Service:
    """The stream. A record's number is its sequence number and its arrival time."""

    def __init__(self, shards: int = 2) -> None:
        self.shards: dict[str, ServiceShard] = {}
        self.clock = 0
        # Shards that no list shows, by a fault of the service.
        self.hidden: set[str] = set()
        for at in range(shards):
            self._open((), range(at * KEYS // shards, (at + 1) * KEYS // shards))

    def _open(self, parents: tuple[str, ...], keys: range) -> None:
        self.clock += 1
        shard_id = f"shardId-{len(self.shards):012}"
        self.shards[shard_id] = ServiceShard(shard_id, parents, keys, self.clock)

    def open_shards(self) -> list[ServiceShard]:
        found = [shard for shard in self.shards.values() if shard.closed is None]
        return sorted(found, key=lambda shard: shard.keys.start)

    def put(self, key: int) -> None:
        self.clock += 1
        next(s for s in self.open_shards() if key in s.keys).records.append((self.clock, key))

    def split(self, shard: ServiceShard) -> None:
        if len(shard.keys) > 1:
            middle = (shard.keys.start + shard.keys.stop) // 2
            shard.closed = self.clock
            self._open((shard.id,), range(shard.keys.start, middle))
            self._open((shard.id,), range(middle, shard.keys.stop))

    def merge(self, left: ServiceShard, right: ServiceShard) -> None:
        left.closed = right.closed = self.clock
        self._open((left.id, right.id), range(left.keys.start, right.keys.stop))

    def roll(self, shard: ServiceShard) -> None:
        """As DynamoDB Streams does every four hours: one child over the same keys."""
        shard.closed = self.clock
        self._open((shard.id,), shard.keys)

    def reshard(self) -> None:
        """As UpdateShardCount does: splits and merges in one go."""
        for shard in self.open_shards():
            self.split(shard)
        shards = self.open_shards()
        for left, right in zip(shards[1::2], shards[2::2], strict=False):
            self.merge(left, right)

    def listed(self) -> tuple[Shard, ...]:
        return tuple(
            Shard(
                shard.id,
                shard.parents,
                is_open=shard.closed is None,
                starting_sequence_number=str(shard.born),
                hash_range=(shard.keys.start * SHARE, shard.keys.stop * SHARE),
                ending_sequence_number=None if shard.closed is None else str(shard.closed),
            )
            for shard in self.shards.values()
            if not shard.is_trimmed and shard.id not in self.hidden
        )

    def children(self, shard_id: str) -> tuple[Shard, ...]:
        """As an end-of-shard event names them: without numbers."""
        return tuple(
            Shard(shard.id, shard.parents)
            for shard in self.shards.values()
            if shard_id in shard.parents and shard.id not in self.hidden
        )


class Sink:
    """Data and positions, in one step."""

    def __init__(self) -> None:
        self.positions: dict[str, Position] = {}
        self.log: list[tuple[int, int]] = []
        self.by_key: dict[int, list[int]] = defaultdict(list)

    def write(self, shard_id: str, records: list[tuple[int, int]], position: Position) -> None:
        for number, key in records:
            assert not self.by_key[key] or self.by_key[key][-1] < number, "order per key, once"
            self.by_key[key].append(number)
        self.log.extend(records)
        self.positions[shard_id] = position


@dataclass
class Reading:
    at: int  # index of the next record to read
    waiting: list[tuple[int, int]] = field(default_factory=list)
    is_ended: bool = False


class Worker:
    """The shell: does what the lineage allows, one small step at a time."""

    def __init__(self, service: Service, sink: Sink) -> None:
        self.service = service
        self.sink = sink
        self.lineage = Lineage(sink.positions)
        self.readings: dict[str, Reading] = {}
        self.list_in_flight: tuple[Shard, ...] | None = None
        self.wants_list = True
        self.vanished: list[ParentVanished] = []
        self.audit = Audit()
        self.told: list[Hole] = []
        self.audits = 0

    def _feed(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case ParentVanished():
                    self.vanished.append(action)
                case ListAgain():
                    self.wants_list = True
                case _:
                    pass

    # ---- lists

    def ask_for_list(self) -> None:
        if self.list_in_flight is None:
            self.list_in_flight = self.service.listed()
            self.wants_list = False

    def take_list(self) -> None:
        if self.list_in_flight is not None:
            shards, self.list_in_flight = self.list_in_flight, None
            self._feed(self.lineage.step(Discovered(shards, dict(self.sink.positions))))
            self.audits += 1
            self.told += self.audit.step(find(self.lineage.nodes()), self.audits)

    # ---- one shard

    def start(self, shard_id: str) -> None:
        """Reads on from the sink's position, as after winning lease and fence."""
        stored = self.sink.positions.get(shard_id)
        if stored == SHARD_END:
            self._feed(self.lineage.step(Stored(shard_id, stored)))
            return
        self._check_parents(shard_id)
        position = position_to_read(stored)
        self.readings[shard_id] = Reading(self._index(shard_id, position))
        self._feed(self.lineage.step(Started(shard_id)))

    def _check_parents(self, shard_id: str) -> None:
        for parent_id in self.service.shards[shard_id].parents:
            parent = self.service.shards[parent_id]
            is_done = self.sink.positions.get(parent_id) == SHARD_END
            assert parent.is_trimmed or is_done, f"{shard_id} is read before {parent_id} is durable"

    def _index(self, shard_id: str, position: Position) -> int:
        records = self.service.shards[shard_id].records
        match position.kind:
            case PositionKind.TRIM_HORIZON:
                return 0
            case PositionKind.AFTER_SEQUENCE_NUMBER:
                assert position.sequence_number is not None
                number = int(position.sequence_number)
                return sum(n <= number for n, _ in records)
            case PositionKind.AT_TIMESTAMP:
                assert position.timestamp_us is not None
                return sum(n < position.timestamp_us for n, _ in records)
            case _:
                raise AssertionError(position)

    def read(self, shard_id: str, *, names_children: bool = True) -> None:
        reading, shard = self.readings[shard_id], self.service.shards[shard_id]
        if reading.is_ended:
            return
        if reading.at < len(shard.records):
            reading.waiting.append(shard.records[reading.at])
            reading.at += 1
        elif shard.closed is not None:
            reading.is_ended = True
            children = self.service.children(shard_id) if names_children else ()
            self._feed(self.lineage.step(Ended(shard_id, children)))

    def flush(self, shard_id: str, *, is_told: bool = True) -> None:
        """Makes durable what was read; `is_told` is False when the process dies in between."""
        reading = self.readings[shard_id]
        if not reading.waiting and not reading.is_ended:
            return
        position = SHARD_END if reading.is_ended else after(str(reading.waiting[-1][0]))
        self.sink.write(shard_id, reading.waiting, position)
        reading.waiting = []
        if reading.is_ended and is_told:
            del self.readings[shard_id]
            self._feed(self.lineage.step(DurableEnd(shard_id)))

    def stop(self, shard_id: str) -> None:
        del self.readings[shard_id]
        self._feed(self.lineage.step(Stopped(shard_id)))

    def forget(self) -> None:
        shard_ids = self.lineage.forgettable()
        for shard_id in shard_ids:
            assert self.service.shards[shard_id].is_trimmed
            del self.sink.positions[shard_id]
        self._feed(self.lineage.step(Forgotten(shard_ids)))

    def startable(self, others: set[str]) -> list[str]:
        return [shard_id for shard_id in self.lineage.readable() if shard_id not in others]


class World:
    """Everything together, and one random or drawn step of it at a time."""

    def __init__(self, rng: random.Random, *, workers: int = 1) -> None:
        self.rng = rng
        self.service = Service(rng.randint(1, 4))
        self.sink = Sink()
        self.is_closing = False
        self.steps_before(rng.randint(0, 25))
        self.begin()
        self.workers = [Worker(self.service, self.sink) for _ in range(workers)]

    def steps_before(self, count: int) -> None:
        for _ in range(count):
            self.service_step()

    def begin(self) -> None:
        """The first start: at the horizon, or at an instant (what LATEST is resolved to)."""
        # Shards that the service has trimmed before anybody looked.
        for shard in self.service.shards.values():
            if shard.closed is None or self.rng.random() < 0.6:
                break
            shard.is_trimmed = True
        kept = [s for s in self.service.shards.values() if not s.is_trimmed]
        if self.rng.random() < 0.5:
            start = Position(PositionKind.TRIM_HORIZON)
            trimmed = [
                n for s in self.service.shards.values() if s.is_trimmed for n, _ in s.records
            ]
            self.skipped = set(trimmed)
        else:
            instant = self.rng.choice([self.service.clock, self.rng.randint(0, self.service.clock)])
            start = Position(PositionKind.AT_TIMESTAMP, timestamp_us=instant)
            self.skipped = {
                n
                for s in self.service.shards.values()
                for n, _ in s.records
                if s.is_trimmed or n < instant
            }
            for _ in range(self.rng.randint(0, 5)):
                self.service_step()
            kept = [s for s in self.service.shards.values() if not s.is_trimmed]
        self.sink.positions.update(first_starts(self.service.listed(), start))
        assert set(self.sink.positions) == {shard.id for shard in kept}

    def service_step(self) -> None:
        service, rng = self.service, self.rng
        shards = service.open_shards()
        match rng.choices(["put", "split", "merge", "roll", "reshard"], [20, 3, 3, 1, 0.5])[0]:
            case "put":
                service.put(rng.randrange(KEYS))
            case "split" if len(shards) < 8:
                service.split(rng.choice(shards))
            case "merge" if len(shards) > 1:
                at = rng.randrange(len(shards) - 1)
                service.merge(shards[at], shards[at + 1])
            case "roll":
                service.roll(rng.choice(shards))
            case "reshard" if len(shards) < 5:
                service.reshard()
            case _:
                pass

    def trim(self, *, unfinished: bool = False) -> None:
        """Trims the oldest shard that may go: retention is one for all."""
        for shard in self.service.shards.values():
            if not shard.is_trimmed:
                is_done = self.sink.positions.get(shard.id) == SHARD_END
                if shard.closed is not None and (is_done or unfinished):
                    shard.is_trimmed = True
                return

    def worker_step(self, number: int) -> None:
        worker, rng = self.workers[number], self.rng
        own = sorted(worker.readings)
        match rng.choices(
            ["ask", "list", "start", "read", "flush", "stop", "restart", "forget"],
            [2, 2, 5, 12, 6, 1, 0.3, 0.5],
        )[0]:
            case "ask":
                worker.ask_for_list()
            case "list":
                worker.take_list()
            case "start":
                others = {s for w in self.workers if w is not worker for s in w.readings}
                if startable := worker.startable(others):
                    worker.start(rng.choice(startable))
            case "read" if own:
                worker.read(rng.choice(own), names_children=rng.random() < 0.8)
            case "flush" if own:
                worker.flush(rng.choice(own))
            case "stop" if own:
                worker.stop(rng.choice(own))
            case "restart":
                # Some of it was durable, and nobody was told.
                if own:
                    worker.flush(rng.choice(own), is_told=False)
                self.workers[number] = Worker(self.service, self.sink)
            case "forget":
                worker.forget()
            case _:
                pass

    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.35:
            self.service_step()
        elif choice < 0.4:
            self.trim()
        else:
            self.worker_step(self.rng.randrange(len(self.workers)))
        self.check()

    def check(self) -> None:
        for worker in self.workers:
            assert worker.vanished == [], "nothing was trimmed unread"
            # A stream whose last shards nobody takes over has hash keys that nobody reads.
            assert self.is_closing or worker.told == [], "no hole"

    def is_done(self, worker: Worker) -> bool:
        return not worker.readings and all(
            worker.lineage.state(shard.id) is ShardState.FINISHED
            or (worker.lineage.state(shard.id) is None and shard.is_trimmed)
            for shard in self.service.shards.values()
        )

    def finish(self) -> None:
        """No more writes: whatever happened, everything is read to its end."""
        self.is_closing = True
        for shard in self.service.open_shards():
            shard.closed = self.service.clock
        for _ in range(3 * len(self.service.shards) + 6):
            for worker in self.workers:
                worker.take_list()
                worker.ask_for_list()
                worker.take_list()
                for shard_id in sorted(worker.readings):
                    reading = worker.readings[shard_id]
                    while not reading.is_ended:
                        worker.read(shard_id)
                    worker.flush(shard_id)
                others = {s for w in self.workers if w is not worker for s in w.readings}
                for shard_id in worker.startable(others):
                    worker.start(shard_id)
            self.check()
            if all(self.is_done(worker) for worker in self.workers):
                break
        for worker in self.workers:
            states = {s: worker.lineage.state(s) for s in self.service.shards}
            assert self.is_done(worker), states
        put = {n for s in self.service.shards.values() for n, _ in s.records}
        arrived = {number for number, _ in self.sink.log}
        assert put - self.skipped == arrived - self.skipped, "nothing is missing"
