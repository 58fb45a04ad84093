"""A small DynamoDB Streams over real HTTP, with as many shards as a test wants.

It speaks DescribeStream, GetShardIterator and GetRecords over a `ScriptedStream`, and
DynamoDB's DescribeTable for its one table. It keeps the service's rules that matter to a reader
(pages of 100 shards, `ShardFilter`, iterators that expire, trimmed records, a stream that is
disabled and enabled again under another ARN) and plays the faults a test writes down. It
checks no signature.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from aiohttp import web

from replicator.errors import PositionLost
from replicator.model import Position, PositionKind, Shard, TableSchema
from replicator.testing.json_server import JSONServer, Refusal
from replicator.testing.stream import ScriptedRecord, ScriptedStream

ViewType = Literal["KEYS_ONLY", "NEW_IMAGE", "OLD_IMAGE", "NEW_AND_OLD_IMAGES"]

_ANSWER_BYTES_MAX = 1_048_576
_IMAGES: dict[str, tuple[str, ...]] = {
    "KEYS_ONLY": (),
    "NEW_IMAGE": ("NewImage",),
    "OLD_IMAGE": ("OldImage",),
    "NEW_AND_OLD_IMAGES": ("NewImage", "OldImage"),
}


def table_stream(shard_count: int = 0, **options: Any) -> ScriptedStream:
    """A `ScriptedStream` with shard ids and sequence numbers as this service has them: the driver
    refuses shorter ones, and versions have at most 40 digits."""
    return ScriptedStream(
        shard_count,
        name="shardId-{:020d}-00c0ffee".format,
        base=100_000_000_000_000_000_000_000,
        shard_step=10**12,
        **options,
    )


def streams_record(record: ScriptedRecord, view_type: str) -> dict[str, Any]:
    """A record as the service gives it, of a Kinesis payload of the same change. What is no
    change comes as the member `payload` of a record that decoding refuses."""
    numbered: dict[str, Any] = {
        "ApproximateCreationDateTime": record.arrival_ms // 1_000,
        "SequenceNumber": record.sequence_number,
        "StreamViewType": view_type,
    }
    try:
        change = json.loads(record.payload)
        images = {
            name: change["dynamodb"][name]
            for name in ("Keys", *_IMAGES[view_type])
            if name in change["dynamodb"]
        }
    except (ValueError, TypeError, KeyError):
        return {"payload": record.payload.decode(), "dynamodb": numbered}
    made = {
        "eventID": change["eventID"],
        "eventName": change["eventName"],
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": change["awsRegion"],
        "dynamodb": numbered | images | {"SizeBytes": change["dynamodb"].get("SizeBytes", 0)},
    }
    if identity := change.get("userIdentity"):
        # Capitals, where a Kinesis record has none
        # (https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_Identity.html).
        made["userIdentity"] = {"PrincipalId": identity["principalId"], "Type": identity["type"]}
    return made


@dataclass(slots=True)
class _TableStream:
    """One stream that the table had or has."""

    log: ScriptedStream
    label: str
    view_type: ViewType
    status: str = "ENABLED"


class StreamsServer(JSONServer):
    """Shards in `hidden` are left out of every page,
    as a page that was made too early or too late leaves them out. `reads` counts the
    GetRecords of a shard.
    """

    content_type = "application/x-amz-json-1.0"

    def __init__(
        self,
        stream: ScriptedStream | None = None,
        *,
        table: TableSchema | None = None,
        view_type: ViewType = "NEW_AND_OLD_IMAGES",
        page_size: int = 100,
        records_max: int = 1_000,
        iterator_seconds: float = 900.0,
        has_filter: bool = True,
        has_timestamps: bool = True,
        port: int = 0,
        monotonic: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`monotonic` ages iterators; by default they age by `expire_iterators` alone."""
        super().__init__(port)
        self.table = table or TableSchema("products", (("id", "S"),))
        self.view_type: ViewType = view_type
        self.hidden: set[str] = set()
        self.reads: Counter[str] = Counter()
        self.page_size = page_size
        self._records_max = records_max
        self._iterator_seconds = iterator_seconds
        self._has_filter = has_filter
        self._has_timestamps = has_timestamps
        self._monotonic = monotonic
        self._aged = 0.0
        self._streams: dict[str, _TableStream] = {}
        self._latest: str | None = None
        self.arn = self.enable(table_stream(1) if stream is None else stream)

    @property
    def stream(self) -> ScriptedStream:
        """The table's newest stream."""
        return self._streams[self.arn].log

    def enable(self, stream: ScriptedStream) -> str:
        """Gives the table another stream: its ARN. What was before stays readable."""
        made = datetime.fromtimestamp(1_700_000_000 + 1_000 * len(self._streams), UTC)
        label = made.strftime("%Y-%m-%dT%H:%M:%S.000")
        self.arn = (
            f"arn:aws:dynamodb:eu-north-1:000000000000:table/{self.table.name}/stream/{label}"
        )
        self._streams[self.arn] = _TableStream(stream, label, self.view_type)
        return self.arn

    def disable(self) -> None:
        """Disables the newest stream: its open shards are closed, and all stays readable."""
        stream = self._streams[self.arn]
        stream.status = "DISABLED"
        for shard in stream.log.shards():
            if shard.is_open:
                stream.log.close(shard.id)

    def delete(self, arn: str | None = None) -> None:
        """As 24 hours after a stream was disabled: it is gone."""
        del self._streams[arn or self.arn]

    def expire_iterators(self) -> None:
        """Every iterator given so far has expired."""
        self._aged += self._iterator_seconds

    async def _serve(
        self, request: web.Request, operation: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        return self.json_answer(self._operation(operation, body))

    def _dumps(self, body: dict[str, Any]) -> str:
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False)

    def _operation(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "DescribeTable":
                return {"Table": self._table(body["TableName"])}
            case "DescribeStream":
                return {"StreamDescription": self._describe(body)}
            case "GetShardIterator":
                return {"ShardIterator": self._iterator(body)}
            case "GetRecords":
                return self.read(body)
            case _:
                raise Refusal("UnknownOperationException", operation)

    def _table(self, named: str) -> dict[str, Any]:
        if named.rsplit("/", 1)[-1] != self.table.name:
            raise Refusal("ResourceNotFoundException", f"Table {named} not found.")
        described: dict[str, Any] = {
            "TableName": self.table.name,
            "AttributeDefinitions": [
                {"AttributeName": key, "AttributeType": kind} for key, kind in self.table.keys
            ],
            "KeySchema": self._key_schema(),
        }
        if (stream := self._streams.get(self.arn)) is not None:
            described |= {"LatestStreamArn": self.arn, "LatestStreamLabel": stream.label}
            if stream.status == "ENABLED":
                described["StreamSpecification"] = {
                    "StreamEnabled": True,
                    "StreamViewType": stream.view_type,
                }
        return described

    def _key_schema(self) -> list[dict[str, str]]:
        kinds = ("HASH", "RANGE")
        return [
            {"AttributeName": key, "KeyType": kind}
            for (key, _), kind in zip(self.table.keys, kinds, strict=False)
        ]

    def _find(self, arn: str) -> _TableStream:
        if (stream := self._streams.get(arn)) is None:
            raise Refusal(
                "ResourceNotFoundException",
                f"Requested resource not found: Stream: {arn} not found",
            )
        return stream

    def _describe(self, body: dict[str, Any]) -> dict[str, Any]:
        stream = self._find(body["StreamArn"])
        shards = [shard for shard in stream.log.shards() if shard.id not in self.hidden]
        if (wanted := body.get("ShardFilter")) is not None:
            if not self._has_filter:
                raise Refusal("ValidationException", "Unknown member ShardFilter.")
            shards = [shard for shard in shards if wanted["ShardId"] in shard.parents]
        if (after := body.get("ExclusiveStartShardId")) is not None:
            place = next((n for n, shard in enumerate(shards) if shard.id == after), None)
            if place is None:
                raise Refusal("ResourceNotFoundException", f"Shard {after} does not exist")
            shards = shards[place + 1 :]
        size = min(self.page_size, body.get("Limit", self.page_size))
        page = shards[:size]
        described = {
            "StreamArn": body["StreamArn"],
            "StreamLabel": stream.label,
            "StreamStatus": stream.status,
            "StreamViewType": stream.view_type,
            "CreationRequestDateTime": datetime.fromisoformat(stream.label + "+00:00").timestamp(),
            "TableName": self.table.name,
            "KeySchema": self._key_schema(),
            "Shards": [_shard(shard) for shard in page],
        }
        if len(page) < len(shards):
            described["LastEvaluatedShardId"] = page[-1].id
        return described

    def _iterator(self, body: dict[str, Any]) -> str:
        log = self._find(body["StreamArn"]).log
        shard_id = body["ShardId"]
        self._require_shard(log, shard_id)
        position = self._position(log, body)
        try:
            place = log.place(shard_id, position)
        except PositionLost as lost:
            first = log.records(shard_id, log.place(shard_id, _OLDEST), 1)
            if (oldest := next(first, None)) and int(body["SequenceNumber"]) < int(
                oldest.sequence_number
            ):
                raise Refusal("TrimmedDataAccessException", lost.message) from None
            raise Refusal("ValidationException", f"Invalid SequenceNumber. {lost}") from None
        return self._token(body["StreamArn"], shard_id, place)

    def _position(self, log: ScriptedStream, body: dict[str, Any]) -> Position:
        kind = PositionKind(body["ShardIteratorType"])
        if kind is PositionKind.AT_TIMESTAMP:
            if not self._has_timestamps:
                raise Refusal("ValidationException", "Unknown ShardIteratorType AT_TIMESTAMP.")
            at_ms = round(body["Timestamp"] * 1_000)
            if at_ms > log.now_ms():
                raise Refusal("ValidationException", "The timestamp is in the future.")
            return Position(kind, timestamp_us=at_ms * 1_000)
        return Position(kind, sequence_number=body.get("SequenceNumber"))

    @property
    def _age(self) -> float:
        return self._monotonic() + self._aged

    def shard_of(self, iterator: str) -> str:
        """The shard that an iterator reads."""
        return self._read_token(iterator)[1]

    def read(self, body: dict[str, Any], *, records_max: int | None = None) -> dict[str, Any]:
        """The answer of GetRecords, of at most `records_max` records."""
        limit = body.get("Limit", 1_000)
        if not 1 <= limit <= 1_000:
            raise Refusal("ValidationException", f"Limit {limit} is not within 1 and 1000.")
        arn, shard_id, place, age = self._read_token(body["ShardIterator"])
        self.reads[shard_id] += 1
        if self._age - age >= self._iterator_seconds:
            raise Refusal("ExpiredIteratorException", "The shard iterator has expired.")
        stream = self._find(arn)
        self._require_shard(stream.log, shard_id)
        if place < stream.log.place(shard_id, _OLDEST):
            raise Refusal("TrimmedDataAccessException", "The data has been trimmed.")
        most = self._records_max if records_max is None else records_max
        records = list(self._page(stream, shard_id, place, min(limit, most)))
        place += len(records)
        answer: dict[str, Any] = {"Records": records}
        if not stream.log.is_ended(shard_id, place):
            answer["NextShardIterator"] = self._token(arn, shard_id, place)
        return answer

    def _page(
        self, stream: _TableStream, shard_id: str, place: int, limit: int
    ) -> Iterator[dict[str, Any]]:
        nbytes = 0
        for record in stream.log.records(shard_id, place, limit):
            nbytes += len(record.payload)
            if nbytes > _ANSWER_BYTES_MAX and nbytes > len(record.payload):
                return
            yield streams_record(record, stream.view_type)

    def _require_shard(self, log: ScriptedStream, shard_id: str) -> None:
        if not log.has_shard(shard_id):
            raise Refusal(
                "ResourceNotFoundException", "Requested resource not found: Shard does not exist"
            )

    def _token(self, arn: str, shard_id: str, place: int) -> str:
        return base64.b64encode(json.dumps([arn, shard_id, place, self._age]).encode()).decode()

    def _read_token(self, token: str) -> tuple[str, str, int, float]:
        try:
            arn, shard_id, place, age = json.loads(base64.b64decode(token))
        except ValueError:
            raise Refusal("ValidationException", "Invalid ShardIterator.") from None
        return arn, shard_id, place, age


_OLDEST = Position(PositionKind.TRIM_HORIZON)


def _shard(shard: Shard) -> dict[str, Any]:
    numbers = {"StartingSequenceNumber": shard.starting_sequence_number}
    if shard.ending_sequence_number is not None:
        numbers["EndingSequenceNumber"] = shard.ending_sequence_number
    item: dict[str, Any] = {"ShardId": shard.id, "SequenceNumberRange": numbers}
    if shard.parents:
        (item["ParentShardId"],) = shard.parents
    return item
