"""A schema registry over real HTTP, as Confluent's API is documented: ids, subjects, versions,
compatibility (`schema_rules`), basic authentication, and faults.

https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import base64
import json
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from replicator.testing.json_server import JSONServer, Refusal
from replicator.testing.schema_rules import canonical, complaints, parsed

LEVELS: Final = (
    "NONE",
    *(f"{way}{more}" for way in ("BACKWARD", "FORWARD", "FULL") for more in ("", "_TRANSITIVE")),
)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a subject."""

    subject: str
    version: int
    id: int
    type: str
    schema: str

    def answer(self) -> dict[str, Any]:
        # Of Avro, the default, the type isn't told.
        kind = {} if self.type == "AVRO" else {"schemaType": self.type}
        return {
            "subject": self.subject,
            "version": self.version,
            "id": self.id,
            **kind,
            "schema": self.schema,
        }


class RegistryServer(JSONServer):
    """Runs while its `async with` block does. `calls` lists (METHOD path, body) in order.
    `before` sees each call before anything is done: it may wait, or answer itself."""

    content_type = "application/vnd.schemaregistry.v1+json"

    def __init__(
        self,
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        user: str = "",
        password: str = "",
        compatibility: str = "BACKWARD",
    ) -> None:
        super().__init__(port, tls=tls)
        self.versions: dict[str, list[Version]] = {}
        self.compatibility: dict[str, str] = {"": compatibility}
        """Of each subject that has one of its own; under the empty name, of all others."""
        self.before: Callable[[str], Awaitable[web.Response | None]] | None = None
        self.faults: deque[web.Response | None] = deque()
        """The next calls' answers; None cuts the connection."""
        self._ids: dict[tuple[str, str], int] = {}
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._authorization = f"Basic {login}" if user else None

    def schema(self, number: int) -> Any:
        """The schema of this number."""
        (text,) = (text for (_, text), known in self._ids.items() if known == number)
        return json.loads(text)

    def register(self, subject: str, schema: str, kind: str = "AVRO") -> int:
        """Adds a version, unless the schema is one already; the schema's number. Raises Refusal."""
        versions = self.versions.setdefault(subject, [])
        schema = canonical(kind, schema)
        for version in versions:
            if (version.type, version.schema) == (kind, schema):
                return version.id
        if found := self._complaints(subject, kind, schema):
            raise Refusal(
                "409",
                f"Schema being registered is incompatible with an earlier schema for subject "
                f'"{subject}", details: [{", ".join(found)}]',
                409,
            )
        number = self._ids.setdefault((kind, schema), len(self._ids) + 1)
        following = versions[-1].version + 1 if versions else 1
        versions.append(Version(subject, following, number, kind, schema))
        return number

    def _route(self, app: web.Application) -> None:
        add = app.router.add_route
        add("GET", "/schemas/ids/{id}", self._answer)
        add("GET", "/subjects", self._answer)
        add("GET", "/subjects/{subject}/versions", self._answer)
        add("GET", "/subjects/{subject}/versions/{version}", self._answer)
        add("POST", "/subjects/{subject}/versions", self._answer)
        add("POST", "/subjects/{subject}", self._answer)
        add("POST", "/compatibility/subjects/{subject}/versions/{version}", self._answer)
        add("GET", "/config", self._answer)
        add("PUT", "/config", self._answer)
        add("GET", "/config/{subject}", self._answer)
        add("PUT", "/config/{subject}", self._answer)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = f"{request.method} {request.path}"
        if self.before is not None and (answer := await self.before(name)) is not None:
            return answer
        if self.faults:
            if (fault := self.faults.popleft()) is not None:
                return fault
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self._authorization not in {None, request.headers.get("Authorization")}:
            return self._refused(Refusal("401", "Unauthorized", 401))
        body: dict[str, Any] = json.loads(await request.read() or b"{}")
        self.calls.append((name, body))
        try:
            return self._json(self._serve_one(request, body))
        except Refusal as refusal:
            return self._refused(refusal)

    def _serve_one(self, request: web.Request, body: Mapping[str, Any]) -> Any:
        subject = request.match_info.get("subject", "")
        place = request.path.strip("/").split("/")[0]
        if place == "schemas":
            return self._by_id(int(request.match_info["id"]))
        if place == "config":
            return self._configured(request.method, subject, body)
        kind = body.get("schemaType", "AVRO")
        if place == "compatibility":
            self._version(subject, request.match_info["version"])
            found = self._complaints(subject, kind, _valid(kind, body))
            told = {"messages": found} if request.query.get("verbose") == "true" else {}
            return {"is_compatible": not found, **told}
        if not subject:
            return sorted(name for name, versions in self.versions.items() if versions)
        if request.method == "GET":
            if "version" in request.match_info:
                return self._version(subject, request.match_info["version"]).answer()
            return [each.version for each in self._of(subject)]
        schema = _valid(kind, body)
        if request.path.endswith("/versions"):
            return {"id": self.register(subject, schema, kind)}
        for version in self._of(subject):
            if (version.type, version.schema) == (kind, schema):
                return version.answer()
        raise Refusal("40403", "Schema not found", 404)

    def _by_id(self, number: int) -> dict[str, Any]:
        for (kind, text), known in self._ids.items():
            if known == number:
                return {"schema": text, **({} if kind == "AVRO" else {"schemaType": kind})}
        raise Refusal("40403", f"Schema {number} not found", 404)

    def _configured(self, method: str, subject: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if method == "GET":
            return {"compatibilityLevel": self.compatibility.get(subject, self.compatibility[""])}
        level = str(body.get("compatibility", ""))
        if level not in LEVELS:
            raise Refusal("42203", f"Invalid compatibility level: {level}", 422)
        self.compatibility[subject] = level
        return {"compatibility": level}

    def _of(self, subject: str) -> list[Version]:
        if not (versions := self.versions.get(subject)):
            raise Refusal("40401", f"Subject '{subject}' not found.", 404)
        return versions

    def _version(self, subject: str, wanted: str) -> Version:
        versions = self._of(subject)
        if wanted in {"latest", "-1"}:
            return versions[-1]
        for version in versions:
            if str(version.version) == wanted:
                return version
        raise Refusal("40402", f"Version {wanted} not found.", 404)

    def _complaints(self, subject: str, kind: str, schema: str) -> list[str]:
        level = self.compatibility.get(subject, self.compatibility[""])
        versions = self.versions.get(subject, [])
        if level == "NONE":
            return []
        way = level.removesuffix("_TRANSITIVE")
        found: list[str] = []
        for older in versions if level != way else versions[-1:]:
            if older.type != kind:
                found.append(f"{kind} isn't {older.type}")
                continue
            new, old = parsed(schema), parsed(older.schema)
            if way in {"BACKWARD", "FULL"}:
                found += complaints(kind, reader=new, writer=old)
            if way in {"FORWARD", "FULL"}:
                found += complaints(kind, reader=old, writer=new)
        return found

    def _json(self, body: Any) -> web.Response:
        return web.Response(body=json.dumps(body).encode(), content_type=self.content_type)

    def _refused(self, refusal: Refusal) -> web.Response:
        body = {"error_code": int(refusal.code), "message": refusal.message}
        return web.Response(
            body=json.dumps(body).encode(),
            status=refusal.status,
            content_type=self.content_type,
        )


def _valid(kind: str, body: Mapping[str, Any]) -> str:
    schema = body.get("schema")
    if kind not in {"AVRO", "JSON"}:
        raise Refusal("422", f"Invalid schema type {kind}", 422)
    try:
        parsed(schema if isinstance(schema, str) else "")
    except ValueError as error:
        raise Refusal("42201", f"Invalid schema: {error}", 422) from None
    return canonical(kind, str(schema))
