"""The memory of log sinks over all shards (law 8): whatever windows want, and whoever takes while
others do, together they hold no more than their share, and nobody is kept from taking."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.core.budget import Budget
from replicator.core.windows import Windows

LIMIT = 1_000


class FakeWindow:
    """What it holds back is given with its next batch; what it remembers is forgotten at once."""

    def __init__(self) -> None:
        self.held = self.remembered = self.early = self.forgotten = 0
        self.bytes_max: int | None = None
        self.is_busy = False

    @property
    def nbytes(self) -> int:
        assert not self.is_busy, "a thread is at it"
        return self.held + self.remembered

    def limit(self, bytes_max: int | None) -> None:
        assert not self.is_busy, "a thread is at it"
        self.bytes_max = bytes_max
        self._forget()

    def take(self, held: int, remembered: int) -> None:
        self.held += held
        self.remembered += remembered
        if self.bytes_max is not None and self.held > self.bytes_max:
            self.early += self.held - self.bytes_max
            self.held = self.bytes_max
        self._forget()

    def _forget(self) -> None:
        if self.bytes_max is not None:
            kept = min(self.remembered, max(0, self.bytes_max - self.held))
            self.forgotten += self.remembered - kept
            self.remembered = kept


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True),
            st.integers(0, 600),
            st.integers(0, 600),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_together_they_hold_no_more_than_their_share(
    steps: list[tuple[list[int], int, int, bool]],
) -> None:
    windows = Windows(LIMIT)
    shards = [FakeWindow() for _ in range(5)]
    for at_once, held, remembered, is_released in steps:
        with ExitStack() as stack:
            for place in at_once:
                stack.enter_context(windows.taking(shards[place], held + remembered))
                shards[place].is_busy = True
                assert windows.held <= LIMIT
            for place in at_once:
                shards[place].take(held, remembered)
                shards[place].is_busy = False
        assert sum(each.nbytes for each in shards) <= windows.held <= LIMIT
        if is_released:
            windows.release(shards[at_once[0]])
            shards[at_once[0]] = FakeWindow()
    assert windows.early == sum(each.early for each in shards) or any(step[3] for step in steps)
    for each in shards:
        windows.release(each)
    assert windows.held == 0


def test_the_largest_forgets_first() -> None:
    windows = Windows(LIMIT)
    large, small, new = (FakeWindow() for _ in range(3))
    for window, nbytes in ((large, 700), (small, 250)):
        with windows.taking(window, nbytes):
            window.take(0, nbytes)
    with windows.taking(new, 200):
        new.take(100, 100)
    assert (small.nbytes, new.nbytes, new.early) == (250, 200, 0)
    assert large.nbytes < 550
    assert windows.forgotten == large.forgotten == 700 - large.nbytes
    assert windows.held == windows.limit - 1_000 + sum(w.nbytes for w in (large, small, new))


def test_what_a_plan_decided_is_not_bound_by_memory() -> None:
    windows = Windows(LIMIT)
    window = FakeWindow()
    with windows.taking(window, 5_000, is_bound=False):
        window.take(5_000, 0)
    assert (window.early, windows.held) == (0, 5_000)
    with windows.taking(window, 0):
        window.take(0, 0)
    assert (window.early, windows.held) == (4_000, 1_000)


def test_who_fails_holds_nothing() -> None:
    windows = Windows(LIMIT)
    window = FakeWindow()
    with pytest.raises(RuntimeError), windows.taking(window, 100):
        raise RuntimeError
    assert windows.held == 0


def test_windows_leave_half_of_the_budget_to_reading() -> None:
    budget = Budget(2 * LIMIT)
    window = FakeWindow()
    with budget.windows.taking(window, 5_000):
        window.take(5_000, 5_000)
    assert (budget.windows.held, budget.left) == (LIMIT, LIMIT)
    assert budget.try_take(LIMIT)
    assert not budget.try_take(1)
    budget.give(LIMIT)
    assert budget.try_take(3 * LIMIT), "one record always fits"
