"""DynamoDB Streams: the table's own stream, every shard read by iterators.

API rules that this file holds
(https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_Operations_Amazon_DynamoDB_Streams.html):
a page of DescribeStream has 100 shards, and ten pages a second are allowed; records are kept
for 24 hours; a shard has one parent at most; an iterator lasts 15 minutes; no more than two
processes may read a shard at once; a stream that is disabled closes its shards and stays readable
for 24 hours; one that is enabled again is another stream, with another ARN.

Permissions: dynamodb:DescribeTable of the table; dynamodb:DescribeStream, GetShardIterator
and GetRecords of its streams (`<table ARN>/stream/*`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from replicator import _core
from replicator.aws import AWSSettings, aws_client, aws_errors, service_time_us
from replicator.core.listing import Listing
from replicator.core.pace import PaceLimits
from replicator.core.retry import Backoff
from replicator.errors import FatalError, PositionLost, ReplicatorError, TransientError
from replicator.model import (
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    Fetch,
    Horizon,
    Position,
    PositionKind,
    Shard,
    Stream,
    at_timestamp,
)
from replicator.protocols import Clock
from replicator.source.hand_over import register, streams_get_records
from replicator.source.polling import Poller, PollOptions

_log = structlog.get_logger()
_PAGE_SHARDS = 100
_RETENTION_US = 24 * 3_600_000_000
_NO_RECORDS = _core.Records.pack([])
# Creation times are told in whole seconds, and nowhere is it said how they are rounded.
_CREATION_MS = 1_000


def _poll_options(idle_seconds_max: float = 2.0) -> PollOptions:
    # No limit of reads a second is documented; four are what Lambda makes.
    pace = PaceLimits(
        reads_per_second=4.0,
        bytes_per_second=4_194_304.0,
        records_max=1_000,
        idle_seconds_max=idle_seconds_max,
    )
    return PollOptions(pace=pace, iterator_seconds=840.0)


@dataclass(frozen=True, slots=True)
class StreamsOptions:
    """Times and limits; the defaults fit the service. Tests make them small."""

    poll: PollOptions = field(default_factory=_poll_options)
    page_seconds: float = 0.2
    """Least time between two pages of the listing: half of what all callers may make."""
    page_failures_max: int = 4
    """Failures of one page in a row, before the listing rests until the next call."""
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 5.0))
    """Waits between a page's failures."""

    @classmethod
    def idling(cls, seconds_max: float) -> StreamsOptions:
        """The defaults, with this longest pause of an idle shard."""
        return cls(poll=_poll_options(seconds_max))


@dataclass(frozen=True, slots=True)
class TableStream:
    """What the service says of a stream: `status` is ENABLED, DISABLED or on its way there."""

    stream: Stream
    status: str
    view_type: str


def view_type_problem(view_type: str) -> str | None:
    """Why a sink that holds the newest item of each key can't be fed by streams of this view
    type; None when it can."""
    if view_type in {"NEW_AND_OLD_IMAGES", "NEW_IMAGE"}:
        return None
    return (
        f"its view type {view_type} carries no new images, and the sink keeps whole items. What "
        "to do: a view type can't be changed, so disable the stream and enable it again with "
        "StreamViewType=NEW_AND_OLD_IMAGES (that makes another stream, with another ARN)"
    )


