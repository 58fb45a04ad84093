"""A CrateDB for tests: the shipped stand-in, or a real server that `CRATEDB_URL` names."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.statements import quoted
from replicator.testing.crate_server import CrateServer

REAL = os.environ.get("CRATEDB_URL", "")


@dataclass(frozen=True, slots=True)
class CrateDatabase:
    """A schema of its own at a server; `stand_in` is None where that is a real one."""

    url: str
    schema: str
    session: CrateSession
    stand_in: CrateServer | None

    def settings(self, **changes: Any) -> CrateSettings:
        given: dict[str, Any] = {"schema": self.schema, "shards": 1, "replicas": "0", **changes}
        given.setdefault("pipeline", "shop")
        return CrateSettings("crate", url=self.url, **given)

    async def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, as a reader sees them after a refresh; none while it isn't there."""
        name = quoted(self.schema, table)
        columns = await self.session.fetch(
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns\n"
            "WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position",
            self.schema,
            table,
        )
        if not columns:
            return []
        names = [column for column, _, _ in columns if "[" not in column]
        await self.session.execute(f"REFRESH TABLE {name}")
        rows = await self.session.fetch(f"SELECT {', '.join(map(quoted, names))} FROM {name}")
        return [dict(zip(names, row, strict=True)) for row in rows]

    async def copied(self) -> None:
        """A replica is made that then falls behind."""
        self._stand_in("no replica to fall behind").copy()

    async def failed_over(self) -> None:
        """The replica takes the server's place."""
        self._stand_in("no replica to fail over to").fail_over()

    def _stand_in(self, reason: str) -> CrateServer:
        if self.stand_in is None:
            pytest.skip(f"a real CrateDB of one node: {reason}")
        return self.stand_in


@asynccontextmanager
async def crate_database() -> AsyncIterator[CrateDatabase]:
    async with AsyncExitStack() as stack:
        stand_in = None if REAL else await stack.enter_async_context(CrateServer())
        url = REAL if stand_in is None else stand_in.url
        schema = f"t{uuid.uuid4().hex[:12]}"
        session = CrateSession(CrateSettings("reader", "", url))
        stack.push_async_callback(session.close)
        database = CrateDatabase(url, schema, session, stand_in)
        try:
            yield database
        finally:
            if stand_in is None:
                await _drop(session, schema)


async def _drop(session: CrateSession, schema: str) -> None:
    tables = await session.fetch(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = ?", schema
    )
    for (table,) in tables:
        await session.execute(f"DROP TABLE {quoted(schema, table)}")


def version_us(version: str) -> Decimal:
    """The value of a stored version."""
    return Decimal(version.partition("-")[2].replace(".", ""))
