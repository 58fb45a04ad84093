from __future__ import annotations

import pytest

from replicator.core.budget import Budget


def test_it_fills_to_the_limit_and_no_further() -> None:
    budget = Budget(10)
    assert budget.try_take(4)
    assert budget.try_take(6)
    assert not budget.try_take(1)
    assert budget.try_take(0)
    assert (budget.used, budget.left) == (10, 0)
    budget.give(6)
    assert budget.try_take(5)
    assert (budget.used, budget.left, budget.peak) == (9, 1, 10)


def test_one_record_always_fits_but_only_alone() -> None:
    budget = Budget(10)
    budget.force_take(1)
    assert not budget.try_take(11)
    budget.give(1)
    assert budget.try_take(11)
    assert not budget.try_take(1)
    assert (budget.left, budget.peak) == (0, 11)


def test_what_exists_already_may_pass_the_limit() -> None:
    budget = Budget(10)
    assert budget.try_take(10)
    budget.force_take(5)
    assert (budget.used, budget.peak, budget.left) == (15, 15, 0)
    budget.give(5)
    assert not budget.try_take(1)


def test_more_than_was_taken_can_not_be_given() -> None:
    with pytest.raises(AssertionError):
        Budget(10).give(1)
