"""Kinesis Data Streams by enhanced fan-out: one subscription a shard, renewed for ever.

API rules that this file holds
(https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html):
a subscription lasts five minutes; a call within five seconds of a successful one for
the same consumer and shard gets ResourceInUse; after five seconds it takes the
subscription over and the old connection ends with ResourceInUse; events come even when
the shard is idle, about every five seconds.

Permissions: kinesis:DescribeStreamSummary, ListShards, DescribeStreamConsumer,
RegisterStreamConsumer, SubscribeToShard, and kms:Decrypt for an encrypted stream.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass

import structlog

from replicator import _core
from replicator.aws import READ_TIMEOUT_SECONDS, AWSSettings, aws_errors, service_error
from replicator.errors import FatalError, LeaseLost, ReplicatorError, TransientError
from replicator.model import SHARD_END, Fetch, Position, Shard, Stream, after
from replicator.protocols import Clock
from replicator.source.consumer import Consumer
from replicator.source.kinesis_stream import KinesisStream
from replicator.source.subscription import FRAME_BYTES_MAX, Ended, Subscription

_log = structlog.get_logger()
_BACKOFF_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class KinesisOptions:
    """Times and limits; the defaults fit the service. Tests make them small."""

    renew_after_seconds: float = 290.0
    """Own end of a subscription; the service ends it after 300."""
    silence_seconds: float = 35.0
    """Longest wait for a byte; idle shards send an event about every 5."""
    answer_seconds: float = 10.0
    """Longest wait for the answer to a subscribe, the driver's repetitions included."""
    subscribe_interval_seconds: float = 5.0
    """Least time between two successful subscribes of one shard."""
    failures_max: int = 5
    """Subscriptions in a row without a single event, before the error is raised."""
    conflicts_max: int = 4
    """Refusals (ResourceInUse) in a row, before the error is raised."""
    backoff_seconds: float = 1.0
    """Wait after the first failure; doubled for each further one."""
    consumer_wait_seconds: float = 120.0
    """Longest wait for a consumer to become ACTIVE."""
    frame_bytes_max: int = FRAME_BYTES_MAX
    """Longest event-stream frame believed."""


_DEFAULTS = KinesisOptions()


