"""A proxy as companies have them: it forwards requests, and tunnels what is encrypted."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Proxy:
    """`asked` are the places of its requests; `login` is wanted as user:password, `refuses` is the
    status that it answers instead."""

    login: str = ""
    refuses: int = 0
    asked: list[str] = field(default_factory=list)
    address: str = ""
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b" ", 2)
            place = target.decode() if method == b"CONNECT" else urlsplit(target.decode()).netloc
            self.asked.append(place)
            wanted = base64.b64encode(self.login.encode())
            if self.login and b"proxy-authorization: basic " + wanted.lower() not in head.lower():
                writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
            elif self.refuses:
                writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % self.refuses)
            else:
                host, _, port = place.rpartition(":")
                behind = await asyncio.open_connection(host, int(port))
                if method == b"CONNECT":
                    writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    behind[1].write(head)
                await asyncio.gather(pump(reader, behind[1]), pump(behind[0], writer))
        await closed(writer)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def http_proxy(login: str = "", refuses: int = 0) -> AsyncIterator[Proxy]:
    proxy = Proxy(login, refuses)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy.address = f"{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        await asyncio.gather(*proxy.serving)
