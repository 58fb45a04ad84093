"""Several produce requests to a broker at once, where aiokafka sends one and waits for its answer.

aiokafka's sender leaves out brokers that are in a set of its own, into which it puts each that it
sends a request to. This one takes that set's place, and has a broker in it once enough is under
way. Order holds: the sender also leaves out each *partition* that has a request, until that is
answered. aiokafka has no public name for it; the version is pinned in `requirements.in`.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from aiokafka import AIOKafkaProducer

# ruff: noqa: SLF001 - see above

REQUESTS_MAX: Final = 5
"""What a broker keeps in mind of an idempotent producer, and the Java client's own limit:
https://kafka.apache.org/documentation/#producerconfigs_max.in.flight.requests.per.connection"""


class InFlight:
    """The brokers that are asked no more before they have answered."""

    def __init__(self) -> None:
        self._requests: Counter[int] = Counter()

    def add(self, node_id: int) -> None:
        """A request goes there."""
        self._requests[node_id] += 1

    def remove(self, node_id: int) -> None:
        """One is answered, or given up."""
        self._requests[node_id] -= 1

    def __contains__(self, node_id: int) -> bool:
        return self._requests[node_id] >= REQUESTS_MAX


def pipelined(made: AIOKafkaProducer) -> AIOKafkaProducer:
    """The same producer, which hasn't sent anything yet."""
    made._sender._in_flight = InFlight()
    return made
