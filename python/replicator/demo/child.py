"""How the demo's processes talk: one JSON object a line, orders in, reports out.

A child ends when its standard input does, so none outlives the demo, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import orjson
import uvloop
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from replicator.errors import FatalError

REGION = "eu-north-1"
TABLE = "products"
STREAM = "products"
READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 5.0
# What the emulator takes for credentials. Nothing of the operator's own is sent to it.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def environment(endpoint_url: str) -> dict[str, str]:
    """The AWS environment of everything in the demo, in place of the operator's own."""
    return {
        **CREDENTIALS,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def without_aws(variables: dict[str, str]) -> dict[str, str]:
    """The variables but for those that say how AWS is reached."""
    return {name: value for name, value in variables.items() if not name.startswith("AWS_")}


def client(service: str) -> Any:
    """A context manager that gives an aiobotocore client of the emulator."""
    return get_session().create_client(
        service, config=AioConfig(max_pool_connections=64, retries={"mode": "standard"})
    )


# ---- inside the child


def say(**report: object) -> None:
    """Reports to the parent."""
    sys.stdout.buffer.write(orjson.dumps(report, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs the child's work to its end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


async def orders(take: Callable[[str], None]) -> None:
    """Hands each order of the parent to `take`; returns when the parent is gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while line := await reader.readline():
            take(line.decode("ascii").strip())
    finally:
        transport.close()


# ---- on the parent's side


class Child:
    """One child process, as the parent sees it: `last` is its newest report."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.last: dict[str, Any] = {}
        self._process = process
        self._reported = asyncio.Condition()
        self._is_over = False
        self._errors: deque[str] = deque(maxlen=20)

    async def order(self, text: str) -> None:
        """Gives it an order. Does nothing when it has ended: waiting will say so."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(text.encode("ascii") + b"\n")
            await self._process.stdin.drain()

    async def until(self, reached: Callable[[dict[str, Any]], bool], seconds_max: float) -> None:
        """Returns when a report satisfies `reached`.

        Raises FatalError when the child ends before, or the time is over.
        """
        try:
            async with asyncio.timeout(seconds_max), self._reported:
                while not reached(self.last):
                    if self._is_over:
                        raise FatalError(
                            "demo_child_ended",
                            f"the demo's {self.name} ended early; it said:\n"
                            + "".join(self._errors),
                        )
                    await self._reported.wait()
        except TimeoutError as error:
            raise FatalError(
                "demo_child_late",
                f"the demo's {self.name} didn't get there in {seconds_max:g} s; its last report"
                f" was {self.last}. Is the machine very busy? Try a lower --rate.",
            ) from error

    async def listen(self) -> None:
        """Takes reports until the child ends."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen_to_errors())
            assert self._process.stdout is not None
            async for line in self._process.stdout:
                async with self._reported:
                    self.last |= orjson.loads(line)
                    self._reported.notify_all()
        async with self._reported:
            self._is_over = True
            self._reported.notify_all()

    async def _listen_to_errors(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._errors.append(line.decode(errors="replace"))

    async def stop(self) -> None:
        """Ends it: the end of its input first, then by force."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def start_child(
    module: str, arguments: dict[str, object], endpoint_url: str
) -> AsyncIterator[Child]:
    """Runs a module of this package as a child; stopped at the end.

    `arguments` reach it as one JSON object.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"replicator.demo.{module}",
        orjson.dumps(arguments).decode("ascii"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=without_aws(dict(os.environ)) | environment(endpoint_url),
        # Ctrl-C is the parent's; it stops its children in its own order.
        start_new_session=True,
    )
    child = Child(module, process)
    async with asyncio.TaskGroup() as group:
        group.create_task(child.listen())
        try:
            yield child
        finally:
            await child.stop()
