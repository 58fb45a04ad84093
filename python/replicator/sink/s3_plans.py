"""A shard's plans, fences and first position as they lie in the bucket (laws 6 and 7).

    <state>begun/<pipeline>!<sink>/<stream>.json                 created by `begin`
    <state>fences/<pipeline>!<sink>/<stream>/<shard>/<n>.json    one a take-over, the newest first
    <state>plans/<pipeline>!<sink>/<stream>/<shard>/<n>.json     one a cut, the newest first
    <state>memories/<pipeline>!<sink>/<stream>/<shard>/<n>       with a plan that ends the shard
    <state>plans/<pipeline>!<sink>/<stream>/<shard>!<n>.ended    the shard's end is plan <n>
    <state>plans/<pipeline>!<sink>/<stream>/<shard>!<n>.moved    plan <n>, or a later one, moves it

Each is created once, under a name that nobody else can create again, and never changed. The last
two lie beside the shards' folders, so that one listing tells which shards are finished: those,
which only grow in number, are asked for nothing. A shard that lacks its mark is asked, and told
the truth by its plans.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import orjson
import structlog

from replicator.core.plan import Plan, numbered, ordinal_of
from replicator.errors import FatalError
from replicator.model import SHARD_END, Fence, Position, Stream
from replicator.sink.fences import fence_lost, marked
from replicator.sink.log_shard import LogPosition
from replicator.sink.s3_objects import Bucket
from replicator.sink.s3_settings import S3Settings
from replicator.sink.together import together

log = structlog.get_logger()

# Requests that one look at several shards makes at once.
_LOOKS_MAX = 16
# Each time somebody else was quicker, and that one is done: more than there are workers.
_FENCES_MAX = 12
# A writer that isn't fenced yet may be quicker, once or twice.
_MOVES_MAX = 6
_JSON = "application/json"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a shard stands: the number of its newest plan that is complete (0: none), what is
    stored of it (None: nothing), and the plan that somebody made and didn't complete."""

    ordinal: int
    stored: LogPosition | None
    open: Plan | None = None
    remembered: str | None = None
    """The object of what a finished shard remembered."""
    at_us: int | None = None
    """When the newest plan was made, by the bucket's clock (UTC microseconds)."""

    @property
    def is_finished(self) -> bool:
        """True when a plan says that the shard was read to its end."""
        return self.ordinal > 0 and self.stored is not None and self.stored.position == SHARD_END


@dataclass(frozen=True, slots=True)
class Fenced:
    """A shard's newest fence: whose, and since when by the bucket's clock (UTC microseconds)."""

    epoch: int
    owner: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Begun:
    """A stream's beginning: the first position of each shard, and when it was stored (UTC
    microseconds). `place` is where its changes go."""

    stream: Stream
    starts: Mapping[str, Position]
    at_us: int
    place: str
    is_ours: bool

    def stored(self, shard_id: str) -> LogPosition | None:
        """What is stored of a shard that has no plan yet."""
        if (start := self.starts.get(shard_id)) is None:
            return None
        tip_us = min(self.at_us, start.timestamp_us or self.at_us)
        return LogPosition(start, tip_us=tip_us, begun_us=self.at_us)


