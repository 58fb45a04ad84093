"""What both clouds share: time, a script of faults, a workload, a journal, and calls that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from aiohttp import web

from replicator.model import TableSchema
from replicator.testing.cloud.control import add_control
from replicator.testing.cloud.faults import Fault, Mischief, Place, Script
from replicator.testing.cloud.history import History
from replicator.testing.cloud.journal import Journal
from replicator.testing.cloud.workload import Workload
from replicator.testing.json_server import JSONServer, Refusal
from replicator.testing.stream import ScriptedStream

TICK_SECONDS = 0.05
CALLS_KEPT = 10_000
SHARDS_MAX = 16
# Where a fault keeps how many records the answer to a request may have.
RECORDS_MAX = web.RequestKey("records_max", int)


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


class Misbehaving(JSONServer):
    """A server of records with mischief, for one of the services.

    `rate` is the workload's changes a second (0: only what is asked for). Records older
    than `retention_seconds` are dropped. `clock` owns the script's time, the retention and
    all that the service counts in seconds.
    """

    name: str
    throttles: ClassVar[Mapping[str, str]]
    """How a call is throttled: the service's own names."""
    throttle: ClassVar[str]
    """The same for the other operations."""
    failure: ClassVar[str]
    """The service's own name of a server error."""
    foreign: ClassVar[frozenset[str]]
    """Kinds of faults that this service doesn't know."""

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
        """`server` is for the service's own. Raises ValueError for a script with faults that the
        service doesn't know."""
        if unknown := sorted({fault.kind for fault in script} & self.foreign):
            raise ValueError(f"{', '.join(unknown)}: no such faults with this service")
        clock = clock or CloudClock()
        self.name = name
        stream = self.begin(shards, TableSchema(name, ((key, "S"),)), clock, **server)
        self.calls = deque(maxlen=CALLS_KEPT)
        self.clock = clock
        self.served = stream
        self.journal = Journal(clock.seconds, journal_path)
        self.mischief = Mischief(seed, script)
        self.workload = Workload(
            stream, History(seed, self.name, keys=keys), self.mischief, self.journal
        )
        self.rate = rate
        self._retention_seconds = retention_seconds
        self._shards_max = shards_max
        self._ticking: asyncio.Task[None] | None = None
        self._owed = 0.0
        self._ticked_at = 0.0

    def begin(
        self, shards: int, table: TableSchema, clock: CloudClock, **server: Any
    ) -> ScriptedStream:
        """The constructor of the service's server, and the stream that it serves."""
        raise NotImplementedError

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

    def readers(self, shard_id: str) -> int:
        """How many read the shard now, or how often it was read: as the service has it."""
        raise NotImplementedError

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
        if gone := self.served.discard(self.clock.now_ms() - int(self._retention_seconds * 1_000)):
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
        """What a fault of time does to the stream."""
        match fault.kind:
            case "split":
                self._split(fault, sorted(self._open()))
            case "trim":
                for shard in self.served.shards():
                    self.served.trim(shard.id, self.served.count(shard.id))
                self.journal.add("trim")

    def _open(self) -> set[str]:
        return {shard.id for shard in self.served.shards() if shard.is_open}

    def _split(self, fault: Fault, shards: Sequence[str]) -> None:
        if len(shards) >= self._shards_max:
            return
        drawn = shards[self.mischief.draw("split", len(self.served.shards()), below=len(shards))]
        shard_id = fault.shard or drawn
        children = self.served.split(shard_id)
        self.journal.add("split", shard=shard_id, children=children)

    # ---- calls

    def _route(self, app: web.Application) -> None:
        super()._route(app)
        add_control(app, self)

    def _shard_of(self, body: dict[str, Any]) -> str:
        """The shard that a request speaks of; empty for none."""
        raise NotImplementedError

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        _, _, operation = request.headers.get("X-Amz-Target", "").partition(".")
        body: dict[str, Any] = json.loads(await request.read() or b"{}")
        shard_id = self._shard_of(body)
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
            case "empty_page":
                request[RECORDS_MAX] = 0
                return None
            case "small_page":
                request[RECORDS_MAX] = 1 if fault.count is None else fault.count
                return None
            case "mute":
                await asyncio.Event().wait()
            case "throttle":
                code = fault.code or self.throttles.get(operation, self.throttle)
                return self.error_answer(Refusal(code, "Rate exceeded, as the script wants."))
            case "error":
                code = fault.code or self.failure
                status = 500 if fault.code is None or "Internal" in fault.code else 400
                return self.error_answer(Refusal(code, "As the script wants.", status))
            case "expire_iterator":
                return self.error_answer(
                    Refusal("ExpiredIteratorException", "As the script wants.")
                )
            case "cut_in_answer":
                return await self._half(request, await super()._answer(request))
            case "lose_answer":
                await super()._answer(request)
        # Dropped, or answered to nobody.
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async def _half(self, request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
        """The connection is closed in the middle of this answer's body."""
        body = answer.body if isinstance(answer, web.Response) else None
        if not isinstance(body, bytes):
            return answer
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    def _struck(self, place: Place, *, operation: str = "", shard: str = "") -> Iterator[Fault]:
        """The faults of this chance, each written down when it is taken: after one that ends the
        call, the others aren't done."""
        for fault in self.mischief.strikes(
            place, self.clock.seconds(), operation=operation, shard=shard
        ):
            said = {"operation": operation, "shard": shard, "code": fault.code}
            self.journal.add(fault.kind, **{name: what for name, what in said.items() if what})
            yield fault
