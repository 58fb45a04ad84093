"""Alive means progress (law 10): which shard has been silent for too long, and why it waits.

Rules of the file:
1. Progress is an answer of the source: records, an empty event, an empty poll. It sets a
   shard's silence to zero.
2. Silence is the time since then in which the shard could have been read. While the sink
   holds it up (no room for more, a fence or a write that fails) its clock stands still:
   such a shard is paused or retrying, its sink is named, and it is not late.
3. A shard is late when its silence has reached the deadline, and until its next progress.
4. Each deadline of silence is a miss. A reader that was silent for at least half of it is cut
   and started again; after `misses_max` misses in a row the lease is given back. A failure that
   an operator must mend is a miss too: another worker's credentials may serve. A gap is none,
   and never late: nobody can read on and no restart mends it, so it is told as what it is.
5. A shard that was given back stays on the list, as late as it was, until somebody else owns
   it or it is owned here again; then its silence goes on where it stood.

All times are seconds of one monotonic clock of this process. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from replicator.model import Position

DEADLINE_SECONDS = 90.0
MISSES_MAX = 3
# An answer that is older than this no longer says how far behind the shard is.
HEARD_SECONDS = 10.0
# What waits for the sink for longer than this is said.
WAITING_SECONDS = 2.0
# A source's calls are counted over at least this much time.
CALLS_SECONDS = 300.0


class Phase(StrEnum):
    """What a shard does now."""

    STARTING = "starting"  # its lease is won; fence, lease and position are asked for
    READING = "reading"
    PAUSED = "paused"  # the sink holds it up
    ENDING = "ending"  # all is read; the sink makes the rest durable
    RETRYING = "retrying"  # after an error that may pass
    FAILED = "failed"  # the operator must act; looked at again now and then
    GAP = "gap"  # a lost position: stopped for good
    GIVEN_BACK = "given_back"  # nobody reads it here; somebody else may


_COULD_READ = frozenset({Phase.STARTING, Phase.READING, Phase.RETRYING})


@dataclass(frozen=True, slots=True)
class Cut:
    """End the shard's reader and start it again."""

    shard_id: str
    silent_seconds: float
    misses: int


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Give the shard's lease up: another worker may be able to read it."""

    shard_id: str
    silent_seconds: float
    misses: int


Action = Cut | GiveBack


@dataclass(frozen=True, slots=True)
class ShardView:
    """One shard as `status` shows it. Ages and durations in seconds.

    `position` is where reading stands (what is durable is the sink's to say); `lag_seconds`
    is None before the first answer, `waits_for_sink` the name of a sink that holds it up;
    `calls_per_hour` is there where the source counts its calls.
    """

    shard: str
    phase: Phase
    phase_seconds: float
    why: str
    position: str | None
    lag_seconds: float | None
    progress_age_seconds: float | None
    silent_seconds: float
    is_late: bool
    waits_for_sink: str | None
    calls_per_hour: float | None


def at_gap(shard_id: str, position: Position | None, why: str, seconds: float) -> ShardView:
    """A shard that stands at a gap and is owned by nobody here, for that long."""
    return ShardView(
        shard=shard_id,
        phase=Phase.GAP,
        phase_seconds=seconds,
        why=why,
        position=None if position is None else str(position),
        lag_seconds=None,
        progress_age_seconds=None,
        silent_seconds=0.0,
        is_late=False,
        waits_for_sink=None,
        calls_per_hour=None,
    )


