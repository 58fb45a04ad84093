"""GetShardIterator and GetRecords of Kinesis over a `ScriptedStream`, by the service's rules:
iterators end after five minutes, and a shard gives five answers and 2 MB a second
(https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html).
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from replicator.model import TRIM_HORIZON, Position
from replicator.testing import frames
from replicator.testing.stream import ScriptedRecord, ScriptedStream

ANSWER_BYTES_MAX = 10_485_760
_BYTES_PER_SECOND = 2_097_152


class Iterators:
    """Gives and reads iterators of one stream.

    What the service refuses is raised by `refuse(code, message)`, which must raise. An
    iterator names the stream's `incarnation`, so that it means nothing in the next one.
    """

    def __init__(
        self,
        stream: ScriptedStream,
        monotonic: Callable[[], float],
        refuse: Callable[[str, str], Exception],
        *,
        records_max: int,
        seconds: float = 300.0,
        reads_per_second: int = 5,
    ) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._refuse = refuse
        self._records_max = records_max
        self._seconds = seconds
        self._reads_per_second = reads_per_second
        self._read_at: dict[str, deque[float]] = {}
        self._paid_at: dict[str, float] = {}

    def give(self, incarnation: int, shard_id: str, position: Position) -> dict[str, Any]:
        """The answer of GetShardIterator. Raises PositionLost as `ScriptedStream.place`."""
        if not self._stream.has_shard(shard_id):
            raise self._refuse("ResourceNotFoundException", f"Shard {shard_id} not found.")
        place = self._stream.place(shard_id, position)
        return {"ShardIterator": self._iterator(incarnation, shard_id, place)}

    def read(self, incarnation: int, iterator: str, limit: int) -> dict[str, Any]:
        """The answer of GetRecords."""
        stream = self._stream
        made_for, shard_id, place_text, given_at = _parts(iterator)
        if int(made_for) != incarnation or not stream.has_shard(shard_id):
            raise self._refuse("ResourceNotFoundException", f"Shard {shard_id} not found.")
        now = self._monotonic()
        if now - float(given_at) > self._seconds:
            raise self._refuse("ExpiredIteratorException", "Iterator expired.")
        self._throttle(shard_id, now)
        # What was trimmed meanwhile is left out without a word, as the service does.
        place = max(int(place_text), stream.place(shard_id, TRIM_HORIZON))
        records = self._fitting(shard_id, place, min(limit, self._records_max))
        place += len(records)
        nbytes = sum(len(record.payload) for record in records)
        since = max(now, self._paid_at.get(shard_id, now))
        self._paid_at[shard_id] = since + nbytes / _BYTES_PER_SECOND
        answer: dict[str, Any] = {
            "Records": [frames.record(record) for record in records],
            "MillisBehindLatest": stream.behind_ms(shard_id, place),
        }
        if stream.is_ended(shard_id, place):
            answer["ChildShards"] = [
                frames.child_shard(child, stream.hash_range(child.id))
                for child in stream.children(shard_id)
            ]
        else:
            answer["NextShardIterator"] = self._iterator(incarnation, shard_id, place)
        return answer

    def _iterator(self, incarnation: int, shard_id: str, place: int) -> str:
        text = f"{incarnation}|{shard_id}|{place}|{self._monotonic()}"
        return base64.b64encode(text.encode()).decode()

    def _throttle(self, shard_id: str, now: float) -> None:
        recent = self._read_at.setdefault(shard_id, deque(maxlen=self._reads_per_second))
        is_full = len(recent) == self._reads_per_second and now - recent[0] < 1.0
        # As the service: a second's worth of bytes may be ahead, so most answers cost no wait.
        if is_full or self._paid_at.get(shard_id, now) > now + 1.0:
            raise self._refuse(
                "ProvisionedThroughputExceededException", f"Rate exceeded for shard {shard_id}."
            )
        recent.append(now)

    def _fitting(self, shard_id: str, place: int, count_max: int) -> Sequence[ScriptedRecord]:
        records: list[ScriptedRecord] = []
        nbytes = 0
        for record in self._stream.records(shard_id, place, count_max):
            nbytes += len(record.payload)
            if records and nbytes > ANSWER_BYTES_MAX:
                break
            records.append(record)
        return records


def shard_of(iterator: str) -> str:
    """The shard that an iterator reads."""
    return _parts(iterator)[1]


def _parts(iterator: str) -> list[str]:
    return base64.b64decode(iterator).decode().split("|")
