"""Whatever the service does and however long the consumer pauses, a poller gives each record
once and in order, and its positions are where reading can go on."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END, TRIM_HORIZON
from replicator.source.polling import Poller, PollOptions
from replicator.testing.clock import VirtualClock
from tests.polled import SHARD, ScriptedService, payloads

ERRORS = {
    "throttled": TransientError,
    "limit_exceeded": TransientError,
    "iterator_expired": TransientError,
    "service_error": TransientError,
    "timed_out": TransientError,
    "resource_missing": FatalError,
}


@dataclass(frozen=True)
class Step:
    """What happens before the next fetch is asked for."""

    added: int
    pause_seconds: float
    faults: tuple[tuple[str, str], ...]
    is_restarted: bool


RECORDS_FAULTS = st.tuples(st.just("records"), st.sampled_from(sorted(ERRORS)))
ITERATOR_FAULTS = st.tuples(
    st.just("iterator"), st.sampled_from(["throttled", "limit_exceeded", "service_error"])
)
STEPS = st.lists(
    st.builds(
        Step,
        added=st.integers(0, 5),
        pause_seconds=st.sampled_from([0.0, 1.0, 269.0, 271.0, 299.0, 301.0, 4_000.0]),
        faults=st.lists(RECORDS_FAULTS | ITERATOR_FAULTS, max_size=6).map(tuple),
        is_restarted=st.booleans(),
    ),
    max_size=15,
)


async def play(steps: list[Step]) -> None:
    clock = VirtualClock()
    service = ScriptedService(clock)
    poller = Poller(service, clock, PollOptions(failures_max=3), jitter=lambda: 0.0)
    position, seen, added = TRIM_HORIZON, [], 0

    def add(count: int) -> None:
        nonlocal added
        service.stream.append(SHARD, [str(n).encode() for n in range(added, added + count)])
        added += count

    reading = poller.read(SHARD, position)
    for step in steps:
        add(step.added)
        clock.advance(step.pause_seconds)
        for operation, code in step.faults:
            service.fail(operation, ERRORS[code](code, "scripted"))
        if step.is_restarted:
            await reading.aclose()
            reading = poller.read(SHARD, position)
        try:
            fetch = await anext(reading)
        except TransientError:
            reading = poller.read(SHARD, position)
            continue
        seen += payloads(fetch)
        position = fetch.next
    add(3)
    service.stream.split(SHARD)
    await reading.aclose()
    while position != SHARD_END:
        with suppress(TransientError):
            async with aclosing(poller.read(SHARD, position)) as rest:
                async for fetch in rest:
                    seen += payloads(fetch)
                    position = fetch.next
    assert seen == [str(number) for number in range(added)]


@given(STEPS)
def test_each_record_is_given_once_and_in_order(steps: list[Step]) -> None:
    asyncio.run(play(steps))
