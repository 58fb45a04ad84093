"""The cloud itself: the Kinesis server, a script of faults, a workload and a journal."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from replicator.model import Shard, TableSchema
from replicator.testing import frames
from replicator.testing.cloud.control import add_control
from replicator.testing.cloud.faults import Fault, Mischief, Place, Script
from replicator.testing.cloud.history import History
from replicator.testing.cloud.journal import Journal
from replicator.testing.cloud.workload import Workload
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

TICK_SECONDS = 0.05
CALLS_KEPT = 10_000
LAG_EVENTS = 8
SHARDS_MAX = 16
# How a call is throttled: the service's own names
# (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_Operations.html).
_THROTTLES = {
    "GetRecords": "ProvisionedThroughputExceededException",
    "GetShardIterator": "ProvisionedThroughputExceededException",
    "DescribeTable": "ThrottlingException",
}


class CloudClock:
    """Real time and what was added to it; `stopped` it moves by `advance` alone."""

    def __init__(self, *, stopped: bool = False) -> None:
        self._stopped = stopped
        self._began = 0.0 if stopped else time.monotonic()
        self._began_ms = time.time_ns() // 1_000_000
        self._added = 0.0

    def seconds(self) -> float:
        """Since the start."""
        return self._added + (0.0 if self._stopped else time.monotonic() - self._began)

    def now_ms(self) -> int:
        """Since the epoch."""
        return self._began_ms + int(self.seconds() * 1_000)

    def advance(self, seconds: float) -> None:
        self._added += seconds


class FaultCloud(KinesisServer):
    """`KinesisServer` with mischief; runs while its `async with` block does.

    `rate` is the workload's changes a second (0: only what is asked for). Records older
    than `retention_seconds` are dropped. `clock` owns the script's time, the retention,
    iterators and the five seconds between subscribes.
    """

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
        clock: CloudClock | None = None,
        journal_path: Path | None = None,
        shards_max: int = SHARDS_MAX,
        **server: Any,
    ) -> None:
        self.clock = clock or CloudClock()
        super().__init__(
            ScriptedStream(shards, now_ms=self.clock.now_ms),
            name=name,
            tables=(TableSchema(name, ((key, "S"),)),),
            monotonic=self.clock.seconds,
            **server,
        )
        self.calls = deque(maxlen=CALLS_KEPT)
        self.journal = Journal(self.clock.seconds, journal_path)
        self.mischief = Mischief(seed, script)
        self.workload = Workload(
            self.stream, History(seed, name, keys=keys), self.mischief, self.journal
        )
        self.rate = rate
        self._retention_seconds = retention_seconds
        self._shards_max = shards_max
        self._ticking: asyncio.Task[None] | None = None
        self._owed = 0.0
        self._ticked_at = 0.0

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._ticking = asyncio.create_task(self._tick_always())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._ticking is not None
        self._ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticking
        await super().__aexit__(kind, error, trace)
        self.journal.close()

    # ---- time

    def advance(self, seconds: float) -> None:
        """Lets time pass, and what is due by then happens."""
        self.clock.advance(seconds)
        self.tick()

    def tick(self) -> None:
        """What time brings: the workload's changes, reshards, the end of the retention."""
        now = self.clock.seconds()
        self._owed += self.rate * (now - self._ticked_at)
        self._ticked_at = now
        self.workload.make(int(self._owed), now)
        self._owed -= int(self._owed)
        for fault in self.mischief.strikes(Place.TICK, now):
            self._do(fault)
        if gone := self.stream.discard(self.clock.now_ms() - int(self._retention_seconds * 1_000)):
            self.journal.add("shard_expired", shards=gone)

    def pause_workload(self) -> None:
        """Makes no more changes, and lets come what was held back: then `history` is the end."""
        self.rate = 0.0
        self.workload.flush()

    async def _tick_always(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(TICK_SECONDS)

    def _do(self, fault: Fault) -> None:
        is_open = {shard.id for shard in self.stream.shards() if shard.is_open}
        match fault.kind:
            case "split":
                self._split(fault, sorted(is_open))
            case "merge":
                self._merge(fault, sorted(is_open, key=self.stream.hash_range))
            case "trim":
                for shard in self.stream.shards():
                    self.stream.trim(shard.id, self.stream.count(shard.id))
                self.journal.add("trim")
            case "delete_consumer":
                for name in list(self._consumers):
                    self.delete_consumer(name)
                    self.journal.add("delete_consumer", consumer=name)

    def _split(self, fault: Fault, shards: Sequence[str]) -> None:
        if len(shards) >= self._shards_max:
            return
        drawn = shards[self.mischief.draw("split", len(self.stream.shards()), below=len(shards))]
        shard_id = fault.shard or drawn
        children = self.stream.split(shard_id)
        self.journal.add("split", shard=shard_id, children=children)

    def _merge(self, fault: Fault, shards: Sequence[str]) -> None:
        if len(shards) < 2:
            return
        drawn = self.mischief.draw("merge", len(self.stream.shards()), below=len(shards) - 1)
        place = min(shards.index(fault.shard), len(shards) - 2) if fault.shard else drawn
        child = self.stream.merge(shards[place], shards[place + 1])
        self.journal.add("merge", shards=shards[place : place + 2], child=child)

    # ---- calls

    def _route(self, app: web.Application) -> None:
        super()._route(app)
        add_control(app, self)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        _, _, operation = request.headers.get("X-Amz-Target", "").partition(".")
        body: dict[str, Any] = json.loads(await request.read() or b"{}")
        shard_id = _shard_of(body)
        for fault in self._struck(Place.CALL, operation=operation, shard=shard_id):
            if (answer := await self._fail(request, fault, operation, shard_id)) is not None:
                return answer
        return await super()._answer(request)

    async def _fail(
        self, request: web.Request, fault: Fault, operation: str, shard_id: str
    ) -> web.StreamResponse | None:
        """The call's end, or None where it goes on as usual."""
        match fault.kind:
            case "slow":
                await asyncio.sleep(fault.seconds or 1.0)
                return None
            case "mute":
                await asyncio.Event().wait()
            case "throttle":
                code = fault.code or _THROTTLES.get(operation, "LimitExceededException")
                return self.error_answer(Refusal(code, "Rate exceeded, as the script wants."))
            case "error":
                code = fault.code or "InternalFailureException"
                status = 500 if fault.code is None or "Internal" in fault.code else 400
                return self.error_answer(Refusal(code, "As the script wants.", status))
            case "expire_iterator":
                return self.error_answer(
                    Refusal("ExpiredIteratorException", "As the script wants.")
                )
            case "lose_answer":
                if operation == "SubscribeToShard":
                    self.script(shard_id, Cut())
                    return None
                await super()._answer(request)
        # Dropped, or answered to nobody.
        assert request.transport is not None
        request.transport.close()
        return web.Response()

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
        struck = self._struck(Place.SUBSCRIPTION, shard=shard_id)
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

    def _struck(self, place: Place, *, operation: str = "", shard: str = "") -> list[Fault]:
        """The faults of this chance, written down."""
        struck = self.mischief.strikes(
            place, self.clock.seconds(), operation=operation, shard=shard
        )
        for fault in struck:
            said = {"operation": operation, "shard": shard, "code": fault.code}
            self.journal.add(fault.kind, **{name: what for name, what in said.items() if what})
        return struck


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


def _shard_of(body: dict[str, Any]) -> str:
    if "ShardIterator" in body:
        return shard_of(body["ShardIterator"])
    return str(body.get("ShardId", ""))
