"""A stand-in for CrateDB over real HTTP: `_sql` with our sink's statements, one node, one shard.

It is no CrateDB: it shows what the sink must live with (searches behind the last refresh, answers a
row, casts, refusals), and faults that a server of one node doesn't show at will.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeAlias

from aiohttp import web

from replicator.testing.crate_tables import CrateTables
from replicator.testing.crate_types import Refused
from replicator.testing.json_server import JSONServer

Fate: TypeAlias = Literal["unavailable", "cut_before", "cut_after"] | None
"""Answered with 503 instead; or the connection is cut before it is done, or after."""

_REASONS_GIVEN: Final = 10
"""Failed rows of one shard that are told with a reason."""


class CrateServer(JSONServer):
    """Runs while its `async with` block does. `statements` lists what was asked, in order.
    `on_request` sees the number of each request, from 1, and its statement before anything is done:
    it may wait, and tells what becomes of it."""

    content_type = "application/json"

    def __init__(
        self,
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        user: str = "crate",
        password: str = "",
    ) -> None:
        super().__init__(port, tls=tls)
        self.tables = CrateTables()
        self.statements: list[str] = []
        self.on_request: Callable[[int, str], Awaitable[Fate]] | None = None
        self._replica: CrateTables | None = None
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._authorization = f"Basic {login}"

    def copy(self) -> None:
        """A replica, which gets nothing of what is written from here on."""
        self._replica = self.tables.copied()

    def fail_over(self) -> None:
        """The replica takes this one's place."""
        assert self._replica is not None, "copy it first"
        self.tables = self._replica

    def _route(self, app: web.Application) -> None:
        app.router.add_post("/_sql", self._answer)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != self._authorization:
            return web.Response(status=401, text="password authentication failed")
        body: dict[str, Any] = json.loads(await request.read())
        self.statements.append(body["stmt"])
        fate = None
        if self.on_request is not None:
            fate = await self.on_request(len(self.statements), body["stmt"])
        if fate == "unavailable":
            return self._refused(Refused(5030, "no node is available"), 503)
        if fate == "cut_before":
            return _cut(request)
        try:
            answer = self.json_answer(self._run(body))
        except Refused as refused:
            answer = self._refused(refused, 404 if refused.code // 10 == 404 else 400)
        return _cut(request) if fate == "cut_after" else answer

    def _run(self, body: dict[str, Any]) -> dict[str, Any]:
        if "bulk_args" not in body:
            rows, count = self.tables.run(body["stmt"], body.get("args", ()))
            return {"cols": [], "rows": rows, "rowcount": count, "duration": 0}
        results: list[dict[str, Any]] = []
        failed = 0
        done = self.tables.run_bulk(body["stmt"], body["bulk_args"])
        if len(done) == 1 and isinstance(done[0], Refused):
            raise done[0]  # as CrateDB does: https://github.com/crate/crate/issues/18066
        for result in done:
            if isinstance(result, int):
                results.append({"rowcount": result})
                continue
            failed += 1
            told = {"error": _error(result)} if failed <= _REASONS_GIVEN else {}
            results.append({"rowcount": -2, **told})
        return {"cols": [], "duration": 0, "results": results}

    def _refused(self, refused: Refused, status: int) -> web.Response:
        return self.json_answer({"error": _error(refused)}, status=status)


def _error(refused: Refused) -> dict[str, Any]:
    return {"code": refused.code, "message": refused.message}


def _cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
