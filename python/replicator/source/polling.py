"""One shard read by iterators (GetShardIterator, GetRecords), for every service that has them.

An iterator is a place in a shard that the service keeps for minutes only (5 at Kinesis, 15 at
DynamoDB Streams). So the truth is the *position* behind what was last read: a new iterator is
taken from it when the service says that one has expired, and before an old one is used, since
the consumer may pause for long between two fetches. When to ask is `core.pace`'s to say.

Throttles are flow control: the next read waits, they are counted, and no error is raised.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from replicator import _core
from replicator.core.pace import Pace, PaceLimits
from replicator.core.retry import Backoff
from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END, Fetch, Position, PositionKind, Shard, after
from replicator.protocols import Clock

_log = structlog.get_logger()

# After these another iterator is taken from the position.
_RENEWED = frozenset({"iterator_expired", "iterator_unknown"})
_THROTTLES = frozenset({"throttled", "limit_exceeded", "kms_throttled"})
# With so many in a row, somebody else uses up what the service allows for the shard.
_THROTTLES_SAID = 20


class Service(Protocol):
    """What a service that is polled has to offer. Neither call may be repeated by the driver
    when it is throttled: the pace must know of every one."""

    async def iterator(self, shard_id: str, position: Position) -> str:
        """A new iterator at the position (GetShardIterator). May be called at any time.

        Raises PositionLost when the position is trimmed (`position_trimmed`,
        `position_invalid`) or the shard is gone (`shard_gone`), TransientError, FatalError.
        """
        ...

    async def records(self, iterator: str, limit: int) -> _core.Answer:
        """One answer of at most `limit` records (GetRecords, see `hand_over`). May be called
        twice with the same iterator, and then gives the same place.

        Raises TransientError (`iterator_expired` for an old iterator), PositionLost,
        FatalError (`resource_missing` makes the poller ask `iterator` for the reason), and
        `_core.BodyError`.
        """
        ...


@dataclass(frozen=True, slots=True)
class PollOptions:
    """Times and limits; the defaults fit Kinesis. Tests make them small."""

    pace: PaceLimits = field(default_factory=PaceLimits)
    iterator_seconds: float = 270.0
    """An iterator older than this isn't used; the service ends it after 300."""
    idle_reads_per_second: float = 200.0
    """Reads of idle shards that all together may make, for one costs about a millisecond
    of a core; many shards therefore pause for longer each."""
    crowd_seconds_max: float = 30.0
    """Longest pause that comes of it: well below what a shard may be silent."""
    requests_max: int = 64
    """Requests under way at once: more than the service's latency needs to be hidden, few enough
    that thousands of shards, begun at once, don't hold up everything else in the process."""
    answer_seconds: float = 30.0
    """Longest wait for an answer."""
    failures_max: int = 5
    """Failures in a row, before the error is raised."""
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 10.0))
    """Waits between failures."""


@dataclass(frozen=True, slots=True)
class _Iterator:
    text: str
    stale_at: float


