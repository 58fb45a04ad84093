"""What the small AWS servers share: JSON calls over real HTTP, kept in order and refused as a
test writes down."""

from __future__ import annotations

import json
import ssl
from collections import deque
from collections.abc import MutableSequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

from aiohttp import web

_REQUEST_BYTES_MAX = 16_777_216


@dataclass(slots=True)
class Refusal(Exception):
    """An error answer of the API."""

    code: str
    message: str
    status: int = 400


class JSONServer:
    """Runs while its `async with` block does; `url` is its address. `calls` lists
    (operation, request) in order."""

    content_type: ClassVar[str]

    def __init__(self, port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        self.calls: MutableSequence[tuple[str, dict[str, Any]]] = []
        self.url = ""
        self._port = port
        self._tls = tls
        self._refusals: dict[str, deque[Refusal | None]] = {}
        self._runner: web.AppRunner | None = None

    def refuse(
        self, operation: str, code: str, message: str = "as scripted", *, status: int = 400
    ) -> None:
        """Answers one further call of the operation with an error."""
        self._refusals.setdefault(operation, deque()).append(Refusal(code, message, status))

    def accept(self, operation: str) -> None:
        """Lets one further call of the operation pass before the next refusal."""
        self._refusals.setdefault(operation, deque()).append(None)

    def called(self, operation: str) -> list[dict[str, Any]]:
        """The requests of one operation."""
        return [request for name, request in self.calls if name == operation]

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_REQUEST_BYTES_MAX)
        self._route(app)
        # Cancelled when the client goes away: what counts open bodies tells the truth.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"{'http' if self._tls is None else 'https'}://{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def _route(self, app: web.Application) -> None:
        app.router.add_post("/", self._answer)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        _, _, operation = request.headers.get("X-Amz-Target", "").partition(".")
        body: dict[str, Any] = json.loads(await request.read() or b"{}")
        self.calls.append((operation, body))
        try:
            refusals = self._refusals.get(operation)
            if refusals and (refusal := refusals.popleft()) is not None:
                raise refusal
            return await self._serve(request, operation, body)
        except Refusal as refusal:
            return self.error_answer(refusal)

    async def _serve(
        self, request: web.Request, operation: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        """The answer to one call; may raise a Refusal."""
        raise NotImplementedError

    def error_answer(self, refusal: Refusal) -> web.Response:
        """The answer that carries a refusal."""
        body = {"__type": refusal.code, "message": refusal.message}
        return self.json_answer(body, status=refusal.status)

    def json_answer(self, body: dict[str, Any], *, status: int = 200) -> web.Response:
        """An answer of the API."""
        return web.Response(
            body=self._dumps(body).encode(), status=status, content_type=self.content_type
        )

    def _dumps(self, body: dict[str, Any]) -> str:
        return json.dumps(body)
