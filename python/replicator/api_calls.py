"""What calls of AWS met, attempt by attempt: the driver repeats by itself what may pass, and
says so nowhere.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

# Upper ends of the classes into which attempts fall by their time, in seconds.
BOUNDS = (0.1, 0.25, 1.0, 5.0, 30.0)
_SENT_AT = "replicator_sent_at"


class Call(NamedTuple):
    """An operation of a service, such as `kinesis` and `ListShards`."""

    service: str
    operation: str


class Durations:
    """How long the attempts of a call took, to the answer's head where a stream follows."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """One more attempt."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def cumulated(self) -> Iterator[tuple[str, int]]:
        """(upper end, attempts up to it), as Prometheus has it."""
        total = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            total += count
            yield bound, total


class APICalls:
    """Counters of the sessions that are `watch`ed; they only grow.

    `failures` counts attempts by call and code: the service's own code, or the driver's
    class of error where no answer came. An attempt that we gave up waiting for ourselves is
    none of them: who gave it up counts it.
    """

    def __init__(self) -> None:
        self.failures: Counter[tuple[Call, str]] = Counter()
        self.durations: dict[Call, Durations] = {}

    def watch(self, session: Any) -> None:
        """Counts every attempt of the clients that the session makes from here on; the driver
        makes some by itself, for credentials."""
        session.register("request-created", self._sent)
        session.register("response-received", self._received)

    def _sent(self, request: Any, **_: object) -> None:
        request.context[_SENT_AT] = asyncio.get_running_loop().time()

    def _received(
        self,
        event_name: str,
        context: dict[str, Any],
        parsed_response: Any,
        exception: BaseException | None,
        **_: object,
    ) -> None:
        service, operation = event_name.split(".")[1:]
        call = Call(service, operation)
        took = asyncio.get_running_loop().time() - context[_SENT_AT]
        self.durations.setdefault(call, Durations()).add(took)
        if exception is not None:
            self.failures[call, type(exception).__name__] += 1
        elif parsed_response is not None and (error := parsed_response.get("Error")):
            self.failures[call, str(error.get("Code", ""))] += 1
