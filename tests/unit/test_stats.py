from __future__ import annotations

import random

import pytest

from replicator.telemetry.stats import Stats


def test_there_is_no_latency_before_the_first_change() -> None:
    assert Stats().latency_ms(0.5) is None


@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_percentiles_are_exact_to_two_percent(quantile: float) -> None:
    rng = random.Random(3)
    seconds = sorted(rng.lognormvariate(-4, 1.5) for _ in range(5_000))
    stats = Stats()
    for one in seconds:
        stats.observe_latency(one, 1)
    exact = seconds[max(0, int(quantile * len(seconds)) - 1)] * 1_000
    found = stats.latency_ms(quantile)
    assert found is not None
    assert exact <= found <= exact * 1.021


def test_a_write_counts_with_all_its_changes() -> None:
    stats = Stats()
    stats.observe_latency(0.001, 98)
    stats.observe_latency(1.0, 2)
    assert stats.latency_ms(0.5) == pytest.approx(1, rel=0.03)
    assert stats.latency_ms(0.98) == pytest.approx(1, rel=0.03)
    assert stats.latency_ms(0.99) == pytest.approx(1_000, rel=0.03)


def test_no_time_at_all_is_still_a_latency() -> None:
    stats = Stats()
    stats.observe_latency(0.0, 1)
    found = stats.latency_ms(0.5)
    assert found is not None
    assert 0 < found < 0.01
