"""A small Kinesis over real HTTP, for what its readers do and how they fail.

It speaks DescribeStreamSummary, ListShards, the consumer calls, SubscribeToShard and the
calls of polling over a `ScriptedStream`, CreateStream and DeleteStream with their tags, and of
DynamoDB DescribeTable and a table's Kinesis destination for the tables it is given. It keeps the
service's rules that matter to a reader (five seconds between subscribes, take-over, five reads a
second, pages by token alone, closed shards readable), and plays the faults a test writes down.
It checks no signature.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Literal

from aiohttp import web

from replicator.errors import PositionLost
from replicator.model import TRIM_HORIZON, Position, PositionKind, TableSchema
from replicator.testing import frames
from replicator.testing.iterators import Iterators
from replicator.testing.json_server import JSONServer, Refusal
from replicator.testing.stream import ScriptedStream


@dataclass(frozen=True, slots=True)
class Serve:
    """Serves this many events of the stream as usual, or with at most so many records each
    and a lag that is said instead of the true one."""

    events: int
    records_max: int | None = None
    behind_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Spoil:
    """Sends the next event with a bad checksum, or only the first half of it."""

    how: Literal["checksum", "half"]


@dataclass(frozen=True, slots=True)
class Send:
    """Sends these bytes as they are."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Stall:
    """Sends nothing more and keeps the connection."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Closes the connection in the middle of the body."""


@dataclass(frozen=True, slots=True)
class Mute:
    """Accepts the call and never answers, not even with headers. Only as the first step."""


_AS_USUAL = Serve(1)
Step = Serve | Spoil | Send | Stall | Cut | Mute


@dataclass(slots=True)
class _Consumer:
    name: str
    arn: str
    created_at: float
    # Answers of DescribeStreamConsumer that are still to come before the last one holds.
    states: deque[str]
    tags: dict[str, str]


