"""The registered consumer of enhanced fan-out, kept in the state that reading needs.

A reconcile loop over what the service says: registered when missing, waited for
while it is made or deleted, registered again when somebody deleted it.
Limits: 20 consumers a stream (50 with On-demand Advantage), 5 of them in CREATING
(https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from replicator.aws import aws_errors
from replicator.errors import FatalError, TransientError
from replicator.protocols import Clock

# The first look comes soon (an emulator is ready at once), later ones spare the API's limit.
_POLL_SECONDS_MIN = 0.1
_POLL_SECONDS_MAX = 2.0
# Many shards meet the same trouble at once: one look serves all of them.
_FRESH_SECONDS = 1.0
_log = structlog.get_logger()


class Consumer:
    """Gives the ARN of an ACTIVE consumer. The ARN changes when it is registered again.

    A stream made again under its name has the ARN of the old one, and consumers of its own:
    `confirm_stream` is asked before a consumer that was looked up is believed, and raises.
    """

    def __init__(
        self,
        client: Any,
        clock: Clock,
        stream_arn: str,
        name: str,
        confirm_stream: Callable[[], Awaitable[None]],
        *,
        wait_seconds: float = 120.0,
    ) -> None:
        self._client = client
        self._clock = clock
        self._stream_arn = stream_arn
        self._name = name
        self._confirm_stream = confirm_stream
        self._wait_seconds = wait_seconds
        self._lock = asyncio.Lock()
        self._arn: str | None = None
        self._seen_at = 0.0

    async def status(self) -> str | None:
        """The service's word for its state, without changing it; None: not registered."""
        state = await self._describe()
        return None if state is None else str(state["ConsumerStatus"])

    async def active(self) -> str:
        """The consumer's ARN; asks the service only when it isn't known yet."""
        return self._arn if self._arn is not None else await self.look_again()

    async def look_again(self) -> str:
        """The ARN after asking the service. Raises TransientError when it doesn't become
        ACTIVE in time or no more can be registered, FatalError without permission or when
        the stream is another one now."""
        async with self._lock:
            now = self._clock.monotonic()
            if self._arn is not None and now - self._seen_at < _FRESH_SECONDS:
                return self._arn
            self._arn = None
            arn = await self._reconcile(now + self._wait_seconds)
            # Afterwards: should the stream go now, the ARN goes with it.
            await self._confirm_stream()
            self._arn, self._seen_at = arn, self._clock.monotonic()
            return arn

    async def _reconcile(self, deadline: float) -> str:
        pause = _POLL_SECONDS_MIN
        while True:
            state = await self._describe() or await self._register()
            if state is not None and state["ConsumerStatus"] == "ACTIVE":
                return str(state["ConsumerARN"])
            if self._clock.monotonic() >= deadline:
                status = state["ConsumerStatus"] if state else "unknown"
                raise TransientError(
                    "consumer_not_active",
                    f"consumer {self._name} of {self._stream_arn} is still {status} after "
                    f"{self._wait_seconds:.0f} s. What to do: look at it in the console; "
                    "deleting it is safe, it is registered again.",
                    retry_after_seconds=10.0,
                )
            await self._clock.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS_MAX)

    async def _describe(self) -> dict[str, Any] | None:
        try:
            with aws_errors("DescribeStreamConsumer", f"{self._name} of {self._stream_arn}"):
                answer = await self._client.describe_stream_consumer(
                    StreamARN=self._stream_arn, ConsumerName=self._name
                )
        except FatalError as error:
            if error.code == "resource_missing":
                return None
            raise
        description: dict[str, Any] = answer["ConsumerDescription"]
        return description

    async def _register(self) -> dict[str, Any] | None:
        """The new consumer; None when another worker was quicker."""
        try:
            with aws_errors("RegisterStreamConsumer", f"{self._name} of {self._stream_arn}"):
                answer = await self._client.register_stream_consumer(
                    StreamARN=self._stream_arn, ConsumerName=self._name
                )
        except TransientError as error:
            if error.code == "resource_in_use":
                return None
            if error.code == "limit_exceeded":
                raise TransientError(
                    "consumer_limit",
                    f"no more consumers can be registered at {self._stream_arn}: a stream takes "
                    "20 (50 with On-demand Advantage), 5 of them being made at a time. What to "
                    "do: deregister an unused one (list-stream-consumers shows them).",
                    retry_after_seconds=30.0,
                ) from error
            raise
        consumer: dict[str, Any] = answer["Consumer"]
        _log.info("consumer registered", consumer=self._name, stream=self._stream_arn)
        return consumer
