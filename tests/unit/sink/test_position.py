from __future__ import annotations

import pytest

from replicator.model import (
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    Position,
    PositionKind,
    after,
    at_timestamp,
)
from replicator.sink.position import furthest

# Each lies before the next; numbers are compared as numbers, not as text.
IN_ORDER = [
    TRIM_HORIZON,
    at_timestamp(1),
    at_timestamp(2),
    LATEST,
    after("9"),
    Position(PositionKind.AT_SEQUENCE_NUMBER, sequence_number="10"),
    after("10"),
    after("100000000000000000000000000000000000000000000000000000001"),
    SHARD_END,
]


@pytest.mark.parametrize("stored", IN_ORDER)
@pytest.mark.parametrize("new", IN_ORDER)
def test_the_later_one_stays(stored: Position, new: Position) -> None:
    expected = max(stored, new, key=IN_ORDER.index)
    assert furthest(stored, new) == expected


def test_anything_is_further_than_nothing() -> None:
    assert furthest(None, TRIM_HORIZON) == TRIM_HORIZON
