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


class Child:
    """A process that answers by lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        self.pid = process.pid
        self._process = process
        self._requests, self._answers = process.stdin, process.stdout

    def ask(self) -> None:
        """Begins a round, and doesn't wait for its end."""
        self._requests.write("\n")

    def answer(self) -> str:
        """Its next line, waited for."""
        line = self._answers.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"{self._process.args!r} ended with status {status}, see its stderr")
        return line


@contextmanager
def running(command: Sequence[str]) -> Iterator[Child]:
    """A process of this command. The end of its input ends it."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield Child(process)


@contextmanager
def started(peer: Peer, file: Path, payloads: Sequence[bytes]) -> Iterator[Callable[[], float]]:
    """One round of the peer as a function, which gives its CPU seconds, all threads together."""
    with running([*peer.command, peer.package, str(file), str(len(payloads))]) as child:

        def run() -> float:
            began = cpu_seconds(child.pid)
            child.ask()
            child.answer()
            return cpu_seconds(child.pid) - began

        found = Found(*map(int, child.answer().split()))
        # One that fails fast is no result.
        assert found == _expected(payloads, peer.images), f"{peer.name} found {found}"
        yield run


def _expected(payloads: Iterable[bytes], images: Sequence[str]) -> Found:
    changes: list[dict[str, Any]] = [orjson.loads(payload)["dynamodb"] for payload in payloads]
    stocks = [int(c[image]["Stock"]["N"]) for c in changes for image in images if image in c]
    return Found(len(changes), len(stocks), sum(stocks))
