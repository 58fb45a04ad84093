from __future__ import annotations

import pytest

from replicator.core.retry import Backoff


@pytest.mark.parametrize(
    ("attempt", "jitter", "seconds"),
    [(0, 0.0, 0.5), (0, 0.5, 0.75), (1, 0.0, 1.0), (3, 0.5, 6.0), (4, 0.5, 7.5), (10**9, 0.0, 5.0)],
)
def test_delays_double_up_to_the_cap(attempt: int, jitter: float, seconds: float) -> None:
    assert Backoff(1.0, 10.0).next(attempt, jitter) == pytest.approx(seconds)


@pytest.mark.parametrize("attempt", [0, 5, 100])
@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_the_service_is_waited_for(attempt: int, jitter: float) -> None:
    backoff = Backoff(1.0, 10.0)
    assert backoff.next(attempt, jitter, retry_after_seconds=20.0) >= 20.0
    assert backoff.next(attempt, jitter, retry_after_seconds=20.0) <= 21.0
    assert backoff.next(attempt, jitter, 0.0) >= backoff.next(attempt, jitter)


def test_nonsense_is_refused() -> None:
    with pytest.raises(AssertionError):
        Backoff(2.0, 1.0)
    with pytest.raises(AssertionError):
        Backoff().next(0, 1.0)
