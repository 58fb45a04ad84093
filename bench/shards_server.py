"""Serves many idle shards, in a process of its own: its CPU time is not the worker's.

    python -m bench.shards_server KIND SHARDS

Says its address on stdout. For each line on stdin it answers with a line of JSON: the requests
by operation so far, how many shards were asked for records, and when (CLOCK_MONOTONIC, which all
processes of a machine share) the first listing was complete and the last shard was first read.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import uvloop
from aiohttp import web

from replicator.model import TableSchema
from replicator.testing.iterators import shard_of
from replicator.testing.json_server import JSONServer
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from replicator.testing.streams_server import StreamsServer, table_stream

NAME = "products"


class _Counted(JSONServer):
    """What it was asked, without keeping the requests."""

    listed_at: float | None = None
    read_at: float | None = None

    def count(self, shards: int) -> None:
        """Begins to count."""
        self._shards = shards
        self._read: set[str] = set()
        self._counts: Counter[str] = Counter()

    async def _serve(
        self, request: web.Request, operation: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        self.calls.clear()
        self._counts[operation] += 1
        if self.read_at is None and operation in {"GetRecords", "SubscribeToShard"}:
            self._read.add(self._shard(body))
            if len(self._read) == self._shards:
                self.read_at = time.monotonic()
        return await super()._serve(request, operation, body)

    def json_answer(self, body: dict[str, Any], *, status: int = 200) -> web.Response:
        listing = body.get("StreamDescription", body)
        if self.listed_at is None and listing.get("Shards"):  # noqa: SIM102 - two questions
            if "NextToken" not in listing and "LastEvaluatedShardId" not in listing:
                self.listed_at = time.monotonic()
        return super().json_answer(body, status=status)

    def _shard(self, body: dict[str, Any]) -> str:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What a line on stdin is answered with."""
        return {
            "calls": self._counts,
            "shards_read": len(self._read),
            "listed_at": self.listed_at,
            "read_at": self.read_at,
        }


class _Kinesis(_Counted, KinesisServer):
    def _shard(self, body: dict[str, Any]) -> str:
        return str(body["ShardId"]) if "ShardId" in body else shard_of(body["ShardIterator"])


class _Streams(_Counted, StreamsServer):
    def _shard(self, body: dict[str, Any]) -> str:
        return self._read_token(body["ShardIterator"])[1]


async def main(kind: str, shards: int) -> None:
    """Serves until stdin ends."""
    table = TableSchema(NAME, (("id", "S"),))
    server: _Counted
    if kind == "streams":
        server = _Streams(table_stream(shards), table=table)
    else:
        server = _Kinesis(ScriptedStream(shards), name=NAME, tables=[table])
    server.count(shards)
    async with server:
        print(server.url, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(server.state()), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
