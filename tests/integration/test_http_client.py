"""The one way to services over HTTP: the registry's, CrateDB's and the tokens' clients."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from aiohttp import web

from replicator.errors import FatalError, TransientError
from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.http_client import proxy_of
from replicator.sink.kafka_oauth import ClientTokens
from replicator.sink.kafka_settings import SASLConfig
from replicator.sink.registry import Registry
from replicator.sink.registry_settings import RegistryConfig
from tests.certificates import Certificate, certificate
from tests.http_proxy import http_proxy

Ask: TypeAlias = Callable[..., Awaitable[None]]

# What each of them takes for an answer.
ANSWER = {"id": 1, "access_token": "t", "rows": [], "version": 1, "schema": "{}"}


async def ask_registry(url: str, ca_file: Path | None = None) -> None:
    tls = ca_file and {"ca_file": ca_file}
    client = Registry(RegistryConfig.model_validate({"url": url, "tls": tls}), "bus")
    try:
        await client.latest("s")
    finally:
        await client.close()


async def ask_crate(url: str, ca_file: Path | None = None) -> None:
    session = CrateSession(CrateSettings("crate", "shop", url, ca_file=ca_file))
    try:
        async with session.use("asking"):
            await session.fetch("SELECT 1")
    finally:
        await session.close()


async def ask_token(url: str) -> None:
    settings = {"mechanism": "OAUTHBEARER", "token_endpoint": f"{url}/token", "client_id": "me"}
    given = SASLConfig.model_validate({**settings, "client_secret": "geheim"})
    await ClientTokens(given).token()


@pytest.fixture(params=[ask_registry, ask_crate, ask_token])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ask:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    found: Ask = request.param
    return found


@asynccontextmanager
async def service(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[str | None]]]:
    """A server with an answer for everybody: its address, and how each who asked signed in."""
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response(ANSWER)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}", seen
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"))


# ---- what an operator must mend, and what may pass


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.test"])
async def test_a_host_that_is_no_name_is_the_operators(ask: Ask, host: str) -> None:
    """Regression: CrateDB's was asked for ever."""
    with pytest.raises(FatalError, match="it is no url"):
        await ask(f"http://{host}:4200")


async def test_tls_where_there_is_none_is_the_operators(ask: Ask) -> None:
    """Regression: CrateDB's was asked for ever."""
    async with service() as (address, _):
        with pytest.raises(FatalError):
            await ask(f"https://{address}")


async def test_an_unknown_certificate_is_the_operators(ask: Ask, known: Certificate) -> None:
    async with service(known.tls) as (address, _):
        with pytest.raises(FatalError, match="isn't trusted"):
            await ask(f"https://{address}")


async def test_who_is_away_may_come_back(ask: Ask) -> None:
    async with service() as (address, _):
        pass
    with pytest.raises(TransientError):
        await ask(f"http://{address}")


# ---- proxies


@pytest.mark.parametrize("login", ["", "me:geheim"])
async def test_the_environments_proxy_is_asked(
    ask: Ask, login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the registry's and CrateDB's clients knew none."""
    async with http_proxy(login) as proxy, service() as (address, seen):
        named = f"{login}@{proxy.address}" if login else proxy.address
        monkeypatch.setenv("HTTP_PROXY", f"http://{named}" if login else named)
        await ask(f"http://{address}")
        assert proxy.asked == [address]
        assert len(seen) == 1


async def test_what_is_encrypted_goes_through_its_tunnel(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, known: Certificate
) -> None:
    async with http_proxy("me:geheim") as proxy, service(known.tls) as (address, seen):
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:geheim@{proxy.address}")
        with pytest.raises(FatalError, match="isn't trusted"):
            await ask(f"https://{address}")  # the server's own certificate
        assert (proxy.asked, seen) == ([address], [])
        if ask is not ask_token:  # it has the machine's authorities only
            await ask(f"https://{address}", ca_file=known.file)
            assert (proxy.asked, len(seen)) == ([address] * 2, 1)


@pytest.mark.parametrize("named", ["127.0.0.1", "{address}", "*", "example.com, 127.0.0.1"])
async def test_whom_no_proxy_names_is_asked_directly(
    ask: Ask, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http_proxy() as proxy, service() as (address, seen):
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        monkeypatch.setenv("NO_PROXY", named.format(address=address))
        await ask(f"http://{address}")
        assert (proxy.asked, len(seen)) == ([], 1)


def test_no_proxy_may_name_an_address_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "::1")
    assert proxy_of("http", "[::1]:4200") is None
    assert proxy_of("http", "[::2]:4200") == "http://proxy:3128"


@pytest.mark.parametrize(
    ("refuses", "kind"), [(403, FatalError), (502, TransientError), (503, TransientError)]
)
async def test_a_proxy_that_opens_no_tunnel_is_named(
    ask: Ask, refuses: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http_proxy(refuses=refuses) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:geheim@{proxy.address}")
        with pytest.raises(kind, match=f"proxy answers {refuses}") as refused:
            await ask("https://crate.test:4200")
    assert "geheim" not in str(refused.value)
    assert proxy.asked == ["crate.test:4200"]


async def test_a_proxy_that_knows_us_not_is_the_operators(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http_proxy("me:geheim") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:falsch@{proxy.address}")
        with pytest.raises(FatalError, match="407") as refused:
            await ask("https://crate.test:4200")
    assert "falsch" not in str(refused.value)
    with pytest.raises(TransientError) as away:
        await ask("https://crate.test:4200")
    assert "falsch" not in str(away.value)


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://me:geheim@127.0.0.1:1",
        "me:geheim@a..b:1",
        "http://me:geheim",
        "http://",
        # Regression: aiohttp told these with the password, raised no error of its own, or blamed
        # the service's url.
        r"http://me:geheim@proxy\x:1",
        r"http://me:\geheim@127.0.0.1:1",
        "http://m%3Ae:geheim@127.0.0.1:1",
        "http://me:geheim%E2%82%AC@127.0.0.1:1",
    ],
)
async def test_a_proxy_that_can_not_be_one_is_the_operators(
    ask: Ask, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(FatalError) as refused:
        await ask("https://crate.test:4200")
    assert "HTTPS_PROXY" in str(refused.value)
    assert "geheim" not in str(refused.value)


async def test_what_stands_in_netrc_is_sent_to_nobody(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Regression: the tokens' client signed in as somebody else."""
    (tmp_path / ".netrc").write_text("default login someone password geheim\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with http_proxy() as proxy, service() as (address, seen):
        await ask(f"http://{address}")
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        await ask(f"http://{address}")
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert "someone" not in json.dumps(seen)
    assert not any("c29tZW9uZTpnZWhlaW0=" in (each or "") for each in seen)
