"""The demo from its servers' start to its verdict. Start reading at `_Demo.play`."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import uvloop
from rich.console import Console

from replicator.config import Config
from replicator.demo import compare, report, stage
from replicator.demo.child import (
    READY_SECONDS_MAX,
    REGION,
    STREAM,
    TABLE,
    Child,
    client,
    start_child,
)
from replicator.demo.places import Place
from replicator.errors import FatalError, one_cause
from replicator.service import Service
from replicator.supervisor import DrainTimeout

PRODUCTS = 400
DUPLICATE_SHARE = 0.02
LATE_SHARE = 0.01
CATCH_UP_SECONDS_MAX = 60.0
ROWS_SHOWN = 5
# By the name of the demo's source: what a configuration file would say.
SOURCES: Mapping[str, Mapping[str, str]] = {
    "kinesis": {"kind": "kinesis", "stream": STREAM, "mode": "fan_out"},
    "polling": {"kind": "kinesis", "stream": STREAM, "mode": "polling"},
    "streams": {"kind": "streams"},
}
EXIT_EQUAL = 0
EXIT_DIFFERENT = 1


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    seconds: float
    rate: float
    shards: int
    keep: bool
    json_output: bool
    source: str = "kinesis"
    sink: str = "postgres"


class Interrupted(Exception):
    """The operator has seen enough."""


def main(options: Options) -> int:
    """Runs the demo; gives 0 when the sides are equal at the end, 1 when they differ or
    it was interrupted. Raises FatalError when something couldn't be started."""
    error_console = Console(stderr=True)
    console = error_console if options.json_output else Console()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            with one_cause():
                return runner.run(_until_signal(options, console, error_console))
        except Interrupted:
            error_console.print("interrupted; everything is stopped and removed", highlight=False)
            return EXIT_DIFFERENT
        except DrainTimeout as error:
            raise FatalError("drain_timeout", f"the replicator's stop: {error}") from error


