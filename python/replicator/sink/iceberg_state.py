"""What one sink keeps in a snapshot's summary, and how it may change: pure (laws 1, 6 and 7).

Data and positions are one commit then, and whoever rolls a table back rolls both back. Every commit
carries all of it, other sinks' too, so that the newest snapshot of ours is enough. (Properties of
the table would be smaller, for they are there once, but they don't belong to a snapshot, and a Hive
metastore keeps 4,000 characters of each.)
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from replicator.core.start import Joining
from replicator.model import SHARD_END, Fence, Position, Reached, Stream
from replicator.sink.fences import marked
from replicator.sink.log_shard import LogPosition

# In a summary our names begin so; behind it stands the sink's.
PREFIX: Final = "replicator."
_COMPRESSED: Final = "zlib:"
# Below this, people can read it.
_PLAIN_CHARACTERS_MAX: Final = 2_000
# Nobody lists a shard that ended so long ago: a stream's longest retention, and some more
# (https://docs.aws.amazon.com/streams/latest/dev/kinesis-extended-retention.html: 365 days,
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Streams.html: 24 hours).
_KINESIS_DAYS, _STREAMS_DAYS = 400, 7
_DAY_US: Final = 86_400_000_000

Key: TypeAlias = tuple[Stream, str]


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A shard's fence, and what is stored of it (None: nothing); `stored_us` is when, UTC
    microseconds. `remembered` is the place of what it remembered at its end, if it did."""

    epoch: int = 0
    owner: str = ""
    log: LogPosition | None = None
    stored_us: int = 0
    remembered: str = ""

    def holds(self, fence: Fence) -> bool:
        """True while the fence is the shard's newest."""
        return (self.epoch, self.owner) == (fence.epoch, fence.owner)

    @property
    def reached(self) -> Reached:
        """Until when it was read."""
        log = self.log
        return Reached() if log is None else Reached(log.last_arrival_us, log.tip_us, log.begun_us)