class StreamsSource:
    """`protocols.Source` over one table's newest stream, or the stream of an ARN.

    The identity is the stream's ARN: its label is the time of its creation. Positions and
    versions are sequence numbers, which mean nothing in another stream, of the same table even.
    """

    def __init__(
        self,
        settings: AWSSettings,
        named: str,
        clock: Clock,
        *,
        options: StreamsOptions | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`named`: the table's name or ARN, or a stream's ARN."""
        if named.startswith("arn:") and settings.region is None:
            # The ARN says where the table lives; the environment may mean another Region.
            settings = replace(settings, region=named.split(":")[3])
        self._settings = settings
        self._table, slash, label = named.partition("/stream/")
        self._fixed_arn = named if slash and label else None
        self._clock = clock
        self._options = options or StreamsOptions()
        self._jitter = jitter
        self._stack = AsyncExitStack()
        self._tables: Any = None
        self._client: Any = None
        self._stream: Stream | None = None
        self._listing = Listing()
        self._listing_now = asyncio.Lock()
        self._page_at = float("-inf")
        self._listing_calls = 0
        self._has_filter = True
        self._has_timestamps = True
        self._replacement: str | None = None
        # The service's clock less ours, in milliseconds.
        self._ahead_ms = 0.0
        self.poller = Poller(self, clock, self._options.poll, jitter=jitter)

    async def open(self) -> Stream:
        """The stream's identity. Raises FatalError when the table has none (`stream_disabled`)
        or its records lack the new images (`view_type_unusable`)."""
        found = await self.look()
        if (problem := view_type_problem(found.view_type)) is not None:
            raise FatalError(
                "view_type_unusable", f"stream {found.stream.arn} can't be used: {problem}."
            )
        if found.status == "ENABLING":
            raise TransientError(
                "stream_not_active",
                f"stream {found.stream.arn} is being enabled. What to do: wait.",
                retry_after_seconds=2.0,
            )
        if found.status != "ENABLED":
            _log.warning(
                "stream_disabled",
                stream=found.stream.arn,
                status=found.status,
                advice="what it holds is read; it is kept for 24 hours. Nothing new will come",
            )
        if found.stream != self._stream:
            self._stream, self._listing = found.stream, Listing()
        return found.stream

    async def look(self) -> TableStream:
        """The stream as it is now, whatever its state: for `check`."""
        await self._connect()
        arn = self._fixed_arn or await self._newest_arn()
        if arn is None:
            raise FatalError(
                "stream_disabled",
                f"table {self._table} has no stream. What to do: run aws dynamodb update-table "
                f"--table-name {self._table} --stream-specification "
                "StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES",
            )
        answer = await self._describe(arn, Limit=1)
        self._ahead_ms = service_time_us(answer, arn) / 1e3 - self._clock.monotonic() * 1e3
        described = answer["StreamDescription"]
        label = str(described.get("StreamLabel") or arn.rsplit("/", 1)[-1])
        return TableStream(
            Stream(str(described["TableName"]), arn, _label_seconds(label)),
            str(described["StreamStatus"]),
            str(described["StreamViewType"]),
        )

    async def try_reading(self, shard_id: str) -> None:
        """Reads one record of a shard, for `check`. Raises FatalError where that is denied;
        that others read it too at this moment is nothing to say."""
        try:
            await self.records(await self.iterator(shard_id, TRIM_HORIZON), 1)
        except (TransientError, PositionLost):
            return

    async def now_us(self) -> int:
        return (await self.horizon()).now_us

    async def horizon(self) -> Horizon:
        """The service's clock by a small answer (whole seconds, rounded down), and 24 hours."""
        answer = await self._describe(self._arn, Limit=1)
        return Horizon(service_time_us(answer, self._arn), _RETENTION_US, is_named=True)

    def made_us(self, shard_id: str) -> int | None:
        """The instant of the shard's creation, which its id tells in milliseconds. That isn't
        documented, but AWS's own connector for Flink goes by it
        (https://github.com/apache/flink-connector-aws, `ShardUtils.java`)."""
        made_ms = shard_id.partition("-")[2].partition("-")[0]
        return int(made_ms) * 1_000 if made_ms.isascii() and made_ms.isdigit() else None

    async def shards(self) -> Sequence[Shard]:
        """All shards of all pages. See `core.listing` for how pages that don't agree, or fail,
        are put together: a failing page costs no shard that is known or that other pages show.

        Raises TransientError while no listing has come to its end; the next call goes on at the
        page that failed.
        """
        async with self._listing_now:
            status = await self._list()
            # Unknown where no page came this time.
            if status in {"DISABLED", "DISABLING"}:
                await self._look_for_replacement()
            return self._listing.shards()

    def listing_calls(self) -> int:
        """See `protocols.Paged`."""
        return self._listing_calls

    async def read(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        """The shard's fetches from `position` on; see `protocols.Source.read`.

        LATEST becomes a position that can be stored: what came in the service's last full
        second is read up to the tip and left out. Where the service takes no timestamp, reading
        starts at the oldest record, and fetches that are older as a whole come without their
        records: the position stays at the start until something younger comes, since it would
        be trimmed before long, and that is no loss. All this is for speed only: changes from
        before a start undo nothing in a sink that goes by versions.
        """
        start = position
        if is_skipping := position.kind is PositionKind.LATEST:
            position = at_timestamp(await self.now_us())
        since_ms = None if position.timestamp_us is None else position.timestamp_us // 1_000
        is_before = since_ms is not None
        try:
            async with aclosing(self.poller.read(shard_id, position)) as fetches:
                async for fetch in fetches:
                    until_ms = since_ms + _CREATION_MS if is_skipping and since_ms else since_ms
                    is_old = _is_older(fetch.records.last_arrival_ms, until_ms)
                    is_before = is_before and (is_old or not len(fetch.records))
                    is_skipping = is_skipping and is_old
                    if not is_skipping or fetch.next == SHARD_END:
                        stays = is_before and start != LATEST and fetch.next != SHARD_END
                        following = start if stays else fetch.next
                        yield await self._completed(fetch, following, is_old=is_old)
                    position = position if is_before else fetch.next
        except PositionLost as lost:
            # Who asked for the oldest record gets the one that is the oldest by now.
            if lost.code == "position_trimmed" and position.sequence_number is None:
                raise TransientError("horizon_moved", lost.message) from lost
            raise

    def calls(self, shard_id: str) -> int:
        """Reads sent for the shard; only grows while it is read."""
        return self.poller.calls[shard_id]

    def counters(self) -> Mapping[str, int]:
        """See `Poller.counters`."""
        return self.poller.counters()

    async def close(self) -> None:
        """Closes the clients, and with them every connection. May be called twice."""
        self._tables = self._client = None
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    # ---- `source.polling.Service`

    async def iterator(self, shard_id: str, position: Position) -> str:
        """See `polling.Service.iterator`."""
        if position.kind is PositionKind.AT_TIMESTAMP and not self._has_timestamps:
            position = TRIM_HORIZON
        try:
            return await self._get_iterator(shard_id, position)
        except FatalError as error:
            if error.code == "resource_missing":
                raise await self._missing(shard_id) from error
            if error.code != "request_invalid":
                raise
            if position.timestamp_us is None:
                raise
            await self._require_past(position.timestamp_us)
            self._has_timestamps = False
            return await self._get_iterator(shard_id, TRIM_HORIZON)

    async def records(self, iterator: str, limit: int) -> _core.Answer:
        """See `polling.Service.records`."""
        with aws_errors("GetRecords", self._arn):
            return await streams_get_records(self._client, iterator, limit)

    # ---- reading

    async def _get_iterator(self, shard_id: str, position: Position) -> str:
        request: dict[str, Any] = {"ShardIteratorType": position.kind.value}
        if position.sequence_number is not None:
            request["SequenceNumber"] = position.sequence_number
        if position.timestamp_us is not None:
            # Records tell their time in whole seconds: cut downwards, nothing is skipped.
            request["Timestamp"] = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
                seconds=position.timestamp_us // 1_000_000
            )
        resource = f"{shard_id} of {self._arn}"
        with aws_errors("GetShardIterator", resource, position=position.sequence_number):
            answer = await self._client.get_shard_iterator(
                StreamArn=self._arn, ShardId=shard_id, **request
            )
        return str(answer["ShardIterator"])

    async def _require_past(self, timestamp_us: int) -> None:
        """The service refuses times to come, too: no reason to read everything that is there."""
        now_us = await self.now_us()
        if timestamp_us > now_us + 1_000_000:
            raise FatalError(
                "start_in_future",
                f"the start {datetime.fromtimestamp(timestamp_us / 1e6, UTC).isoformat()} lies "
                f"{(timestamp_us - now_us) // 1_000_000} s ahead of the service's clock. What to "
                "do: start at LATEST, or at a time that has been.",
            )

    async def _missing(self, shard_id: str) -> ReplicatorError:
        """What ResourceNotFound of a shard means."""
        try:
            await self._describe(self._arn, Limit=1)
        except FatalError as error:
            if error.code != "resource_missing":
                return error
            newest = await self._newest_arn()
            return FatalError(
                "stream_gone",
                f"stream {self._arn} is gone, 24 hours after it was disabled; the table's stream "
                f"is {newest or 'disabled'} now. What to do: {_START_ANEW}.",
            )
        return PositionLost(
            "shard_gone",
            f"{shard_id} of {self._arn} is no longer kept: its records are older than 24 hours. "
            "What to do: see on_gap.",
        )

    async def _completed(self, fetch: Fetch, following: Position, *, is_old: bool) -> Fetch:
        """The fetch with its table, without what is too old, and with children at the end."""
        last_ms = fetch.records.last_arrival_ms
        return replace(
            fetch,
            records=_NO_RECORDS if is_old else fetch.records,
            next=following,
            children=await self._children(fetch.shard_id) if fetch.next == SHARD_END else (),
            behind_ms=None if is_old else self._behind_ms(last_ms, fetch.received_at),
            table=self._opened.name,
        )

    def _behind_ms(self, last_ms: int | None, received_at: float) -> int | None:
        """The service doesn't tell. "It might take multiple calls to get to a portion of the
        shard that contains stream records", so an answer without them says nothing
        (https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_GetRecords.html);
        behind one with records there may be more."""
        if last_ms is None:
            return None
        return max(1, round(received_at * 1e3 + self._ahead_ms) - last_ms)

    async def _children(self, shard_id: str) -> tuple[Shard, ...]:
        """The shard's children, where `ShardFilter` is served. None of what can go wrong here
        matters to the shard: the listing, which is asked for when none is named, shows them."""
        if not self._has_filter:
            return ()
        wanted = {"Type": "CHILD_SHARDS", "ShardId": shard_id}
        found: dict[str, Shard] = {}
        after: dict[str, str] = {}
        try:
            while True:
                answer = await self._describe(self._arn, ShardFilter=wanted, **after)
                described = answer["StreamDescription"]
                # Who doesn't know the filter may list everything.
                shards = map(_shard, described["Shards"])
                found |= {shard.id: shard for shard in shards if shard_id in shard.parents}
                last = described.get("LastEvaluatedShardId")
                if not last or last == after.get("ExclusiveStartShardId"):
                    return tuple(found.values())
                after = {"ExclusiveStartShardId": last}
        except FatalError as error:
            self._has_filter = error.code != "request_invalid"
        except ReplicatorError:
            pass
        return tuple(found.values())

    # ---- listing

    async def _list(self) -> str:
        """Brings the listing to its end, or as far as it goes now: the stream's status (empty
        when no page came)."""
        listing = self._listing
        status = ""
        failures = 0
        while True:
            await self._keep_rate()
            self._listing_calls += 1
            after = {} if listing.after is None else {"ExclusiveStartShardId": listing.after}
            try:
                answer = await self._describe(self._arn, Limit=_PAGE_SHARDS, **after)
            except TransientError as error:
                failures += 1
                if failures < self._options.page_failures_max:
                    wait = self._options.backoff.next(
                        failures - 1, self._jitter(), error.retry_after_seconds
                    )
                    await self._clock.sleep(wait)
                elif listing.is_usable:
                    _log.warning("listing_incomplete", code=error.code, reason=error.message)
                    return status
                else:
                    raise
            except FatalError as error:
                # The shard that the page begins behind may have been trimmed meanwhile.
                if listing.after is None or error.code not in {
                    "resource_missing",
                    "request_invalid",
                }:
                    raise
                listing.restart()
            else:
                failures = 0
                described = answer["StreamDescription"]
                status = str(described["StreamStatus"])
                page = [_shard(item) for item in described["Shards"]]
                if listing.page(page, described.get("LastEvaluatedShardId") or None):
                    return status

    async def _keep_rate(self) -> None:
        wait = self._page_at + self._options.page_seconds - self._clock.monotonic()
        if wait > 0:
            await self._clock.sleep(wait)
        self._page_at = self._clock.monotonic()

    async def _look_for_replacement(self) -> None:
        """Says, once, that the table has another stream by now. This one is still read to its
        end; what happens then is the coordinator's to say."""
        newest = await self._newest_arn()
        if newest not in {None, self._arn, self._replacement}:
            self._replacement = newest
            _log.warning(
                "stream_replaced",
                stream=self._arn,
                newest=newest,
                advice=f"the old one is read to its end; then: {_START_ANEW}",
            )

    # ---- the service

    @property
    def _opened(self) -> Stream:
        assert self._stream is not None, "open() comes first"
        return self._stream

    @property
    def _arn(self) -> str:
        return self._opened.arn

    async def _connect(self) -> None:
        if self._client is None:
            enter = self._stack.enter_async_context
            self._tables = await enter(aws_client(self._settings, "dynamodb"))
            # The poller and the listing keep their own pace: the driver repeats nothing.
            client = await enter(aws_client(self._settings, "dynamodbstreams", attempts_max=1))
            register(client)
            self._client = client

    async def _newest_arn(self) -> str | None:
        """The ARN of the table's newest stream, disabled or not; None: it never had one."""
        with aws_errors("DescribeTable", self._table):
            answer = await self._tables.describe_table(TableName=self._table)
        arn: str | None = answer["Table"].get("LatestStreamArn")
        return arn

    async def _describe(self, arn: str, **request: Any) -> dict[str, Any]:
        with aws_errors("DescribeStream", arn):
            answer: dict[str, Any] = await self._client.describe_stream(StreamArn=arn, **request)
        return answer


_START_ANEW = (
    "restart with sinks that write to empty tables (a sequence number of one stream tells "
    "nothing about another's)"
)


def _is_older(last_ms: int | None, until_ms: int | None) -> bool:
    """True for records that all come from before an instant, told in whole seconds."""
    return last_ms is not None and until_ms is not None and last_ms + _CREATION_MS <= until_ms


def _label_seconds(label: str) -> int:
    """The time that a stream's label tells, whole seconds UTC since the epoch; 0 if none."""
    try:
        made = datetime.fromisoformat(label)
    except ValueError:
        return 0
    return int(made.replace(tzinfo=made.tzinfo or UTC).timestamp())


def _shard(item: dict[str, Any]) -> Shard:
    numbers = item.get("SequenceNumberRange", {})
    parent = item.get("ParentShardId")
    return Shard(
        id=item["ShardId"],
        parents=(parent,) if parent else (),
        is_open=numbers.get("EndingSequenceNumber") is None,
        starting_sequence_number=numbers.get("StartingSequenceNumber"),
        ending_sequence_number=numbers.get("EndingSequenceNumber"),
    )
