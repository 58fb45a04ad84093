"""Compression, read back by others."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from typing import Literal

import cramjam
import pytest

from replicator._core import compress

Codec = Literal["gzip", "zstd", "lz4"]
READERS: dict[Codec, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": lambda data: bytes(cramjam.zstd.decompress(data)),
    "lz4": lambda data: bytes(cramjam.lz4.decompress(data)),
}
TEXT = b"".join(b'{"id":%d,"name":"banana"}\n' % n for n in range(20_000))


@pytest.mark.parametrize("codec", READERS)
@pytest.mark.parametrize("data", [b"", b"a", bytes(range(256)) * 3, TEXT])
def test_others_read_it(codec: Codec, data: bytes) -> None:
    assert READERS[codec](compress(data, codec)) == data


@pytest.mark.parametrize(("codec", "low", "high"), [("gzip", 1, 12), ("zstd", -7, 19)])
def test_levels(codec: Codec, low: int, high: int) -> None:
    fast, small = compress(TEXT, codec, low), compress(TEXT, codec, high)
    assert len(small) < len(fast)
    assert READERS[codec](fast) == READERS[codec](small) == TEXT


@pytest.mark.parametrize(
    ("codec", "level", "says"),
    [("gzip", 0, "1 to 12"), ("zstd", 23, "-7 to 22"), ("lz4", 1, "None"), ("xz", None, "codec")],
)
def test_wrong_arguments_are_named(codec: Codec, level: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compress(b"", codec, level)


def test_the_interpreter_is_free_meanwhile() -> None:
    """Another thread goes on while a large piece is made small, slowly."""
    done = threading.Event()

    def work() -> None:
        compress(TEXT, "zstd", 15)
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    steps = 0
    while not done.wait(0.0001):
        steps += 1
    worker.join()
    assert steps > 3
