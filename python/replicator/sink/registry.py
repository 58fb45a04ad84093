"""A schema registry's HTTP API, as far as a writer needs it.

https://docs.confluent.io/platform/current/schema-registry/develop/api.html. Every answer is mapped
here to what the engine knows: what may pass is tried again, and what an operator must mend says so.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

import aiohttp
import orjson

from replicator.core.schemas import Format
from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.sink.http_client import HTTPClient, Words, mapped
from replicator.sink.registry_settings import RegistryConfig
from replicator.sink.tls import context

_CONTENT_TYPE: Final = "application/vnd.schemaregistry.v1+json"
_SUBJECT_MISSING: Final = frozenset({40401, 40402})
"""No such subject, or no version of it. https://docs.confluent.io/platform/current/schema-registry/develop/api.html#errors"""
_TYPES: Final[Mapping[Format, str]] = {"avro": "AVRO", "json_schema": "JSON"}
INCOMPATIBLE_ADVICE: Final = (
    "write to another topic, tell the attribute's former type in columns, change the subject's "
    "compatibility, or set auto_register: false, which leaves new attributes in extra"
)
_WORDS: Final = Words(
    certificate=("registry_tls", "name its authority in registry.tls.ca_file"),
    tls=(
        "registry_tls",
        "check registry.tls, and that it speaks TLS there (else its url begins with http://)",
    ),
    url=("registry_settings", "correct it"),
    timeout="registry_timeout",
    away="registry_unavailable",
    # A server says no more to who speaks no TLS, or has no certificate.
    silent="; if it lasts: it may want https, or a certificate in registry.tls",
)
_WORDS_MAX: Final = 600
_WAIT_SECONDS_MAX: Final = 60.0
"""A shard that waits for the registry asks again after this, whatever it was told."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The newest version of a subject. `type` is AVRO, JSON or PROTOBUF."""

    id: int
    version: int
    type: str
    schema: Any


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Any
    words: str
    retry_after: str


