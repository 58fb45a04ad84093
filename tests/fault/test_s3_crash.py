"""A worker of the S3 sink dies, or sleeps and wakes again, at each of its requests in turn; others
go on with other cuts. Whatever happened, each change is in the bucket once."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import pytest

from replicator.aws import aws_client
from replicator.core.plan import Encoding, Format
from replicator.core.prefix import Prefix
from replicator.errors import LeaseLost, TransientError
from replicator.model import SHARD_END, Fence, Pending, Position, after
from replicator.sink.s3 import S3Sink
from replicator.sink.s3_objects import Bucket
from replicator.sink.s3_plans import S3Plans
from replicator.testing.s3_server import Request, S3Server
from tests.archive import HOUR_US, NOON_US, plans, rows, schemas, settings, times_each, write
from tests.changes import STREAM, number, pending, put

SHARD = "shard-1"


def history(seed: int) -> list[bytes]:
    """Two hours and their border, out of order within a second, with copies and a bad record."""
    chance = random.Random(seed)
    records: list[bytes] = []
    us = NOON_US + HOUR_US - 6_000_000
    for n in range(36):
        us += chance.randrange(700_000)
        key = {"id": {"S": f"item-{n % 7}"}}
        more: dict[str, Mapping[str, Any]] = {
            f"since_{n // 12}": {"BOOL": True},
            "n": {"N": str(n)},
        }
        records.append(put("products", key, us - chance.randrange(900_000), **more))
        if chance.random() < 0.2:
            records.append(chance.choice(records[-4:]))
    records.insert(chance.randrange(len(records)), b"broken")
    return records


class World:
    """One bucket, one shard's records, and workers that read it."""

    def __init__(
        self, server: S3Server, client: Any, records: Sequence[bytes], form: Format = "change"
    ) -> None:
        self.server = server
        self._client = client
        self._records = records
        self._form = form
        self._settings = settings(
            server.url, prefix=Prefix.parse("data/{table}/"), encoding=Encoding(form)
        )

    def sink(self) -> S3Sink:
        sink = S3Sink(self._settings)
        # Making a client takes longer than all the rest.
        bucket = Bucket(self._client, "archive", self._settings.options, asyncio.sleep)
        sink._tables = frozenset({"products"})
        sink._opened = (bucket, S3Plans(bucket, self._settings))
        return sink

    def fetches(self, fence: Fence, position: Position | None, size: int) -> list[Pending]:
        """What a source gives from there on, `size` records at a time."""
        begin = 0
        if position is not None and position.sequence_number is not None:
            begin = int(position.sequence_number) - int(number(0))
        made = []
        for first in range(begin, len(self._records), size):
            records = self._records[first : first + size]
            last = first + len(records)
            then = SHARD_END if last == len(self._records) else after(number(last))
            lag = None if then == SHARD_END else 1_000
            made.append(pending(fence, records, first=first + 1, then=then, behind_ms=lag))
            if then != SHARD_END and last % 2:  # nothing more is there for a while
                idle = pending(fence, [], first=last + 1, then=then)
                made.append(replace(idle, received_at=2.0))
        return made

    async def work(self, size: int, cut: int, *, writes: int = 1_000) -> None:
        """Reads to the end with fetches of `size` records, `cut` fetches a write."""
        sink = self.sink()
        fence = await sink.fence(STREAM, SHARD, "worker")
        position = await sink.position(fence)
        if position == SHARD_END:
            return
        fetches = self.fetches(fence, position, size)
        for first in range(0, len(fetches), cut)[:writes]:
            if (await write(sink, *fetches[first : first + cut])).lost:
                return

    async def finish(self, size: int, cut: int) -> None:
        """As the engine does: what may pass begins anew with a fence."""
        while True:
            with suppress(TransientError):
                await self.work(size, cut)
                return

    def check(self) -> None:
        """Each change once, the bad record once, and nothing that no plan names."""
        times = times_each(self.server) if self._form == "change" else self._times_each_typed()
        good = [record for record in self._records if record != b"broken"]
        assert set(times) == {json.loads(record)["eventID"] for record in good}
        assert set(times.values()) == {1}
        letters = self.server.objects(prefix="errors/").values()
        refused = [json.loads(line)["errorCode"] for body in letters for line in body.splitlines()]
        assert refused == ["malformed_json"]
        named = {each["key"] for plan in plans(self.server) for each in plan["objects"]}
        named |= {plan["letters"]["key"] for plan in plans(self.server) if plan["letters"]}
        assert named == {*self.server.objects(prefix="data/"), *self.server.objects(prefix="err")}

    def _times_each_typed(self) -> Counter[str]:
        """Of Parquet, whose columns are those of a version of the one schema, and grew only."""
        versions = schemas(self.server)
        for older, newer in pairwise(versions):
            assert list(newer.items())[: len(older)] == list(older.items())
        for plan in plans(self.server):
            assert all(dict(each) in versions for each in plan["columns"].values())
        times: Counter[str] = Counter()
        for some in rows(self.server).values():
            for row in some:
                times[row["event_id"]] += 1
                n = int(row["n"])
                assert row[f"since_{n // 12}"] is True
                assert json.loads(row["extra"]) == {}
        return times


