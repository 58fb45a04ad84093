"""A long run at full mischief: is the state right in the end, is memory flat, was every fault told?

    python -m bench.soak [--minutes 60] [--source kinesis|polling|streams] [--rate 200] [--seed 1]
        [--script NAME] [--kill-every SECONDS] [--output json]

The fault cloud, `replicator run` and a Postgres run as processes of their own. Afterwards the
table is compared with the cloud's own history, item by item. Exit code 1 when they differ, when
the worker failed, when its memory grew by more than a fifth from the first quarter to the last,
or when the cloud did a fault that no metric of the worker's shows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import uvloop
import yaml

from bench.soak_faults import Done, Scrapes, Sight, sights
from replicator.demo.compare import compare, plain_item, select
from replicator.testing.cloud import SCRIPTS
from replicator.testing.items import with_bytes
from replicator.testing.servers import free_port, start_postgres, stop_process

TABLE = "products"
LOOK_SECONDS = 2.0
TELL_SECONDS = 60.0
# A process that has just begun is smaller than it will be.
WARM_UP_SECONDS = 60.0
SETTLE_SECONDS = 300.0
GROWTH_MAX = 0.2
RETENTION_SECONDS = 900


@dataclass
class Soak:
    """What was seen."""

    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    rss_mb: list[float] = field(default_factory=list)
    """After the warm-up, every two seconds."""
    cpu_share: float = 0.0
    """Of one core, by the worker."""
    lag_seconds_max: float = 0.0
    ends: list[float] = field(default_factory=list)
    """When workers ended, in the cloud's seconds; all but the last were killed."""
    changes: int = 0
    records: int = 0
    items: int = 0
    differences: tuple[str, ...] = ()
    sights: tuple[Sight, ...] = ()
    said: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    exit_code: int = 0

    @property
    def kills(self) -> int:
        return max(0, len(self.ends) - 1)

    @property
    def quarters_mb(self) -> list[float]:
        """The median of each quarter's memory."""
        size = max(1, len(self.rss_mb) // 4)
        parts = [self.rss_mb[at : at + size] for at in range(0, len(self.rss_mb), size)]
        return [round(statistics.median(part), 1) for part in parts[:4]]

    @property
    def growth(self) -> float:
        """Of the last quarter's memory over the first's."""
        quarters = self.quarters_mb
        return quarters[-1] / quarters[0] - 1 if quarters else 0.0

    @property
    def unseen(self) -> tuple[str, ...]:
        """Faults that no metric shows."""
        return tuple(sight.fault for sight in self.sights if not sight.is_seen)

    @property
    def is_good(self) -> bool:
        return not (self.differences or self.exit_code or self.unseen) and self.growth <= GROWTH_MAX


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--source", choices=("kinesis", "polling", "streams"), default="kinesis")
    parser.add_argument("--rate", type=float, default=200.0, help="changes a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--script", help=f"{', '.join(SCRIPTS)}, or a JSON file; by default all that there is"
    )
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--keys", type=int, default=2_000)
    parser.add_argument("--kill-every", type=float, metavar="SECONDS", help="SIGKILLs the worker")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leaves its files here")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    options.script = options.script or ("streams" if options.source == "streams" else "full")
    with tempfile.TemporaryDirectory(prefix="replicator-soak-") as folder:
        if options.keep:
            options.keep.mkdir(parents=True)
        soak = run(options, options.keep or Path(folder))
    say(soak, is_json=options.output == "json")
    return 0 if soak.is_good else 1


def run(options: argparse.Namespace, folder: Path) -> Soak:
    """The whole run; its files lie in `folder`."""
    soak = Soak({name: str(value) for name, value in vars(options).items() if value is not None})
    with start_postgres() as server, cloud(options, folder) as url:
        dsn = server.database()
        worker = Worker(options.source, url, dsn, folder)
        try:
            seconds = drive(options, url, worker, soak)
            ask(url, "workload", {"rate": 0})
            truth = ask(url, "oracle")
            items = {
                key: plain_item({name: with_bytes(value) for name, value in item.items()})
                for key, item in truth["items"].items()
            }
            soak.changes, soak.items = truth["changes"], len(items)
            soak.differences = uvloop.run(settled(dsn, items))
            worker.scrape()
            state = ask(url, "state")
            soak.records = state["records"]
            soak.ends.append(state["seconds"])
        finally:
            soak.exit_code = worker.stop() or soak.exit_code
    soak.metrics = worker.scrapes.counters()
    soak.cpu_share = round(soak.metrics.get("process_cpu_seconds_total", 0.0) / seconds, 3)
    soak.seconds = round(seconds, 1)
    soak.lag_seconds_max = worker.scrapes.lag_seconds_max
    soak.sights = sights(Done.read(folder / "faults", soak.ends), soak.metrics)
    soak.said = said(folder / "worker.log")
    return soak


def drive(options: argparse.Namespace, url: str, worker: Worker, soak: Soak) -> float:
    """Lets the time pass: looks, kills, and tells how it goes. Gives the seconds it took; ends
    early when the worker does."""
    began = time.monotonic()
    end = began + options.minutes * 60
    every = options.kill_every or float("inf")
    kill_at, tell_at = began + every, began + TELL_SECONDS
    while (now := time.monotonic()) < end:
        time.sleep(min(LOOK_SECONDS, end - now))
        now = time.monotonic()
        if (code := worker.process.poll()) is not None:
            soak.exit_code = code or 1
            break
        worker.scrape()
        rss = resident_mb(worker.process.pid)
        if now - began >= min(WARM_UP_SECONDS, (end - began) / 4):
            soak.rss_mb.append(round(rss, 1))
        if now >= tell_at or now >= end:
            tell_at += TELL_SECONDS
            tell(now - began, rss, worker, ask(url, "state"), len(soak.ends))
        if now >= kill_at:
            kill_at += every
            soak.ends.append(ask(url, "state")["seconds"])
            worker.kill()
    return time.monotonic() - began


def tell(seconds: float, rss: float, worker: Worker, state: Mapping[str, Any], kills: int) -> None:
    """A line of progress."""
    faults = sum(state["faults"].values())
    line = f"{seconds:6.0f} s  {state['changes']} changes, {rss:.0f} MB"
    line += f", lag {worker.scrapes.lag_seconds:.1f} s, {faults} faults"
    print(line + (f", {kills} kills" if kills else ""), file=sys.stderr, flush=True)


@contextmanager
def cloud(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The fault cloud's address."""
    command = [sys.executable, "-m", "replicator.testing.cloud", "--script", options.script]
    if options.source == "streams":
        command += ["--source", "streams"]
    for name in ("seed", "rate", "shards", "keys"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--retention-seconds", str(RETENTION_SECONDS), "--log", str(folder / "faults")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        stop_process(process)


class Worker:
    """`replicator run`, and again after each kill."""

    def __init__(self, source: str, url: str, dsn: str, folder: Path) -> None:
        self.scrapes = Scrapes()
        self._folder = folder
        self._port = free_port()
        sources = {
            "kinesis": {"kind": "kinesis", "stream": TABLE},
            "polling": {"kind": "kinesis", "stream": TABLE, "mode": "polling"},
            "streams": {"kind": "streams"},
        }
        pipeline = {
            "name": "soak",
            "tables": [TABLE],
            "source": sources[source],
            "sinks": [{"name": "warehouse", "kind": "postgres", "dsn": dsn}],
        }
        settings = {
            "name": "soak",
            "aws": {"region": "eu-north-1", "endpoint_url": url},
            "pipelines": [pipeline],
            "admin": {"port": self._port},
            "state_directory": str(folder / "state"),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        self.process = self._start()

    def kill(self) -> None:
        """SIGKILL, and the next one begins."""
        self.scrape()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.scrapes.restarted()
        self.process = self._start()

    def scrape(self) -> None:
        """Reads the counters; one that has just begun doesn't answer yet."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._port}/metrics", timeout=30
            ) as answer:
                self.scrapes.take(answer.read().decode())
        except OSError:
            return

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            stop_process(self.process)
            return 1

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak"}
        with (self._folder / "worker.log").open("ab") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "replicator", "run"),
                    *("--config", str(self._folder / "config.yaml")),
                ],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )


async def settled(dsn: str, items: Mapping[str, Any]) -> tuple[str, ...]:
    """The differences that are left when all should have arrived."""
    connection = await asyncpg.connect(dsn)
    try:
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            result = compare(items, await select(connection, TABLE))
            if result.is_equal or time.monotonic() > deadline:
                return result.differences
            await asyncio.sleep(1)
    finally:
        await connection.close()


def ask(url: str, path: str, body: object = None) -> Any:
    """An answer of the control API."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/_control/{path}", data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) / 1024 if found else 0.0


def said(log: Path) -> dict[str, int]:
    """What the worker's log counts: warnings and errors by event and code or reason."""
    counts: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            counts["(no JSON)"] += 1
            continue
        if event.get("level") in {"warning", "error", "critical"}:
            what = event.get("code") or event.get("reason") or ""
            counts[f"{event['event']} {what}".strip()] += 1
    return dict(sorted(counts.items()))


def say(soak: Soak, *, is_json: bool) -> None:
    if is_json:
        told = [asdict(sight) | {"is_seen": sight.is_seen} for sight in soak.sights]
        more = {name: getattr(soak, name) for name in ("quarters_mb", "growth", "kills", "unseen")}
        print(json.dumps(vars(soak) | more | {"sights": told, "is_good": soak.is_good}))
        return
    print(f"changes    {soak.changes} ({soak.records} records), {soak.items} items in the end")
    print(f"state      {'equal' if not soak.differences else f'{len(soak.differences)} differ'}")
    for difference in soak.differences[:10]:
        print(f"           {difference}")
    quarters = ", ".join(f"{mb:.0f}" for mb in soak.quarters_mb)
    print(f"memory     {quarters} MB by quarters, growth {soak.growth:+.1%}")
    print(
        f"worker     exit code {soak.exit_code}, {soak.kills} kills, {soak.cpu_share:.0%} of a core"
    )
    print(f"lag        {soak.lag_seconds_max:.1f} s at most, as the service said it")
    print("\nfaults done by the cloud, and the metrics that moved")
    for sight in soak.sights:
        print(f"  {sight.done:8d}  {sight.fault}{'' if sight.is_seen else '  NO METRIC MOVED'}")
        if sight.ordinary:
            print(f"            no fault to a reader: {sight.ordinary}")
            continue
        for name, value in sight.series.items():
            print(f"            {value:8g}  {name}")
        if sight.cut_short:
            print(
                f"            {sight.cut_short:8d}  just before the worker ended"
            )
    for title, counts in (
        ("what the worker's log says", soak.said),
        ("all that its metrics say", soak.metrics),
    ):
        print(f"\n{title}")
        for name, count in counts.items():
            print(f"  {count:8g}  {name}")


if __name__ == "__main__":
    sys.exit(main())