class ShardLife:
    """One owned shard. The shell tells what happens; nothing here waits or decides."""

    __slots__ = (
        "_calls",
        "_clock_from",
        "_earlier",
        "_silent",
        "behind_ms",
        "deadline_seconds",
        "miss_at",
        "misses",
        "phase",
        "phase_from",
        "position",
        "progress_at",
        "why",
    )

    def __init__(self, now: float, deadline_seconds: float) -> None:
        self.deadline_seconds = deadline_seconds
        self.phase = Phase.STARTING
        self.phase_from = now
        self.why = ""
        self.position: Position | None = None
        self.behind_ms: int | None = None
        self.progress_at: float | None = None
        self.misses = 0
        self.miss_at = deadline_seconds
        self._silent = 0.0
        self._clock_from: float | None = now
        self._calls: tuple[float, int] | None = None
        self._earlier: tuple[float, int] | None = None

    # ---- what happens

    def starts(self, now: float) -> None:
        """The way to the first answer begins, or goes on after the sink has answered."""
        self._run_clock(now)
        self._enter(Phase.STARTING, now)

    def asks(self, now: float) -> None:
        """The source is asked for the next answer."""
        self._run_clock(now)
        self._enter(Phase.READING, now)

    def arrived(self, position: Position, behind_ms: int, now: float) -> None:
        """An answer came, be it empty: `position` is where reading goes on."""
        self.position = position
        self.behind_ms = behind_ms
        self.progress_at = now
        self.misses = 0
        self.miss_at = self.deadline_seconds
        self._silent = 0.0
        self._clock_from = now
        if self.phase is not Phase.READING:
            self._enter(Phase.READING, now)

    def waits_for_sink(self, why: str, now: float) -> None:
        """From here on a sink holds it up, until `asks` or `starts`."""
        self._stop_clock(now)
        self._enter(Phase.STARTING if self.phase is Phase.STARTING else Phase.PAUSED, now, why)

    def ends(self, why: str, now: float) -> None:
        """Everything was read; the rest is the sinks'."""
        self._stop_clock(now)
        self._enter(Phase.ENDING, now, why)

    def source_failed(self, now: float) -> None:
        """What is told next was the source's fault: its time counts."""
        self._run_clock(now)

    def retries(self, why: str, now: float) -> None:
        """It waits before the next attempt. The clock stays as it was: whoever failed is still
        the one who is waited for."""
        self._enter(Phase.RETRYING, now, why)

    def fails(self, why: str, now: float) -> None:
        """An operator must act. That is no pause, whoever it was, and a miss."""
        self._run_clock(now)
        self.missed(now)
        self._enter(Phase.FAILED, now, why)

    def stops(self, why: str, now: float) -> None:
        """It stands at a gap."""
        self._run_clock(now)
        self._count_anew(now)
        self._enter(Phase.GAP, now, why)

    def given_back(self, why: str, now: float) -> None:
        """The lease was given up though the shard isn't finished."""
        self._stop_clock(now)
        self._enter(Phase.GIVEN_BACK, now, why)

    def owned_again(self, now: float) -> None:
        """The lease came back: its misses are counted anew, its silence goes on."""
        self._count_anew(now)
        self.starts(now)

    def counted(self, calls: int, now: float) -> None:
        """The source made so many calls for the shard, ever."""
        if self._calls is None or calls < self._calls[1]:
            self._earlier, self._calls = None, (now, calls)
        elif now - self._calls[0] >= CALLS_SECONDS:
            self._earlier, self._calls = self._calls, (now, calls)

    # ---- what follows

    @property
    def is_held(self) -> bool:
        """True while the sink is waited for."""
        return self._clock_from is None and self.phase is not Phase.GIVEN_BACK

    def silent_seconds(self, now: float) -> float:
        """How long it could have been read without an answer."""
        return self._silent + (0.0 if self._clock_from is None else now - self._clock_from)

    def is_late(self, now: float) -> bool:
        """True while it is past its deadline."""
        is_silent = self.silent_seconds(now) >= self.deadline_seconds
        return is_silent and self.phase is not Phase.GAP

    def lag_seconds(self, now: float, waiting_from: float | None) -> float | None:
        """How far what is durable lies behind the newest record, at most; None before the
        first answer. That is the service's word, and the time that has passed since, or since
        the arrival of the oldest answer that isn't durable yet (`waiting_from`)."""
        if self.behind_ms is None or self.progress_at is None:
            return None
        age = now - self.progress_at
        unheard = 0.0 if self.phase is Phase.READING and age < HEARD_SECONDS else age
        waiting = 0.0 if waiting_from is None else now - waiting_from
        return self.behind_ms / 1_000 + max(unheard, waiting)

    def calls_per_hour(self, calls: int | None, now: float) -> float | None:
        """The newest pace; None where nothing is counted, or since too short a time."""
        since = self._earlier or self._calls
        if calls is None or since is None or now - since[0] < 1 or calls < since[1]:
            return None
        return (calls - since[1]) * 3_600 / (now - since[0])

    def state(self) -> str:
        """Phase and reason in one text."""
        return f"{self.phase}: {self.why}" if self.why else str(self.phase)

    def missed(self, now: float) -> None:
        """One more deadline passed, or attempt failed."""
        self.misses += 1
        # From now on, not from the deadline: a process that stood still misses once.
        self.miss_at = self.silent_seconds(now) + self.deadline_seconds

    def _count_anew(self, now: float) -> None:
        self.misses = 0
        self.miss_at = self.silent_seconds(now) + self.deadline_seconds

    def _enter(self, phase: Phase, now: float, why: str = "") -> None:
        if phase is not self.phase:
            self.phase_from = now
        self.phase = phase
        self.why = why

    def _run_clock(self, now: float) -> None:
        if self._clock_from is None:
            self._clock_from = now

    def _stop_clock(self, now: float) -> None:
        if self._clock_from is not None:
            self._silent += now - self._clock_from
            self._clock_from = None


