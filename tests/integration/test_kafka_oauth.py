"""OAUTHBEARER over the wire: a token of a server of ours, to a broker that takes unsigned ones."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiokafka.errors import KafkaError

from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.sink.kafka_client import translated
from replicator.sink.kafka_oauth import ClientTokens
from replicator.sink.kafka_settings import SASLConfig
from replicator.testing.kafka_server import KafkaServer, Security
from tests.changes import STREAM, pending
from tests.integration.test_kafka_security import secured, sink, used
from tests.kafka_rig import PRODUCTS, fenced, product, write

__all__ = ["secured"]  # the same kind of broker

SECRET = "a secret: with %"


@dataclass
class Tokens:
    """Gives tokens of `subject` to who knows the secret."""

    subject: str
    seconds: float = 60.0
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    async def give(self, request: web.Request) -> web.Response:
        self.asked.append(dict(await request.post()))
        if self.status != 200:
            return web.json_response({"error": "down"}, status=self.status)
        kind, _, basic = request.headers["Authorization"].partition(" ")
        # https://www.rfc-editor.org/rfc/rfc6749#section-2.3.1
        if (kind, base64.b64decode(basic)) != ("Basic", b"client:a+secret%3A+with+%25"):
            return web.json_response({"error": "invalid_client"}, status=401)
        now = time.time()
        claims = {"sub": self.subject, "iat": now - 1, "exp": now + self.seconds}
        parts = ({"alg": "none"}, claims)
        text = ".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
            for part in parts
        )
        return web.json_response({"access_token": f"{text}.", "expires_in": self.seconds})


@asynccontextmanager
async def tokens(subject: str, **more: Any) -> AsyncIterator[Tokens]:
    made = Tokens(subject, **more)
    app = web.Application()
    app.router.add_post("/token", made.give)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        made.url = f"http://{host}:{port}/token"
        yield made
    finally:
        await runner.cleanup()


def sasl(url: str, **more: Any) -> dict[str, Any]:
    return {
        "mechanism": "OAUTHBEARER",
        "token_endpoint": url,
        "client_id": "client",
        "client_secret": SECRET,
        **more,
    }


async def test_it_signs_in_by_a_token_and_asks_for_one_at_a_time(
    secured: tuple[KafkaServer, Security],
) -> None:
    server, security = secured
    async with tokens(security.user) as given:
        settings = sasl(given.url, scope="kafka", extensions={"logicalCluster": "lkc-1"})
        await used(sink("oauth", server.sasl_address, sasl=settings))
        assert given.asked == [{"grant_type": "client_credentials", "scope": "kafka"}]


async def test_who_the_token_names_may_do_what_was_granted(
    secured: tuple[KafkaServer, Security],
) -> None:
    server, security = secured
    async with tokens(security.guest) as given:
        with pytest.raises(FatalError) as denied:
            await used(sink("oauth-guest", server.sasl_address, sasl=sasl(given.url)))
    assert denied.value.code == "kafka_denied"


async def test_what_is_refused_says_who_refused_it(secured: tuple[KafkaServer, Security]) -> None:
    server, security = secured
    async with tokens(security.user, seconds=-5.0) as given:
        with pytest.raises(FatalError) as old:
            await used(sink("oauth-old", server.sasl_address, sasl=sasl(given.url)))
        assert old.value.code == "kafka_authentication"
        wrong = sasl(given.url, client_secret="another")
        with pytest.raises(FatalError) as unknown:
            await used(sink("oauth-wrong", server.sasl_address, sasl=wrong))
    assert unknown.value.code == "kafka_authentication"
    assert "invalid_client" in unknown.value.message
    assert given.url in unknown.value.message
    assert "another" not in unknown.value.message
    with pytest.raises(TransientError) as gone:
        await used(sink("oauth-gone", server.sasl_address, sasl=sasl(given.url)))
    assert gone.value.code == "kafka_token"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [(503, TransientError, "kafka_token"), (401, FatalError, "kafka_authentication")],
)
async def test_who_refuses_another_token_amid_a_run_is_named(
    secured: tuple[KafkaServer, Security],
    status: int,
    kind: type[ReplicatorError],
    code: str,
) -> None:
    """Regression: the driver's background task ends of it, and its words hid the cause."""
    server, security = secured
    async with tokens(security.user) as given:
        made = sink(f"oauth-amid-{status}", server.sasl_address, sasl=sasl(given.url))
        await made.open([PRODUCTS])
        fence = await fenced(made)
        await write(made, pending(fence, [product(1)]))
        given.status = status
        made._options["sasl_oauth_token_provider"]._tokens._until = float("-inf")
        opened = made._shards[STREAM, "shard-1"].producer._open
        assert opened is not None
        for connection in list(opened.client._conns.values()):
            connection.close()
        with pytest.raises(kind) as refused:
            await write(made, pending(fence, [product(2)], first=2))
        assert refused.value.code == code
        assert given.url in refused.value.message
        given.status = 200
        await write(made, pending(await fenced(made), [product(2)], first=2))
        await made.close()


