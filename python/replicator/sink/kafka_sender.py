"""aiokafka's sender without two of its waits. It has no public names for them; the version is
pinned in `requirements.in`.

It sends one produce request to a broker and waits for its answer. It leaves out brokers that are in
a set of its own, into which it puts each that it sends a request to: `InFlight` takes that set's
place, and has a broker in it once enough is under way. Order holds: the sender also leaves out each
*partition* that has a request, until that is answered.

And a transaction that begins right behind another waits for 20 ms where a few would do. A commit is
answered before its markers stand in the partitions; until they do the coordinator refuses the next
transaction's first request with CONCURRENT_TRANSACTIONS, and only asking again tells when that is
over (https://issues.apache.org/jira/browse/KAFKA-5477). So it is asked soon, and then less often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.client import CoordinationType
from aiokafka.producer.sender import BACKOFF_OVERRIDE, AddPartitionsToTxnHandler

# ruff: noqa: SLF001 - see above

REQUESTS_MAX: Final = 5
"""What a broker keeps in mind of an idempotent producer, and the Java client's own limit:
https://kafka.apache.org/documentation/#producerconfigs_max.in.flight.requests.per.connection"""

FIRST_WAIT_SECONDS: Final = 0.001
"""Before a transaction's first request is tried again. Each further wait is twice as long."""
LONGEST_WAIT_SECONDS: Final[float] = BACKOFF_OVERRIDE
"""aiokafka's own wait, and the Java client's."""


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


class Adding:
    """Asks the coordinator to take partitions into the transaction, in place of the sender's own
    method, which the sender calls until they are in."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._wait_seconds = FIRST_WAIT_SECONDS

    async def __call__(self, partitions: Any) -> bool:
        sender = self._sender
        node_id = await sender._find_coordinator(
            CoordinationType.TRANSACTION, sender._txn_manager.transactional_id
        )
        done: bool = await _Handler(sender, partitions, self.next_wait).do(node_id)
        return done

    def next_wait(self, wait_seconds: float | None) -> float | None:
        """Seconds to wait before the next try, where the driver would wait as long as given;
        None when there is nothing to wait for."""
        if wait_seconds != LONGEST_WAIT_SECONDS:  # another reason, or none
            self._wait_seconds = FIRST_WAIT_SECONDS
            return wait_seconds
        mine = min(self._wait_seconds, LONGEST_WAIT_SECONDS)
        self._wait_seconds = 2 * mine
        return mine


class _Handler(AddPartitionsToTxnHandler):  # type: ignore[misc] # it has no types
    def __init__(
        self, sender: Any, partitions: Any, next_wait: Callable[[float | None], float | None]
    ) -> None:
        super().__init__(sender, partitions)
        self._next_wait = next_wait

    def handle_response(self, response: Any) -> float | None:
        theirs: float | None = super().handle_response(response)
        return self._next_wait(theirs)


def hastened(made: AIOKafkaProducer) -> AIOKafkaProducer:
    """The same producer, which hasn't sent anything yet."""
    made._sender._in_flight = InFlight()
    made._sender._do_add_partitions_to_txn = Adding(made._sender)
    return made
