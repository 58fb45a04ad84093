"""A long run at full mischief: is the state right in the end, is memory flat, was every fault told?

    python -m bench.soak [--minutes 60] [--rate 200] [--seed 1] [--script full] [--output json]

The fault cloud, `replicator run` and a Postgres run as processes of their own. Afterwards the
table is compared with the cloud's own history, item by item. Exit code 1 when they differ, when
the worker failed, or when its memory grew by more than a fifth after the first quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import uvloop
import yaml

from replicator.demo.compare import compare, plain_item, select
from replicator.testing.cloud import SCRIPTS
from replicator.testing.items import with_bytes
from replicator.testing.servers import free_port, start_postgres, stop_process

TABLE = "products"
SAMPLES = 60
SETTLE_SECONDS = 300.0
GROWTH_MAX = 0.2
RETENTION_SECONDS = 900


@dataclass
class Soak:
    """What was seen."""

    rss_mb: list[float] = field(default_factory=list)
    changes: int = 0
    records: int = 0
    items: int = 0
    differences: tuple[str, ...] = ()
    faults: Mapping[str, int] = field(default_factory=dict)
    said: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    exit_code: int = 0

    @property
    def growth(self) -> float:
        """Of the median of the last quarter over that of the second."""
        quarter = max(1, len(self.rss_mb) // 4)
        second = self.rss_mb[quarter : 2 * quarter] or self.rss_mb
        return statistics.median(self.rss_mb[-quarter:]) / statistics.median(second) - 1

    @property
    def is_good(self) -> bool:
        return not self.differences and not self.exit_code and self.growth <= GROWTH_MAX


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0, help="changes a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--script", default="full", help=f"{', '.join(SCRIPTS)}, or a JSON file")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--keys", type=int, default=2_000)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="replicator-soak-") as folder:
        soak = run(options, Path(folder))
    say(soak, is_json=options.output == "json")
    return 0 if soak.is_good else 1


def run(options: argparse.Namespace, folder: Path) -> Soak:
    """The whole run; its files lie in `folder`."""
    soak = Soak()
    with start_postgres() as server:
        dsn, port = server.database(), free_port()
        with cloud(options, folder) as url, worker(url, dsn, folder, port) as process:
            seconds = options.minutes * 60
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, seconds / SAMPLES))
                soak.rss_mb.append(resident_mb(process.pid))
                state = ask(url, "state")
                line = f"{seconds - left:6.0f} s  {soak.rss_mb[-1]:6.1f} MB  "
                line += f"{state['records']} records, {sum(state['faults'].values())} faults"
                print(line, file=sys.stderr, flush=True)
            ask(url, "workload", {"rate": 0})
            truth = ask(url, "oracle")
            soak.changes = truth["changes"]
            items = {
                key: plain_item({name: with_bytes(value) for name, value in item.items()})
                for key, item in truth["items"].items()
            }
            soak.items = len(items)
            soak.differences = uvloop.run(settled(dsn, items))
            soak.metrics = metrics(port)
            state = ask(url, "state")
            soak.faults, soak.records = state["faults"], state["records"]
            process.terminate()
            soak.exit_code = process.wait()
        soak.said = said(folder / "worker.log")
    return soak


@contextmanager
def cloud(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The fault cloud's address."""
    command = [sys.executable, "-m", "replicator.testing.cloud", "--script", options.script]
    for name in ("seed", "rate", "shards", "keys"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--retention-seconds", str(RETENTION_SECONDS), "--log", str(folder / "faults")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        stop_process(process)


@contextmanager
def worker(url: str, dsn: str, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`replicator run`."""
    config = folder / "config.yaml"
    pipeline = {
        "name": "soak",
        "tables": [TABLE],
        "source": {"kind": "kinesis", "stream": TABLE},
        "sinks": [{"name": "warehouse", "kind": "postgres", "dsn": dsn}],
    }
    settings = {
        "name": "soak",
        "aws": {"region": "eu-north-1", "endpoint_url": url},
        "pipelines": [pipeline],
        "admin": {"port": port},
        "state_directory": str(folder / "state"),
    }
    config.write_text(yaml.safe_dump(settings))
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak"}
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "replicator", "run", "--config", str(config)],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop_process(process)


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
    assert found, "the worker has ended"
    return int(found.group(1)) / 1024


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


def metrics(port: int) -> dict[str, float]:
    """The worker's counters that are above zero."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = re.findall(r"^(replicator_\w+_total(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found if float(value)}


def say(soak: Soak, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(vars(soak) | {"growth": soak.growth, "is_good": soak.is_good}))
        return
    print(f"changes    {soak.changes} ({soak.records} records), {soak.items} items in the end")
    print(f"state      {'equal' if not soak.differences else f'{len(soak.differences)} differ'}")
    for difference in soak.differences[:10]:
        print(f"           {difference}")
    rss = soak.rss_mb[:: max(1, len(soak.rss_mb) // 12)]
    print(f"memory     {' '.join(f'{mb:.0f}' for mb in rss)} MB, growth {soak.growth:+.1%}")
    print(f"worker     exit code {soak.exit_code}")
    for title, counts in (
        ("faults done by the cloud", soak.faults),
        ("what the worker's log says", soak.said),
        ("what its metrics say", soak.metrics),
    ):
        print(f"\n{title}")
        for name, count in counts.items():
            print(f"  {count:8g}  {name}")


if __name__ == "__main__":
    sys.exit(main())
