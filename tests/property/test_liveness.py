"""Silence is the time without an answer in which nobody but the source is waited for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.core.liveness import Cut, GiveBack, Liveness, Phase
from replicator.model import TRIM_HORIZON

DEADLINE, MISSES = 10.0, 3
SHARD = "shardId-0"
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["starts", "asks", "arrived", "paused", "ends", "failed", "gap", "retries", "step"]
        ),
        st.floats(min_value=0, max_value=25),
    ),
    max_size=60,
)


class Told:
    """A life beside a plain account of its intervals."""

    def __init__(self) -> None:
        self.now = 100.0
        self.alive = Liveness("w", deadline_seconds=DEADLINE, misses_max=MISSES)
        self.life = self.alive.own(SHARD, self.now)
        self.silence = 0.0
        self.runs = True
        self.misses = 0

    def tell(self, what: str, after: float) -> None:
        self.now += after
        if self.runs:
            self.silence += after
        life, now = self.life, self.now
        match what:
            case "starts":
                life.starts(now)
                self.runs = True
            case "asks":
                life.asks(now)
                self.runs = True
            case "arrived":
                life.arrived(TRIM_HORIZON, 0, now)
                self.runs, self.silence, self.misses = True, 0.0, 0
            case "paused":
                life.waits_for_sink("room", now)
                self.runs = False
            case "ends":
                life.ends("the rest", now)
                self.runs = False
            case "failed":
                action = self.alive.failed(SHARD, "denied", now)
                self.runs, self.misses = True, life.misses
                assert (action is not None) == (life.misses >= MISSES)
                if action is not None:
                    self.again()
            case "gap":
                life.stops("trimmed", now)
                self.runs, self.misses = True, 0
            case "retries":
                life.retries("cut", now)
            case _:
                self.step()

    def step(self) -> None:
        for action in self.alive.step(self.now):
            assert isinstance(action, Cut | GiveBack)
            assert self.runs, "nothing is done to a shard that its sink holds up"
            assert self.life.phase in {Phase.STARTING, Phase.READING, Phase.RETRYING}
            assert action.silent_seconds >= DEADLINE
            assert action.misses > self.misses
            self.misses = action.misses
            assert isinstance(action, GiveBack) == (action.misses >= MISSES)
            if isinstance(action, GiveBack):
                self.again()

    def again(self) -> None:
        """Given back, and owned again."""
        self.life.given_back("silent", self.now)
        self.alive.own(SHARD, self.now)
        self.runs, self.misses = True, 0


@given(STEPS)
def test_silence_is_what_the_intervals_say(steps: list[tuple[str, float]]) -> None:
    told = Told()
    for what, after in steps:
        told.tell(what, after)
        assert abs(told.life.silent_seconds(told.now) - told.silence) < 1e-6
        view = told.alive.view(SHARD, told.life, told.now)
        if abs(told.silence - DEADLINE) > 1e-6:
            is_at_gap = view.phase is Phase.GAP
            assert view.is_late == (told.silence > DEADLINE and not is_at_gap)
        assert (view.waits_for_sink == "w") == (not told.runs)
        if view.is_late:
            assert "the deadline is 10 s" in view.why


@given(STEPS)
def test_an_answer_makes_it_healthy_at_once(steps: list[tuple[str, float]]) -> None:
    told = Told()
    for what, after in steps:
        told.tell(what, after)
    told.tell("arrived", 1_000.0)
    assert not told.life.is_late(told.now)
    assert told.alive.step(told.now) == []


@given(STEPS, st.integers(min_value=1, max_value=200))
def test_a_silent_reader_is_cut_at_each_deadline_and_then_given_back(
    steps: list[tuple[str, float]], ticks: int
) -> None:
    told = Told()
    for what, after in steps:
        told.tell(what, after)
    told.tell("arrived", 0.0)
    told.tell("asks", 0.0)
    seen: list[type] = []
    for _ in range(ticks):
        told.now += 1.0
        seen += [type(action) for action in told.alive.step(told.now)]
        if seen[-1:] == [GiveBack]:
            break
    assert seen == [Cut, Cut, GiveBack][: ticks // 10]


@given(st.floats(min_value=0, max_value=1e6))
def test_a_pause_of_any_length_counts_against_no_deadline(seconds: float) -> None:
    told = Told()
    told.tell("arrived", 1.0)
    told.tell("paused", 0.0)
    told.tell("asks", seconds)
    assert not told.life.is_late(told.now)
    assert told.alive.step(told.now) == []


def test_a_shard_that_was_given_back_is_as_late_as_it_was_until_another_owns_it() -> None:
    alive = Liveness("w", deadline_seconds=DEADLINE)
    alive.own(SHARD, 0.0).given_back("silent", 25.0)
    (view,) = [alive.view(shard, life, 500.0) for shard, life in alive.lives()]
    assert view.is_late
    assert view.silent_seconds == 25.0
    assert view.waits_for_sink is None
    assert alive.given_back() == (SHARD,)
    again = alive.own(SHARD, 600.0)
    assert again.is_late(600.0), "green by progress only"
    assert alive.step(605.0) == [], "but its misses are counted anew"
    again.arrived(TRIM_HORIZON, 0, 606.0)
    assert not again.is_late(606.0)
    again.given_back("silent", 620.0)
    alive.drop(SHARD)
    assert list(alive.lives()) == []


def test_a_gap_that_was_mended_is_a_new_beginning() -> None:
    """A shard that was owned again after its gap was taken for one that is owned twice."""
    alive = Liveness("w", deadline_seconds=DEADLINE)
    alive.own(SHARD, 0.0).stops("trimmed", 1.0)
    assert alive.step(500.0) == []
    again = alive.own(SHARD, 500.0)
    assert again.phase is Phase.STARTING
    assert not again.is_late(500.0)


def test_a_process_that_stood_still_misses_once() -> None:
    alive = Liveness("w", deadline_seconds=DEADLINE)
    alive.own(SHARD, 0.0).asks(0.0)
    assert [type(action) for action in alive.step(10_000.0)] == [Cut]
    assert alive.step(10_001.0) == []


def test_lag_is_the_services_word_and_what_has_passed_since() -> None:
    life = Liveness("w", deadline_seconds=DEADLINE).own(SHARD, 0.0)
    assert life.lag_seconds(5.0, None) is None
    life.arrived(TRIM_HORIZON, 1_500, 10.0)
    assert life.lag_seconds(12.0, None) == 1.5, "an idle shard isn't behind between two events"
    assert life.lag_seconds(30.0, None) == 21.5, "but nobody knows after a while"
    assert life.lag_seconds(12.0, 11.0) == 2.5, "nor is it there before it is durable"
    life.waits_for_sink("room", 12.0)
    assert life.lag_seconds(14.0, None) == 5.5


def test_calls_an_hour_are_those_of_the_last_minutes() -> None:
    life = Liveness("w", deadline_seconds=DEADLINE).own(SHARD, 0.0)
    assert life.calls_per_hour(None, 10.0) is None
    assert life.calls_per_hour(7, 10.0) is None
    for tick in range(2_000):
        life.counted(10_000 + tick, float(tick * 10))  # 360 an hour, after a busy start
    assert life.calls_per_hour(12_000, 20_000.0) == 360.0
    life.counted(0, 20_010.0)  # the source began to count anew
    assert life.calls_per_hour(1, 20_020.0) == 360.0
