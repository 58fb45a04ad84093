"""What keys and folders tell, and that who goes by folders misses nothing that keys would find."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.core.places import Places, Told
from replicator.core.prefix import HOUR_US, Prefix
from replicator.sink.s3_archive import Span

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON_US = 1_700_049_600_000_000  # 2023-11-15T12:00:00Z
DAY_US = 24 * HOUR_US
NAME = "shop-shardId-000000000001-000000007-1-0123456789.jsonl.gz"


def us_of(*parts: int) -> int:
    return (datetime(*parts, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)  # type: ignore[arg-type, misc]


INSTANTS = st.integers(us_of(2000, 1, 1), us_of(2099, 12, 31))
TABLES = st.sampled_from(["products", "orders-2020-01-01", "t2021", "1", "2023"])
PREFIXES = st.sampled_from(
    [
        "",
        "data/",
        "{table}/",
        "data/{table}/!{timestamp:yyyy/MM/dd}/",
        "year=!{timestamp:yyyy}/month=!{timestamp:MM}/day=!{timestamp:dd}/hour=!{timestamp:HH}/",
        "!{timestamp:yyyy-MM-dd}/{table}/",
        "!{timestamp:yyyyMMdd}/!{timestamp:HHmm}/",
        "x/!{timestamp:yy/DDD}/y/",
        "!{timestamp:y/M/d/H}/",
        "!{timestamp:yMdH}/",
        "!{timestamp:yyyy/M}-!{timestamp:d}",
        "!{timestamp:yyyy/MM}/",
        "!{timestamp:dd/MM/yyyy}/",
        "!{timestamp:MM/dd}/",
        "!{timestamp:yyyy/HH/mm}/",
        "!{timestamp:yyyy/MM/dd-DDD}/",
        "{table}!{timestamp:yyyy-DDD}/",
        "{table}-!{timestamp:yyyy-MM-dd}-",
        "{table}-!{timestamp:yyyy-MM-dd}-!{firehose:random-string}/",
        "!{timestamp:yyyy}!{firehose:random-string}/!{timestamp:MM/dd}/",
        "!{firehose:random-string}/!{timestamp:yyyy/MM/dd}/",
        "!{timestamp:yyyy'T'MMdd-HHmm}/v2!{timestamp:yyyy}/",
        "a{table}b/!{timestamp:yyyy'/in/'MM}/",
        "v!{timestamp:d}1/!{timestamp:yyyy/MM}/",
    ]
)


@given(INSTANTS, PREFIXES, TABLES)
def test_what_is_told_is_true(us: int, text: str, table: str) -> None:
    prefix = Prefix.parse(text)
    places = Places(prefix)
    key = prefix.key(us, table=table if prefix.by_table else None, mark="0a1b2c3d4e") + NAME
    folders = [key[: n + 1] for n, letter in enumerate(key) if letter == "/"]
    for each in [*folders, key]:
        told = places.told(each)
        assert told.table in {None, table}
        if told.from_us is not None and told.to_us is not None:
            start_us = us - us % prefix.period_us
            assert told.from_us <= start_us < start_us + prefix.period_us <= told.to_us


PARTS = st.sampled_from(
    "2023 2024 23 11 12 13 02 30 319 00 99 9999 0000 x products 2023-11-15 2023-319 year=2023"
    " month=11 month=13 20231115 in".split()
)
KEYS = st.lists(PARTS, min_size=1, max_size=7).map("/".join)
TIMES = st.none() | st.integers(us_of(2022, 12, 1), us_of(2024, 2, 1))


@given(KEYS, PREFIXES, TIMES, TIMES, st.none() | st.just("products"))
def test_a_folder_that_tells_tells_of_all_keys_in_it(
    key: str, text: str, from_us: int | None, to_us: int | None, table: str | None
) -> None:
    """Whoever wrote the key, by whatever layout."""
    places = Places(Prefix.parse(text))
    span = Span(from_us, to_us, table)
    told = places.told(key)
    folders = [key[: n + 1] for n, letter in enumerate(key) if letter == "/"]
    if span.may_hold(told):
        assert all(span.may_hold(places.told(each)) for each in folders)
    for each in folders:
        assert places.tells_time or not places.leads_on(each)


@pytest.mark.parametrize(
    ("text", "table", "period"),
    [
        ("a/", None, (NOON_US, NOON_US + HOUR_US)),
        ("a/!{timestamp:yyyy/MM}/", None, (us_of(2023, 11, 1), us_of(2023, 12, 1))),
        ("a/!{timestamp:yyyy}/{table}/", "orders-eu", (us_of(2023, 1, 1), us_of(2024, 1, 1))),
        ("a/!{timestamp:yyyy-MM-dd}/{table}-", None, (us_of(2023, 11, 15), us_of(2023, 11, 16))),
        ("{table}!{timestamp:yyyy-DDD}/", None, (us_of(2023, 11, 15), us_of(2023, 11, 16))),
        ("a/!{timestamp:yyyy/MM/dd/mm}/", None, (us_of(2023, 11, 15), us_of(2023, 11, 16))),
        ("a/!{timestamp:yyyy/MM/dd-DDD}/", None, (us_of(2023, 11, 15), us_of(2023, 11, 16))),
        ("a/!{timestamp:yyMMddHHmm}", None, (NOON_US, NOON_US + 60_000_000)),
        # The digits could be others'.
        ("!{timestamp:yMd}/", None, None),
        ("{table}!{timestamp:M-d-yyyy}/", None, None),
        ("a/{table}-!{timestamp:yyyy-MM-dd}-", None, None),
        ("!{timestamp:HH}/", None, None),
    ],
)
def test_a_key_tells_what_is_certain(
    text: str, table: str | None, period: tuple[int, int] | None
) -> None:
    prefix = Prefix.parse(text)
    key = prefix.key(NOON_US, table="orders-eu") + NAME
    assert Places(prefix).told(key) == Told(table, *(period or (None, None)))


@pytest.mark.parametrize(
    ("text", "key", "told"),
    [
        ("data/", "other/2026/01/01/00/x", Told()),
        ("data/", "data/0000/01/01/00/x", Told()),
        ("data/", "data/2023/x", Told(None, us_of(2023, 1, 1), us_of(2024, 1, 1))),
        ("data/", "data/2023/13/01/00/x", Told(None, us_of(2023, 1, 1), us_of(2024, 1, 1))),
        ("", "2023/02/30/00/x", Told(None, us_of(2023, 2, 1), us_of(2023, 3, 1))),
        ("", "2023/02/28/24/x", Told(None, us_of(2023, 2, 28), us_of(2023, 3, 1))),
        # An older layout's: its first folder is no table.
        ("{table}/", "2023/11/15/12/x", Told()),
        (
            "!{timestamp:yyyy/yyyy-MM}/",
            "2023/2024-01/x",
            Told(None, us_of(2023, 1, 1), us_of(2024, 1, 1)),
        ),
    ],
)
def test_a_name_of_somebody_elses_tells_what_its_folders_do(
    text: str, key: str, told: Told
) -> None:
    assert Places(Prefix.parse(text)).told(key) == told


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ("data/", True),
        ("{table}/", True),
        ("!{timestamp:yyyy-MM-dd}/!{firehose:random-string}/", True),
        ("!{firehose:random-string}/", False),
        ("!{timestamp:MM/dd}/", False),
        ("!{timestamp:yMd}/", False),
        ("!{timestamp:yyyy-MM-dd}-", False),
    ],
)
def test_whether_folders_tell_of_time(text: str, *, tells: bool) -> None:
    assert Places(Prefix.parse(text)).tells_time == tells