async def _until_signal(options: Options, console: Console, error_console: Console) -> int:
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    try:
        async with AsyncExitStack() as stack:
            kind = options.sink.capitalize()
            error_console.print(f"starting {kind} and the AWS emulator …", highlight=False)
            place, url = await stage.start_servers(stack, options.sink)
            if interrupted.is_set():
                raise Interrupted
            demo = _Demo(options, console, error_console, place, url, interrupted)
            with stage.emulated_environment(url):
                return await demo.run()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class _Demo:
    """One run against servers that are up."""

    def __init__(
        self,
        options: Options,
        console: Console,
        error_console: Console,
        place: Place,
        url: str,
        interrupted: asyncio.Event,
    ) -> None:
        self._options = options
        self._console = console
        self._error_console = error_console
        self._place = place
        self._url = url
        self._interrupted = interrupted
        # None where the table's own stream is read: nothing needs to be carried to Kinesis.
        self._bridge: Child | None = None
        self._shop: Child
        self._service: Service
        self._dynamodb: Any

    async def run(self) -> int:
        """Plays the demo with everything it needs around it."""
        async with AsyncExitStack() as stack:
            self._dynamodb = await stack.enter_async_context(client("dynamodb"))
            stream_arn = await stage.make_table(self._dynamodb)
            stack.push_async_callback(self._place.close)
            await self._place.make()
            state = stack.enter_context(tempfile.TemporaryDirectory(prefix="replicator-demo-"))
            self._service = Service(self._config(Path(state)))
            shop_arguments: dict[str, object] = {
                "rate": self._options.rate,
                "seconds": self._options.seconds,
                "products": PRODUCTS,
                "seed": random.getrandbits(32),
            }
            if self._options.source != "streams":
                await stage.make_stream(self._options.shards)
                self._bridge = await stack.enter_async_context(
                    start_child("bridge", self._bridge_arguments(stream_arn), self._url)
                )
            self._shop = await stack.enter_async_context(
                start_child("shop", shop_arguments, self._url)
            )
            await stack.enter_async_context(self._replicating())
            return await self._play()

    async def _play(self) -> int:
        """Stock, trade, settle, compare."""
        await self._unless_interrupted(
            self._shop.until(lambda said: "stocked" in said, READY_SECONDS_MAX)
        )
        stocked: int = self._shop.last["stocked"]
        await self._wait_for_records(stocked)
        await self._place.open()
        await self._until_quietly(self._is_stocked)
        chosen = await self._choose_rows()
        self._console.print(report.rows_table("some rows before", await self._rows(chosen)))

        opened = time.monotonic()
        if self._bridge is not None:
            await self._bridge.order("disturb")
        await self._shop.order("open")
        async with self._watching():
            await self._unless_interrupted(
                self._shop.until(
                    lambda said: bool(said.get("closed")),
                    self._options.seconds + READY_SECONDS_MAX,
                )
            )
            await self._settle()
        seconds = time.monotonic() - opened

        comparison = await self._compare()
        result = self._result(comparison, stocked, seconds)
        self._console.print(report.rows_table("the same rows after", await self._rows(chosen)))
        self._print(report.summary(result))
        self._print(report.STREAMS_NOTE if self._bridge is None else report.BRIDGE_NOTE)
        for line in await self._place.ending():
            self._print(line)
        self._print(report.verdict(comparison, result.changes))
        if self._options.json_output:
            sys.stdout.write(orjson.dumps(result.as_dict()).decode() + "\n")
            sys.stdout.flush()
        if self._options.keep:
            await self._stay()
        return EXIT_EQUAL if comparison.is_equal else EXIT_DIFFERENT

    # ---- the pieces

    def _bridge_arguments(self, stream_arn: str) -> dict[str, object]:
        return {
            "stream_arn": stream_arn,
            "seed": random.getrandbits(32),
            "duplicate_share": DUPLICATE_SHARE,
            "late_share": LATE_SHARE,
        }

    def _traffic(self) -> dict[str, int]:
        """What the stream has carried so far: the bridge's word, or the shop's."""
        if self._bridge is not None:
            return {"changes": 0, "put": 0, "duplicates": 0, "late": 0} | self._bridge.last
        made = self._shop.last.get("made", self._shop.last.get("stocked", 0))
        return {"changes": made, "put": made, "duplicates": 0, "late": 0}

    async def _settle(self) -> None:
        """Returns when all that was changed is durable; without a word when it takes too long
        and both sides can be compared: that is the verdict then."""
        if self._bridge is not None:
            await self._bridge.order("settle")
            await self._unless_interrupted(
                self._bridge.until(lambda said: bool(said.get("settled")), CATCH_UP_SECONDS_MAX)
            )
            await self._wait_for_records(self._bridge.last["put"])
            if self._options.sink == "postgres":
                return

        # A write that changes nothing makes no record, so none knows how many there will be; and
        # a log sink keeps changes back for a moment, to sort them.
        async def is_equal() -> bool:
            return (await self._compare()).is_equal

        await self._until_quietly(is_equal)

    async def _until_quietly(self, reached: Callable[[], Awaitable[bool]]) -> None:
        """Waits without a word when it takes too long."""
        with suppress(FatalError):
            await self._unless_interrupted(stage.until(reached, CATCH_UP_SECONDS_MAX, ""))

    async def _is_stocked(self) -> bool:
        return await self._place.count() >= PRODUCTS

    async def _compare(self) -> compare.Comparison:
        items, rows = await compare.scan(self._dynamodb, TABLE), await self._place.items()
        compared = compare.compare(items, rows, self._place.name)
        return replace(compared, differences=(*await self._place.faults(), *compared.differences))

    def _config(self, state_directory: Path) -> Config:
        """What a configuration file for this set-up would say."""
        return Config.model_validate(
            {
                "name": "demo",
                "aws": {"region": REGION, "endpoint_url": self._url},
                "pipelines": [
                    {
                        "name": "products",
                        "tables": [TABLE],
                        "source": SOURCES[self._options.source],
                        "sinks": [dict(self._place.sink)],
                    }
                ],
                "admin": {"port": 0},
                "state_directory": str(state_directory),
            }
        )

    @asynccontextmanager
    async def _replicating(self) -> AsyncIterator[None]:
        """The service, by the code of `run`; drained at the end of the block."""
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._service.run(stopping))
            try:
                yield
            finally:
                # An error of the block cancels the service; else it drains.
                stopping.set()

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        """Shows progress during the block."""
        progress = report.Progress(self._error_console, self._figures)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(progress.watch())
            yield
            watching.cancel()

    async def _figures(self) -> report.Figures:
        stats, said = self._service.stats, self._traffic()
        return report.Figures(
            changes=stats.changes,
            waiting=max(0, said["put"] - stats.records),
            rows=await self._place.count(),
            duplicates=stats.duplicates,
            late=said["late"],
            latency_ms_p50=stats.latency_ms(0.5),
            latency_ms_p99=stats.latency_ms(0.99),
        )

    async def _wait_for_records(self, count: int) -> None:
        """Returns when the service has made that many records durable."""

        async def is_durable() -> bool:
            return self._service.stats.records >= count

        await self._unless_interrupted(
            stage.until(is_durable, CATCH_UP_SECONDS_MAX, f"not all of {count} records are durable")
        )

    async def _unless_interrupted(self, work: Awaitable[None]) -> None:
        """Awaits the work. Raises Interrupted as soon as the operator wants to stop."""
        doing = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._interrupted.wait())
        try:
            await asyncio.wait((doing, stopped), return_when=asyncio.FIRST_COMPLETED)
            if self._interrupted.is_set():
                raise Interrupted
            await doing
        finally:
            doing.cancel()
            stopped.cancel()

    async def _choose_rows(self) -> list[str]:
        by_name: dict[Any, str] = {}
        for key, item in sorted((await self._place.items()).items()):
            by_name.setdefault(item.get("name"), key)
        return [by_name[name] for name in sorted(by_name, key=str)][:ROWS_SHOWN]

    async def _rows(self, ids: list[str]) -> list[tuple[str, str, str, str]]:
        items = await self._place.items()
        found = [(key, items.get(key, {"name": "(delisted)"})) for key in ids]
        return [
            (key, str(item["name"]), str(item.get("Stock", "")), str(item.get("Price", "")))
            for key, item in found
        ]

    def _result(
        self, comparison: compare.Comparison, stocked: int, seconds: float
    ) -> report.Result:
        stats, said, shop = self._service.stats, self._traffic(), self._shop.last
        return report.Result(
            equal=comparison.is_equal,
            items=comparison.items,
            rows=comparison.rows,
            seconds=round(seconds, 3),
            changes=said["changes"],
            changes_per_second=round((said["changes"] - stocked) / seconds, 1),
            records=stats.records,
            duplicates_injected=said["duplicates"],
            duplicates_dropped=stats.duplicates,
            late_injected=said["late"],
            superseded=stats.superseded,
            dead_letters=stats.dead_letters,
            rows_written=stats.rows,
            shards=1 if self._bridge is None else self._options.shards,
            latency_ms_p50=_rounded(stats.latency_ms(0.5)),
            latency_ms_p99=_rounded(stats.latency_ms(0.99)),
            latency_ms_max=_rounded(stats.latency_ms(1.0)),
            calls=shop["calls"],
            differences=comparison.differences,
        )

    async def _stay(self) -> None:
        """Leaves everything running, the replication too, until the operator stops it."""
        for line in (
            "",
            "Everything stays up, and keeps replicating, until Ctrl-C.",
            *(f"  {way}" for way in stage.ways_in(self._place, self._url)),
        ):
            self._print(line)
        await self._interrupted.wait()

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