class Poller:
    """Reads the shards of one stream, each at its own pace.

    `calls` counts the reads sent, by shard, until the shard's end is given. `throttles` (by
    code), `renewals` of iterators (by reason) and other `failures` (by code) only grow.
    """

    def __init__(
        self,
        service: Service,
        clock: Clock,
        options: PollOptions,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._service = service
        self._clock = clock
        self._options = options
        self._jitter = jitter
        self.calls: Counter[str] = Counter()
        self.throttles: Counter[str] = Counter()
        self.renewals: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.ends = 0
        self._readers = 0
        self._room = asyncio.Semaphore(options.requests_max)

    async def read(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        """The shard's fetches from `position` on; see `protocols.Source.read`.

        An empty answer's `next` is the position that was asked from: the service gives no
        other that could be stored. So LATEST isn't taken here: with nothing read yet, a new
        iterator would skip what came in between. Who wants it resolves it first.
        """
        assert position.kind is not PositionKind.LATEST, "resolve LATEST first"
        with self._counted():
            async with aclosing(self._fetches(shard_id, position)) as fetches:
                async for fetch in fetches:
                    if fetch.next == SHARD_END:
                        # Before it is given: who has the end asks for no more.
                        self.ends += 1
                        self.calls.pop(shard_id, None)
                    yield fetch

    def counters(self) -> dict[str, int]:
        """See `protocols.Measured`: throttles by code, iterators renewed by reason, failed reads
        by code, and shards that were read to their end."""
        kinds = {"throttle": self.throttles, "renewal": self.renewals, "failure": self.failures}
        counted = {f"{kind}_{code}": n for kind, of in kinds.items() for code, n in of.items()}
        return counted | ({"shard_ended": self.ends} if self.ends else {})

    async def _fetches(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        pace = Pace(self._options.pace)
        iterator: _Iterator | None = None
        failures = 0
        throttles = 0
        while position != SHARD_END:
            await self._sleep(pace.wait(self._clock.monotonic()))
            try:
                iterator = await self._usable(iterator, shard_id, position)
                asked_at = self._clock.monotonic()
                pace.asked(asked_at)
                self.calls[shard_id] += 1
                answer = await self._answer(shard_id, iterator.text, pace.limit)
            except TransientError as error:
                if error.code in _THROTTLES:
                    throttles += 1
                    self._throttled(shard_id, pace, error, throttles)
                    continue
                failures += 1
                is_renewed = error.code in _RENEWED
                (self.renewals if is_renewed else self.failures)[error.code] += 1
                if failures >= self._options.failures_max:
                    raise
                if is_renewed:
                    iterator = None
                await self._after_failure(shard_id, error, failures)
                continue
            failures = throttles = 0
            fetch = _fetch(shard_id, position, answer, self._clock.monotonic())
            pace.answered(
                fetch.received_at,
                records=len(fetch.records),
                nbytes=fetch.records.nbytes,
                behind_ms=answer.millis_behind_latest,
                jitter=self._jitter(),
                crowd_seconds=self._crowd_seconds,
            )
            if answer.next_iterator is not None:
                # Counted from the question: the service counts from some moment after it.
                stale_at = asked_at + self._options.iterator_seconds
                iterator = _Iterator(answer.next_iterator, stale_at)
            yield fetch
            position = fetch.next

    @property
    def _crowd_seconds(self) -> float:
        options = self._options
        return min(options.crowd_seconds_max, self._readers / options.idle_reads_per_second)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    async def _usable(
        self, iterator: _Iterator | None, shard_id: str, position: Position
    ) -> _Iterator:
        """The same iterator, or a new one in the place of one that is too old."""
        now = self._clock.monotonic()
        if iterator is not None:
            if now < iterator.stale_at:
                return iterator
            self.renewals["stale"] += 1
        async with (
            self._room,
            _deadline("GetShardIterator", shard_id, self._options.answer_seconds),
        ):
            text = await self._service.iterator(shard_id, position)
        return _Iterator(text, now + self._options.iterator_seconds)

    async def _answer(self, shard_id: str, iterator: str, limit: int) -> _core.Answer:
        try:
            async with self._room, _deadline("GetRecords", shard_id, self._options.answer_seconds):
                return await self._service.records(iterator, limit)
        except _core.BodyError as error:
            raise TransientError(
                "answer_corrupt",
                f"an answer to GetRecords of {shard_id} can't be read ({error.code}: {error}). "
                "What to do: look for a proxy that changes it; it is asked for again.",
            ) from error
        except FatalError as error:
            if error.code != "resource_missing":
                raise
            # Shard or stream: what is missing shows when a new iterator is asked for.
            raise TransientError("iterator_unknown", error.message) from error

    def _throttled(self, shard_id: str, pace: Pace, error: TransientError, throttles: int) -> None:
        self.throttles[error.code] += 1
        pace.throttled(
            self._clock.monotonic(),
            retry_after_seconds=error.retry_after_seconds,
            jitter=self._jitter(),
        )
        if throttles % _THROTTLES_SAID == 0:
            _log.warning(
                "throttled",
                shard=shard_id,
                times=throttles,
                reason=error.message,
                advice="see who else polls this stream; enhanced fan-out shares with nobody",
            )

    async def _after_failure(self, shard_id: str, error: TransientError, failures: int) -> None:
        """Says it and waits. An iterator may be too old in the ordinary course of things."""
        if error.code == "iterator_expired" and failures == 1:
            return
        wait = self._options.backoff.next(failures - 1, self._jitter(), error.retry_after_seconds)
        _log.warning(
            "read again",
            shard=shard_id,
            code=error.code,
            reason=error.message,
            failures=failures,
            wait_seconds=round(wait, 3),
        )
        await self._sleep(wait)

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            await self._clock.sleep(seconds)


@asynccontextmanager
async def _deadline(operation: str, shard_id: str, seconds: float) -> AsyncIterator[None]:
    """Ends the block after so many seconds with a TransientError (`timed_out`)."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise TransientError(
            "timed_out",
            f"{operation} of {shard_id} had no answer in {seconds:g} s. What to do: look at the "
            "network between here and the endpoint; it is tried again.",
        ) from error


def _fetch(shard_id: str, position: Position, answer: _core.Answer, received_at: float) -> Fetch:
    records = answer.records
    last = records.last_sequence_number
    children: tuple[Shard, ...] = ()
    if answer.next_iterator is None:
        # "If set to null, the shard has been closed"
        # (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html).
        following = SHARD_END
        children = tuple(Shard(id=child, parents=tuple(of)) for child, of in answer.child_shards)
    else:
        following = position if last is None else after(last)
    return Fetch(
        shard_id=shard_id,
        records=records,
        next=following,
        children=children,
        behind_ms=answer.millis_behind_latest,
        received_at=received_at,
    )