class KinesisSource(KinesisStream):
    """`protocols.Source` over one stream, by name or ARN.

    `subscribe_conflicts`, `renewals` (by reason), `exceptions` (by name, out of the stream) and
    `ends` of shards only grow: metrics read them.
    """

    def __init__(
        self,
        settings: AWSSettings,
        stream: str,
        consumer_name: str,
        clock: Clock,
        *,
        options: KinesisOptions = _DEFAULTS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(settings, stream)
        self.consumer_name = consumer_name
        self._clock = clock
        self._options = options
        self._jitter = jitter
        self._consumer: Consumer | None = None
        self._subscribed_at: dict[str, float] = {}
        self._calls: Counter[str] = Counter()
        self.subscribe_conflicts = 0
        self.renewals: Counter[str] = Counter()
        self.exceptions: Counter[str] = Counter()
        self.ends = 0

    async def open(self) -> Stream:
        """The stream's identity, with the consumer ACTIVE."""
        stream = await self._connect()
        await self._active_consumer().look_again()
        return stream

    async def look(self) -> tuple[Stream, str | None]:
        """The stream's identity and the consumer's state (None: it would be registered),
        without changing anything: for `check`. Raises as `open`."""
        stream = await self._connect()
        return stream, await self._active_consumer().status()

    async def read(self, shard_id: str, position: Position) -> AsyncGenerator[Fetch, None]:
        """The shard's fetches from `position` on; see `protocols.Source.read`.

        A subscription that breaks before its first event is renewed from the same start,
        so LATEST may then begin later: who must lose nothing resolves it to a time first.
        """
        failures = 0
        while position != SHARD_END:
            subscription = await self._subscribe(shard_id, position)
            if subscription is None:
                failures += 1
                detail = f"no answer to the subscribe in {self._answer_seconds:g} s"
                await self._before_renewal(shard_id, Ended.SILENT, detail, failures)
                continue
            due_at = self._clock.monotonic() + self._options.renew_after_seconds
            ended: Ended | None = None
            detail = ""
            has_event = False
            try:
                while ended is None:
                    # Asked for here, so only time in which the consumer waits is counted.
                    due_in = due_at - self._clock.monotonic()
                    if due_in <= 0:
                        ended = Ended.DUE
                        break
                    silence = self._options.silence_seconds
                    arrived = await subscription.events(
                        min(due_in, silence), Ended.DUE if due_in <= silence else Ended.SILENT
                    )
                    received_at = self._clock.monotonic()
                    ended, detail = arrived.ended, arrived.detail
                    for event in arrived.events:
                        if event.exception is not None:
                            await self._in_stream(*event.exception, shard_id)
                            # Only a missing consumer, by now registered again, comes back here.
                            ended, detail = Ended.FINISHED, event.exception[0]
                            break
                        fetch = await self._fetch(shard_id, event, position, received_at)
                        has_event = True
                        yield fetch
                        position = fetch.next
                        if position == SHARD_END:
                            return
            finally:
                subscription.close()
            failures = 0 if has_event else failures + 1
            await self._before_renewal(shard_id, ended, detail, failures)

    def calls(self, shard_id: str) -> int:
        """See `protocols.Measured`."""
        return self._calls[shard_id]

    def counters(self) -> Mapping[str, int]:
        """Renewals by reason, exceptions in the stream by name, refused subscribes, ends."""
        kinds = {"renewal": self.renewals, "exception": self.exceptions}
        counted = {f"{kind}_{name}": n for kind, of in kinds.items() for name, n in of.items()}
        return {
            "subscribe_conflict": self.subscribe_conflicts,
            "shard_ended": self.ends,
            **counted,
        }

    async def close(self) -> None:
        """Closes the client, and with it every connection. May be called twice."""
        self._consumer = None
        await super().close()

    async def _connect(self) -> Stream:
        before = self._stream
        # The driver's own deadline must never be the first to end a silence.
        stream = await self._identified(
            read_timeout_seconds=max(READ_TIMEOUT_SECONDS, 2 * self._options.silence_seconds)
        )
        if self._consumer is None or stream != before:
            self._consumer = Consumer(
                self._client,
                self._clock,
                stream.arn,
                self.consumer_name,
                self.require_same_stream,
                wait_seconds=self._options.consumer_wait_seconds,
            )
        return stream

    async def _before_renewal(
        self, shard_id: str, ended: Ended, detail: str, failures: int
    ) -> None:
        """Counts, says and waits. Raises TransientError when nothing came too often."""
        self.renewals[ended.value] += 1
        is_ordinary = ended in {Ended.DUE, Ended.FINISHED}
        if failures >= self._options.failures_max:
            raise TransientError(
                f"subscription_{ended.value}",
                f"{failures} subscriptions of {shard_id} of {self._stream_name} in a row gave no "
                f"event, the last was {ended.value}{f' ({detail})' if detail else ''}. What to do: "
                "look at the network between here and the endpoint (proxies, idle timeouts).",
                retry_after_seconds=self._options.subscribe_interval_seconds,
            )
        if not is_ordinary:
            _log.warning(
                "subscription renewed early",
                shard=shard_id,
                stream=self._stream_name,
                reason=ended.value,
                detail=detail,
                failures=failures,
            )
        if failures and not (is_ordinary and failures == 1):
            await self._back_off(failures)

    @property
    def _answer_seconds(self) -> float:
        return min(self._options.answer_seconds, self._options.silence_seconds)

    async def _subscribe(self, shard_id: str, position: Position) -> Subscription | None:
        """An open subscription; None when the service didn't answer in time."""
        resource = f"{shard_id} of {self._stream_name}"
        conflicts = 0
        while True:
            await self._keep_interval(shard_id)
            consumer_arn = await self._active_consumer().active()
            _log.debug(
                "subscribing", shard=shard_id, stream=self._stream_name, position=str(position)
            )
            try:
                subscription = await self._answered(resource, consumer_arn, shard_id, position)
            except TimeoutError:
                # It may have succeeded all the same: the next one keeps its distance.
                self._subscribed_at[shard_id] = self._clock.monotonic()
                return None
            except TransientError as error:
                if error.code != "resource_in_use":
                    raise
                conflicts += 1
                await self._after_conflict(resource, conflicts, error)
            except FatalError as error:
                if error.code != "resource_missing":
                    raise
                conflicts += 1
                await self._explain_missing(shard_id)
                if conflicts >= self._options.conflicts_max:
                    raise TransientError(
                        "subscribe_not_found",
                        f"{resource} and its consumer exist, and still the service doesn't find "
                        f"them: {error.message}",
                        retry_after_seconds=self._options.subscribe_interval_seconds,
                    ) from error
                await self._back_off(conflicts)
            else:
                # Measured after the answer: later than the service's own moment of success.
                self._subscribed_at[shard_id] = self._clock.monotonic()
                _log.debug(
                    "subscribed", shard=shard_id, stream=self._stream_name, position=str(position)
                )
                return subscription

    async def _answered(
        self, resource: str, consumer_arn: str, shard_id: str, position: Position
    ) -> Subscription:
        """One call. Raises TimeoutError when no answer came in time: a connection that is
        half open would be waited for until the driver's own, much longer deadline."""
        self._calls[shard_id] += 1
        # The timeout stands outside: inside, its error would be one more of the driver's.
        async with asyncio.timeout(self._answer_seconds):
            with aws_errors("SubscribeToShard", resource, position=position.sequence_number):
                return await Subscription.open(
                    self._client,
                    consumer_arn,
                    shard_id,
                    position,
                    self._options.frame_bytes_max,
                )

    async def _keep_interval(self, shard_id: str) -> None:
        """Waits until five seconds after the shard's last *successful* subscribe."""
        last = self._subscribed_at.get(shard_id)
        if last is None:
            return
        wait = last + self._options.subscribe_interval_seconds - self._clock.monotonic()
        if wait > 0:
            await self._clock.sleep(wait)

    async def _after_conflict(self, resource: str, conflicts: int, error: TransientError) -> None:
        """ResourceInUse: another subscribe of this consumer succeeded less than five
        seconds ago (its owner will be told by the leases), or the consumer isn't ACTIVE."""
        self.subscribe_conflicts += 1
        # Five seconds are enough when the other one is dead; the rest keeps two live ones apart.
        wait = self._options.subscribe_interval_seconds * (1.0 + 0.4 * self._jitter())
        _log.warning(
            "subscribe conflict",
            resource=resource,
            conflicts=conflicts,
            wait_seconds=round(wait, 3),
        )
        if conflicts >= self._options.conflicts_max:
            raise TransientError(
                "subscribe_conflict",
                f"{resource} was refused {conflicts} times: {error.message} Another process may "
                f"read with the same consumer name {self.consumer_name}.",
                retry_after_seconds=wait,
            ) from error
        await self._clock.sleep(wait)
        await self._active_consumer().look_again()

    async def _explain_missing(self, shard_id: str) -> None:
        """After ResourceNotFound: raises what is missing, or brings the consumer back.

        Raises FatalError for a stream that is gone or is another one under the same name,
        PositionLost for a shard that is no longer listed.
        """
        await self.require_same_stream()
        await self._require_listed(shard_id)
        await self._active_consumer().look_again()

    async def _in_stream(self, kind: str, message: str, shard_id: str) -> None:
        """What an exception frame means. Returns only after a lost consumer was replaced."""
        resource = f"{shard_id} of {self._stream_name}"
        name = kind.removesuffix("Exception")
        self.exceptions[name] += 1
        if name == "ResourceInUse":
            raise LeaseLost(
                "subscription_taken",
                f"another process subscribed to {resource} as consumer {self.consumer_name}",
            )
        if name == "ResourceNotFound":
            await self._explain_missing(shard_id)
            return
        error: ReplicatorError = service_error(kind, message, "SubscribeToShard", resource)
        if isinstance(error, TransientError):
            raise error
        # A key may be disabled for a moment. The next subscribe gets the same error as its
        # answer when it lasts, and that one is final.
        raise TransientError(error.code, error.message, retry_after_seconds=5.0)

    async def _fetch(
        self, shard_id: str, event: _core.ShardEvent, position: Position, received_at: float
    ) -> Fetch:
        children = tuple(Shard(id=child, parents=tuple(of)) for child, of in event.child_shards)
        continuation = event.continuation_sequence_number
        if children or (continuation is None and await self._is_closed(shard_id)):
            # "ChildShards: … returned only at the end of the current shard"
            # (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShardEvent.html);
            # there the service leaves the continuation out, emulators may not.
            following = SHARD_END
            self.ends += 1
            self._subscribed_at.pop(shard_id, None)
            self._calls.pop(shard_id, None)
        elif continuation is None:
            last = event.records.last_sequence_number
            following = position if last is None else after(last)
        else:
            following = after(continuation)
        return Fetch(
            shard_id=shard_id,
            records=event.records,
            next=following,
            children=children,
            behind_ms=event.millis_behind_latest,
            received_at=received_at,
        )

    async def _is_closed(self, shard_id: str) -> bool:
        """Whether the listing confirms an end that came without children: a shard that takes
        records hasn't ended, whatever an event leaves out."""
        return not any(shard.id == shard_id and shard.is_open for shard in await self.shards())

    def _active_consumer(self) -> Consumer:
        assert self._consumer is not None, "open() comes first"
        return self._consumer

    async def _back_off(self, failures: int) -> None:
        longest = min(self._options.backoff_seconds * 2 ** (failures - 1), _BACKOFF_SECONDS_MAX)
        await self._clock.sleep(longest * (0.5 + self._jitter() / 2))
