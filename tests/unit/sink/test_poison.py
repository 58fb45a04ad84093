from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.sink.postgres_poison import find_poison


def search(count: int, bad: set[int]) -> tuple[list[int], int]:
    probes = 0

    async def probe(lo: int, hi: int) -> ValueError | None:
        nonlocal probes
        probes += 1
        assert 0 <= lo < hi <= count
        return ValueError(lo) if any(lo <= row < hi for row in bad) else None

    # The probe never waits, so the search is over at its first step.
    with pytest.raises(StopIteration) as ended:
        find_poison(count, probe).send(None)
    found: list[tuple[int, ValueError]] = ended.value.value
    assert all(error.args == (row,) for row, error in found)
    return [row for row, _ in found], probes


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_exactly_the_refused_rows_are_found(case: tuple[int, set[int]]) -> None:
    count, bad = case
    found, _ = search(count, bad)
    assert found == sorted(bad)


def test_one_among_many_costs_few_probes() -> None:
    found, probes = search(5000, {3141})
    assert found == [3141]
    assert probes <= 2 * 13
