"""Which stream may follow which into the same rows, and how far back a start reaches."""

from __future__ import annotations

import pytest

from replicator.core.start import (
    Brought,
    joining,
    reach_us,
    require_comparable,
    require_redrivable,
    require_start,
    require_successor,
)
from replicator.errors import FatalError, RejectedError, TransientError
from replicator.model import TRIM_HORIZON, Horizon, Position, Stream, after, at_timestamp

KINESIS = "arn:aws:kinesis:eu-north-1:000000000000:stream/products"
KINESIS_2 = "arn:aws-cn:kinesis:cn-north-1:000000000000:stream/kinesis"
TABLE = "arn:aws:dynamodb:eu-north-1:000000000000:table/products/stream/2026-01-01T00:00:00.000"
TABLE_2 = "arn:aws:dynamodb:eu-north-1:000000000000:table/products/stream/2026-01-02T00:00:00.000"


@pytest.mark.parametrize(
    ("start", "us"),
    [
        (TRIM_HORIZON, 100),
        (after("5"), 100),
        (at_timestamp(930), 70),
        (at_timestamp(1_001), 0),
        (at_timestamp(1), 100),
    ],
)
def test_a_start_reaches_back_no_further_than_the_stream(start: Position, us: int) -> None:
    assert reach_us(start, Horizon(now_us=1_000, retention_us=100)) == us


@pytest.mark.parametrize(
    ("arn", "begun"),
    [
        (KINESIS, []),
        (TABLE, []),
        (KINESIS_2, [KINESIS]),
        (KINESIS, [KINESIS_2, KINESIS]),
        (TABLE, [TABLE]),
    ],
)
def test_instants_follow_instants_and_a_stream_itself(arn: str, begun: list[str]) -> None:
    require_comparable(arn, begun)


@pytest.mark.parametrize(
    ("arn", "begun"),
    [
        (TABLE_2, [TABLE]),
        (TABLE, [TABLE, TABLE_2]),
        (TABLE, [KINESIS]),
        (KINESIS, [TABLE]),
        (KINESIS, [TABLE, KINESIS_2]),
    ],
)
def test_what_cannot_be_compared_is_refused_by_both_names(arn: str, begun: list[str]) -> None:
    with pytest.raises(FatalError) as refused:
        require_comparable(arn, begun)
    assert refused.value.code == "stream_replaced"
    assert arn in refused.value.message
    assert next(each for each in reversed(begun) if each != arn) in refused.value.message


def test_what_follows_a_stream_that_was_read_to_its_end() -> None:
    require_successor(KINESIS_2, KINESIS, is_left=False)
    for is_left, error in [(True, TransientError), (False, FatalError)]:
        with pytest.raises(error) as ended:
            require_successor(TABLE, TABLE_2, is_left=is_left)
        assert TABLE in str(ended.value)
        assert TABLE_2 in str(ended.value)


def test_a_start_into_rows_is_safe_after_streams_of_its_own_kind_only() -> None:
    stream = Stream("products", TABLE, 0)
    with pytest.raises(FatalError) as missing:
        require_start("p", stream, None, [])
    assert missing.value.code == "position_missing"
    assert "After another kind of source" in missing.value.message
    require_start("p", stream, TRIM_HORIZON, [TABLE])
    with pytest.raises(FatalError) as replaced:
        require_start("p", stream, TRIM_HORIZON, [KINESIS])
    assert replaced.value.code == "stream_replaced"


def brought(arn: str, *tables: str, is_mine: bool = False) -> Brought:
    return Brought(arn, frozenset(tables), is_mine=is_mine)


@pytest.mark.parametrize(
    ("before", "new", "rivals"),
    [
        ([brought(KINESIS, "a", "b", is_mine=True)], set(), {}),
        ([brought(KINESIS, "a", is_mine=True)], {"b"}, {}),
        ([brought(KINESIS, "a", is_mine=True), brought(KINESIS_2, "b")], {"b"}, {}),
        ([brought(TABLE, "b"), brought(KINESIS, "a", is_mine=True)], {"b"}, {"b": [TABLE]}),
        ([brought(TABLE, "c"), brought(KINESIS, "a", is_mine=True)], {"b"}, {}),
        # It was begun where others had been: the table was empty then, and is its own since.
        ([brought(TABLE, "a"), brought(KINESIS, "a", "b", is_mine=True)], set(), {}),
        # And these came after it.
        (
            [brought(KINESIS, "a", "b", is_mine=True), brought(TABLE, "b"), brought(TABLE_2, "b")],
            set(),
            {"b": [TABLE, TABLE_2]},
        ),
    ],
)
def test_a_table_is_of_the_stream_that_came_to_it_last(
    before: list[Brought], new: set[str], rivals: dict[str, list[str]]
) -> None:
    found = joining(KINESIS, {"a", "b"}, before)
    assert found.new == new
    assert found.rivals == {table: tuple(arns) for table, arns in rivals.items()}
    assert found.is_needed == bool(new or rivals)


def test_a_stream_that_goes_on_keeps_what_nobody_took() -> None:
    before = [brought(KINESIS, "a", "b", is_mine=True), brought(TABLE, "a"), brought(TABLE_2, "c")]
    found = joining(KINESIS, {"c"}, before)
    assert (found.new, found.left) == (frozenset("c"), frozenset("a"))
    assert found.rivals == {"c": (TABLE_2,)}
    assert found.tables(["b", "a"]) == ("b", "c")
    assert joining(KINESIS, {"a"}, before).left == frozenset(), "it goes there still"
    assert joining(KINESIS, {"c"}, before, is_log=True).left == frozenset()
    assert not joining(KINESIS, {"b"}, before).is_needed


def test_an_empty_table_has_no_rival() -> None:
    before = [brought(TABLE, "b"), brought(TABLE_2, "c"), brought(KINESIS, "a", is_mine=True)]
    found = joining(KINESIS, {"a", "b", "c"}, before)
    assert found.rivals_in({"a"}) == ()
    assert found.rivals_in({"a", "c"}) == (TABLE_2,)
    assert found.rivals_in({"b", "c"}) == (TABLE, TABLE_2)


@pytest.mark.parametrize(
    ("arn", "newest", "is_written"),
    [
        (KINESIS, KINESIS, True),
        (KINESIS, KINESIS_2, True),
        (TABLE, TABLE, True),
        (TABLE, TABLE_2, False),
        (KINESIS, TABLE, False),
        (TABLE, KINESIS, False),
        (KINESIS, None, False),
    ],
)
def test_a_dead_letter_is_written_where_its_version_says_something(
    arn: str, newest: str | None, is_written: bool
) -> None:
    """The rows are the newest stream's: the table was empty when one of another kind came."""
    if is_written:
        require_redrivable(arn, newest)
    else:
        with pytest.raises(RejectedError, match="versions can't be compared"):
            require_redrivable(arn, newest)
