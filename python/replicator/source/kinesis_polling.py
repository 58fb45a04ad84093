"""Kinesis Data Streams by polling: GetRecords, shared with everybody who polls the stream.

It needs no registered consumer and no SubscribeToShard, costs nothing by the record, and is
slower than enhanced fan-out: five reads and 2 MB a second a shard for all readers together
(https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html).

Permissions: kinesis:DescribeStreamSummary, ListShards, GetShardIterator, GetRecords, and
kms:Decrypt for an encrypted stream.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from replicator import _core
from replicator.aws import AWSSettings, aws_errors
from replicator.errors import FatalError, PositionLost
from replicator.model import LATEST, SHARD_END, Fetch, Position, Stream, at_timestamp
from replicator.protocols import Clock
from replicator.source.hand_over import kinesis_get_records
from replicator.source.kinesis_stream import KinesisStream
from replicator.source.polling import Poller, PollOptions
from replicator.source.subscription import starting_position

_NO_RECORDS = _core.Records.pack([])


class KinesisPollingSource(KinesisStream):
    """`protocols.Source` over one stream, by name or ARN; it is the `polling.Service` too."""

    def __init__(
        self,
        settings: AWSSettings,
        stream: str,
        clock: Clock,
        *,
        options: PollOptions | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(settings, stream)
        self._clock = clock
        self._reader: Any = None
        self._confirming = asyncio.Lock()
        self._confirmed_at = float("-inf")
        self.poller = Poller(self, clock, options or PollOptions(), jitter=jitter)

    async def open(self) -> Stream:
        """The stream's identity."""
        stream = await self._identified()
        if self._reader is None:
            # Throttled calls are the poller's to repeat: it counts and paces them.
            self._reader = await self._new_client(attempts_max=1)
        return stream

    async def read(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        """The shard's fetches from `position` on; see `protocols.Source.read`.

        LATEST becomes a position that can be stored: what came since the service's last full
        second is read up to the tip and left out.
        """
        is_skipping = position == LATEST
        if is_skipping:
            position = at_timestamp(await self.now_us())
        async with aclosing(self.poller.read(shard_id, position)) as fetches:
            async for fetch in fetches:
                if not is_skipping:
                    yield fetch
                elif not fetch.behind_ms or fetch.next == SHARD_END:
                    is_skipping = False
                    yield replace(fetch, records=_NO_RECORDS)

    async def close(self) -> None:
        """See `KinesisStream.close`."""
        self._reader = None
        await super().close()

    def calls(self, shard_id: str) -> int:
        """Reads sent for the shard; only grows while it is read."""
        return self.poller.calls[shard_id]

    def counters(self) -> Mapping[str, int]:
        """See `Poller.counters`."""
        return self.poller.counters()

    # ---- `source.polling.Service`

    async def iterator(self, shard_id: str, position: Position) -> str:
        """See `polling.Service.iterator`."""
        assert self._reader is not None, "open() comes first"
        resource = f"{shard_id} of {self._stream_name}"
        try:
            with aws_errors("GetShardIterator", resource, position=position.sequence_number):
                answer = await self._reader.get_shard_iterator(
                    **self._key, ShardId=shard_id, **_start(position)
                )
        except FatalError as error:
            if error.code == "resource_missing":
                await self.require_same_stream()
                await self._require_listed(shard_id)
            raise
        except PositionLost:
            # A number of the stream that had this name before isn't lost: it means nothing.
            await self.require_same_stream()
            raise
        await self._confirm_stream()
        return str(answer["ShardIterator"])

    async def records(self, iterator: str, limit: int) -> _core.Answer:
        """See `polling.Service.records`."""
        assert self._reader is not None, "open() comes first"
        with aws_errors("GetRecords", self._stream_name):
            return await kinesis_get_records(self._reader, iterator, limit)

    async def _confirm_stream(self) -> None:
        """Raises FatalError when the iterator may be of another stream under the same name,
        whose shards have the same ids. One look serves all who asked before it began."""
        asked_at = self._clock.monotonic()
        async with self._confirming:
            if self._confirmed_at < asked_at:
                began_at = self._clock.monotonic()
                await self.require_same_stream()
                self._confirmed_at = began_at


def _start(position: Position) -> dict[str, Any]:
    """The position in the words of GetShardIterator
    (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetShardIterator.html)."""
    start = starting_position(position)
    request = {"ShardIteratorType": start.pop("Type")}
    if "SequenceNumber" in start:
        request["StartingSequenceNumber"] = start.pop("SequenceNumber")
    return request | start
