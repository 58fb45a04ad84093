"""The registry's client, and the test registry by the words of the API's reference.

https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.sink.registry import Registry
from replicator.sink.registry_settings import RegistryConfig
from replicator.testing.registry_server import RegistryServer
from tests.certificates import certificate

A = '{"type":"record","name":"R","fields":[]}'
FIELD = {"name": "f", "type": ["null", "string"], "default": None}
B = json.dumps({"type": "record", "name": "R", "fields": [FIELD]})
C = json.dumps({"type": "record", "name": "R", "fields": [{"name": "f", "type": "string"}]})
SUBJECT = "a topic/with-everything?-value"


@pytest.fixture
async def server() -> AsyncIterator[RegistryServer]:
    async with RegistryServer() as running:
        yield running


class Clients:
    """Clients of a test; closed at its end."""

    def __init__(self) -> None:
        self.made: list[Registry] = []

    def __call__(self, url: str, **more: Any) -> Registry:
        config = RegistryConfig.model_validate({"url": url, **more})
        self.made.append(Registry(config, "bus"))
        return self.made[-1]


@pytest.fixture
async def client() -> AsyncIterator[Clients]:
    clients = Clients()
    yield clients
    for each in clients.made:
        await each.close()


# ---- the client


async def test_versions_are_registered_and_found(server: RegistryServer, client: Clients) -> None:
    registry = client(server.url + "/")
    assert await registry.latest(SUBJECT) is None
    first = await registry.register(SUBJECT, "avro", A)
    assert await registry.register(SUBJECT, "avro", A) == first
    assert await registry.complaints(SUBJECT, "avro", B) == []
    second = await registry.register(SUBJECT, "avro", B)
    latest = await registry.latest(SUBJECT)
    assert latest is not None
    assert (latest.id, latest.version, latest.type) == (second, 2, "AVRO")
    assert latest.schema == json.loads(B)
    (complaint,) = await registry.complaints(SUBJECT, "avro", C)
    assert "TYPE_MISMATCH" in complaint
    other = await registry.register("json", "json_schema", '{"type":"object"}')
    latest = await registry.latest("json")
    assert latest is not None
    assert (latest.id, latest.type) == (other, "JSON")


async def test_what_is_no_json_is_somebody_elses(server: RegistryServer, client: Clients) -> None:
    answer = {"subject": "s", "version": 3, "id": 9, "schemaType": "PROTOBUF", "schema": "syntax"}
    server.faults.append(web.json_response(answer))
    latest = await client(server.url).latest("s")
    assert latest is not None
    assert (latest.id, latest.type, latest.schema) == (9, "PROTOBUF", None)


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (500, {"error_code": 50001, "message": "backend"}, TransientError, "registry_unavailable"),
        (503, "unavailable", TransientError, "registry_unavailable"),
        (429, {"error_code": 429, "message": "slow"}, TransientError, "registry_unavailable"),
        (401, {"error_code": 401, "message": "Unauthorized"}, FatalError, "registry_denied"),
        (403, "<html>Forbidden</html>", FatalError, "registry_denied"),
        (404, "<html>nothing here</html>", FatalError, "registry_settings"),
        (404, {"error_code": 404, "message": "HTTP 404"}, FatalError, "registry_settings"),
        (405, {"error_code": 405, "message": "HTTP 405"}, FatalError, "registry_settings"),
        (400, {"error_code": 400, "message": "strange"}, FatalError, "registry_refused"),
        (409, {"error_code": 409, "message": "incompatible: f"}, FatalError, "schema_incompatible"),
        (422, {"error_code": 42201, "message": "Invalid schema"}, FatalError, "schema_refused"),
        (301, "moved", FatalError, "registry_settings"),
        (200, "<html>hello</html>", FatalError, "registry_settings"),
        (200, {"hello": 1}, FatalError, "registry_settings"),
        (200, [], FatalError, "registry_settings"),
        (200, {"id": 2**40}, FatalError, "registry_settings"),
    ],
)
async def test_answers_are_what_the_engine_knows(
    server: RegistryServer,
    client: Clients,
    status: int,
    body: Any,
    kind: type[ReplicatorError],
    code: str,
) -> None:
    answer = body if isinstance(body, str) else json.dumps(body)
    server.faults.append(web.Response(status=status, text=answer, headers={"Retry-After": "7"}))
    with pytest.raises(kind) as raised:
        await client(server.url).register("orders-value", "avro", A)
    assert raised.value.code == code
    assert "sink bus" in raised.value.message
    if isinstance(raised.value, TransientError):
        assert raised.value.retry_after_seconds == 7
    elif code != "registry_settings":
        assert "orders-value" in raised.value.message
        assert str(body["message"] if isinstance(body, dict) else body) in raised.value.message


async def test_a_registry_that_is_away_may_come_back(client: Clients) -> None:
    async with RegistryServer() as server:
        url = server.url
    with pytest.raises(TransientError) as away:
        await client(url).latest("s")
    assert away.value.code == "registry_unavailable"


async def test_a_wait_that_it_asks_for_has_an_end(server: RegistryServer, client: Clients) -> None:
    server.faults.append(web.Response(status=503, headers={"Retry-After": "86400"}))
    with pytest.raises(TransientError) as busy:
        await client(server.url).latest("s")
    assert busy.value.retry_after_seconds == 60


@pytest.mark.parametrize("url", ["http://a..b:1", f"http://{'a' * 64}.test", "http://a:70000"])
async def test_an_address_that_is_none_is_the_operators(client: Clients, url: str) -> None:
    with pytest.raises(FatalError, match="it is no url") as wrong:
        await client(url).latest("s")
    assert wrong.value.code == "registry_settings"


async def test_tls_where_there_is_none_is_the_operators(
    server: RegistryServer, client: Clients
) -> None:
    with pytest.raises(FatalError, match="speaks TLS") as wrong:
        await client(server.url.replace("http:", "https:")).latest("s")
    assert wrong.value.code == "registry_tls"


async def test_a_registry_that_is_silent_is_left(server: RegistryServer, client: Clients) -> None:
    async def silent(_: str) -> web.Response | None:
        await asyncio.Event().wait()
        return None

    server.before = silent
    with pytest.raises(TransientError) as slow:
        await client(server.url, request_timeout_seconds=0.05).latest("s")
    assert slow.value.code == "registry_timeout"


async def test_another_address_takes_over(server: RegistryServer, client: Clients) -> None:
    async with RegistryServer() as gone:
        url = gone.url
    registry = client(f"{url}, {server.url}")
    assert await registry.register("s", "avro", A) == 1
    assert await registry.register("s", "avro", A) == 1
    assert registry.address == server.url, "the one that answers is asked first from then on"


async def test_who_asks_is_told_and_never_printed(client: Clients) -> None:
    async with RegistryServer(user="me", password="pass:wörd") as server:
        registry = client(server.url, username="me", password="pass:wörd")
        assert await registry.register("s", "avro", A) == 1
        wrongs: list[dict[str, Any]] = [
            {},
            {"username": "me", "password": "geheim"},
            {"token": "geheim"},
        ]
        for wrong in wrongs:
            with pytest.raises(FatalError) as denied:
                await client(server.url, **wrong).latest("s")
            assert denied.value.code == "registry_denied"
            assert "geheim" not in repr(denied.value)
            assert "geheim" not in repr(RegistryConfig.model_validate({"url": "http://a", **wrong}))


async def test_a_token_is_a_bearers(server: RegistryServer, client: Clients) -> None:
    seen: list[str | None] = []

    async def answered(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"id": 5})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answered)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    assert await client(f"http://{host}:{port}/api", token="abc").register("s", "avro", A) == 5
    await runner.cleanup()
    assert seen == ["Bearer abc"]


def test_a_token_of_two_lines_is_refused_and_not_printed() -> None:
    with pytest.raises(ValueError, match="one line") as refused:
        RegistryConfig.model_validate({"url": "http://a", "token": "geheim\ngeheim"})
    assert "geheim" not in str(refused.value)


async def test_a_certificate_must_be_known(tmp_path: Path, client: Clients) -> None:
    made = certificate(tmp_path)
    async with RegistryServer(tls=made.tls) as server:
        known = client(server.url, tls={"ca_file": str(made.file)})
        assert await known.register("s", "avro", A) == 1
        with pytest.raises(TransientError, match="may want https"):
            await client(server.url.replace("https:", "http:")).latest("s")
        absent = {"ca_file": str(tmp_path / "absent.pem")}
        for told, word in ((None, "isn't trusted"), (absent, "check ca_file")):
            with pytest.raises(FatalError, match=word) as refused:
                await client(server.url, tls=told).latest("s")
            assert refused.value.code == "registry_tls"


# ---- the test registry


async def test_the_fake_answers_as_the_reference_says(server: RegistryServer) -> None:
    async with aiohttp.ClientSession(server.url) as session:

        async def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
            async with session.request(method, path, json=body) as answer:
                assert answer.content_type == "application/vnd.schemaregistry.v1+json"
                return answer.status, await answer.json(content_type=None)

        assert await ask("GET", "/subjects") == (200, [])
        status, body = await ask("GET", "/subjects/s/versions/latest")
        assert (status, body["error_code"]) == (404, 40401)
        assert await ask("POST", "/subjects/s/versions", {"schema": A}) == (200, {"id": 1})
        assert await ask("POST", "/subjects/s/versions", {"schema": f" {A}"}) == (200, {"id": 1})
        assert await ask("POST", "/subjects/t/versions", {"schema": A}) == (200, {"id": 1})
        version = {"subject": "s", "version": 1, "id": 1, "schema": A}
        assert await ask("GET", "/subjects/s/versions/latest") == (200, version)
        assert await ask("GET", "/subjects/s/versions/1") == (200, version)
        assert await ask("POST", "/subjects/s", {"schema": A}) == (200, version)
        assert (await ask("POST", "/subjects/s", {"schema": B}))[1]["error_code"] == 40403
        assert (await ask("GET", "/subjects/s/versions/2"))[1]["error_code"] == 40402
        assert await ask("GET", "/schemas/ids/1") == (200, {"schema": A})
        assert (await ask("GET", "/schemas/ids/9"))[1]["error_code"] == 40403
        assert await ask("GET", "/config") == (200, {"compatibilityLevel": "BACKWARD"})
        path = "/compatibility/subjects/s/versions/latest"
        assert await ask("POST", path, {"schema": B}) == (200, {"is_compatible": True})
        status, body = await ask("POST", f"{path}?verbose=true", {"schema": C})
        assert (status, body["is_compatible"]) == (200, False)
        assert body["messages"]
        status, body = await ask("POST", "/subjects/s/versions", {"schema": C})
        assert (status, body["error_code"]) == (409, 409)
        assert await ask("PUT", "/config/s", {"compatibility": "NONE"}) == (
            200,
            {"compatibility": "NONE"},
        )
        assert await ask("POST", "/subjects/s/versions", {"schema": C}) == (200, {"id": 2})
        assert await ask("GET", "/subjects/s/versions") == (200, [1, 2])
        assert await ask("GET", "/subjects") == (200, ["s", "t"])
        status, body = await ask("POST", "/subjects/s/versions", {"schema": "{"})
        assert (status, body["error_code"]) == (422, 42201)
        status, body = await ask("PUT", "/config/s", {"compatibility": "SOME"})
        assert (status, body["error_code"]) == (422, 42203)
        kind = {"schema": '{"type":"object"}', "schemaType": "JSON"}
        assert await ask("POST", "/subjects/j/versions", kind) == (200, {"id": 3})
        assert (await ask("GET", "/subjects/j/versions/1"))[1]["schemaType"] == "JSON"