class S3Plans:
    """What one sink of one pipeline keeps of its shards. Raises TransientError and FatalError."""

    def __init__(self, bucket: Bucket, settings: S3Settings) -> None:
        self._bucket = bucket
        self._state = settings.state_prefix
        self._whose = f"{settings.pipeline}!{settings.name}".replace("/", "!")
        self.place = f"s3://{settings.bucket}/{settings.prefix.text}"
        # By the newest plan seen of each shard that was complete: it stays so. (Not the plan, which
        # names all its objects: shards come and go for years.)
        self._complete: dict[tuple[Stream, str], tuple[str, Standing]] = {}
        self._beginnings: dict[Stream, Begun] = {}

    # ---- a stream's beginning

    async def begin(self, stream: Stream, starts: Mapping[str, Position], now_us: int) -> bool:
        """Stores the starts; False when they were stored before."""
        body = {
            "stream": stream.name,
            "stream_arn": stream.arn,
            "created_at_s": stream.created_at_s,
            "begun_us": now_us,
            "place": self.place,
            "starts": {shard: str(position) for shard, position in sorted(starts.items())},
        }
        return await self._bucket.create(
            self._begun_key(stream), orjson.dumps(body), content_type=_JSON, is_data=False
        )

    async def begun(self, stream: Stream) -> Begun | None:
        """The stream's beginning; None when it never was."""
        if (known := self._beginnings.get(stream)) is not None:
            return known
        data = await self._bucket.read(self._begun_key(stream))
        if data is None:
            return None
        with self._bucket.reading(self._begun_key(stream)):
            self._beginnings[stream] = begun = _begun(data, is_ours=True)
        return begun

    async def all_begun(self) -> list[Begun]:
        """Those of every stream that goes where these changes go, or belongs to this sink; the
        newest last."""
        root = f"{self._state}begun/"
        found = []
        async for entry in self._bucket.entries(root):
            if (data := await self._bucket.read(entry.key)) is not None:
                with self._bucket.reading(entry.key):
                    begun = _begun(data, is_ours=entry.key.startswith(f"{root}{self._whose}/"))
                if begun.is_ours or begun.place == self.place:
                    found.append(begun)
        return sorted(found, key=lambda begun: begun.at_us)

    # ---- fences

    async def epoch(self, stream: Stream, shard_id: str) -> int:
        """The newest fence's epoch; 0 when none was ever raised. One small request."""
        newest = await self._bucket.first(self._folder("fences", stream, shard_id))
        return 0 if newest is None else self._epoch(newest.key)

    def _epoch(self, key: str) -> int:
        with self._bucket.reading(key):
            return ordinal_of(key)

    async def fenced(self, stream: Stream, shard_id: str) -> Fenced | None:
        """The shard's newest fence; None when none was ever raised. Two small requests."""
        newest = await self._bucket.first(self._folder("fences", stream, shard_id))
        data = None if newest is None else await self._bucket.read(newest.key)
        if newest is None or data is None:
            return None
        with self._bucket.reading(newest.key):
            owner = str(orjson.loads(data)["owner"])
        return Fenced(self._epoch(newest.key), owner, newest.modified_us)

    async def raise_fence(self, stream: Stream, shard_id: str, owner: str) -> Fence:
        """Raises the shard's epoch."""
        mark = marked(owner)
        body = orjson.dumps({"owner": mark})
        folder = self._folder("fences", stream, shard_id)
        for attempt in range(_FENCES_MAX):
            epoch = 1 + await self.epoch(stream, shard_id)
            key = f"{folder}{numbered(epoch)}.json"
            if await self._bucket.create(key, body, content_type=_JSON, is_data=False):
                return Fence(stream, shard_id, epoch, mark)
            await self._bucket.pause(attempt)
        raise self._bucket.conflict(folder)

    async def holds(self, fence: Fence) -> bool:
        """True while the fence is its shard's newest."""
        return await self.epoch(fence.stream, fence.shard_id) == fence.epoch

    async def require(self, fence: Fence) -> None:
        """Raises LeaseLost when the fence is not its shard's newest."""
        if not await self.holds(fence):
            raise fence_lost(fence)

    # ---- plans

    async def standing(self, stream: Stream, shard_id: str) -> Standing:
        """Where the shard stands: two small requests, and one for each object of a plan that
        wasn't seen complete before."""
        newest = await self._bucket.first(self._folder("plans", stream, shard_id))
        if newest is None:
            begun = await self.begun(stream)
            return Standing(0, None if begun is None else begun.stored(shard_id))
        key, at_us = newest.key, newest.modified_us
        known = self._complete.get((stream, shard_id))
        if known is None or known[0] != key:
            plan = await self._plan(key)
            if not await self._is_complete(plan):
                return Standing(plan.ordinal - 1, _stored(plan.before), plan, at_us=at_us)
            known = self._complete[stream, shard_id] = (key, _behind(plan))
        return replace(known[1], at_us=at_us)

    async def standings(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Standing]:
        """Where these shards stand."""
        return await _each(shard_ids, lambda shard_id: self.standing(stream, shard_id))

    async def fences(self, stream: Stream, shard_ids: Sequence[str]) -> Mapping[str, Fenced | None]:
        """The newest fences of these shards."""
        return await _each(shard_ids, lambda shard_id: self.fenced(stream, shard_id))

    async def all_standings(self, stream: Stream, *, marks: bool) -> Mapping[str, Standing]:
        """Where all shards stand of which something is stored: one request for some hundreds of
        finished shards, and two for each other. With `marks`, those that are found finished are
        marked so. A finished one's standing says no more than that."""
        begun = await self.begun(stream)
        found: dict[str, Standing] = {}
        if begun is not None:
            found = {each: Standing(0, begun.stored(each)) for each in begun.starts}
        planned: list[str] = []
        newest: dict[tuple[str, str], int] = {}
        async for entries, folders in self._bucket.level(self._folder("plans", stream)):
            planned += [each.split("/")[-2] for each in folders]
            for entry in entries:
                name, _, kind = entry.key.rpartition(".")
                shard_id, _, number = name.rpartition("/")[2].rpartition("!")
                with self._bucket.reading(entry.key):
                    ordinal = ordinal_of(number)
                newest[shard_id, kind] = max(newest.get((shard_id, kind), 0), ordinal)
        ended = {
            shard_id: ordinal
            for (shard_id, kind), ordinal in newest.items()
            # What ended at the plan that moved it was moved to its end.
            if kind == "ended" and ordinal >= newest.get((shard_id, "moved"), 0)
        }
        found |= {shard_id: Standing(at, LogPosition(SHARD_END)) for shard_id, at in ended.items()}
        asked = await self.standings(stream, [each for each in planned if each not in ended])
        found |= asked
        if marks:
            for shard_id, standing in asked.items():
                if standing.is_finished:
                    await self._mark(stream, shard_id, standing.ordinal, "ended")
        return found

    async def _mark(self, stream: Stream, shard_id: str, ordinal: int, kind: str) -> None:
        key = f"{self._folder('plans', stream)}{shard_id}!{numbered(ordinal)}.{kind}"
        await self._bucket.create(key, b"", content_type=_JSON, is_data=False)

    async def create(self, stream: Stream, plan: Plan) -> Plan:
        """Creates the plan if its name is free, and gives the one that has it."""
        key = self._plan_key(stream, plan)
        body = orjson.dumps(plan.as_dict())
        if await self._bucket.create(key, body, content_type=_JSON, is_data=False):
            return plan
        return await self._plan(key)

    async def move(self, fence: Fence, after: LogPosition) -> LogPosition | None:
        """Moves the shard by a plan without objects, and gives what was stored before. A plan that
        was left incomplete is passed over."""
        for attempt in range(_MOVES_MAX):
            standing = await self.standing(fence.stream, fence.shard_id)
            stored = standing.stored
            plan = Plan(
                shard_id=fence.shard_id,
                ordinal=standing.ordinal + (1 if standing.open is None else 2),
                before="" if stored is None else stored.to_json(),
                after=after.to_json(),
                by=fence.owner,
                is_moved=True,
            )
            # Before the plan: a mark too many costs a look, one too few the changes from there on.
            await self._mark(fence.stream, fence.shard_id, plan.ordinal, "moved")
            if await self.create(fence.stream, plan) == plan:
                return stored
            await self._bucket.pause(attempt)
        raise self._bucket.conflict(self._folder("plans", fence.stream, fence.shard_id))

    def completed(self, stream: Stream, plan: Plan) -> None:
        """All objects of the plan are there."""
        self._complete[stream, plan.shard_id] = (self._plan_key(stream, plan), _behind(plan))

    def memory_key(self, stream: Stream, shard_id: str, ordinal: int) -> str:
        """The name of what the plan's shard remembers at its end."""
        return f"{self._folder('memories', stream, shard_id)}{numbered(ordinal)}"

    async def remembered(self, stream: Stream, shard_ids: Sequence[str]) -> Sequence[bytes]:
        """What these shards remembered at their ends, those of them that did."""
        found = []
        for shard_id, standing in (await self.standings(stream, shard_ids)).items():
            if standing.remembered is not None:
                data = await self._bucket.read(standing.remembered)
                if data is None:
                    log.info("memory_gone", shard=shard_id, action="its children begin without it")
                else:
                    found.append(data)
        return found

    async def _is_complete(self, plan: Plan) -> bool:
        for key in plan.keys:
            if not await self._bucket.exists(key):
                return False
        return True

    async def _plan(self, key: str) -> Plan:
        data = await self._bucket.read(key)
        if data is None:
            raise FatalError(
                "plan_missing",
                f"s3://{self._bucket.name}/{key} was listed and is gone: plans must never be "
                "removed. What to do: stop what removes them (a lifecycle rule?), and restore it",
            )
        with self._bucket.reading(key):
            plan = Plan.of(orjson.loads(data))
            _stored(plan.before), _stored(plan.after)
            return plan

    # ---- names

    def _begun_key(self, stream: Stream) -> str:
        return f"{self._state}begun/{self._whose}/{_named(stream)}.json"

    def _plan_key(self, stream: Stream, plan: Plan) -> str:
        folder = self._folder("plans", stream, plan.shard_id)
        return f"{folder}{numbered(plan.ordinal)}.json"

    def _folder(self, kind: str, stream: Stream, shard_id: str | None = None) -> str:
        root = f"{self._state}{kind}/{self._whose}/{_named(stream)}/"
        return root if shard_id is None else f"{root}{shard_id}/"


