"""`core.tables` against what it promises, for any run of answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.core.tables import Tables, selected

NAMES = st.sampled_from(["orders", "users", "stock", "orders-tmp"])


@given(st.lists(st.sets(NAMES), max_size=12))
def test_a_table_runs_from_its_first_answer_to_the_second_that_lacks_it(
    answers: list[set[str]],
) -> None:
    tables, running = Tables(), set[str]()
    for number, found in enumerate(answers):
        change = tables.step(found)
        assert not set(change.added) & running, "nothing is started twice"
        assert set(change.removed) <= running, "only what runs is stopped"
        running = (running | set(change.added)) - set(change.removed)
        before = answers[number - 1] if number else set()
        # Model: who was in one of the last two answers runs; nobody else does.
        assert running == found | before
        assert tables.running == tuple(sorted(running))
        assert change.is_empty == (not change.added and not change.removed)


@given(st.sets(NAMES), st.sets(NAMES))
def test_exclude_wins(found: set[str], named: set[str]) -> None:
    assert selected(found, ["*"], named) == found - named
    assert selected(found, named, ()) == found & named
    assert selected(found, named, ["*"]) == set()
    assert selected(found, ["orders*"], ["*-tmp"]) == found & {"orders"}
