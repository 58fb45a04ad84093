"""What ten thousand idle shards cost one worker, beside ten.

    python -m bench.shards [KIND ...] [--shards 10000] [--minutes 2] [--output text|markdown|json]

KIND is `streams` (DynamoDB Streams), `polling` or `fan_out` (Kinesis); all of them by default. The
project's own small server, `replicator run` and a Postgres run as processes of their own. Exit code
1 when an idle shard costs more than 64 KB, or not every shard was read in time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from bench import environment
from bench.page import Page
from bench.shards_server import NAME
from bench.soak import resident_mb
from replicator.testing.servers import PostgresServer, free_port, start_postgres, stop_process

KINDS = ("streams", "polling", "fan_out")
FEW = 10
KB_MAX = 64.0
START_SECONDS_MAX = 900.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figures:
    """One worker. Times are seconds since its process was started."""

    kind: str
    shards: int
    listed_seconds: float | None
    read_seconds: float | None
    shards_read: int
    calls_until_read: Mapping[str, int]
    cpu_seconds_until_read: float
    calls_a_minute: Mapping[str, float]
    cpu_seconds_a_minute: float
    rss_mb: float
    warnings: Mapping[str, int]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.shards", description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind", nargs="*", choices=[*KINDS, []])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long it is watched, idle")
    parser.add_argument("--output", choices=("text", "markdown", "json"), default="text")
    options = parser.parse_args()
    # A subscription is a connection; the limit is inherited by server and worker.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    is_json = options.output == "json"
    page = Page(sys.stderr if is_json else sys.stdout, "text" if is_json else options.output)
    page.note(f"- command: `python -m bench.shards {' '.join(sys.argv[1:])}`")
    page.note(f"- machine: {environment.machine()}; a process may open {hard} files")
    report: dict[str, Any] = {}
    is_good = True
    with start_postgres() as postgres:
        for kind in options.kind or KINDS:
            page.part(kind)
            few, many = (
                measure(postgres, kind, shards, options.minutes * 60)
                for shards in (FEW, options.shards)
            )
            kb = (many.rss_mb - few.rss_mb) * 1_024 / (many.shards - few.shards)
            say(page, few, many, kb)
            is_good &= kb <= KB_MAX and many.read_seconds is not None
            report[kind] = {"kb_a_shard": kb, "few": asdict(few), "many": asdict(many)}
    if is_json:
        print(json.dumps(report))
    return 0 if is_good else 1


def measure(postgres: PostgresServer, kind: str, shards: int, seconds: float) -> Figures:
    """One worker from its start until it has been idle for so many seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="replicator-shards-") as folder,
        served(kind, shards) as server,
    ):
        log = Path(folder) / "worker.log"
        begun_at = time.monotonic()
        with worker(server.url, postgres.database(), kind, Path(folder), log) as process:
            while (state := server.state())["read_at"] is None:
                if process.poll() is not None or time.monotonic() - begun_at > START_SECONDS_MAX:
                    break
                time.sleep(0.5)
            cpu_until_read = cpu_seconds(process.pid)
            # What the start still has to do isn't idleness yet.
            time.sleep(min(30.0, seconds / 2))
            before, cpu_before, at = server.state(), cpu_seconds(process.pid), time.monotonic()
            time.sleep(seconds)
            after, cpu_after = server.state(), cpu_seconds(process.pid)
            minutes = (time.monotonic() - at) / 60
            rss_mb = resident_mb(process.pid)
        warnings: dict[str, int] = {}
        for line in log.read_text(errors="replace").splitlines():
            if found := re.search(r'"event": ?"([^"]+)".*"level": ?"(?:warning|error)"', line):
                warnings[found.group(1)] = warnings.get(found.group(1), 0) + 1
    return Figures(
        kind=kind,
        shards=shards,
        listed_seconds=_since(state["listed_at"], begun_at),
        read_seconds=_since(state["read_at"], begun_at),
        shards_read=after["shards_read"],
        calls_until_read=state["calls"],
        cpu_seconds_until_read=cpu_until_read,
        calls_a_minute={
            name: (count - before["calls"].get(name, 0)) / minutes
            for name, count in after["calls"].items()
            if count > before["calls"].get(name, 0)
        },
        cpu_seconds_a_minute=(cpu_after - cpu_before) / minutes,
        rss_mb=rss_mb,
        warnings=warnings,
    )


def say(page: Page, few: Figures, many: Figures, kb: float) -> None:
    """The table of one kind."""
    both = (few, many)
    page.head(f"{many.kind}, idle shards", *(f"{one.shards}" for one in both))
    page.row("start to all listed, s", *(_number(one.listed_seconds) for one in both))
    page.row("start to all read, s", *(_number(one.read_seconds) for one in both))
    page.row("CPU until then, s", *(_number(one.cpu_seconds_until_read) for one in both))
    for name in sorted(many.calls_until_read):
        page.row(f"{name} until then", *(f"{one.calls_until_read.get(name, 0)}" for one in both))
    for name in sorted({*few.calls_a_minute, *many.calls_a_minute}):
        page.row(f"{name} a minute", *(f"{one.calls_a_minute.get(name, 0):.0f}" for one in both))
    page.row("CPU a minute, idle, s", *(_number(one.cpu_seconds_a_minute) for one in both))
    page.row("resident memory, MB", *(_number(one.rss_mb) for one in both))
    page.row("memory a shard, KB", "", _number(kb))
    for name in sorted({*few.warnings, *many.warnings}):
        page.row(f"warnings: {name}", *(f"{one.warnings.get(name, 0)}" for one in both))
    if many.read_seconds is None:
        page.note(f"only {many.shards_read} of {many.shards} shards were read")


@dataclass(frozen=True, slots=True)
class _Served:
    url: str
    process: subprocess.Popen[str]

    def state(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@contextmanager
def served(kind: str, shards: int) -> Iterator[_Served]:
    """The server of so many shards."""
    command = [sys.executable, "-m", "bench.shards_server", kind, str(shards)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield _Served(process.stdout.readline().strip(), process)
        finally:
            process.terminate()


@contextmanager
def worker(
    url: str, dsn: str, kind: str, folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`replicator run`."""
    source = (
        {"kind": "streams"}
        if kind == "streams"
        else {"kind": "kinesis", "stream": NAME, "mode": kind}
    )
    pipeline = {
        "name": "shards",
        "tables": [NAME],
        "source": source,
        "sinks": [{"name": "warehouse", "kind": "postgres", "dsn": dsn}],
    }
    settings = {
        "name": "shards",
        "aws": {"region": "eu-north-1", "endpoint_url": url},
        "pipelines": [pipeline],
        "admin": {"port": free_port()},
        "state_directory": str(folder / "state"),
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    environ = os.environ | {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "replicator", "run", "--config", str(config)],
            stdout=out,
            stderr=out,
            env=environ,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop_process(process)


def cpu_seconds(pid: int) -> float:
    """Of all threads of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _since(at: float | None, begun_at: float) -> float | None:
    return None if at is None else at - begun_at


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
