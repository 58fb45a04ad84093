"""What `archive` lists for a time: all that a listing of everything finds, for few requests."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from replicator.core.places import Places
from replicator.core.prefix import Prefix
from replicator.errors import FatalError
from replicator.sink.s3_archive import S3Archive, Span
from replicator.testing.json_server import Refusal
from replicator.testing.s3_server import Request, S3Server, StoredObject
from tests.archive import HOUR_US, NOON_US, settings

DAY_US = 24 * HOUR_US
TRIES = 12
# Other layouts' objects, refused records, state, and what somebody else put there.
OTHERS = (
    "2023/11/14/x.jsonl",
    "2022/x.jsonl",
    "products/2022/11/15/12/x.jsonl",
    "x.jsonl",
    "logs/2023/x.jsonl",
    "errors/processing-failed/2023/11/15/12/x.jsonl",
    "_replicator/plans/p/s/shard/000000000001.json",
    "data/x-0-0123456789.jsonl",
)


@pytest.fixture
async def server(credentials: None) -> AsyncIterator[S3Server]:
    async with S3Server() as running:
        yield running


def put(server: S3Server, key: str) -> None:
    server.buckets["archive"][key] = StoredObject(b"", {})


@asynccontextmanager
async def listing(
    server: S3Server, prefix: Prefix
) -> AsyncIterator[Callable[[Span], Awaitable[list[str]]]]:
    async with S3Archive.open(settings(server.url, prefix=prefix)) as archive:

        async def found(span: Span) -> list[str]:
            server.requests.clear()
            return [each.key for each in await archive.objects(span)]

        yield found


@pytest.mark.parametrize(
    ("text", "few"),
    [
        ("", True),
        ("data/", True),
        ("data/{table}/", True),
        ("year=!{timestamp:yyyy}/month=!{timestamp:MM}/day=!{timestamp:dd}/", True),
        ("!{timestamp:yyyy-MM-dd}/{table}/!{firehose:random-string}/", True),
        ("!{timestamp:y/M/d}/", True),
        ("!{timestamp:yyyyMMdd}/!{timestamp:HHmm}/", True),
        ("data/!{timestamp:yyyy-MM-dd-HH}-", False),
        ("{table}/!{firehose:random-string}/!{timestamp:yyyy/MM/dd}/", False),
        ("!{timestamp:dd/MM}/", False),
        ("!{timestamp:yMd}/", False),
    ],
)
async def test_a_time_is_found_whole(server: S3Server, text: str, *, few: bool) -> None:
    draw = random.Random(text)
    prefix = Prefix.parse(text)
    keys: dict[str, tuple[int, str]] = {}
    for n in range(100):
        us = NOON_US + draw.choice((HOUR_US, DAY_US, 30 * DAY_US)) * draw.randrange(-24, 24)
        table = draw.choice(("products", "orders-2023", "2023"))
        at_us = us + draw.randrange(HOUR_US)
        folder = prefix.key(at_us, table=table if prefix.by_table else None, mark=f"{n:010x}")
        keys[f"{folder}shop-shard-1-{n:09d}-1-0123456789.jsonl.gz"] = (at_us, table)
    for key in (*keys, *OTHERS):
        put(server, key)
    async with listing(server, prefix) as found:
        everything = await found(Span())
        assert keys.keys() <= {*everything}
        told = {key: Places(prefix).told(key) for key in everything}
        with capture_logs() as logs:
            for _ in range(TRIES):
                from_us = NOON_US + draw.choice((HOUR_US, DAY_US)) * draw.randrange(-24, 24)
                from_us += draw.choice((0, 1, HOUR_US // 2))
                to_us = from_us + draw.choice((1, HOUR_US, 25 * HOUR_US, 40 * DAY_US))
                times = draw.choice(((from_us, to_us), (from_us, None), (None, from_us)))
                span = Span(times[0], times[1], draw.choice((None, "products")))
                narrow = {*await found(span)}
                wanted = {
                    key
                    for key, (us, table) in keys.items()
                    if (span.from_us is None or us >= span.from_us)
                    and (span.to_us is None or us < span.to_us)
                    and span.table in {None, table}
                }
                assert wanted <= narrow
                assert narrow == {key for key in everything if span.may_hold(told[key])}
    events = [each["event"] for each in logs]
    assert events == ([] if few else ["archive_listed_whole"] * TRIES)


async def test_hours_of_years_cost_a_few_listings(server: S3Server) -> None:
    """Regression: every object of the bucket was listed for an hour of it."""
    server.page_size = 50
    prefix, hours = Prefix.parse("data/"), 8_766
    for n in range(hours):
        put(server, f"{prefix.key(NOON_US + n * HOUR_US)}shop-shard-1.jsonl.gz")
    last_us = NOON_US + (hours - 1) * HOUR_US
    requests: Mapping[str, tuple[Span, int, int]] = {
        "two hours": (Span(last_us - HOUR_US), 2, 6),
        "an hour of then": (Span(NOON_US, NOON_US + HOUR_US), 1, 6),
        "over a new year": (Span(NOON_US + 46 * DAY_US, NOON_US + 48 * DAY_US), 48, 56),
        "a hundred days": (Span(last_us - 100 * DAY_US + HOUR_US), 2_400, 100),
        "nothing": (Span(None, NOON_US - 400 * DAY_US), 0, 1),
    }
    async with listing(server, prefix) as found:
        for name, (span, count, most) in requests.items():
            assert len(await found(span)) == count, name
            assert len(server.requests) <= most, name
            assert {each.operation for each in server.requests} == {"ListObjectsV2"}
        assert len(await found(Span())) == hours
        assert len(server.requests) >= hours // 50


async def test_a_listing_that_fails_is_said_as_it_is(server: S3Server) -> None:
    for n in range(40):
        put(server, f"data/2023/11/15/{n % 24:02d}/{n}.jsonl")

    async def refuse(request: Request) -> None:
        if request.number > 5:
            raise Refusal("AccessDenied", "no", 403)

    server.before = refuse
    async with listing(server, Prefix.parse("data/")) as found:
        with pytest.raises(FatalError) as denied:
            await found(Span(NOON_US - 11 * HOUR_US, NOON_US))
    assert denied.value.code == "access_denied"