async def _each(shard_ids: Sequence[str], ask: Callable[[str], Awaitable[_T]]) -> Mapping[str, _T]:
    """The answers about these shards, a few at once."""
    looks = asyncio.Semaphore(_LOOKS_MAX)

    async def look(shard_id: str) -> _T:
        async with looks:
            return await ask(shard_id)

    found = await together([look(shard_id) for shard_id in shard_ids])
    return dict(zip(shard_ids, found, strict=True))


def _named(stream: Stream) -> str:
    """The stream's name in keys: readable, and its own by account, Region and creation."""
    mark = hashlib.sha256(stream.arn.encode()).hexdigest()[:8]
    return f"{stream.name}-{mark}-{stream.created_at_s}".replace("/", "!")


def _behind(plan: Plan) -> Standing:
    """Where the shard stands when the plan is complete."""
    return Standing(plan.ordinal, _stored(plan.after), remembered=plan.remembered)


def _stored(text: str) -> LogPosition | None:
    return LogPosition.from_json(text) if text else None


def _begun(data: bytes, *, is_ours: bool) -> Begun:
    body: Mapping[str, Any] = orjson.loads(data)
    starts = {shard: Position.parse(text) for shard, text in body["starts"].items()}
    stream = Stream(body["stream"], body["stream_arn"], body["created_at_s"])
    return Begun(stream, starts, body["begun_us"], body["place"], is_ours)
