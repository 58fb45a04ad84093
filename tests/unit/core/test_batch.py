from __future__ import annotations

import pytest

from replicator.core.batch import Batcher, FlushReason


def batcher() -> Batcher[str]:
    return Batcher(rows_max=10, bytes_max=100, delay_seconds=0.1)


def test_nothing_is_never_due() -> None:
    empty = batcher()
    empty.flush(FlushReason.DRAIN)
    assert empty.due(99.0) is None
    assert empty.until_next(99.0) is None
    assert empty.take() == []


@pytest.mark.parametrize(
    ("rows", "nbytes", "now", "reason"),
    [
        (9, 99, 0.09, None),
        (10, 0, 0.0, FlushReason.ROWS),
        (0, 100, 0.0, FlushReason.BYTES),
        (0, 0, 0.1, FlushReason.DELAY),
    ],
)
def test_the_first_limit_reached_is_the_reason(
    rows: int, nbytes: int, now: float, reason: FlushReason | None
) -> None:
    waiting = batcher()
    waiting.add("a", rows, nbytes, 0.0)
    assert waiting.due(now) is reason
    assert (waiting.until_next(now) == 0.0) is (reason is not None)


def test_the_oldest_item_sets_the_time() -> None:
    waiting = batcher()
    waiting.add("a", 1, 1, 10.0)
    waiting.add("b", 9, 1, 10.05)
    assert waiting.take(rows_max=1) == ["a"]
    assert waiting.until_next(10.1) == pytest.approx(0.05)


def test_pressure_ends_with_what_waited_then() -> None:
    waiting = batcher()
    waiting.add("a", 1, 60, 0.0)
    waiting.add("b", 1, 30, 0.0)
    waiting.flush(FlushReason.PRESSURE)
    waiting.add("c", 1, 1, 0.0)
    assert waiting.take(bytes_max=60) == ["a"]
    assert waiting.due(0.0) is FlushReason.PRESSURE
    assert waiting.take(bytes_max=30) == ["b"]
    assert waiting.due(0.0) is None


def test_an_item_larger_than_the_limit_goes_alone() -> None:
    waiting = batcher()
    waiting.add("a", 50, 500, 0.0)
    waiting.add("b", 1, 1, 0.0)
    assert waiting.take() == ["a"]
    assert (waiting.count, waiting.rows, waiting.nbytes) == (1, 1, 1)
