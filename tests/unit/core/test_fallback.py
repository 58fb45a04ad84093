from __future__ import annotations

from replicator.core.fallback import Fallback


def test_the_preferred_way_is_in_force_until_it_is_refused() -> None:
    fallback = Fallback(300.0)
    assert fallback.is_preferred
    assert not fallback.is_due(1e9)
    assert not fallback.try_now(1e9)
    assert not fallback.works(), "no news"


def test_each_change_is_news_once() -> None:
    fallback = Fallback(300.0)
    assert [fallback.refused(0.0), fallback.refused(1.0)] == [True, False]
    preferred = [fallback.is_preferred]
    assert [fallback.works(), fallback.works()] == [True, False]
    preferred.append(fallback.is_preferred)
    assert preferred == [False, True]
    assert fallback.refused(2.0)


def test_one_tries_at_a_time_however_long_it_takes() -> None:
    fallback = Fallback(300.0)
    fallback.refused(0.0)
    assert [fallback.try_now(now) for now in (299.0, 300.0, 300.0, 599.0, 600.0)] == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert not fallback.is_preferred, "a try alone changes nothing"


def test_a_refusal_puts_the_next_try_off() -> None:
    fallback = Fallback(300.0)
    fallback.refused(0.0)
    assert fallback.try_now(300.0)
    fallback.refused(310.0)
    assert not fallback.is_due(609.0)
    assert fallback.is_due(610.0)
