"""A service in memory that is read by iterators, which age, expire and vanish as AWS's do."""

from __future__ import annotations

import base64
import json
from collections import deque
from typing import Any

from replicator import _core
from replicator.errors import FatalError, PositionLost, TransientError
from replicator.model import Fetch, Position
from replicator.testing.clock import VirtualClock
from replicator.testing.stream import ScriptedStream

SHARD = "shardId-000000000000"
ITERATOR_SECONDS = 300.0


class ScriptedService:
    """A stream by iterators. `faults` are raised by the next calls of an operation."""

    def __init__(self, clock: VirtualClock) -> None:
        self.stream = ScriptedStream(1, now_ms=lambda: 0)
        self.clock = clock
        self.calls: list[tuple[str, Any]] = []
        self.asked_at: list[float] = []
        self.faults: dict[str, deque[BaseException]] = {"iterator": deque(), "records": deque()}
        self.behind_ms = 0

    def called(self, operation: str) -> list[Any]:
        return [argument for name, argument in self.calls if name == operation]

    def fail(self, operation: str, *errors: BaseException) -> None:
        self.faults[operation].extend(errors)

    async def iterator(self, shard_id: str, position: Position) -> str:
        self.calls.append(("iterator", position))
        if self.faults["iterator"]:
            raise self.faults["iterator"].popleft()
        if not self.stream.has_shard(shard_id):
            raise PositionLost("shard_gone", f"{shard_id} is gone")
        return self._iterator(shard_id, self.stream.place(shard_id, position))

    async def records(self, iterator: str, limit: int) -> _core.Answer:
        self.calls.append(("records", limit))
        self.asked_at.append(self.clock.now)
        if self.faults["records"]:
            raise self.faults["records"].popleft()
        shard_id, place_text, given_at = iterator.split("|")
        if self.clock.now - float(given_at) > ITERATOR_SECONDS:
            raise TransientError("iterator_expired", "old", retry_after_seconds=0.0)
        if not self.stream.has_shard(shard_id):
            raise FatalError("resource_missing", "no such shard")
        place = int(place_text)
        records = list(self.stream.records(shard_id, place, min(2, limit)))
        place += len(records)
        body: dict[str, Any] = {
            "MillisBehindLatest": self.behind_ms,
            "Records": [
                {
                    "ApproximateArrivalTimestamp": 1.5,
                    "Data": base64.b64encode(record.payload).decode(),
                    "PartitionKey": "0",
                    "SequenceNumber": record.sequence_number,
                }
                for record in records
            ],
        }
        if self.stream.is_ended(shard_id, place):
            body["ChildShards"] = [
                {"ShardId": child.id, "ParentShards": list(child.parents), "HashKeyRange": {}}
                for child in self.stream.children(shard_id)
            ]
        else:
            body["NextShardIterator"] = self._iterator(shard_id, place)
        return _core.Answer.read(json.dumps(body).encode(), "kinesis")

    def _iterator(self, shard_id: str, place: int) -> str:
        return f"{shard_id}|{place}|{self.clock.now}"


def payloads(*fetches: Fetch) -> list[str]:
    """What the fetches carry: none of it is a change, so each is refused with its bytes."""
    batches = [_core.decode(fetch.records, keep_all=True) for fetch in fetches]
    return [rejection.raw.decode() for batch in batches for rejection in batch.rejections]
