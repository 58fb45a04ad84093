"""Requests to CrateDB's HTTP endpoint.

https://cratedb.com/docs/crate/reference/en/latest/interfaces/http.html. Bodies of many rows come as
bytes and are sent as they are; a statement of many rows answers for each of them.
"""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import orjson

from replicator.core.retry import Backoff
from replicator.errors import FatalError, TransientError
from replicator.sink.crate_errors import CrateError, mapped
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.http_client import HTTPClient
from replicator.sink.together import together

LOOKED_UP_TOGETHER: Final = 100
"""Keys of one column in one look-up. Of several columns the server takes fewer than 99 and tries
all their combinations: ten are quick."""
_REQUESTS_AT_ONCE: Final = 8
_CONFLICTS: Final = Backoff(0.02, 1.0)


class CrateSession:
    """One pool of connections to one address, opened by its first request."""

    def __init__(
        self,
        settings: CrateSettings,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        self._jitter = jitter
        user = f"{settings.user}:{settings.password}"
        self._client = HTTPClient(
            headers={
                "Authorization": f"Basic {base64.b64encode(user.encode()).decode()}",
                "Content-Type": "application/json",
            },
            timeout=aiohttp.ClientTimeout(total=settings.request_timeout_seconds, sock_connect=10),
            connections=16,
            verify=self._verified,
        )

    @asynccontextmanager
    async def use(self, doing: str) -> AsyncIterator[CrateSession]:
        """Errors of the requests inside are mapped, and begin with what was done."""
        with mapped(doing):
            yield self

    async def fetch(self, statement: str, *args: object) -> list[list[Any]]:
        """The rows that the statement gives. Raises the driver's errors and CrateError."""
        rows: list[list[Any]] = await self._told("rows", statement, args)
        return rows

    async def execute(self, statement: str, *args: object) -> int:
        """How many rows it changed."""
        return int(await self._told("rowcount", statement, args))

    async def bulk(
        self, statement: str, bulk_args: bytes | Sequence[Sequence[object]]
    ) -> list[CrateError | None]:
        """Runs it once a row, `bulk_args` in JSON where it is bytes; for each row None, or the
        error by which it alone wasn't written. Raises CrateError when none was; of a single row
        that isn't bytes the error is the answer, for the server tells no other
        (https://github.com/crate/crate/issues/18066)."""
        count = None
        if not isinstance(bulk_args, bytes):
            count = len(bulk_args)
            bulk_args = orjson.dumps(bulk_args)
        stmt = orjson.dumps(statement)
        try:
            answer = await self._post(b'{"stmt":%b,"bulk_args":%b}' % (stmt, bulk_args))
        except CrateError as error:
            if count == 1:
                return [error]
            raise
        results = answer.get("results") or ()
        if count not in {None, len(results)}:
            raise self._no_crate(f"{len(results)} answers for {count} rows")
        try:
            return [_failure(result) for result in results]
        except (KeyError, TypeError):
            raise self._no_crate("an answer of a row without rowcount") from None

    async def look_up(
        self, statement: str, one_key: str, keys: Sequence[Sequence[object]]
    ) -> list[list[Any]]:
        """The rows of these primary keys, as they are, refreshed or not. `one_key` is the condition
        of one of them; in the statement, `{any_key}` stands for it all."""
        if not keys:
            return []
        length = LOOKED_UP_TOGETHER if len(keys[0]) == 1 else 10
        room = asyncio.Semaphore(_REQUESTS_AT_ONCE)

        async def some(these: Sequence[Sequence[object]]) -> list[list[Any]]:
            condition = " OR ".join([one_key] * len(these))
            async with room:
                return await self.fetch(
                    statement.replace("{any_key}", condition),
                    *(value for key in these for value in key),
                )

        parts = [keys[at : at + length] for at in range(0, len(keys), length)]
        found = await together([some(part) for part in parts])
        return [row for rows in found for row in rows]

    async def pause(self, attempt: int) -> None:
        """The wait after the conflict number `attempt` (from 0) with others who write the same."""
        await self._sleep(_CONFLICTS.next(attempt, self._jitter()))

    async def close(self) -> None:
        """May be called twice; a request opens it again."""
        await self._client.close()

    async def _told(self, member: str, statement: str, args: Sequence[object]) -> Any:
        answer = await self._post(orjson.dumps({"stmt": statement, "args": args}))
        if member not in answer:
            raise self._no_crate(f"an answer without {member}")
        return answer[member]

    def _no_crate(self, what: str) -> TransientError:
        return TransientError(
            "crate_unavailable",
            f"{self._settings.url} gave {what}: is it CrateDB, and nothing before it?",
        )

    async def _post(self, body: bytes) -> dict[str, Any]:
        response = await self._client.ask("POST", f"{self._settings.url}/_sql", body)
        try:
            answer = orjson.loads(response.body)
        except orjson.JSONDecodeError:
            answer = {"error": {"message": response.body[:200].decode(errors="replace")}}
        if not isinstance(answer, dict):
            raise self._no_crate("a list")
        if response.status != 200 or "error" in answer:
            raise CrateError.of(answer.get("error"), response.status)
        return answer

    def _verified(self) -> ssl.SSLContext | Literal[True]:
        ca_file = self._settings.ca_file
        return True if ca_file is None else _trusting(ca_file)


def _failure(result: Mapping[str, Any]) -> CrateError | None:
    """What kept one row of a bulk request out. Each of ours writes its row or fails; a row that
    isn't the one that was read is told as none
    (https://cratedb.com/docs/crate/reference/en/latest/general/occ.html)."""
    if result["rowcount"] > 0:
        return None
    if result["rowcount"] == 0:
        return CrateError(4092, "no row was written: it isn't the one that was read")
    return CrateError.of(result.get("error"))


def _trusting(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise FatalError(
            "crate_certificate", f"ca_file {ca_file} can't be read: {error}; correct it"
        ) from error