class KinesisServer(JSONServer):
    """`subscriptions` counts the open ones by shard; a script is a list of steps for the
    *next* subscription of a shard, whose body ends, whole, after the last step.
    `clock_ahead_seconds` moves the clock that its answers tell.
    """

    content_type = "application/x-amz-json-1.1"

    def __init__(
        self,
        stream: ScriptedStream | None = None,
        *,
        name: str = "scripted",
        tables: Sequence[TableSchema] = (),
        port: int = 0,
        page_size: int = 1_000,
        event_records: int = 100,
        heartbeat_seconds: float = 5.0,
        subscription_seconds: float = 300.0,
        subscribe_interval_seconds: float = 5.0,
        has_initial_response: bool = True,
        reads_per_second: int = 5,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(port)
        self.stream = ScriptedStream(1) if stream is None else stream
        self.name = name
        self.tables = {table.name: table for table in tables}
        self.arn = f"arn:aws:kinesis:eu-north-1:000000000000:stream/{name}"
        self.created_at_s = 1_700_000_000
        self.status = "ACTIVE"
        self.retention_hours = 24
        self.clock_ahead_seconds = 0.0
        self.exists = True
        self.creating_answers = 1
        self.stream_tags: dict[str, str] = {}
        self.precisions: dict[str, str] = {}
        self.subscriptions: Counter[str] = Counter()
        self._page_size = page_size
        self._event_records = event_records
        self._heartbeat_seconds = heartbeat_seconds
        self._subscription_seconds = subscription_seconds
        self._subscribe_interval_seconds = subscribe_interval_seconds
        self._has_initial_response = has_initial_response
        self._monotonic = monotonic or (lambda: asyncio.get_running_loop().time())
        self._iterators = Iterators(
            self.stream,
            self._monotonic,
            Refusal,
            records_max=event_records,
            reads_per_second=reads_per_second,
        )
        self._creating = 0
        self._consumers: dict[str, _Consumer] = {}
        self._consumers_made = 0
        self._scripts: dict[str, deque[list[Step]]] = {}
        self._succeeded_at: dict[tuple[str, str], float] = {}
        self._taken: dict[tuple[str, str], asyncio.Event] = {}

    def script(self, shard_id: str, *steps: Step) -> None:
        """Adds a script for one further subscription of the shard."""
        self._scripts.setdefault(shard_id, deque()).append(list(steps))

    def delete_consumer(self, name: str, *, deleting_answers: int = 1) -> None:
        """As if somebody deregistered it: DELETING for so many answers, then gone."""
        consumer = self._consumers[name]
        consumer.states = deque(["DELETING"] * deleting_answers + ["GONE"])

    def delete(self) -> None:
        """As if the stream was deleted, consumers and all."""
        self.exists = False
        self._consumers.clear()
        self.stream.wake()

    def create(self, tags: dict[str, str]) -> None:
        """Makes it: CREATING for as many answers as a consumer, then ACTIVE."""
        self.recreate()
        self.stream_tags = dict(tags)
        self._creating = self.creating_answers

    def recreate(self) -> None:
        """Another stream under the same name, from the same records."""
        self.exists = True
        self.created_at_s += 1_000
        self.stream.wake()

    async def _serve(
        self, request: web.Request, operation: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        if operation == "SubscribeToShard":
            return await self._subscribe(request, body)
        answer = self.json_answer(self._plain(operation, body))
        if self.clock_ahead_seconds:
            now = time.time() + self.clock_ahead_seconds
            answer.headers["Date"] = formatdate(now, usegmt=True)
        return answer

    def _plain(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "DescribeStreamSummary":
                self._require_stream(body)
                return {"StreamDescriptionSummary": self._summary()}
            case "ListShards":
                return self._list(body)
            case "DescribeStreamConsumer":
                return {"ConsumerDescription": self._describe(body) | {"StreamARN": self.arn}}
            case "RegisterStreamConsumer":
                return {"Consumer": self._register(body)}
            case "GetShardIterator":
                return self._iterator(body)
            case "GetRecords":
                return self._iterators.read(
                    self.created_at_s if self.exists else 0,
                    body["ShardIterator"],
                    body.get("Limit", 10_000),
                )
            case "DescribeTable":
                return {"Table": self._table(body["TableName"])}
            case _:
                return self._set_up(operation, body)

    def _table(self, name: str) -> dict[str, Any]:
        if (table := self.tables.get(name)) is None:
            raise Refusal("ResourceNotFoundException", f"Table {name} not found.")
        return {
            "TableName": name,
            "AttributeDefinitions": [
                {"AttributeName": key, "AttributeType": kind} for key, kind in table.keys
            ],
            "KeySchema": [
                {"AttributeName": key, "KeyType": kind}
                for (key, _), kind in zip(table.keys, ("HASH", "RANGE"), strict=False)
            ],
        }

    def _destination(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        """The destination at this stream; its precision by the table's name."""
        table = self._table(body["TableName"])["TableName"]
        precision = "ApproximateCreationDateTimePrecision"
        if operation.startswith("Enable"):
            wanted = body.get("EnableKinesisStreamingConfiguration", {})
            self.precisions[table] = wanted.get(precision, "MILLISECOND")
        elif operation.startswith("Disable"):
            self.precisions.pop(table, None)
        found = [
            {"StreamArn": self.arn, "DestinationStatus": "ACTIVE", precision: how}
            for name, how in self.precisions.items()
            if name == table
        ]
        return {"TableName": table, "KinesisDataStreamDestinations": found}

    def _require_stream(self, body: dict[str, Any]) -> None:
        named = body.get("StreamName", body.get("StreamARN"))
        if not self.exists or named not in {self.name, self.arn}:
            raise Refusal("ResourceNotFoundException", f"Stream {named} not found.")

    def _set_up(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "CreateStream" if self.exists:
                raise Refusal("ResourceInUseException", f"Stream {self.name} already exists.")
            case "CreateStream":
                self.create(body.get("Tags", {}))
            case "DeleteStream":
                self._require_stream(body)
                self.delete()
            case "ListTagsForStream":
                self._require_stream(body)
                return {"Tags": _tags(self.stream_tags), "HasMoreTags": False}
            case "DeregisterStreamConsumer":
                self._describe(body)
                del self._consumers[body["ConsumerName"]]
            case "ListTagsForResource":
                return {"Tags": _tags(self._consumer(body["ResourceARN"]).tags)}
            case _ if operation.endswith("KinesisStreamingDestination"):
                return self._destination(operation, body)
            case _:
                raise Refusal("UnknownOperationException", operation)
        return {}

    def _summary(self) -> dict[str, Any]:
        if self._creating:
            self._creating -= 1
            return self._described("CREATING")
        return self._described(self.status)

    def _described(self, status: str) -> dict[str, Any]:
        return {
            "StreamName": self.name,
            "StreamARN": self.arn,
            "StreamStatus": status,
            "RetentionPeriodHours": self.retention_hours,
            "StreamCreationTimestamp": self.created_at_s,
            "EnhancedMonitoring": [],
            "OpenShardCount": sum(shard.is_open for shard in self.stream.shards()),
        }

    def _list(self, body: dict[str, Any]) -> dict[str, Any]:
        token = body.get("NextToken")
        if token is None:
            self._require_stream(body)
        elif "StreamName" in body:
            raise Refusal("InvalidArgumentException", "NextToken and StreamName together.")
        start = int(token or 0)
        page = self.stream.shards()[start : start + self._page_size]
        items: list[dict[str, Any]] = []
        for shard in page:
            numbers = {"StartingSequenceNumber": shard.starting_sequence_number}
            if shard.ending_sequence_number is not None:
                numbers["EndingSequenceNumber"] = shard.ending_sequence_number
            item: dict[str, Any] = {
                "ShardId": shard.id,
                "SequenceNumberRange": numbers,
                "HashKeyRange": frames.hash_key_range(self.stream.hash_range(shard.id)),
            }
            item |= dict(
                zip(("ParentShardId", "AdjacentParentShardId"), shard.parents, strict=False)
            )
            items.append(item)
        answer: dict[str, Any] = {"Shards": items}
        if start + len(page) < len(self.stream.shards()):
            answer["NextToken"] = str(start + len(page))
        return answer

    def _describe(self, body: dict[str, Any]) -> dict[str, Any]:
        self._require_stream(body)
        consumer = self._consumers.get(body["ConsumerName"])
        if consumer is not None and consumer.states[0] == "GONE":
            del self._consumers[consumer.name]
            consumer = None
        if consumer is None:
            raise Refusal("ResourceNotFoundException", f"Consumer {body['ConsumerName']}")
        status = consumer.states.popleft() if len(consumer.states) > 1 else consumer.states[0]
        return _consumer(consumer, status)

    def _register(self, body: dict[str, Any]) -> dict[str, Any]:
        self._require_stream(body)
        name = body["ConsumerName"]
        if name in self._consumers:
            raise Refusal("ResourceInUseException", f"Consumer {name} already exists.")
        self._consumers_made += 1
        consumer = _Consumer(
            name,
            f"{self.arn}/consumer/{name}:{self.created_at_s + self._consumers_made}",
            self.created_at_s + self._consumers_made,
            deque(["CREATING"] * self.creating_answers + ["ACTIVE"]),
            body.get("Tags", {}),
        )
        self._consumers[name] = consumer
        return _consumer(consumer, "CREATING")

    def _iterator(self, body: dict[str, Any]) -> dict[str, Any]:
        self._require_stream(body)
        starting = {"Type": body["ShardIteratorType"], "Timestamp": body.get("Timestamp")}
        if "StartingSequenceNumber" in body:
            starting["SequenceNumber"] = body["StartingSequenceNumber"]
        try:
            return self._iterators.give(self.created_at_s, body["ShardId"], _position(starting))
        except PositionLost as lost:
            raise Refusal("InvalidArgumentException", lost.message) from None

    def _consumer(self, arn: str) -> _Consumer:
        for consumer in self._consumers.values():
            if consumer.arn == arn:
                return consumer
        raise Refusal("ResourceNotFoundException", f"{arn} not found.")

    async def _subscribe(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        arn, shard_id = body["ConsumerARN"], body["ShardId"]
        consumer = self._consumer(arn)
        if not self.exists or not self.stream.has_shard(shard_id):
            raise Refusal("ResourceNotFoundException", f"{arn} or {shard_id} not found.")
        if consumer.states[0] != "ACTIVE":
            raise Refusal("ResourceInUseException", f"Consumer is {consumer.states[0]}.")
        key = (arn, shard_id)
        now = self._monotonic()
        if now - self._succeeded_at.get(key, float("-inf")) < self._subscribe_interval_seconds:
            raise Refusal("ResourceInUseException", "Another active subscription exists.")
        try:
            place = self.stream.place(shard_id, _position(body["StartingPosition"]))
        except PositionLost as lost:
            raise Refusal("InvalidArgumentException", lost.message) from None
        self._succeeded_at[key] = now
        if (earlier := self._taken.get(key)) is not None:
            earlier.set()
            self.stream.wake()
        taken = self._taken[key] = asyncio.Event()
        response = web.StreamResponse(
            headers={"Content-Type": "application/vnd.amazon.eventstream"}
        )
        response.enable_chunked_encoding()
        steps = self._steps(shard_id)
        self.subscriptions[shard_id] += 1
        try:
            if isinstance(steps, Sequence) and steps[:1] == [Mute()]:
                await asyncio.Event().wait()
            await response.prepare(request)
            if self._sends_initial_response(shard_id):
                await response.write(frames.initial_response())
            # A client that went away shows as an error of the write: nobody to tell.
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(self._subscription_seconds):
                    await self._play(request, response, steps, shard_id, place, taken)
        finally:
            self.subscriptions[shard_id] -= 1
        return response

    def _steps(self, shard_id: str) -> Iterable[Step]:
        """What the next subscription of the shard does, from its first event on."""
        scripts = self._scripts.get(shard_id)
        return scripts.popleft() if scripts else [Serve(2**62)]

    def _sends_initial_response(self, shard_id: str) -> bool:
        return self._has_initial_response

    async def _play(
        self,
        request: web.Request,
        response: web.StreamResponse,
        steps: Iterable[Step],
        shard_id: str,
        place: int,
        taken: asyncio.Event,
    ) -> None:
        for step in steps:
            match step:
                case Send(data):
                    await response.write(data)
                case Stall():
                    await asyncio.Event().wait()
                case Cut():
                    assert request.transport is not None
                    request.transport.close()
                    return
                case Spoil(how):
                    data, _, _ = await self._next(shard_id, place, taken)
                    is_half = how == "half"
                    await response.write(
                        data[: len(data) // 2] if is_half else frames.with_bad_crc(data)
                    )
                case Serve(events):
                    for _ in range(events):
                        data, place, is_last = await self._next(shard_id, place, taken, step)
                        await response.write(data)
                        if is_last:
                            return

    async def _next(
        self, shard_id: str, place: int, taken: asyncio.Event, how: Serve = _AS_USUAL
    ) -> tuple[bytes, int, bool]:
        """The next frame, the place after it and whether the body ends with it."""
        stream = self.stream
        try:
            async with asyncio.timeout(self._heartbeat_seconds):
                while not (
                    taken.is_set()
                    or not stream.has_shard(shard_id)
                    or place < stream.count(shard_id)
                    or stream.is_ended(shard_id, place)
                ):
                    await stream.changed()
        except TimeoutError:
            pass
        if taken.is_set():
            return frames.exception("ResourceInUseException", "Taken over."), place, True
        if not self.exists or not stream.has_shard(shard_id):
            return frames.exception("ResourceNotFoundException", "It was deleted."), place, True
        place = max(place, stream.place(shard_id, TRIM_HORIZON))  # it was trimmed meanwhile
        count_max = self._event_records if how.records_max is None else how.records_max
        records = list(stream.records(shard_id, place, count_max))
        place += len(records)
        if stream.is_ended(shard_id, place):
            children = stream.children(shard_id)
            ranges = {child.id: stream.hash_range(child.id) for child in children}
            event = frames.shard_event(records, None, children=children, hash_ranges=ranges)
            return event, place, True
        behind_ms = how.behind_ms
        if behind_ms is None:
            behind_ms = stream.behind_ms(shard_id, place)
        continuation = stream.continuation(shard_id, place).sequence_number
        return frames.shard_event(records, continuation, behind_ms=behind_ms), place, False


def _tags(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _position(starting: dict[str, Any]) -> Position:
    kind = PositionKind(starting["Type"])
    if kind is PositionKind.AT_TIMESTAMP:
        at = datetime.fromtimestamp(starting["Timestamp"], UTC)
        return Position(kind, timestamp_us=round(at.timestamp() * 1_000) * 1_000)
    return Position(kind, sequence_number=starting.get("SequenceNumber"))


def _consumer(consumer: _Consumer, status: str) -> dict[str, Any]:
    return {
        "ConsumerName": consumer.name,
        "ConsumerARN": consumer.arn,
        "ConsumerStatus": status,
        "ConsumerCreationTimestamp": consumer.created_at,
    }