@dataclass(frozen=True, slots=True)
class Begun:
    """When a stream was begun, UTC microseconds, and into which tables."""

    at_us: int
    tables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SinkState:
    """What one sink keeps: the streams that were begun, the shards, and how many records were
    refused, by code."""

    begun: Mapping[Stream, Begun] = field(default_factory=dict)
    shards: Mapping[Key, ShardRow] = field(default_factory=dict)
    letters: Mapping[str, int] = field(default_factory=dict)

    def row(self, stream: Stream, shard_id: str) -> ShardRow:
        """What is known of a shard; of one without anything, nothing."""
        return self.shards.get((stream, shard_id), ShardRow())

    def of(self, stream: Stream) -> Mapping[str, ShardRow]:
        """The shards of one stream."""
        return {shard_id: row for (of, shard_id), row in self.shards.items() if of == stream}

    # ---- changes: each gives another state

    def begin(
        self,
        stream: Stream,
        starts: Mapping[str, Position],
        tables: Sequence[str],
        now_us: int,
    ) -> SinkState:
        """With a stream that wasn't known, and its shards' first positions."""
        assert stream not in self.begun, stream
        shards = dict(self.shards)
        for shard_id, start in starts.items():
            row = self.row(stream, shard_id)
            if row.log is None:
                shards[stream, shard_id] = replace(row, log=first(start, now_us), stored_us=now_us)
        return replace(
            self, begun={**self.begun, stream: Begun(now_us, tuple(tables))}, shards=shards
        )

    def joined(self, stream: Stream, found: Joining, at_us: int) -> SinkState:
        """With the tables of a stream that is known, which came to the new ones then."""
        before = self.begun[stream]
        begun = Begun(max(at_us, before.at_us), found.tables(before.tables))
        return replace(self, begun={**self.begun, stream: begun})

    def fenced(
        self, stream: Stream, shard_id: str, owner: str, now_us: int
    ) -> tuple[SinkState, Fence]:
        """With a shard's epoch raised, so that every older fence is dead."""
        row = self.row(stream, shard_id)
        fence = Fence(stream, shard_id, row.epoch + 1, marked(owner))
        raised = replace(row, epoch=fence.epoch, owner=fence.owner, stored_us=now_us)
        return replace(self, shards={**self.shards, (stream, shard_id): raised}), fence

    def moved(
        self,
        logs: Mapping[Key, LogPosition],
        letters: Mapping[str, int],
        now_us: int,
        remembered: Mapping[Key, str] | None = None,
    ) -> SinkState:
        """With new positions of shards, and more dead letters; `remembered` as in `ShardRow`."""
        shards = dict(self.shards)
        for (stream, shard_id), log in logs.items():
            place = (remembered or {}).get((stream, shard_id), "")
            row = self.row(stream, shard_id)
            shards[stream, shard_id] = replace(row, log=log, stored_us=now_us, remembered=place)
        kept = {key: row for key, row in shards.items() if not _is_over(key[0], row, now_us)}
        return replace(self, shards=kept, letters=Counter(self.letters) + Counter(letters))

    # ---- as text

    def to_text(self) -> str:
        """JSON, compressed where it is long."""
        streams = dict.fromkeys([*self.begun, *(stream for stream, _ in self.shards)])
        data = {
            "streams": [
                {
                    "name": stream.name,
                    "arn": stream.arn,
                    "created_at_s": stream.created_at_s,
                    **(_begun(self.begun[stream]) if stream in self.begun else {}),
                    "shards": {
                        shard_id: _members(row) for shard_id, row in self.of(stream).items()
                    },
                }
                for stream in streams
            ],
            "dead_letters": dict(self.letters),
        }
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
        if len(text) <= _PLAIN_CHARACTERS_MAX:
            return text
        return _COMPRESSED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()

    @classmethod
    def from_text(cls, text: str | None) -> SinkState:
        """What `to_text` wrote; None is a sink that never wrote. Raises ValueError."""
        if text is None:
            return cls()
        if text.startswith(_COMPRESSED):
            text = zlib.decompress(base64.b64decode(text.removeprefix(_COMPRESSED))).decode()
        data = json.loads(text)
        begun: dict[Stream, Begun] = {}
        shards: dict[Key, ShardRow] = {}
        for each in data["streams"]:
            stream = Stream(each["name"], each["arn"], each["created_at_s"])
            if "begun_us" in each:
                begun[stream] = Begun(each["begun_us"], tuple(each["tables"]))
            for shard_id, members in each["shards"].items():
                shards[stream, shard_id] = _row(members)
        return cls(begun, shards, data["dead_letters"])


def first(start: Position, now_us: int) -> LogPosition:
    """What is stored of a shard whose first position is this."""
    return LogPosition(start, tip_us=min(now_us, start.timestamp_us or now_us), begun_us=now_us)


def name_of(pipeline: str) -> str:
    """The name in a summary of what is kept under a pipeline's name."""
    return f"{PREFIX}{pipeline}"


def _is_over(stream: Stream, row: ShardRow, now_us: int) -> bool:
    days = _STREAMS_DAYS if ":dynamodb:" in stream.arn else _KINESIS_DAYS
    is_finished = row.log is not None and row.log.position == SHARD_END
    return is_finished and row.stored_us < now_us - days * _DAY_US


def _begun(begun: Begun) -> dict[str, Any]:
    return {"begun_us": begun.at_us, "tables": list(begun.tables)}


def _members(row: ShardRow) -> dict[str, Any]:
    log = None if row.log is None else json.loads(row.log.to_json())
    members = {"epoch": row.epoch, "owner": row.owner, "stored_us": row.stored_us, "log": log}
    return members | ({"remembered": row.remembered} if row.remembered else {})


def _row(members: Mapping[str, Any]) -> ShardRow:
    log = members["log"]
    stored = None if log is None else LogPosition.from_json(json.dumps(log))
    place = members.get("remembered", "")
    return ShardRow(members["epoch"], members["owner"], stored, members["stored_us"], place)
