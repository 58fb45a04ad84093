"""The poller over a service in memory whose iterators age, expire and vanish as AWS's do."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from structlog.testing import capture_logs

from replicator import _core
from replicator.core.pace import PaceLimits
from replicator.core.retry import Backoff
from replicator.errors import FatalError, PositionLost, ReplicatorError, TransientError
from replicator.model import LATEST, SHARD_END, TRIM_HORIZON, Position, after, at_timestamp
from replicator.source.polling import Poller, PollOptions
from replicator.testing.clock import VirtualClock
from tests.polled import ITERATOR_SECONDS, SHARD, ScriptedService, payloads


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def service(clock: VirtualClock) -> ScriptedService:
    return ScriptedService(clock)


def make_poller(service: ScriptedService, **options: Any) -> Poller:
    return Poller(service, service.clock, PollOptions(**options), jitter=lambda: 0.0)


def add(service: ScriptedService, lo: int, hi: int) -> list[str]:
    return service.stream.append(SHARD, [f"record {number}".encode() for number in range(lo, hi)])


def throttled() -> TransientError:
    return TransientError("throttled", "too fast", retry_after_seconds=1.0)


def expired() -> TransientError:
    return TransientError("iterator_expired", "old", retry_after_seconds=0.0)


async def test_an_answer_is_a_fetch_and_the_position_is_behind_its_last_record(
    service: ScriptedService,
) -> None:
    numbers = add(service, 0, 3)
    service.behind_ms = 4_000
    poller = make_poller(service)
    async with aclosing(poller.read(SHARD, TRIM_HORIZON)) as reading:
        first, second = await anext(reading), await anext(reading)
    assert payloads(first, second) == ["record 0", "record 1", "record 2"]
    assert [first.next, second.next] == [after(numbers[1]), after(numbers[2])]
    assert first.behind_ms == 4_000
    assert first.received_at == service.asked_at[0]
    assert service.called("iterator") == [TRIM_HORIZON], "one iterator leads to the next"
    assert poller.calls[SHARD] == 2


@pytest.mark.parametrize("start", [TRIM_HORIZON, at_timestamp(5)])
async def test_an_empty_answer_leaves_the_position_where_it_was(
    service: ScriptedService, start: Position
) -> None:
    async with aclosing(make_poller(service).read(SHARD, start)) as reading:
        fetch = await anext(reading)
        assert (len(fetch.records), fetch.next) == (0, start)
        (number,) = add(service, 0, 1)
        assert (await anext(reading)).next == after(number)
        assert (await anext(reading)).next == after(number)


async def test_latest_is_not_taken(service: ScriptedService) -> None:
    with pytest.raises(AssertionError, match="LATEST"):
        await anext(make_poller(service).read(SHARD, LATEST))


async def test_the_end_carries_records_and_children(service: ScriptedService) -> None:
    add(service, 0, 2)
    children = service.stream.split(SHARD)
    poller = make_poller(service)
    (fetch,) = [fetch async for fetch in poller.read(SHARD, TRIM_HORIZON)]
    assert fetch.next == SHARD_END
    assert payloads(fetch) == ["record 0", "record 1"]
    assert tuple(child.id for child in fetch.children) == children
    assert all(child.parents == (SHARD,) for child in fetch.children)
    assert SHARD not in poller.calls, "a shard that ended is forgotten"


async def test_nothing_is_asked_after_the_end(service: ScriptedService) -> None:
    assert [fetch async for fetch in make_poller(service).read(SHARD, SHARD_END)] == []
    assert service.calls == []


async def test_a_long_pause_of_the_consumer_never_uses_an_old_iterator(
    service: ScriptedService, clock: VirtualClock
) -> None:
    """Elsewhere an iterator that aged under backpressure was reused for ever."""
    numbers = add(service, 0, 4)
    poller = make_poller(service)
    async with aclosing(poller.read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        clock.advance(ITERATOR_SECONDS + 1)
        fetch = await anext(reading)
    assert payloads(fetch) == ["record 2", "record 3"]
    assert service.called("iterator") == [TRIM_HORIZON, after(numbers[1])], "the last position read"
    assert poller.renewals == {"stale": 1}, "before the service had to say it"


async def test_an_idle_shard_is_read_for_hours_on_one_iterator(
    service: ScriptedService, clock: VirtualClock
) -> None:
    began = clock.now
    async with aclosing(make_poller(service).read(SHARD, TRIM_HORIZON)) as reading:
        async for _ in reading:
            if clock.now - began > 7_200:
                break
    assert len(service.called("iterator")) == 1


async def test_an_expired_iterator_is_renewed_from_the_last_position_read(
    service: ScriptedService,
) -> None:
    numbers = add(service, 0, 4)
    poller = make_poller(service)
    with capture_logs() as logs:
        async with aclosing(poller.read(SHARD, TRIM_HORIZON)) as reading:
            await anext(reading)
            service.fail("records", expired())
            fetch = await anext(reading)
    assert payloads(fetch) == ["record 2", "record 3"]
    assert service.called("iterator")[-1] == after(numbers[1])
    assert poller.renewals == {"iterator_expired": 1}
    assert logs == [], "it is nothing to tell anybody"


async def test_iterators_that_expire_at_once_end_in_an_error(service: ScriptedService) -> None:
    service.fail("records", *(expired() for _ in range(3)))
    with pytest.raises(TransientError) as caught:
        await anext(make_poller(service, failures_max=3).read(SHARD, TRIM_HORIZON))
    assert caught.value.code == "iterator_expired"


@pytest.mark.parametrize("operation", ["iterator", "records"])
@pytest.mark.parametrize("code", ["throttled", "limit_exceeded", "kms_throttled"])
async def test_throttles_are_waited_out_and_never_an_error(
    service: ScriptedService, clock: VirtualClock, operation: str, code: str
) -> None:
    add(service, 0, 1)
    began = clock.now
    count = 50
    service.fail(
        operation,
        *(TransientError(code, "too fast", retry_after_seconds=1.0) for _ in range(count)),
    )
    poller = make_poller(service, failures_max=2)
    with capture_logs() as logs:
        async with aclosing(poller.read(SHARD, TRIM_HORIZON)) as reading:
            fetch = await anext(reading)
    assert payloads(fetch) == ["record 0"]
    assert poller.throttles == {code: count}
    assert clock.now - began >= count * 1.0, "each one is waited for"
    assert [entry["event"] for entry in logs] == ["throttled", "throttled"], "said now and then"
    assert len(service.calls) >= count


async def test_throttles_move_reads_apart_and_answers_bring_them_back(
    service: ScriptedService, clock: VirtualClock
) -> None:
    service.behind_ms = 60_000
    poller = make_poller(service)
    async with aclosing(poller.read(SHARD, TRIM_HORIZON)) as reading:
        for _ in range(3):
            await anext(reading)
        service.fail("records", throttled(), throttled(), throttled())
        for _ in range(40):
            await anext(reading)
    apart = [
        later - earlier
        for earlier, later in zip(service.asked_at, service.asked_at[1:], strict=False)
    ]
    assert apart[1] == pytest.approx(0.2)
    assert apart[6] > 0.8, "slower after three throttles"
    assert apart[-1] == pytest.approx(0.2), "and quick again"


async def test_a_failure_that_may_pass_is_tried_again_on_the_same_iterator(
    service: ScriptedService, clock: VirtualClock
) -> None:
    add(service, 0, 1)
    service.fail("records", TransientError("connection_failed", "cut"))
    service.fail("records", TransientError("service_error", "500"))
    with capture_logs() as logs:
        async with aclosing(make_poller(service).read(SHARD, TRIM_HORIZON)) as reading:
            assert payloads(await anext(reading)) == ["record 0"]
    assert [entry["code"] for entry in logs] == ["connection_failed", "service_error"]
    assert len(service.called("iterator")) == 1
    assert max(clock.slept) <= 10.0


async def test_failures_in_a_row_are_raised_and_an_answer_between_them_forgives(
    service: ScriptedService,
) -> None:
    poller = make_poller(service, failures_max=3)
    errors = [TransientError("service_error", "500") for _ in range(5)]
    async with aclosing(poller.read(SHARD, TRIM_HORIZON)) as reading:
        service.fail("records", *errors[:2])
        await anext(reading)
        service.fail("records", *errors[2:])
        with pytest.raises(TransientError):
            await anext(reading)
    assert len(service.called("records")) == 6


@pytest.mark.parametrize("operation", ["iterator", "records"])
@pytest.mark.parametrize(
    "error",
    [
        PositionLost("position_trimmed", "the records are no longer kept"),
        PositionLost("shard_gone", "the shard is no longer listed"),
        FatalError("access_denied", "no permission"),
        FatalError("kms_denied", "no permission"),
    ],
)
async def test_what_does_not_pass_is_raised_at_once(
    service: ScriptedService, operation: str, error: ReplicatorError
) -> None:
    service.fail(operation, error)
    with pytest.raises(type(error)) as caught:
        await anext(make_poller(service).read(SHARD, TRIM_HORIZON))
    assert caught.value is error


async def test_a_missing_stream_is_not_asked_for_again(service: ScriptedService) -> None:
    service.fail("iterator", FatalError("resource_missing", "no such stream"))
    with pytest.raises(FatalError):
        await anext(make_poller(service).read(SHARD, TRIM_HORIZON))
    assert len(service.calls) == 1


async def test_a_shard_that_is_deleted_while_it_is_read_is_lost(service: ScriptedService) -> None:
    """Elsewhere a shard that went while its iterator was expired was retried for ever."""
    add(service, 0, 1)
    async with aclosing(make_poller(service).read(SHARD, TRIM_HORIZON)) as reading:
        await anext(reading)
        service.stream.remove_shard(SHARD)
        with pytest.raises(PositionLost) as caught:
            await anext(reading)
    assert caught.value.code == "shard_gone"


async def test_an_iterator_that_the_service_does_not_know_is_replaced_a_few_times(
    service: ScriptedService,
) -> None:
    service.fail("records", *(FatalError("resource_missing", "?") for _ in range(9)))
    poller = make_poller(service, failures_max=4)
    with pytest.raises(TransientError) as caught:
        await anext(poller.read(SHARD, TRIM_HORIZON))
    assert caught.value.code == "iterator_unknown"
    assert len(service.called("iterator")) == 4


async def test_an_answer_that_cannot_be_read_is_asked_for_again(service: ScriptedService) -> None:
    add(service, 0, 1)
    with pytest.raises(_core.BodyError) as broken:
        _core.Answer.read(b"{", "kinesis")
    service.fail("records", broken.value)
    with capture_logs() as logs:
        async with aclosing(make_poller(service).read(SHARD, TRIM_HORIZON)) as reading:
            assert payloads(await anext(reading)) == ["record 0"]
    assert [entry["code"] for entry in logs] == ["answer_corrupt"]


async def test_a_call_without_an_answer_is_given_up(clock: VirtualClock) -> None:
    class Silent(ScriptedService):
        async def records(self, iterator: str, limit: int) -> _core.Answer:
            self.calls.append(("records", limit))
            await asyncio.Event().wait()
            raise AssertionError

    service = Silent(clock)
    poller = make_poller(
        service, answer_seconds=0.005, failures_max=2, backoff=Backoff(0.001, 0.001)
    )
    with pytest.raises(TransientError) as caught:
        await anext(poller.read(SHARD, TRIM_HORIZON))
    assert caught.value.code == "timed_out"
    assert len(service.called("records")) == 2


async def test_an_idle_shard_costs_few_calls_and_a_change_is_seen_quickly(
    service: ScriptedService, clock: VirtualClock
) -> None:
    """Elsewhere 44 idle shards were asked every second: half a million calls a day."""
    poller = make_poller(service, pace=PaceLimits(idle_seconds_max=10.0))
    async with aclosing(poller.read(SHARD, TRIM_HORIZON)) as reading:
        began = clock.now
        while clock.now - began < 3_600:
            await anext(reading)
        assert poller.calls[SHARD] < 3_600 / 10 + 20
        add(service, 0, 1)
        since = clock.now
        assert payloads(await anext(reading)) == ["record 0"]
        assert clock.now - since <= 10.0
        since = clock.now
        await anext(reading)
        assert clock.now - since <= 0.25, "quick again"


async def test_many_idle_shards_share_what_reads_may_cost(
    service: ScriptedService, clock: VirtualClock
) -> None:
    shards = [SHARD] + [service.stream.add_shard() for _ in range(99)]
    poller = make_poller(service, idle_reads_per_second=10.0)
    readings = [poller.read(shard, TRIM_HORIZON) for shard in shards]
    for reading in readings:
        await anext(reading)
    for _ in range(30):
        await anext(readings[0])
    assert max(clock.slept) == 100 / 10.0
    for reading in readings[1:]:
        await reading.aclose()
    clock.slept.clear()
    for _ in range(3):
        await anext(readings[0])
    assert max(clock.slept) <= 10.0
    assert clock.slept[-1] == PaceLimits().idle_seconds_max, "alone again"


async def test_so_many_requests_at_once_and_no_more(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of shards, begun at once, held up everything else in the process."""
    under_way = most = 0
    answer = service.records

    async def slow(iterator: str, limit: int) -> _core.Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(3):
            await asyncio.sleep(0)
        under_way -= 1
        return await answer(iterator, limit)

    monkeypatch.setattr(service, "records", slow)
    poller = make_poller(service, requests_max=3)

    async def one(shard_id: str) -> None:
        async with aclosing(poller.read(shard_id, TRIM_HORIZON)) as reading:
            await anext(reading)

    await asyncio.gather(*(one(service.stream.add_shard()) for _ in range(20)))
    assert most == 3
