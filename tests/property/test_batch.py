"""A batcher loses nothing, keeps the order, and is due when it says so."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from replicator.core.batch import Batcher, FlushReason

ROWS_MAX, BYTES_MAX, DELAY_SECONDS = 10, 100, 0.1
ASKED = [FlushReason.PRESSURE, FlushReason.DRAIN, FlushReason.END]


class BatcherMachine(RuleBasedStateMachine):
    """The model is the list of (number, rows, nbytes, since) that waits."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher: Batcher[int] = Batcher(
            rows_max=ROWS_MAX, bytes_max=BYTES_MAX, delay_seconds=DELAY_SECONDS
        )
        self.waiting: list[tuple[int, int, int, float]] = []
        self.asked: list[int] = []
        self.added = 0
        self.now = 1000.0

    @rule(rows=st.integers(0, 14), nbytes=st.integers(0, 140))
    def add(self, rows: int, nbytes: int) -> None:
        self.batcher.add(self.added, rows, nbytes, self.now)
        self.waiting.append((self.added, rows, nbytes, self.now))
        self.added += 1

    @rule(seconds=st.floats(0, 0.3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sleep_until_next(self) -> None:
        until = self.batcher.until_next(self.now)
        assert (until is None) == (not self.waiting)
        if until is not None:
            assert 0 <= until <= DELAY_SECONDS + 1e-9
            # A timer never fires early; the next tick of the clock is the least it can be late.
            self.now += until + 1e-9
            assert self.batcher.due(self.now) is not None

    @rule(reason=st.sampled_from(ASKED))
    def flush(self, reason: FlushReason) -> None:
        self.batcher.flush(reason)
        self.asked = [number for number, *_ in self.waiting]
        assert self.batcher.due(self.now) is not None or not self.waiting

    @rule(rows_max=st.none() | st.integers(0, 20), bytes_max=st.none() | st.integers(0, 200))
    def take(self, rows_max: int | None, bytes_max: int | None) -> None:
        taken = self.batcher.take(rows_max, bytes_max)
        gone, self.waiting = self.waiting[: len(taken)], self.waiting[len(taken) :]
        assert taken == [number for number, *_ in gone], "in order of arrival, none left out"
        assert taken or not self.waiting, "at least one"
        rows_max = ROWS_MAX if rows_max is None else rows_max
        bytes_max = BYTES_MAX if bytes_max is None else bytes_max
        rows, nbytes = sum(g[1] for g in gone), sum(g[2] for g in gone)
        assert len(taken) <= 1 or (rows <= rows_max and nbytes <= bytes_max)
        if self.waiting:
            more = self.waiting[0]
            assert rows + more[1] > rows_max or nbytes + more[2] > bytes_max, "as many as fit"
        self.asked = [number for number in self.asked if number not in taken]

    @invariant()
    def counts(self) -> None:
        assert self.batcher.count == len(self.waiting)
        assert self.batcher.rows == sum(rows for _, rows, _, _ in self.waiting)
        assert self.batcher.nbytes == sum(nbytes for _, _, nbytes, _ in self.waiting)

    @invariant()
    def reasons(self) -> None:
        due = self.batcher.due(self.now)
        if not self.waiting:
            assert due is None
        elif self.batcher.rows >= ROWS_MAX:
            assert due is FlushReason.ROWS
        elif self.batcher.nbytes >= BYTES_MAX:
            assert due is FlushReason.BYTES
        elif self.asked:
            assert due in ASKED
        else:
            is_late = self.now >= self.waiting[0][3] + DELAY_SECONDS
            assert due is (FlushReason.DELAY if is_late else None)


TestBatcher = BatcherMachine.TestCase
