"""A process that only decodes: what two of them do at once, and how much memory one takes.

    python -m bench.worker rounds FILE RECORDS_PER_BATCH
    python -m bench.worker memory FILE

`rounds` takes its turns as `bench/peers/child.py` says. `memory` prints by how many bytes its
resident memory grew at most while it held the frames of a file, decoded, and wrote them.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from bench import records
from replicator import _core

KEYS: Sequence[tuple[str, Literal["S", "N", "B"]]] = (("id", "S"),)
# As large as a socket hands them over.
CHUNK_BYTES = 262_144
STATUS = Path("/proc/self/status")
# Three times one after the other: what is kept for the next time counts.
TIMES = 3


def decode(batches: Sequence[_core.Records]) -> None:
    """The whole way of each batch: decoded, ordered, folded, and written as COPY bytes."""
    for batch in batches:
        _core.decode(batch).newest(records.TABLE, KEYS).copy()


def pack(payloads: Sequence[bytes], step: int) -> list[_core.Records]:
    return [
        _core.Records.pack(payloads[start : start + step])
        for start in range(0, len(payloads), step)
    ]


def _rounds(file: Path, step: int) -> None:
    batches = pack(list(_payloads(file.read_bytes())), step)
    print("ready", flush=True)
    for _ in sys.stdin:
        decode(batches)
        print("done", flush=True)


def _memory(file: Path) -> None:
    # The code itself is mapped with its first use.
    decode(pack(records.payloads("small", 1), 1))
    before = _resident("VmRSS")
    # https://man7.org/linux/man-pages/man5/proc_pid_clear_refs.5.html: 5 resets the peak.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(TIMES):
        _hold_and_write(file)
    print(_resident("VmHWM") - before)


def _hold_and_write(file: Path) -> None:
    """As a lane does: every batch is held until all are written together."""
    stream = _core.EventStream()
    held: list[_core.ChangeBatch] = []
    with file.open("rb") as body:
        while chunk := body.read(CHUNK_BYTES):
            held += [_core.decode(event.records) for event in stream.feed(chunk)]
    _core.ChangeBatch.concat(held).newest(records.TABLE, KEYS).copy()


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found
    return int(found.group(1)) * 1024


def _payloads(file: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(file):
        (length,) = struct.unpack_from("<I", file, at)
        yield file[at + 4 : at + 4 + length]
        at += 4 + length


if __name__ == "__main__":
    if sys.argv[1] == "rounds":
        _rounds(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        _memory(Path(sys.argv[2]))
