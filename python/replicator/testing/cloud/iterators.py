"""Reading by iterators: GetShardIterator and GetRecords, with the limits of the service.

Iterators live five minutes, a shard takes five reads a second, an answer holds at most
10,000 records or 10 MB, and the iterator after a closed shard's last record is null
(https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html).
"""

from __future__ import annotations

import base64
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replicator.errors import PositionLost
from replicator.model import TRIM_HORIZON, Position
from replicator.testing import frames
from replicator.testing.kinesis_server import Refusal
from replicator.testing.stream import ScriptedStream

ITERATOR_SECONDS = 300.0
READS_A_SECOND = 5
RECORDS_MAX = 10_000
BYTES_MAX = 10_000_000


@dataclass(frozen=True, slots=True)
class Iterator:
    """What an iterator's text says."""

    shard_id: str
    place: int
    made_at: float

    @classmethod
    def parse(cls, text: str) -> Iterator:
        """Raises Refusal for a text that no answer gave."""
        try:
            shard_id, place, made_at = base64.urlsafe_b64decode(text).decode().split("/")
            return cls(shard_id, int(place), float(made_at))
        except ValueError:
            raise Refusal("InvalidArgumentException", "Invalid ShardIterator.") from None

    def __str__(self) -> str:
        text = f"{self.shard_id}/{self.place}/{self.made_at}"
        return base64.urlsafe_b64encode(text.encode()).decode()


class Iterators:
    """The two calls over a scripted stream, by the server's own clock (in seconds)."""

    def __init__(self, stream: ScriptedStream, monotonic: Callable[[], float]) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._reads: defaultdict[str, deque[float]] = defaultdict(deque)

    def get_shard_iterator(self, shard_id: str, position: Position) -> dict[str, Any]:
        """The answer of GetShardIterator."""
        if not self._stream.has_shard(shard_id):
            raise Refusal("ResourceNotFoundException", f"Shard {shard_id} not found.")
        try:
            place = self._stream.place(shard_id, position)
        except PositionLost as lost:
            raise Refusal("InvalidArgumentException", lost.message) from None
        return {"ShardIterator": str(Iterator(shard_id, place, self._monotonic()))}

    def get_records(
        self, text: str, limit: int = RECORDS_MAX, *, behind_ms: int | None = None
    ) -> dict[str, Any]:
        """The answer of GetRecords; `behind_ms` is said instead of the true lag."""
        iterator = Iterator.parse(text)
        shard_id, now = iterator.shard_id, self._monotonic()
        if now - iterator.made_at > ITERATOR_SECONDS:
            raise Refusal("ExpiredIteratorException", "Iterator expired: it is over 5 minutes old.")
        stream = self._stream
        if not stream.has_shard(shard_id):
            raise Refusal("ResourceNotFoundException", f"Shard {shard_id} not found.")
        self._require_turn(shard_id, now)
        # Past the horizon it goes on at the oldest record, without a word.
        place = max(iterator.place, stream.place(shard_id, TRIM_HORIZON))
        records: list[dict[str, object]] = []
        nbytes = 0
        for record in stream.records(shard_id, place, min(limit, RECORDS_MAX)):
            nbytes += len(record.payload)
            if records and nbytes > BYTES_MAX:
                break
            records.append(frames.record(record))
        place += len(records)
        answer: dict[str, Any] = {
            "Records": records,
            "MillisBehindLatest": stream.behind_ms(shard_id, place)
            if behind_ms is None
            else behind_ms,
        }
        if stream.is_ended(shard_id, place):
            answer["ChildShards"] = [
                frames.child_shard(child, stream.hash_range(child.id))
                for child in stream.children(shard_id)
            ]
        else:
            answer["NextShardIterator"] = str(Iterator(shard_id, place, now))
        return answer

    def _require_turn(self, shard_id: str, now: float) -> None:
        reads = self._reads[shard_id]
        while reads and now - reads[0] >= 1:
            reads.popleft()
        if len(reads) >= READS_A_SECOND:
            raise Refusal(
                "ProvisionedThroughputExceededException",
                f"Rate exceeded for shard {shard_id}: {READS_A_SECOND} reads a second.",
            )
        reads.append(now)
