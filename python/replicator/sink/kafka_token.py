"""Tokens that a broker has taken once.

A broker that refuses a token says so in a challenge (RFC 7628, section 3.2.2), which aiokafka takes
for its consent: what it asks next is answered by nothing that makes sense. So each new token is
tried on a connection of its own before anybody signs in by it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator, collect_hosts, create_conn
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import SaslAuthenticateRequest, SaslHandShakeRequest

from replicator.errors import FatalError

_MECHANISM: Final = "OAUTHBEARER"


class Tokens(Protocol):
    """Gives the token of now, the same one for as long as it is good."""

    async def token(self) -> str:
        """Raises FatalError and TransientError."""
        ...


class TriedTokens(AbstractTokenProvider):  # type: ignore[misc]
    """The same tokens; `connect` are a client's options without those of SASL."""

    def __init__(
        self, tokens: Tokens, connect: Mapping[str, Any], extensions: Mapping[str, str]
    ) -> None:
        """`extensions` go with each token (RFC 7628, section 3.1)."""
        self._tokens = tokens
        self._servers = collect_hosts(connect["bootstrap_servers"])
        self._connect = {name: connect[name] for name in connect if name != "bootstrap_servers"}
        self._extensions = extensions
        self._lock = asyncio.Lock()
        self._tried = ""

    async def token(self) -> str:
        """Raises FatalError when a broker refuses it, and what getting it raises."""
        async with self._lock:
            token = await self._tokens.token()
            if token != self._tried:
                await self._try(token)
                self._tried = token
            return token

    def extensions(self) -> Mapping[str, str]:
        return self._extensions

    async def _try(self, token: str) -> None:
        for host, port, _ in self._servers:
            try:
                connection = await create_conn(host, port, **self._connect)
            except (KafkaError, OSError):
                continue  # the client itself says why
            try:
                await self._shown(connection, token, f"{host}:{port}")
            finally:
                connection.close()
            return

    async def _shown(self, connection: AIOKafkaConnection, token: str, server: str) -> None:
        handshake = await connection.send(SaslHandShakeRequest(_MECHANISM))
        if handshake.error_code:
            return  # the same
        given = OAuthAuthenticator(sasl_oauth_token_provider=_Given(token, self._extensions))
        message, _ = await given.step(None)
        answer = await connection.send(SaslAuthenticateRequest(message))
        why = answer.error_message if answer.error_code else _challenge(answer.sasl_auth_bytes)
        if why is not None:
            raise FatalError(
                "kafka_authentication",
                f"broker {server} refuses the token: {why or for_code(answer.error_code).__name__}"
                "; check what it was given for, its audience and scope, and the clocks",
            )


class _Given:
    """One token, for the driver to spell out."""

    def __init__(self, token: str, extensions: Mapping[str, str]) -> None:
        self._token, self._extensions = token, extensions

    async def token(self) -> str:
        return self._token

    def extensions(self) -> Mapping[str, str]:
        return self._extensions


def _challenge(data: bytes | None) -> str | None:
    """Why a token was refused; None when it wasn't."""
    if not data:
        return None
    try:
        return str(json.loads(data)["status"])
    except (ValueError, KeyError, TypeError):
        return repr(data[:200])
