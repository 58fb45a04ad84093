"""From what a service sends to COPY bytes: SubscribeToShard, and GetRecords of both services.

In memory the bodies lie there: ours against botocore's parsers. Over HTTP a server of another
process sends them, and what counts is the client's CPU time, by `time.process_time`: ours
against aiobotocore's own reading, and against the floor, the raw body read and dropped.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import orjson
import uvloop
from aiobotocore.session import get_session
from botocore.eventstream import EventStreamBuffer
from botocore.parsers import EventStreamJSONParser, JSONParser
from botocore.session import get_session as get_botocore_session

from bench import records
from bench.timing import Timing, interleaved
from replicator import _core
from replicator.aws import AWSSettings, aws_client
from replicator.model import TRIM_HORIZON
from replicator.source.hand_over import (
    INITIAL_RESPONSE,
    kinesis_get_records,
    raw_body,
    register,
    streams_get_records,
)
from replicator.source.subscription import Ended, Subscription

KEYS: Sequence[tuple[str, Literal["S", "N", "B"]]] = (("id", "S"),)
CONSUMER = "arn:aws:kinesis:eu-north-1:000000000001:stream/bench/consumer/bench:1"
WAYS = ("SubscribeToShard", "GetRecords", "Streams GetRecords")
Peers = Mapping[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Size:
    """Records of one event, of one answer, and events of one subscription."""

    event: int
    events: int
    answer: int


# Some 16 MB a subscription: a real one lasts for five minutes. An answer of DynamoDB Streams holds
# 1,000 records and 1 MB at most.
SIZES = {
    "small": Size(500, 30, 1_000),
    "nested": Size(250, 16, 330),
    "unicode": Size(250, 24, 480),
    "large": Size(12, 18, 17),
}


@dataclass(frozen=True, slots=True)
class Result:
    """Records a second of each variant by its best round, and the rounds behind it."""

    rates: dict[str, float]
    spreads: dict[str, float]

    @classmethod
    def of(cls, timings: Mapping[str, Timing], count: int) -> Result:
        return cls(
            {name: round(count / timing.best) for name, timing in timings.items()},
            {name: timing.spread for name, timing in timings.items()},
        )


@dataclass(frozen=True, slots=True)
class _Bodies:
    """One shape's bodies and how many records each holds."""

    frames: list[bytes]
    frame_records: int
    kinesis: bytes
    streams: bytes
    answer_records: int

    @classmethod
    def of(cls, shape: str, *, is_quick: bool = False) -> _Bodies:
        size = SIZES[shape]
        events = max(size.events // (5 if is_quick else 1), 1)
        payloads = records.payloads(shape, max(size.event * events, size.answer))
        return cls(
            records.frames(payloads[: size.event * events], size.event),
            size.event * events,
            records.kinesis_answer(payloads[: size.answer]),
            records.streams_answer(payloads[: size.answer]),
            size.answer,
        )


def measure_in_memory(shape: str, *, is_quick: bool) -> Iterator[tuple[str, Result]]:
    """Each way, its variants taking turns."""
    bodies = _Bodies.of(shape, is_quick=is_quick)
    rounds = 2 if is_quick else 7
    ways: list[tuple[str, int, Peers]] = [
        (WAYS[0], bodies.frame_records, _frames_in_memory(bodies.frames)),
        (WAYS[1], bodies.answer_records, _answer_in_memory(bodies.kinesis, "kinesis")),
        (WAYS[2], bodies.answer_records, _answer_in_memory(bodies.streams, "streams")),
    ]
    for way, count, variants in ways:
        yield way, Result.of(interleaved(variants, rounds), count)


def _copy(undecoded: _core.Records) -> None:
    # Of no table: an answer of DynamoDB Streams names none.
    rows = _core.decode(undecoded, table=records.TABLE).newest(records.TABLE, KEYS)
    assert len(rows.copy()) > len(rows)


def _frames_in_memory(frames: list[bytes]) -> Peers:
    output = get_botocore_session().get_service_model("kinesis").operation_model("SubscribeToShard")
    shape = output.output_shape.members["EventStream"]
    parser = EventStreamJSONParser()

    def stock(*, is_decoded: bool) -> None:
        buffer = EventStreamBuffer()
        for frame in frames:
            buffer.add_data(frame)
            for event in buffer:
                parsed = parser.parse(event.to_response_dict(), shape)
                _loads(parsed["SubscribeToShardEvent"]["Records"], is_decoded=is_decoded)

    def ours(*, is_copied: bool) -> None:
        stream = _core.EventStream()
        for frame in frames:
            for event in stream.feed(frame):
                if is_copied:
                    _copy(event.records)

    return {
        "stock": partial(stock, is_decoded=False),
        "stock+orjson": partial(stock, is_decoded=True),
        "ours to payloads": partial(ours, is_copied=False),
        "ours to COPY": partial(ours, is_copied=True),
    }


def _answer_in_memory(body: bytes, source: Literal["kinesis", "streams"]) -> Peers:
    service = {"kinesis": "kinesis", "streams": "dynamodbstreams"}[source]
    model = get_botocore_session().get_service_model(service).operation_model("GetRecords")
    parser = JSONParser()

    def stock(*, is_decoded: bool) -> None:
        answer = {"headers": {}, "status_code": 200, "body": body, "context": {}}
        parsed = parser.parse(answer, model.output_shape)
        _loads(parsed["Records"], is_decoded=is_decoded)

    def ours(*, is_copied: bool) -> None:
        answer = _core.Answer.read(body, source)
        if is_copied:
            _copy(answer.records)

    return {
        "stock": partial(stock, is_decoded=False),
        # The records of DynamoDB Streams are parsed already.
        "stock+orjson": partial(stock, is_decoded=source == "kinesis"),
        "ours to payloads": partial(ours, is_copied=False),
        "ours to COPY": partial(ours, is_copied=True),
    }


def _loads(found: list[dict[str, Any]], *, is_decoded: bool) -> None:
    assert found
    if is_decoded:
        loads = orjson.loads
        for record in found:
            loads(record["Data"])


def measure_over_http(shape: str, *, is_quick: bool) -> Iterator[tuple[str, Result]]:
    """Each way over loopback, its variants taking turns."""
    bodies = _Bodies.of(shape, is_quick=is_quick)
    with _server(bodies) as url:
        yield from uvloop.run(_over_http(url, bodies, rounds=2 if is_quick else 9))


@contextmanager
def _server(bodies: _Bodies) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="replicator-bench-") as name:
        folder = Path(name)
        (folder / "frames").write_bytes(INITIAL_RESPONSE + b"".join(bodies.frames))
        (folder / "kinesis").write_bytes(bodies.kinesis)
        (folder / "streams").write_bytes(bodies.streams)
        command = [sys.executable, "-m", "bench.ingest_server", str(folder)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
            process.terminate()


async def _over_http(url: str, bodies: _Bodies, *, rounds: int) -> list[tuple[str, Result]]:
    results = []
    async with _clients(url) as (stock, ours):
        ways = (
            (WAYS[0], bodies.frame_records, _subscriptions(stock["kinesis"], ours["kinesis"])),
            (WAYS[1], bodies.answer_records, _get_records(stock, ours, "kinesis")),
            (WAYS[2], bodies.answer_records, _get_records(stock, ours, "streams")),
        )
        for way, count, variants in ways:
            calls = 1 if way == WAYS[0] else 5
            seconds = await _cpu_seconds(variants, rounds, calls)
            results.append((way, Result.of(seconds, count)))
    return results


_SERVICES = {"kinesis": "kinesis", "streams": "dynamodbstreams"}


@asynccontextmanager
async def _clients(url: str) -> AsyncIterator[tuple[dict[str, Any], dict[str, Any]]]:
    """By source: clients as aiobotocore makes them, and as the product does."""
    keys = {"aws_access_key_id": "000000000000", "aws_secret_access_key": "bench"}
    session = get_session()
    session.set_credentials("000000000000", "bench")
    settings = AWSSettings(region="eu-north-1", endpoint_url=url)
    async with contextlib.AsyncExitStack() as stack:
        stock, ours = {}, {}
        for source, service in _SERVICES.items():
            stock[source] = await stack.enter_async_context(
                get_session().create_client(
                    service, region_name="eu-north-1", endpoint_url=url, **keys
                )
            )
            ours[source] = await stack.enter_async_context(
                aws_client(settings, service, session=session)
            )
            register(ours[source])
        yield stock, ours


Turns = Mapping[str, Callable[[], Awaitable[None]]]


def _subscriptions(stock_client: Any, client: Any) -> Turns:
    async def stock() -> None:
        answer = await stock_client.subscribe_to_shard(
            ConsumerARN=CONSUMER, ShardId="frames", StartingPosition={"Type": "TRIM_HORIZON"}
        )
        async for event in answer["EventStream"]:
            _loads(event["SubscribeToShardEvent"]["Records"], is_decoded=True)

    async def floor() -> None:
        with raw_body() as raw:
            answer = await client.subscribe_to_shard(
                ConsumerARN=CONSUMER, ShardId="frames", StartingPosition={"Type": "TRIM_HORIZON"}
            )
            async for _ in answer["EventStream"]:
                pass
        while await raw.content.content.readany():
            pass

    async def ours() -> None:
        subscription = await Subscription.open(client, CONSUMER, "frames", TRIM_HORIZON)
        ended = None
        while ended is None:
            arrived = await subscription.events(30.0, Ended.SILENT)
            ended = arrived.ended
            for event in arrived.events:
                _copy(event.records)
        assert ended is Ended.FINISHED
        subscription.close()

    return {"stock+orjson": stock, "floor": floor, "ours to COPY": ours}


def _get_records(
    stock_clients: dict[str, Any], clients: dict[str, Any], source: Literal["kinesis", "streams"]
) -> Turns:
    stock_client, client = stock_clients[source], clients[source]
    get_records = {"kinesis": kinesis_get_records, "streams": streams_get_records}[source]

    async def stock() -> None:
        answer = await stock_client.get_records(ShardIterator=source, Limit=1_000)
        _loads(answer["Records"], is_decoded=source == "kinesis")

    async def floor() -> None:
        with raw_body() as raw:
            await client.get_records(ShardIterator=source, Limit=1_000)
        assert raw.content

    async def ours() -> None:
        _copy((await get_records(client, source, 1_000)).records)

    return {"stock+orjson": stock, "floor": floor, "ours to COPY": ours}


async def _cpu_seconds(variants: Turns, rounds: int, calls: int) -> dict[str, Timing]:
    """As `timing.interleaved`, but this process' CPU time, of some calls a turn, and with the
    collector at work: what a parser makes is what keeps it busy."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            began = time.process_time()
            for _ in range(calls):
                await variants[name]()
            took = time.process_time() - began
            if turn >= 0:
                seconds[name].append(took / calls)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}
