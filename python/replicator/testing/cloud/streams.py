"""DynamoDB Streams with mischief, over the same history.

A record comes once and in order by key, as the service says
(https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Streams.html): a reader sees one
again only when it asks again with the same iterator, as after a lost answer. A shard has one
parent, and is replaced every few hours by one child, or by two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from aiohttp import web

from replicator.model import TableSchema
from replicator.testing.cloud.faults import Fault, Script
from replicator.testing.cloud.misbehaving import (
    RECORDS_MAX,
    SHARDS_MAX,
    CloudClock,
    Misbehaving,
)
from replicator.testing.streams_server import StreamsServer, ViewType, table_stream


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

    def __init__(
        self,
        *,
        seed: int = 0,
        script: Script = (),
        shards: int = 2,
        name: str = "products",
        key: str = "id",
        keys: int = 500,
        rate: float = 0.0,
        retention_seconds: float = 86_400.0,
        view_type: ViewType = "NEW_AND_OLD_IMAGES",
        clock: CloudClock | None = None,
        journal_path: Path | None = None,
        shards_max: int = SHARDS_MAX,
        **server: Any,
    ) -> None:
        clock = clock or CloudClock()
        self.name = name
        super().__init__(
            table_stream(shards, now_ms=clock.now_ms),
            table=TableSchema(name, ((key, "S"),)),
            view_type=view_type,
            monotonic=clock.seconds,
            **server,
        )
        self.begin(
            self.stream,
            clock,
            seed=seed,
            script=script,
            keys=keys,
            rate=rate,
            retention_seconds=retention_seconds,
            journal_path=journal_path,
            shards_max=shards_max,
        )

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
