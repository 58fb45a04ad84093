"""Tokens of an OAuth 2.0 server, by our own name and secret (RFC 6749, section 4.4)."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote_plus

import aiohttp

from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.sink.http_client import HTTPClient, Words, mapped
from replicator.sink.kafka_settings import SASLConfig

_ANSWER_SECONDS: Final = 10.0
# Of its life; the rest is for the way, and for a clock that is wrong.
_USED_SHARE: Final = 0.8
# RFC 6749, section 5.1: a server that says nothing of a token's life documents it elsewhere.
_UNKNOWN_SECONDS: Final = 60.0
_ADVICE: Final = "check sasl: token_endpoint, client_id, client_secret and scope"
_WORDS: Final = Words(
    certificate=("kafka_tls", "name its authority in SSL_CERT_FILE"),
    tls=("kafka_authentication", _ADVICE),
    url=("kafka_authentication", _ADVICE),
    timeout="kafka_token",
    away="kafka_token",
)


class ClientTokens:
    """Gives a token that still has a fifth of its life; asks for one at a time."""

    def __init__(
        self, settings: SASLConfig, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._token, self._until = "", float("-inf")

    async def token(self) -> str:
        """Raises FatalError when it is refused, TransientError when the server doesn't answer."""
        async with self._lock:
            now = self._monotonic()
            if now >= self._until:
                self._token, seconds = await self._asked()
                self._until = now + seconds * _USED_SHARE
            return self._token

    async def _asked(self) -> tuple[str, float]:
        settings = self._settings
        # RFC 6749, section 2.3.1: both are form-encoded first.
        who = (settings.client_id, settings.client_secret.get_secret_value())
        basic = base64.b64encode(":".join(map(quote_plus, who)).encode()).decode()
        form = {"grant_type": "client_credentials"}
        if settings.scope:
            form["scope"] = settings.scope
        client = HTTPClient(
            headers={"Authorization": f"Basic {basic}"},
            timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS),
        )
        try:
            with mapped(f"{settings.token_endpoint} gave no token", _WORDS):
                answer = await client.ask("POST", settings.token_endpoint, form)
        finally:
            await client.close()
        said = _members(answer.body)
        if answer.status == 200 and isinstance(said.get("access_token"), str):
            return said["access_token"], _seconds(said.get("expires_in"))
        raise self._refused(answer.status, said)

    def _refused(self, status: int, said: Mapping[str, Any]) -> ReplicatorError:
        # Its own words only: what else it answers may repeat what it was sent.
        why = " ".join(str(said[name]) for name in ("error", "error_description") if name in said)
        message = f"{self._settings.token_endpoint} gave no token: {status} {why}".rstrip()
        if status in {408, 429} or status >= 500:
            return TransientError("kafka_token", message)
        return FatalError("kafka_authentication", f"{message}; {_ADVICE}")


def _members(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(life: Any) -> float:
    """Servers write it as a number or as a text."""
    try:
        seconds = float(life)
    except (TypeError, ValueError):
        return _UNKNOWN_SECONDS
    return seconds if math.isfinite(seconds) else _UNKNOWN_SECONDS