class Registry:
    """A client for one registry, opened by its first request."""

    def __init__(self, config: RegistryConfig, sink: str) -> None:
        self._config = config
        self._sink = sink
        self._urls = config.urls
        self._client = HTTPClient(
            headers=_headers(config),
            timeout=aiohttp.ClientTimeout(total=config.request_timeout_seconds),
            verify=self._verified,
        )

    @property
    def address(self) -> str:
        """The one that is asked first."""
        return self._urls[0]

    async def latest(self, subject: str) -> Registered | None:
        """The newest version; None when there is none. Raises TransientError and FatalError."""
        return await self.version(subject, "latest")

    async def version(self, subject: str, number: int | Literal["latest"]) -> Registered | None:
        """The version of this number; None when there is none, also when it was deleted."""
        path = f"/subjects/{quote(subject, safe='')}/versions/{number}"
        answer = await self._ask("GET", path)
        if answer is None:
            return None
        schema_id, version = self._number(path, answer), answer.get("version")
        kind, text = answer.get("schemaType", "AVRO"), answer.get("schema")
        if not isinstance(version, int) or not isinstance(text, str):
            raise self._stranger(path)
        try:
            schema = orjson.loads(text)
        except orjson.JSONDecodeError:
            schema = None  # Protobuf is no JSON.
        return Registered(schema_id, version, str(kind), schema)

    async def register(self, subject: str, format_: Format, schema: str) -> int:
        """The schema's number, of a new version where it is none yet; the same for the same
        schema. Raises TransientError, and FatalError that says why it isn't taken."""
        path = f"/subjects/{quote(subject, safe='')}/versions"
        return self._number(path, await self._ask("POST", path, _body(format_, schema)))

    async def complaints(self, subject: str, format_: Format, schema: str) -> list[str]:
        """Why the subject wouldn't take the schema as its next version; nothing when it would."""
        path = f"/compatibility/subjects/{quote(subject, safe='')}/versions/latest?verbose=true"
        answer = await self._ask("POST", path, _body(format_, schema))
        if not isinstance(answer, Mapping) or answer.get("is_compatible", True):
            return []
        return [str(word) for word in answer.get("messages") or ["it says no more"]]

    async def close(self) -> None:
        """May be called twice; a request opens it again."""
        await self._client.close()

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The answer's JSON; None where the subject isn't known. The addresses take turns."""
        failure: ReplicatorError | None = None
        for url in tuple(self._urls):
            try:
                return self._read(path, await self._send(method, url + path, body))
            except TransientError as error:
                failure = error
                if self._urls[0] == url:
                    self._urls = [*self._urls[1:], url]
        assert failure is not None
        raise failure

    async def _send(self, method: str, url: str, body: bytes | None) -> _Answer:
        doing = f"sink {self._sink}, registry {url.partition('?')[0]}"
        with mapped(doing, _WORDS):
            answer = await self._client.ask(method, url, body)
        try:
            read = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            read = None
        told = read.get("message") if isinstance(read, Mapping) else None
        words = str(told) if told else answer.body.decode(errors="replace")
        wait = answer.headers.get("Retry-After", "")
        return _Answer(answer.status, read, words[:_WORDS_MAX], wait)

    def _read(self, path: str, answer: _Answer) -> Any:
        status, words = answer.status, answer.words
        doing = f"sink {self._sink}, registry {self.address}{path.partition('?')[0]}"
        if status == 200:
            if answer.body is None:
                raise self._stranger(path)
            return answer.body
        if status in {408, 429} or status >= 500:
            seconds = None
            if answer.retry_after.isdecimal():
                seconds = min(float(answer.retry_after), _WAIT_SECONDS_MAX)
            raise TransientError(
                "registry_unavailable", f"{doing}: {status} {words}", retry_after_seconds=seconds
            )
        if status in {401, 403}:
            raise FatalError(
                "registry_denied",
                f"{doing}: {status} {words}; check registry.username and password (or token), and "
                "that they may read and write the subject (auto_register: false only reads)",
            )
        if status == 409:
            raise FatalError(
                "schema_incompatible",
                f"{doing}: the schema of what is written now isn't compatible with the subject's "
                f"versions: {words}; {INCOMPATIBLE_ADVICE}",
            )
        code = answer.body.get("error_code") if isinstance(answer.body, Mapping) else None
        if status == 404 and code in _SUBJECT_MISSING:
            return None
        if status == 422:
            raise FatalError("schema_refused", f"{doing}: the schema isn't taken: {words}")
        if status in {404, 405} or status < 400:
            # Another place of a registry, or another service: the API has no such answers here.
            raise self._stranger(path, f" ({status} {words})")
        raise FatalError("registry_refused", f"{doing}: {status} {words}")

    def _number(self, path: str, answer: Any) -> int:
        number = answer.get("id") if isinstance(answer, Mapping) else None
        if not isinstance(number, int) or not 0 <= number < 2**31:
            raise self._stranger(path)
        return number

    def _stranger(self, path: str, said: str = "") -> FatalError:
        return FatalError(
            "registry_settings",
            f"sink {self._sink}: {self.address}{path.partition('?')[0]} answers, but not as a "
            f"schema registry{said}: correct registry.url",
        )

    def _verified(self) -> ssl.SSLContext | Literal[True]:
        tls = self._config.tls
        place = f"sink {self._sink}, registry.tls"
        return True if tls is None else context(tls, "registry_tls", place)


def _headers(config: RegistryConfig) -> dict[str, str]:
    headers = {"Accept": f"{_CONTENT_TYPE}, application/json", "Content-Type": _CONTENT_TYPE}
    if token := config.token.get_secret_value():
        headers["Authorization"] = f"Bearer {token}"
    elif config.username:
        login = f"{config.username}:{config.password.get_secret_value()}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
    return headers


def _body(format_: Format, schema: str) -> bytes:
    # Registries that know Avro alone don't know the member.
    kind = {} if format_ == "avro" else {"schemaType": _TYPES[format_]}
    return orjson.dumps({"schema": schema, **kind})


def type_of(format_: Format) -> str:
    """What the registry calls it."""
    return _TYPES[format_]
