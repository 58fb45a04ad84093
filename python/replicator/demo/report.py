"""What the demo shows: progress while it runs, and the result at its end.

Progress goes to standard error: one block that renews itself on a terminal, a line a
second elsewhere. The result goes to standard output.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from replicator.demo.compare import DIFFERENCES_SHOWN, Comparison

FRAME_SECONDS = 0.25
LINE_SECONDS = 1.0
RATE_SECONDS = 2.0
BRIDGE_NOTE = (
    "The emulator's own Kinesis destination is replaced by a bridge, because it writes whole"
    " seconds and random partition keys; the bridge reads the table's stream and puts records of"
    " the real shape, some of them twice or late."
)
STREAMS_NOTE = (
    "The table's own stream is read: it carries each change once and in order, and in the emulator"
    " it is one shard for ever."
)


@dataclass(frozen=True, slots=True)
class Figures:
    """One moment of the demo. `waiting` are records in the stream that aren't durable yet."""

    changes: int
    waiting: int
    rows: int
    duplicates: int
    late: int
    latency_ms_p50: float | None
    latency_ms_p99: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """The whole demo in figures; also the fields of its JSON form."""

    equal: bool
    items: int
    rows: int
    seconds: float
    changes: int
    changes_per_second: float
    records: int
    duplicates_injected: int
    duplicates_dropped: int
    late_injected: int
    superseded: int
    dead_letters: int
    rows_written: int
    shards: int
    latency_ms_p50: float | None
    latency_ms_p99: float | None
    latency_ms_max: float | None
    calls: dict[str, int]
    differences: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields, for machines; only the first differences."""
        return asdict(self) | {"differences": self.differences[:DIFFERENCES_SHOWN]}


def verdict(comparison: Comparison, changes: int) -> str:
    """The first differences, and the last line: whether both sides are equal, and after how many
    changes."""
    shown = comparison.differences[:DIFFERENCES_SHOWN]
    more = len(comparison.differences) - len(shown)
    sides = f"{comparison.items} items in the table, {comparison.rows} rows in {comparison.place}"
    return "\n".join(
        [
            *(f"  {difference}" for difference in shown),
            *([f"  and {more} more"] if more else []),
            f"{'equal' if comparison.is_equal else 'DIFFERENT'}: {sides}, {changes} changes",
        ]
    )


def summary(result: Result) -> str:
    """The result for people, but for the comparison itself."""
    calls = ", ".join(f"{count} {name}" for name, count in sorted(result.calls.items()))
    shards = "1 shard" if result.shards == 1 else f"{result.shards} shards"
    return f"""\
changes      {result.changes} in all, {result.changes_per_second:,.0f}/s to the last commit
calls        {calls}
records      {result.records} in {shards}, {result.duplicates_injected} of them \
repeats, {result.late_injected} late
replicator   {result.duplicates_dropped} duplicates dropped, {result.superseded} changes came \
after a newer one, {result.dead_letters} dead letters
latency      p50 {_ms(result.latency_ms_p50)}, p99 {_ms(result.latency_ms_p99)} \
(received frame to commit)"""


def rows_table(title: str, rows: Sequence[tuple[str, str, str, str]]) -> Table:
    """A few rows as Postgres shows them."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("id", no_wrap=True)
    table.add_column("name")
    table.add_column("Stock", justify="right")
    table.add_column("Price", justify="right")
    for row in rows:
        table.add_row(*row)
    return table


class Progress:
    """Shows `figures` while the block of `watch` runs."""

    def __init__(self, console: Console, figures: Callable[[], Awaitable[Figures]]) -> None:
        self._console = console
        self._figures = figures
        self._seen: deque[tuple[float, int]] = deque()
        self._began = time.monotonic()

    async def watch(self) -> None:
        """Shows progress until cancelled."""
        self._rate(await self._figures())
        if not self._console.is_terminal:
            while True:
                await asyncio.sleep(LINE_SECONDS)
                self._console.print(await self._line(), highlight=False, soft_wrap=True)
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(await self._block(), refresh=True)
                await asyncio.sleep(FRAME_SECONDS)

    async def _line(self) -> str:
        now = await self._figures()
        return (
            f"{time.monotonic() - self._began:5.1f} s  {now.changes} changes"
            f"  {self._rate(now):.0f}/s  lag {now.waiting} records  {now.rows} rows"
            f"  latency p50 {_ms(now.latency_ms_p50)} p99 {_ms(now.latency_ms_p99)}"
        )

    async def _block(self) -> Table:
        now = await self._figures()
        grid = Table.grid(padding=(0, 2))
        for name, value in (
            ("time", f"{time.monotonic() - self._began:.1f} s"),
            ("changes", f"{now.changes:,}"),
            ("rate", f"{self._rate(now):,.0f}/s"),
            ("lag", f"{now.waiting:,} records"),
            ("rows", f"{now.rows:,}"),
            ("duplicates dropped", f"{now.duplicates:,}"),
            ("put late", f"{now.late:,}"),
            ("latency", f"p50 {_ms(now.latency_ms_p50)}, p99 {_ms(now.latency_ms_p99)}"),
        ):
            grid.add_row(f"[dim]{name}[/dim]", f"[bold]{value}[/bold]")
        return grid

    def _rate(self, figures: Figures) -> float:
        """Changes a second over the last moments."""
        now = time.monotonic()
        self._seen.append((now, figures.changes))
        while now - self._seen[0][0] > RATE_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        since, changes = self._seen[0]
        return (figures.changes - changes) / (now - since) if now > since else 0.0


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"
