"""Kinesis with mischief."""

from __future__ import annotations

import base64
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from aiohttp import web

from replicator.model import Shard, TableSchema
from replicator.testing import frames
from replicator.testing.cloud.faults import Fault, Place
from replicator.testing.cloud.misbehaving import (
    RECORDS_MAX,
    CloudClock,
    Misbehaving,
)
from replicator.testing.iterators import shard_of
from replicator.testing.json_server import Refusal
from replicator.testing.kinesis_server import (
    Cut,
    KinesisServer,
    Send,
    Serve,
    Spoil,
    Stall,
    Step,
)
from replicator.testing.stream import HASH_KEY_END, ScriptedStream

LAG_EVENTS = 8
# Its subscriptions end meanwhile.
_MADE_AGAIN_SECONDS = 0.5


class FaultCloud(Misbehaving, KinesisServer):
    """`KinesisServer` with mischief; runs while its `async with` block does. See `Misbehaving`;
    `clock` also owns iterators and the five seconds between subscribes.
    """

    # https://docs.aws.amazon.com/kinesis/latest/APIReference/API_Operations.html
    throttles: ClassVar = {
        "GetRecords": "ProvisionedThroughputExceededException",
        "GetShardIterator": "ProvisionedThroughputExceededException",
        "DescribeTable": "ThrottlingException",
    }
    throttle = "LimitExceededException"
    failure = "InternalFailureException"
    foreign = frozenset({"rotate"})

    def begin(
        self, shards: int, table: TableSchema, clock: CloudClock, **server: Any
    ) -> ScriptedStream:
        stream = ScriptedStream(shards, now_ms=clock.now_ms)
        tables = (table,)
        KinesisServer.__init__(
            self, stream, name=table.name, tables=tables, monotonic=clock.seconds, **server
        )
        self._page_lags: defaultdict[str, deque[int]] = defaultdict(deque)
        self._made_again_at: float | None = None
        return stream

    def readers(self, shard_id: str) -> int:
        return self.subscriptions[shard_id]

    def tick(self) -> None:
        super().tick()
        if self._made_again_at is not None and self.clock.seconds() >= self._made_again_at:
            self._made_again_at = None
            self.recreate()

    def _do(self, fault: Fault) -> None:
        match fault.kind:
            case "merge":
                self._merge(fault, sorted(self._open(), key=self.stream.hash_range))
            case "delete_consumer":
                for name in list(self._consumers):
                    self.delete_consumer(name)
                    self.journal.add("delete_consumer", consumer=name)
            case "delete_stream":
                self.delete()
                self.journal.add("delete_stream")
            case "recreate_stream":
                self.delete()
                self._made_again_at = self.clock.seconds() + _MADE_AGAIN_SECONDS
                self.journal.add("recreate_stream")
            case _:
                super()._do(fault)

    def _merge(self, fault: Fault, shards: Sequence[str]) -> None:
        if len(shards) < 2:
            return
        drawn = self.mischief.draw("merge", len(self.stream.shards()), below=len(shards) - 1)
        place = min(shards.index(fault.shard), len(shards) - 2) if fault.shard else drawn
        child = self.stream.merge(shards[place], shards[place + 1])
        self.journal.add("merge", shards=shards[place : place + 2], child=child)

    # ---- calls

    def _shard_of(self, body: dict[str, Any]) -> str:
        if "ShardIterator" in body:
            return shard_of(body["ShardIterator"])
        return str(body.get("ShardId", ""))

    async def _fail(
        self, request: web.Request, fault: Fault, operation: str, shard_id: str
    ) -> web.StreamResponse | None:
        if fault.kind == "lose_answer" and operation == "SubscribeToShard":
            self.script(shard_id, Cut())
            return None
        if fault.kind == "lag_page":
            self._page_lags[shard_id].extend(_wave(fault))
            return None
        return await super()._fail(request, fault, operation, shard_id)

    async def _serve(
        self, request: web.Request, operation: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        if operation != "GetRecords":
            return await super()._serve(request, operation, body)
        if (count := request.get(RECORDS_MAX)) is not None:
            body["Limit"] = min(count, body.get("Limit", count))
        answer = self._plain(operation, body)
        if lags := self._page_lags[self._shard_of(body)]:
            answer["MillisBehindLatest"] = lags.popleft()
        return self.json_answer(answer)

    def _plain(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "PutRecords":
                self._require_stream(body)
                return self._put_records(body["Records"])
            case "SplitShard":
                self._require_stream(body)
                shard = self._open_shard(body["ShardToSplit"])
                self.stream.split(shard.id, int(body["NewStartingHashKey"]) % HASH_KEY_END)
                return {}
            case "MergeShards":
                self._require_stream(body)
                two = [self._open_shard(body[k]) for k in ("ShardToMerge", "AdjacentShardToMerge")]
                self.stream.merge(*(shard.id for shard in two))
                return {}
            case _:
                return super()._plain(operation, body)

    def _put_records(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        answers = []
        for record in records:
            shard_id = self.stream.shard_of(record["PartitionKey"])
            (number,) = self.stream.append(shard_id, [base64.b64decode(record["Data"])])
            answers.append({"ShardId": shard_id, "SequenceNumber": number})
        return {"FailedRecordCount": 0, "Records": answers}

    def _open_shard(self, shard_id: str) -> Shard:
        for shard in self.stream.shards():
            if shard.id == shard_id and shard.is_open:
                return shard
        raise Refusal("ResourceNotFoundException", f"No open shard {shard_id}.")

    # ---- subscriptions

    def _sends_initial_response(self, shard_id: str) -> bool:
        struck = list(self._struck(Place.SUBSCRIPTION, shard=shard_id))
        return not struck and super()._sends_initial_response(shard_id)

    def _steps(self, shard_id: str) -> Iterable[Step]:
        if self._scripts.get(shard_id):
            return super()._steps(shard_id)
        return self._misbehave(shard_id)

    def _misbehave(self, shard_id: str) -> Iterator[Step]:
        """One step an event, for ever or to the fault that ends the subscription."""
        lags: deque[int] = deque()
        while True:
            records_max: int | None = None
            for fault in self._struck(Place.EVENT, shard=shard_id):
                match fault.kind:
                    case "empty_event":
                        records_max = 0
                    case "small_event":
                        records_max = 1 if fault.count is None else fault.count
                    case "lag":
                        lags.extend(_wave(fault))
                    case _:
                        yield from _ending(fault)
                        return
            yield Serve(1, records_max, lags.popleft() if lags else None)


def _ending(fault: Fault) -> tuple[Step, ...]:
    """The last steps of a subscription that ends by this fault."""
    match fault.kind:
        case "end":
            return ()
        case "cut":
            return (Cut(),)
        case "cut_in_frame":
            return (Spoil("half"), Cut())
        case "end_in_frame":
            return (Spoil("half"),)
        case "stall":
            return (Stall(),)
        case "stall_in_frame":
            return (Spoil("half"), Stall())
        case "bad_crc":
            return (Spoil("checksum"),)
        case "take_over":
            return (Send(frames.exception("ResourceInUseException", "Taken over.")),)
        case _:
            code = fault.code or "InternalFailureException"
            return (Send(frames.exception(code, "As the script wants.")),)


def _wave(fault: Fault) -> list[int]:
    """A lag in milliseconds that grows and falls."""
    count = fault.count or LAG_EVENTS
    top = (fault.seconds or 600.0) * 1_000
    return [int(top * (1 - abs(2 * n - count + 1) / count)) for n in range(count)]
