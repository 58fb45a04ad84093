"""The demo's table in a stand-in for CrateDB: what the sink sends and makes of answers is real, the
server isn't."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from replicator.demo import compare
from replicator.demo.child import TABLE
from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.statements import quoted
from replicator.testing.crate_server import CrateServer

_TABLE = quoted("doc", TABLE)
_NOTE = (
    "No CrateDB runs here: a stand-in of our own takes the statements of the sink. With a server of"
    " yours, name its url in a configuration (README, Into CrateDB)."
)


class CratePlace:
    """The newest image of each key is a row; `exact` holds all of it."""

    name = "a stand-in for CrateDB"

    def __init__(self) -> None:
        self.sink: Mapping[str, Any] = {"name": "crate", "kind": "cratedb"}
        self._stack = AsyncExitStack()
        self._reader = CrateSession(CrateSettings("reader", "", ""))

    async def make(self) -> None:
        server = await self._stack.enter_async_context(CrateServer())
        self.sink = {**self.sink, "url": server.url}
        self._reader = CrateSession(CrateSettings("reader", "", server.url))
        self._stack.push_async_callback(self._reader.close)

    async def open(self) -> None:
        """A question opens its connection."""

    async def close(self) -> None:
        await self._stack.aclose()

    async def count(self) -> int:
        return len(await self._rows())

    async def items(self) -> dict[str, Any]:
        rows = await self._rows()
        return await asyncio.to_thread(lambda: {key: compare.plain_row(row) for key, row in rows})

    async def _rows(self) -> list[list[Any]]:
        async with self._reader.use("reading the demo's table") as session:
            await session.execute(f"REFRESH TABLE {_TABLE}")
            return await session.fetch(f"SELECT id, exact FROM {_TABLE} WHERE NOT deleted")  # noqa: S608 our own name

    async def faults(self) -> list[str]:
        return []

    async def ending(self) -> list[str]:
        return [_NOTE]

    def way_in(self) -> str:
        asked = json.dumps({"stmt": f"SELECT id, exact FROM {_TABLE} LIMIT 5"})  # noqa: S608 our own name
        return f"curl -u crate: {self.sink['url']}/_sql -d '{asked}'"
