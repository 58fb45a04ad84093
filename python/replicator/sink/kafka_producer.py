"""Producers: a transactional one for each shard, of which only the busy ones are open, and one
that all shards share.

Opening the first one under an id asks the broker for a new epoch (`InitProducerId`), which fences
every older producer and ends its open transaction. One that is opened *again* goes on with the
epoch that it had, so the broker refuses it if another worker took the shard over meanwhile: an
idle shard stays fenced without a connection. aiokafka has no public name for that, nor for giving
up a producer whose broker is gone; those private names are used here, in `kafka_batch.py` and in
`kafka_sender.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from replicator.sink.kafka_client import Ends, Fenced, Options, started, went_back
from replicator.sink.kafka_sender import hastened

IDLE_SECONDS: Final = 60.0
"""A producer without work is closed after this, at another's next work."""
# ruff: noqa: SLF001 - see above

# One dead letter in a batch of its own; the topic has its own limit.
_REQUEST_BYTES_MAX: Final = 64 * 1024 * 1024
_CLOSE_SECONDS: Final = 2.0
_CANCEL_SECONDS: Final = 0.05


class Producer:
    """The producer of one transactional id under one epoch; without an id it is idempotent."""

    def __init__(
        self,
        transactional_id: str | None,
        options: Options,
        timeout_seconds: float,
        ends: Ends | None = None,
    ) -> None:
        self.transactional_id = transactional_id
        self._ends = ends or Ends()
        self._options = options
        self._timeout_seconds = timeout_seconds
        self._open: AIOKafkaProducer | None = None
        self._opening = asyncio.Lock()
        self._identity: tuple[int, int] | None = None
        self._sequences: dict[Any, int] = {}
        self._newest: dict[Any, int] = {}
        self.is_broken = False
        """True after a write whose outcome is unknown: only a new epoch may write."""

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def epoch(self) -> int:
        """The broker's count of this id's owners, from 0."""
        assert self._identity is not None, "it was never opened"
        return self._identity[1]

    def follows(self, other: Producer) -> bool:
        """True when it is known to have taken the id over from the other. Brokers that forgot an
        id, or counted it to the end, begin again with another producer id, at epoch 0."""
        assert self._identity is not None, "it was never opened"
        assert other._identity is not None, "it was never opened"
        (ours, epoch), (theirs, before) = self._identity, other._identity
        return ours == theirs and epoch > before

    @property
    def failure(self) -> BaseException | None:
        """What ended its sending for good. Whoever asks something of it after that is told
        only that its state is wrong."""
        made = self._open
        failed: BaseException | None = (
            None if made is None else made._message_accumulator._exception
        )
        return failed

    def saw(self, place: Any, offset: int) -> None:
        """A record of it stands there (its topic and partition). Raises TransientError when that
        lies before what was acknowledged, which is gone then."""
        if 0 <= offset <= self._newest.get(place, -1):
            raise went_back(f"partition {place.partition} of topic {place.topic}")
        self._newest[place] = offset

    async def opened(self) -> AIOKafkaProducer:
        """The driver's producer. Raises its errors."""
        if self.is_broken:
            raise self._given_up()
        async with self._opening:
            return self._open or await self._made()

    def _given_up(self) -> Exception:
        if self.transactional_id is None:
            failed: Exception = KafkaError("another write of the producer that it shares failed")
            return failed
        return Fenced(f"{self.transactional_id} needs a new epoch")

    async def _made(self) -> AIOKafkaProducer:
        made = hastened(
            AIOKafkaProducer(
                **self._options,
                transactional_id=self.transactional_id,
                transaction_timeout_ms=round(self._timeout_seconds * 1_000),
                enable_idempotence=True,
                max_request_size=_REQUEST_BYTES_MAX,
            )
        )
        state = made._txn_manager
        if self._identity is not None:
            state.set_pid_and_epoch(*self._identity)
            state._sequence_numbers.update(self._sequences)
        try:
            await started(made, self._options)
        except BaseException:
            await self._ends.wait_for(_abandoned(made))
            raise
        if self.is_broken:
            await self._ends.wait_for(_abandoned(made))
            raise self._given_up()
        self._identity = (state.producer_id, state.producer_epoch)
        self._open = made
        return made

    async def close(self) -> None:
        """Ends its connections; it may be opened again."""
        made, self._open = self._open, None
        if made is None:
            return
        if self.is_broken:
            await self._ends.wait_for(_abandoned(made))
            return
        self._sequences = dict(made._txn_manager._sequence_numbers)
        await self._ends.wait_for(_stopped(made))

    async def give_up(self) -> None:
        """After a failure: what it was doing is over, here and for good."""
        self.is_broken = True
        await self.close()