async def test_a_token_is_asked_for_again_before_its_life_is_over() -> None:
    now = 0.0
    async with tokens("me", seconds=100.0) as given:
        provider = ClientTokens(SASLConfig.model_validate(sasl(given.url)), lambda: now)
        await asyncio.gather(*(provider.token() for _ in range(5)))
        now = 79.0
        await provider.token()
        assert len(given.asked) == 1
        now = 81.0
        await provider.token()
        assert len(given.asked) == 2
        now, given.status = 200.0, 503
        with pytest.raises(TransientError):
            await provider.token()


async def answered(response: web.Response) -> tuple[str, float]:
    """The token of a server that answers so, and how long it is used."""

    async def answer(_: web.Request) -> web.Response:
        return response

    app = web.Application()
    app.router.add_post("/token", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        url = f"http://{host}:{port}/token"
        provider = ClientTokens(SASLConfig.model_validate(sasl(url)), lambda: 0.0)
        token = await provider.token()
        return token, provider._until
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("life", ["3600", 3600])
async def test_a_life_may_be_a_text(life: Any) -> None:
    body = {"access_token": "t", "expires_in": life}
    assert await answered(web.json_response(body)) == ("t", 2880)


@pytest.mark.parametrize("life", [None, "soon", [], float("nan"), float("inf")])
async def test_a_life_that_tells_nothing_is_short(life: Any) -> None:
    body = {"access_token": "t", "expires_in": life}
    assert await answered(web.json_response(body)) == ("t", 48)


async def test_bytes_that_are_no_text_are_no_token() -> None:
    with pytest.raises(FatalError) as strange:
        await answered(web.Response(body=b"\xff\xfe\xff", content_type="application/json"))
    assert strange.value.code == "kafka_authentication"


@pytest.mark.parametrize(
    "url", ["http://a..b/token", "http://a:70000/token", "https://127.0.0.1:{port}/token"]
)
async def test_an_address_that_cannot_work_is_the_operators(url: str) -> None:
    async with tokens("me") as given:
        told = url.format(port=given.url.split(":")[2].split("/")[0])
        with pytest.raises(FatalError, match="check sasl: token_endpoint") as wrong:
            await ClientTokens(SASLConfig.model_validate(sasl(told))).token()
    assert wrong.value.code == "kafka_authentication"
    assert SECRET not in wrong.value.message


def test_an_address_with_a_password_is_refused_and_not_printed() -> None:
    with pytest.raises(ValueError, match="token_endpoint") as refused:
        SASLConfig.model_validate(sasl("https://me:geheim@tokens.test/token"))
    assert "geheim" not in str(refused.value)


def test_what_ended_a_producers_sending_is_told_in_its_own_words() -> None:
    cause = FatalError("kafka_authentication", "no token")
    error = KafkaError("Unexpected error during batch delivery")
    error.__cause__ = cause
    assert translated(error, "writing") is cause