Worlds: TypeAlias = Callable[..., World]
"""By a seed and a format."""


@pytest.fixture
async def world(credentials: None) -> AsyncIterator[Worlds]:
    async with S3Server() as server, aws_client(settings(server.url).aws, "s3") as client:

        def fresh(seed: int, form: Format = "change") -> World:
            server.buckets["archive"].clear()
            server.requests.clear()
            server.before = server.after = _pass
            return World(server, client, history(seed), form)

        yield fresh


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


async def _pass(_: Request) -> None:
    """As usual."""


class Stop:
    """Stops the n-th request before it takes effect, until it is let go."""

    def __init__(self, server: S3Server, nth: int) -> None:
        self.reached = asyncio.Event()
        self.release = asyncio.Event()
        self._nth = nth
        server.before = self._look

    async def _look(self, request: Request) -> None:
        if request.number == self._nth:
            self.reached.set()
            await self.release.wait()


async def _unless_done(task: asyncio.Task[None], reached: asyncio.Event) -> bool:
    """True when the event came; False when the task ended before."""
    waiting = asyncio.ensure_future(reached.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return reached.is_set()


@pytest.mark.parametrize("form", ["change", "parquet"])
@pytest.mark.parametrize("cuts", [((7, 2), (5, 2)), ((5, 3), (3, 100))])
async def test_killed_at_any_request(
    world: Worlds, cuts: tuple[tuple[int, int], tuple[int, int]], form: Format
) -> None:
    """Killed before a request is the same as after the one before it, of which it knows nothing."""
    first, second = cuts
    for nth in range(1, 200):
        here = world(nth, form)
        stop = Stop(here.server, nth)
        task = asyncio.ensure_future(here.work(*first))
        was_reached = await _unless_done(task, stop.reached)
        if not was_reached:
            await task
            here.check()
            assert nth > 10
            return
        task.cancel()
        await asyncio.wait({task})
        stop.release.set()
        await here.finish(*second)
        here.check()
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize(("writes", "form"), [(1, "change"), (1_000, "change"), (1, "parquet")])
async def test_a_zombie_wakes_at_any_request(world: Worlds, writes: int, form: Format) -> None:
    """The other worker has done some writes, or all, when it wakes; a third one ends it."""
    for nth in range(1, 200):
        here = world(nth, form)
        stop = Stop(here.server, nth)
        zombie = asyncio.ensure_future(here.work(7, 2))
        if not await _unless_done(zombie, stop.reached):
            await zombie
            return
        with suppress(TransientError):
            await here.work(3, 2, writes=writes)
        stop.release.set()
        with suppress(TransientError, LeaseLost):
            await zombie
        await here.finish(4, 4)
        here.check()
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("form", ["change", "parquet"])
async def test_workers_that_take_the_shard_from_each_other(world: Worlds, form: Format) -> None:
    """Three at once, each with cuts of its own: nobody knows who decides which plan."""
    for seed in range(5):
        here = world(seed, form)

        async def greedy(size: int, cut: int, here: World = here) -> None:
            for _ in range(6):
                with suppress(TransientError, LeaseLost):
                    await here.work(size, cut)

        await asyncio.gather(greedy(3, 2), greedy(5, 1), greedy(2, 4))
        await here.finish(4, 4)
        here.check()
