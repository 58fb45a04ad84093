"""The pace never breaks the service's limits, never waits without need, and idles cheaply."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from replicator.core.pace import Pace, PaceLimits

# Sums of floats: what a timer can't tell apart.
TINY = 1e-6


@dataclass(frozen=True)
class Turn:
    """What one read met: how long its answer took and what it was."""

    seconds: float
    records: int
    nbytes: int
    behind_ms: int | None
    is_throttled: bool
    is_late: float


TURNS = st.builds(
    Turn,
    seconds=st.floats(0, 3),
    records=st.integers(0, 10_000),
    nbytes=st.integers(0, 10_000_000),
    behind_ms=st.none() | st.integers(0, 90_000_000),
    is_throttled=st.booleans(),
    is_late=st.floats(0, 2),
)
LIMITS = st.builds(
    PaceLimits,
    reads_per_second=st.floats(0.5, 20),
    bytes_per_second=st.floats(10_000, 10_000_000),
    records_max=st.sampled_from([1_000, 10_000]),
    idle_seconds_max=st.floats(0.25, 60),
)
JITTERS = st.floats(0, 1, exclude_max=True)


def play(limits: PaceLimits, turns: list[Turn], jitter: float) -> list[tuple[float, float, int]]:
    """When each read was asked and answered, and its bytes."""
    pace = Pace(limits)
    now = 1_000.0
    seen: list[tuple[float, float, int]] = []
    for turn in turns:
        now += pace.wait(now) + turn.is_late
        asked_at = now
        pace.asked(now)
        assert 1 <= pace.limit <= limits.records_max
        now += turn.seconds
        if turn.is_throttled:
            pace.throttled(now, retry_after_seconds=None, jitter=jitter)
            seen.append((asked_at, now, 0))
        else:
            nbytes = turn.nbytes if turn.records else 0
            pace.answered(
                now,
                records=turn.records,
                nbytes=nbytes,
                behind_ms=turn.behind_ms,
                jitter=jitter,
            )
            seen.append((asked_at, now, nbytes))
    assert pace.calls == len(turns)
    assert pace.throttles == sum(turn.is_throttled for turn in turns)
    return seen


@given(limits=LIMITS, turns=st.lists(TURNS, max_size=60), jitter=JITTERS)
def test_no_second_ever_has_more_reads_than_the_service_allows(
    limits: PaceLimits, turns: list[Turn], jitter: float
) -> None:
    asked = [asked_at for asked_at, _, _ in play(limits, turns, jitter)]
    for earlier, later in pairwise(asked):
        assert later - earlier >= limits.interval_seconds - TINY


@given(limits=LIMITS, turns=st.lists(TURNS, max_size=60), jitter=JITTERS)
def test_a_read_is_made_only_when_the_bytes_before_it_are_paid_for(
    limits: PaceLimits, turns: list[Turn], jitter: float
) -> None:
    """From any read on, at most the rate's bytes came until the next ones are asked for: no
    answer is asked for while more came than the time since then allows."""
    seen = play(limits, turns, jitter)
    for first in range(len(seen)):
        since = seen[first][1]
        came = 0
        for asked_at, _, nbytes in seen[first:]:
            if asked_at >= since:
                assert came <= limits.bytes_per_second * (asked_at - since) + 1
            came += nbytes


@given(
    limits=LIMITS,
    turns=st.lists(TURNS.filter(lambda turn: not turn.is_throttled), min_size=1, max_size=60),
    jitter=JITTERS,
)
def test_far_behind_only_the_limits_of_the_service_are_waited_for(
    limits: PaceLimits, turns: list[Turn], jitter: float
) -> None:
    pace = Pace(limits)
    now = 1_000.0
    debt_until = now
    for turn in turns:
        asked_at = now
        pace.asked(now)
        now += turn.seconds
        pace.answered(
            now,
            records=turn.records,
            nbytes=turn.nbytes,
            behind_ms=limits.behind_ms_min,
            jitter=jitter,
        )
        debt_until = max(debt_until, now) + turn.nbytes / limits.bytes_per_second
        allowed_at = max(now, asked_at + limits.interval_seconds, debt_until)
        assert now + pace.wait(now) <= allowed_at + TINY
        now += pace.wait(now)


@given(limits=LIMITS, before=st.lists(TURNS, max_size=20), jitter=JITTERS)
def test_an_idle_shard_is_asked_seldom_and_never_forgotten(
    limits: PaceLimits, before: list[Turn], jitter: float
) -> None:
    idle = Turn(0.01, 0, 0, 0, is_throttled=False, is_late=0.0)
    seen = play(limits, [*before, *[idle] * 200], jitter)
    asked = [asked_at for asked_at, _, _ in seen]
    apart = [later - earlier for earlier, later in pairwise(asked[-50:])]
    longest = max(limits.idle_seconds_max, limits.interval_seconds) + 0.01
    assert all(0.8 * limits.idle_seconds_max <= seconds <= longest + TINY for seconds in apart)


@given(limits=LIMITS, throttles=st.integers(1, 20), jitter=JITTERS)
def test_throttles_double_the_distance_up_to_a_cap(
    limits: PaceLimits, throttles: int, jitter: float
) -> None:
    pace = Pace(limits)
    now = 0.0
    waits: list[float] = []
    for _ in range(throttles):
        pace.asked(now)
        pace.throttled(now, retry_after_seconds=None, jitter=jitter)
        waits.append(pace.wait(now))
        now += waits[-1]
    for count, wait in enumerate(waits, start=1):
        full = min(limits.slow_seconds_max, limits.interval_seconds * 2**count)
        assert full - TINY <= wait <= 1.2 * full + TINY


@given(retry_after=st.floats(0, 60), jitter=JITTERS)
def test_the_services_own_wait_is_kept(retry_after: float, jitter: float) -> None:
    pace = Pace(PaceLimits())
    pace.asked(0.0)
    pace.throttled(0.0, retry_after_seconds=retry_after, jitter=jitter)
    assert pace.wait(0.0) >= retry_after


@given(size=st.integers(1, 1_000_000), records=st.integers(1, 10_000))
def test_answers_are_asked_for_in_a_size_that_many_shards_at_once_can_have(
    size: int, records: int
) -> None:
    limits = PaceLimits()
    pace = Pace(limits)
    pace.asked(0.0)
    pace.answered(1.0, records=records, nbytes=size * records, behind_ms=60_000, jitter=0.0)
    assert pace.limit == 1 or pace.limit * size <= limits.answer_bytes
    assert (
        pace.limit * size > limits.answer_bytes / 2
        or pace.limit == limits.records_max
        or size > limits.answer_bytes / 2
    )


def test_at_the_tip_a_change_makes_a_slow_shard_quick() -> None:
    limits = PaceLimits(idle_seconds_max=10.0)
    pace = Pace(limits)
    now = 0.0
    for _ in range(50):
        pace.asked(now)
        pace.answered(now, records=0, nbytes=0, behind_ms=0, jitter=0.0)
        now += pace.wait(now)
    assert pace.wait(now - 10.0) == 10.0
    pace.asked(now)
    pace.answered(now, records=1, nbytes=100, behind_ms=0, jitter=0.0)
    assert pace.wait(now) == limits.busy_seconds


@given(
    limits=LIMITS,
    crowd_seconds=st.floats(0, 30),
    behind_ms=st.sampled_from([0, 10_000]),
    records=st.integers(0, 1),
    jitter=JITTERS,
)
def test_a_crowd_makes_idle_shards_slower_and_no_other(
    limits: PaceLimits, crowd_seconds: float, behind_ms: int, records: int, jitter: float
) -> None:
    pace = Pace(limits)
    now = 0.0
    for _ in range(100):
        pace.asked(now)
        pace.answered(
            now,
            records=records,
            nbytes=0,
            behind_ms=behind_ms,
            jitter=jitter,
            crowd_seconds=crowd_seconds,
        )
        wait = pace.wait(now)
        now += wait
    if behind_ms:
        longest = shortest = 0.0
    elif records:
        longest = limits.busy_seconds
        shortest = 0.0
    else:
        longest = max(limits.idle_seconds_max, crowd_seconds)
        shortest = 0.8 * longest
    assert shortest - TINY <= wait <= max(longest, limits.interval_seconds) + TINY


def test_the_first_pause_in_a_crowd_is_a_part_of_the_longest() -> None:
    """Ten thousand idle shards, each asked a dozen times at first, kept a core busy for minutes."""
    pace = Pace(PaceLimits())
    pace.asked(0.0)
    pace.answered(0.0, records=0, nbytes=0, behind_ms=0, jitter=0.0, crowd_seconds=30.0)
    assert pace.wait(0.0) == 7.5
