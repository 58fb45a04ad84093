"""DynamoDB Streams with mischief, over the same history.

A record comes once and in order by key, as the service says
(https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Streams.html): a reader sees one
again only when it asks again with the same iterator, as after a lost answer. A shard has one
parent, and is replaced every few hours by one child, or by two.
"""

from __future__ import annotations

from typing import Any, ClassVar

from aiohttp import web

from replicator.model import TableSchema
from replicator.testing.cloud.faults import Fault
from replicator.testing.cloud.misbehaving import (
    RECORDS_MAX,
    CloudClock,
    Misbehaving,
)
from replicator.testing.stream import ScriptedStream
from replicator.testing.streams_server import StreamsServer, table_stream


class StreamsCloud(Misbehaving, StreamsServer):
    """`StreamsServer` with mischief; runs while its `async with` block does. See `Misbehaving`;
    `clock` also owns the age of iterators."""

    # https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_GetRecords.html
    throttles: ClassVar = {"GetRecords": "LimitExceededException"}
    throttle = "ThrottlingException"
    failure = "InternalServerError"
    foreign = frozenset(
        {
            *("no_initial_response", "end", "cut", "cut_in_frame", "end_in_frame", "bad_crc"),
            *("stall", "stall_in_frame", "exception", "take_over", "empty_event", "small_event"),
            *("lag", "lag_page", "duplicate", "redeliver", "reorder", "milliseconds", "poison"),
            *("merge", "delete_consumer", "delete_stream", "recreate_stream"),
        }
    )

    def begin(
        self, shards: int, table: TableSchema, clock: CloudClock, **server: Any
    ) -> ScriptedStream:
        stream = table_stream(shards, now_ms=clock.now_ms)
        StreamsServer.__init__(self, stream, table=table, monotonic=clock.seconds, **server)
        return stream

    def readers(self, shard_id: str) -> int:
        return self.reads[shard_id]

    def _do(self, fault: Fault) -> None:
        if fault.kind != "rotate":
            super()._do(fault)
            return
        for shard_id in sorted(self._open()):
            self.journal.add("rotate", shard=shard_id, child=self.served.rotate(shard_id))

    def _shard_of(self, body: dict[str, Any]) -> str:
        return (
            self.shard_of(body["ShardIterator"])
            if "ShardIterator" in body
            else str(body.get("ShardId", ""))
        )

    async def _serve(
        self, request: web.Request, operation: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        if operation == "GetRecords" and (count := request.get(RECORDS_MAX)) is not None:
            return self.json_answer(self.read(body, records_max=count))
        return await super()._serve(request, operation, body)
