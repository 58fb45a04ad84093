"""Prefix expressions against Python's own calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.core.prefix import HOUR_US, Prefix, civil, days_of, formatted

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSTANTS = st.integers(0, 7_258_118_400_000_000).map(lambda us: EPOCH + timedelta(microseconds=us))


@given(INSTANTS)
def test_every_letter_is_what_the_calendar_says(at: datetime) -> None:
    us = (at - EPOCH) // timedelta(microseconds=1)
    told = formatted("yyyy yy MM dd DDD HH mm M d H m 'at' ''", us)
    python = at.strftime("%Y %y %m %d %j %H %M")
    assert told == f"{python} {at.month} {at.day} {at.hour} {at.minute} at '"


@given(st.integers(-1_000_000, 1_000_000))
def test_days_and_dates_are_each_others_inverse(days: int) -> None:
    assert days_of(*civil(days)) == days


@given(INSTANTS, st.sampled_from(["", "!{timestamp:yyyy-MM-dd}/", "x/!{timestamp:HHmm}/"]))
def test_all_instants_of_a_period_lie_in_one_place(at: datetime, text: str) -> None:
    prefix = Prefix.parse(text)
    us = (at - EPOCH) // timedelta(microseconds=1)
    start = us - us % prefix.period_us
    assert prefix.key(us) == prefix.key(start) == prefix.key(start + prefix.period_us - 1)


def test_the_default_is_firehoses() -> None:
    prefix = Prefix.parse("shop/")
    assert prefix.key(1_700_049_600_000_000) == "shop/2023/11/15/12/"
    assert (prefix.period_us, prefix.by_table, prefix.root) == (HOUR_US, False, "shop/")
    assert Prefix.parse("").key(0) == "1970/01/01/00/"


def test_tables_marks_and_errors_have_their_places() -> None:
    prefix = Prefix.parse("a/b{table}/!{firehose:random-string}/!{firehose:error-output-type}/")
    assert prefix.by_table
    assert prefix.names_error
    assert prefix.root == "a/"
    key = prefix.key(0, table="my/table", mark="m", error="processing-failed")
    assert key == "a/bmy_table/m/processing-failed/1970/01/01/00/"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!{timestamp:YYYY}/", "write y"),
        ("!{timestamp:yyy}/", "yyy is not known"),
        ("!{timestamp:ss}/", "ss is not known"),
        ("!{timestamp:'x}/", "a quote is not closed"),
        ("!{timestamp:yyyy", "closed by a brace"),
        ("!{firehose:shard}/", "random-string"),
        ("!{partitionKeyFromQuery:id}/", "parted by time and table"),
        ("!{partitionKeyFromLambda:id}/", "parted by time and table"),
        ("!{table}/", "closed by a brace"),
        ("!{other:x}/", "is unknown"),
        ("/data/", "no slash"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Prefix.parse(text)