async def _stopped(made: AIOKafkaProducer) -> None:
    """Closes a producer that has nothing to do."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await made.stop()
    except (TimeoutError, KafkaError):
        await _abandoned(made)


async def _abandoned(made: AIOKafkaProducer) -> None:
    """Closes a producer whose broker may be gone: nothing of it is waited for."""
    made._closed = True
    waiting = made._message_accumulator
    batches = [*chain.from_iterable(waiting._batches.values()), *waiting._pending_batches]
    # One that waits for another try isn't among them, though the driver takes it from there.
    waiting._pending_batches.update(batches)
    waiting.fail_all(KafkaError("given up"))
    ends = [future for batch in batches for future in (batch.future, batch._drain_waiter)]
    for future in (*ends, made._txn_manager._transaction_waiter):
        if future is not None:  # nobody else looks at them
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
    sending = made._sender.sender_task
    deadline = time.monotonic() + _CLOSE_SECONDS
    while sending is not None and not sending.done() and time.monotonic() < deadline:
        # Again and again: it waits for its own requests once it is cancelled.
        sending.cancel()
        await asyncio.wait({sending}, timeout=_CANCEL_SECONDS)
    if sending is not None and sending.done() and not sending.cancelled():
        sending.exception()
    with suppress(TimeoutError, KafkaError, OSError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await made.client.close()


class KafkaProducers:
    """Those of one sink. No more than `open_max` are open, unless more are at work."""

    def __init__(
        self,
        options: Options,
        *,
        open_max: int,
        timeout_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._open_max = open_max
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        self._ends = Ends()
        self._busy: Counter[Producer] = Counter()
        self._shared = self._make_shared()
        # The idle ones that are open, and since when; the longest idle first.
        self._idle: OrderedDict[Producer, float] = OrderedDict()

    def make(self, transactional_id: str) -> Producer:
        """A producer that takes the id over as soon as it is used."""
        return Producer(transactional_id, self._options, self._timeout_seconds, self._ends)

    def shared(self) -> Producer:
        """The one without a transactional id."""
        if self._shared.is_broken:
            self._shared = self._make_shared()
        return self._shared

    def _make_shared(self) -> Producer:
        return Producer(None, self._options, self._timeout_seconds, self._ends)

    @asynccontextmanager
    async def use(self, producer: Producer) -> AsyncIterator[AIOKafkaProducer]:
        """The driver's producer, for one write. An error of the block, or no answer within
        the transaction's time, gives the producer up. Raises the driver's errors."""
        self._idle.pop(producer, None)
        self._busy[producer] += 1
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._make_room()
                yield await producer.opened()
        except BaseException as error:
            cause = producer.failure
            await producer.give_up()
            if cause is not None and isinstance(error, Exception):
                raise cause from cause.__cause__  # which says more than what came of it
            raise
        finally:
            self._busy[producer] -= 1
            if not self._busy[producer]:
                del self._busy[producer]
                if producer.is_open:
                    self._idle[producer] = self._monotonic()

    async def drop(self, producer: Producer) -> None:
        """Its shard ended, or is another worker's."""
        self._idle.pop(producer, None)
        await producer.give_up()

    async def close(self) -> None:
        producers = [*self._idle, *self._busy]
        self._idle.clear()
        await asyncio.gather(*(producer.give_up() for producer in producers))
        await self._ends.all()

    async def _make_room(self) -> None:
        old = self._monotonic() - IDLE_SECONDS
        while self._idle:
            producer, since = next(iter(self._idle.items()))
            if since > old and len(self._idle) + len(self._busy) <= self._open_max:
                return
            del self._idle[producer]
            await producer.close()
