"""A peer: a process that takes its turns as a function here would.

It is started as `COMMAND VARIANT FILE COUNT`, reads that many payloads (each behind its length in
four bytes, little-endian), decodes them once, and prints what it found: payloads, images, and the
sum of their `Stock`. Then, for each line of its standard input, it runs one round and prints a
line. Between its turns it waits, and costs nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.peers.known import Peer
from bench.timing import cpu_seconds


@dataclass(frozen=True, slots=True)
class Found:
    """Of the images that were decoded: how many there are, and the sum of their `Stock`."""

    payloads: int
    images: int
    stock: int


@contextmanager
def started(peer: Peer, file: Path, payloads: Sequence[bytes]) -> Iterator[Callable[[], float]]:
    """One round of the peer as a function, which gives its CPU seconds, all threads together."""
    command = [*peer.command, peer.package, str(file), str(len(payloads))]
    # The end of its input ends it.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin
        assert process.stdout
        requests, answers = process.stdin, process.stdout

        def answer() -> str:
            line = answers.readline()
            if not line:
                raise RuntimeError(f"{command} ended with status {process.wait()}; see its stderr")
            return line

        def run() -> float:
            began = cpu_seconds(process.pid)
            requests.write("\n")
            answer()
            return cpu_seconds(process.pid) - began

        found = Found(*map(int, answer().split()))
        # One that fails fast is no result.
        assert found == _expected(payloads, peer.images), f"{peer.name} found {found}"
        yield run


def _expected(payloads: Iterable[bytes], images: Sequence[str]) -> Found:
    changes: list[dict[str, Any]] = [orjson.loads(payload)["dynamodb"] for payload in payloads]
    stocks = [int(c[image]["Stock"]["N"]) for c in changes for image in images if image in c]
    return Found(len(changes), len(stocks), sum(stocks))
