"""A Kinesis stream as both ways of reading it know it: client, identity, clock, listing.

Permissions: kinesis:DescribeStreamSummary, ListShards.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from replicator.aws import (
    READ_TIMEOUT_SECONDS,
    AWSSettings,
    aws_client,
    aws_errors,
    service_time_us,
)
from replicator.errors import FatalError, PositionLost, TransientError
from replicator.model import Horizon, Shard, Stream
from replicator.source.hand_over import register


class KinesisStream:
    """What of `protocols.Source` doesn't depend on how the records come."""

    def __init__(self, settings: AWSSettings, stream: str) -> None:
        if stream.startswith("arn:") and settings.region is None:
            # The ARN says where the stream lives; the environment may mean another Region.
            settings = replace(settings, region=stream.split(":")[3])
        self._settings = settings
        self._key = {"StreamARN" if stream.startswith("arn:") else "StreamName": stream}
        self._stream_name = stream
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._stream: Stream | None = None
        self._listing_calls = 0

    async def now_us(self) -> int:
        return (await self.horizon()).now_us

    async def horizon(self) -> Horizon:
        """The clock of `now_us` and the stream's retention, in one DescribeStreamSummary."""
        answer = await self._summary()
        hours = int(answer["StreamDescriptionSummary"]["RetentionPeriodHours"])
        return Horizon(service_time_us(answer, self._stream_name), hours * 3_600_000_000)

    async def shards(self) -> Sequence[Shard]:
        """All pages of ListShards, closed shards included."""
        shards: list[Shard] = []
        # A further page is asked for by its token alone: the API refuses both
        # (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_ListShards.html).
        request: dict[str, str] = self._key
        while True:
            self._listing_calls += 1
            with aws_errors("ListShards", self._stream_name):
                answer = await self._client.list_shards(**request)
            shards.extend(_shard(item) for item in answer["Shards"])
            token = answer.get("NextToken")
            if not token:
                return shards
            request = {"NextToken": token}

    def listing_calls(self) -> int:
        """See `protocols.Paged`."""
        return self._listing_calls

    async def close(self) -> None:
        """Closes the clients, and with them every connection. May be called twice."""
        self._client = None
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    async def _identified(self, *, read_timeout_seconds: float = READ_TIMEOUT_SECONDS) -> Stream:
        """Connects where it isn't done, and remembers which stream it is now."""
        if self._client is None:
            self._client = await self._new_client(read_timeout_seconds=read_timeout_seconds)
        self._stream = await self._identity()
        return self._stream

    async def _new_client(self, **options: Any) -> Any:
        client = await self._stack.enter_async_context(
            aws_client(self._settings, "kinesis", **options)
        )
        register(client)
        return client

    async def require_same_stream(self) -> None:
        """Raises FatalError when another stream has taken the name since `open`."""
        stream = await self._identity()
        if stream != self._stream:
            raise FatalError(
                "stream_recreated",
                f"{self._stream_name} was deleted and made again ({self._stream} became "
                f"{stream}): its old positions mean nothing. What to do: restart to read the "
                "new stream from its start.",
            )

    async def _require_listed(self, shard_id: str) -> None:
        """Raises PositionLost for a shard that is no longer listed."""
        if all(shard.id != shard_id for shard in await self.shards()):
            raise PositionLost(
                "shard_gone",
                f"{shard_id} of {self._stream_name} is no longer listed: its records are past "
                "the retention. What to do: see on_gap.",
            )

    async def _identity(self) -> Stream:
        answer = await self._summary()
        summary = answer["StreamDescriptionSummary"]
        if summary["StreamStatus"] in {"CREATING", "DELETING"}:
            raise TransientError(
                "stream_not_active",
                f"{self._stream_name} is {summary['StreamStatus']}. What to do: wait.",
                retry_after_seconds=2.0,
            )
        return Stream(
            name=summary["StreamName"],
            arn=summary["StreamARN"],
            created_at_s=int(summary["StreamCreationTimestamp"].timestamp()),
        )

    async def _summary(self) -> dict[str, Any]:
        assert self._client is not None, "open() comes first"
        with aws_errors("DescribeStreamSummary", self._stream_name):
            answer: dict[str, Any] = await self._client.describe_stream_summary(**self._key)
        return answer


def _shard(item: dict[str, Any]) -> Shard:
    numbers = item["SequenceNumberRange"]
    parents = (item.get("ParentShardId"), item.get("AdjacentParentShardId"))
    keys = item["HashKeyRange"]
    return Shard(
        id=item["ShardId"],
        parents=tuple(parent for parent in parents if parent),
        is_open=numbers.get("EndingSequenceNumber") is None,
        starting_sequence_number=numbers["StartingSequenceNumber"],
        ending_sequence_number=numbers.get("EndingSequenceNumber"),
        hash_range=(int(keys["StartingHashKey"]), int(keys["EndingHashKey"]) + 1),
    )