class Liveness:
    """The owned shards of one pipeline. `sink` names what reasons show: its sinks."""

    def __init__(
        self,
        sink: str = "sink",
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        misses_max: int = MISSES_MAX,
    ) -> None:
        assert deadline_seconds > 0
        assert misses_max > 0
        self.sink = sink
        self.deadline_seconds = deadline_seconds
        self.misses_max = misses_max
        self._lives: dict[str, ShardLife] = {}

    def own(self, shard_id: str, now: float) -> ShardLife:
        """The lease was won."""
        life = self._lives.get(shard_id)
        if life is None or life.phase is Phase.GAP:  # its position was moved since
            life = self._lives[shard_id] = ShardLife(now, self.deadline_seconds)
        else:
            assert life.phase is Phase.GIVEN_BACK, f"{shard_id} is owned already"
            life.owned_again(now)
        return life

    def drop(self, shard_id: str) -> ShardLife | None:
        """The shard is finished, or somebody else's: what was known of it."""
        return self._lives.pop(shard_id, None)

    def given_back(self) -> tuple[str, ...]:
        """The shards that wait for another owner."""
        return tuple(s for s, life in self._lives.items() if life.phase is Phase.GIVEN_BACK)

    def lives(self) -> Iterator[tuple[str, ShardLife]]:
        """Every shard on the list, in no order."""
        return iter(self._lives.items())

    def failed(self, shard_id: str, why: str, now: float) -> GiveBack | None:
        """A reader of the shard failed as only an operator can mend it, or another worker."""
        life = self._lives[shard_id]
        life.fails(why, now)
        if life.misses < self.misses_max:
            return None
        return GiveBack(shard_id, life.silent_seconds(now), life.misses)

    def step(self, now: float) -> list[Action]:
        """What the misses since the last step demand."""
        actions: list[Action] = []
        for shard_id, life in self._lives.items():
            if life.is_held or life.phase not in _COULD_READ:
                continue
            silent = life.silent_seconds(now)
            if silent < life.miss_at:
                continue
            life.missed(now)
            if life.misses >= self.misses_max:
                actions.append(GiveBack(shard_id, silent, life.misses))
            elif life.phase is Phase.READING and now - life.phase_from >= self.deadline_seconds / 2:
                actions.append(Cut(shard_id, silent, life.misses))
        return actions

    def view(
        self,
        shard_id: str,
        life: ShardLife,
        now: float,
        *,
        calls: int | None = None,
        waiting_from: float | None = None,
        sink: str = "",
    ) -> ShardView:
        """One shard for display: `calls` as the source counts them (None where it doesn't),
        `waiting_from` as in `ShardLife.lag_seconds`, `sink` the one that is waited for, where
        it is known."""
        sink = sink or self.sink
        return ShardView(
            shard=shard_id,
            phase=life.phase,
            phase_seconds=now - life.phase_from,
            why=self._why(life, now, waiting_from, sink),
            position=None if life.position is None else str(life.position),
            lag_seconds=life.lag_seconds(now, waiting_from),
            progress_age_seconds=None if life.progress_at is None else now - life.progress_at,
            silent_seconds=life.silent_seconds(now),
            is_late=life.is_late(now),
            waits_for_sink=sink if life.is_held else None,
            calls_per_hour=life.calls_per_hour(calls, now),
        )

    def _why(self, life: ShardLife, now: float, waiting_from: float | None, sink: str) -> str:
        parts = [f"waits for sink {sink}: {life.why}" if life.is_held else life.why]
        if waiting_from is not None and (waited := now - waiting_from) >= WAITING_SECONDS:
            parts.append(f"not durable at sink {sink} for {waited:.0f} s")
        if life.is_late(now):
            parts.append(
                f"no answer of the source for {life.silent_seconds(now):.0f} s; the deadline is "
                f"{self.deadline_seconds:g} s"
            )
        return "; ".join(filter(None, parts))
