"""Serves bodies made beforehand, in a process of its own: its CPU time is not the client's.

    python -m bench.ingest_server FOLDER

Says its port on stdout and runs until stdin ends. A request names the file it wants as its
`ShardId` (SubscribeToShard: each frame of the file is a chunk of the body) or `ShardIterator`.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import uvloop

_JSON = "application/x-amz-json-1.1"


async def main(answers: dict[str, bytes]) -> None:
    """Runs the server of these bodies."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                writer.writelines(_answer(await _request(head, reader), answers))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _request(head: bytes, reader: asyncio.StreamReader) -> dict[str, str]:
    lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    [length] = (int(value) for name, _, value in lines if name == b"content-length")
    body: dict[str, str] = json.loads(await reader.readexactly(length))
    return body


def _answer(request: dict[str, str], answers: dict[str, bytes]) -> Iterator[bytes]:
    if "ShardIterator" in request:
        body = answers[request["ShardIterator"]]
        yield _head(_JSON, f"Content-Length: {len(body)}")
        yield body
        return
    yield _head("application/vnd.amazon.eventstream", "Transfer-Encoding: chunked")
    body = answers[request["ShardId"]]
    start = 0
    while start < len(body):
        (length,) = struct.unpack_from("!I", body, start)
        yield f"{length:x}\r\n".encode()
        yield body[start : start + length]
        yield b"\r\n"
        start += length
    yield b"0\r\n\r\n"


def _head(content_type: str, framing: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{framing}\r\n\r\n".encode()


if __name__ == "__main__":
    uvloop.run(main({path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}))
