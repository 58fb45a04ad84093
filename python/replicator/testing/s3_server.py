"""A small S3 over real HTTP: buckets in memory, conditional writes, listings, and faults.

It answers PutObject (whole objects only, with `If-None-Match`, `If-Match` and checksums),
GetObject, HeadObject, DeleteObject, HeadBucket, CreateBucket, ListObjectsV2 and
GetBucketLifecycleConfiguration (of `lifecycle`, rules as XML). `requests` is the
log, and `before` and `after` let a test refuse, stall or look at any request, before or after its
effect. It checks no signature, only the Region of one, where it has a Region.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web

from replicator.testing.json_server import JSONServer, Refusal

_CLASSES = frozenset(
    "STANDARD STANDARD_IA ONEZONE_IA INTELLIGENT_TIERING GLACIER GLACIER_IR DEEP_ARCHIVE".split()
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its number from 1 on, and what it is about."""

    number: int
    operation: str
    key: str


@dataclass(slots=True)
class StoredObject:
    """What was put, and how."""

    body: bytes
    headers: dict[str, str]
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.body, usedforsecurity=False).hexdigest()}"'


Hook = Callable[[Request], Awaitable[None]]
"""May raise a Refusal, or `Cut`."""


class Cut(Exception):
    """The connection ends without an answer."""


async def _nothing(_: Request) -> None:
    """As usual."""


class S3Server(JSONServer):
    """`buckets` holds bucket → key → object. `owner` is the account that owns them all; with a
    `region` who signs for another one is told so, as AWS does."""

    content_type = "application/xml"

    def __init__(self, buckets: Iterable[str] = ("archive",), *, owner: str = "0" * 12) -> None:
        super().__init__()
        self.region: str | None = None
        self.buckets: dict[str, dict[str, StoredObject]] = {name: {} for name in buckets}
        self.owner = owner
        self.lifecycle = ""
        self.requests: list[Request] = []
        self.before: Hook = _nothing
        self.after: Hook = _nothing
        self.page_size = 1_000

    def objects(self, bucket: str = "archive", prefix: str = "") -> dict[str, bytes]:
        """What is there, by key."""
        found = self.buckets[bucket]
        return {key: found[key].body for key in sorted(found) if key.startswith(prefix)}

    def _route(self, app: web.Application) -> None:
        app.router.add_route("*", "/{bucket}", self._handle)
        app.router.add_route("*", "/{bucket}/{key:.*}", self._handle)

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        key = http.match_info.get("key", "")
        kind = "Object" if key else "Bucket"
        verb = {"PUT": "Create" if not key else "Put", "HEAD": "Head", "DELETE": "Delete"}
        operation = verb.get(http.method, "Get") + kind
        if http.method == "GET" and not key:
            is_rules = "lifecycle" in http.query
            operation = "GetBucketLifecycleConfiguration" if is_rules else "ListObjectsV2"
        request = Request(len(self.requests) + 1, operation, key or http.query.get("prefix", ""))
        self.requests.append(request)
        body = await http.read()
        try:
            await self.before(request)
            try:
                answer = self._elsewhere(http) or self._perform(http, operation, key, body)
            except Refusal as refusal:
                answer = self.error_answer(refusal)
            await self.after(request)
        except Refusal as refusal:
            return self.error_answer(refusal)
        except Cut:
            assert http.transport is not None
            http.transport.abort()
            return web.Response(status=500)
        return answer

    def _perform(self, http: web.Request, operation: str, key: str, body: bytes) -> web.Response:
        name = http.match_info["bucket"]
        if operation == "CreateBucket":
            self.buckets.setdefault(name, {})
            return web.Response()
        if name not in self.buckets:
            raise Refusal("NoSuchBucket", f"there is no bucket {name}", 404)
        if http.headers.get("x-amz-expected-bucket-owner", self.owner) != self.owner:
            raise Refusal("AccessDenied", "the bucket belongs to another account", 403)
        bucket = self.buckets[name]
        match operation:
            case "HeadBucket" | "ListObjectsV2" | "GetBucketLifecycleConfiguration":
                return self._of_bucket(http, operation, name)
            case "PutObject":
                return self._put(http, bucket, key, body)
            case "DeleteObject":
                bucket.pop(key, None)
                return web.Response(status=204)
        if key not in bucket:
            raise Refusal("NoSuchKey", f"there is no object {key}", 404)
        found = bucket[key]
        headers = {
            "ETag": found.etag,
            "Last-Modified": format_datetime(found.modified, usegmt=True),
        }
        if operation == "HeadObject":
            return web.Response(headers={**headers, "Content-Length": str(len(found.body))})
        return web.Response(body=found.body, headers=headers)

    def _of_bucket(self, http: web.Request, operation: str, name: str) -> web.Response:
        match operation:
            case "HeadBucket":
                return web.Response()
            case "ListObjectsV2":
                return self._list(http, name)
        if not self.lifecycle:
            raise Refusal("NoSuchLifecycleConfiguration", "there is none", 404)
        return self._xml(f"<LifecycleConfiguration>{self.lifecycle}</LifecycleConfiguration>")

    def _put(
        self, http: web.Request, bucket: dict[str, StoredObject], key: str, body: bytes
    ) -> web.Response:
        if http.headers.get("x-amz-storage-class", "STANDARD") not in _CLASSES:
            raise Refusal("InvalidStorageClass", "there is no such class")
        if http.headers.get("If-None-Match") == "*" and key in bucket:
            raise Refusal("PreconditionFailed", "there is such an object", 412)
        if (wanted := http.headers.get("If-Match")) is not None:
            if key not in bucket:
                raise Refusal("NoSuchKey", f"there is no object {key}", 404)
            if wanted != bucket[key].etag:
                raise Refusal("PreconditionFailed", "the object is another one", 412)
        told = http.headers.get("x-amz-checksum-crc32")
        if told is not None and told != base64.b64encode(zlib.crc32(body).to_bytes(4)).decode():
            raise Refusal("BadDigest", "the checksum is another one")
        bucket[key] = StoredObject(body, dict(http.headers))
        return web.Response(headers={"ETag": bucket[key].etag})

    def _list(self, http: web.Request, name: str) -> web.Response:
        query = http.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most = min(int(query.get("max-keys", "1000")), self.page_size)
        shown: list[str] = []
        folders: list[str] = []
        last, is_more = "", False
        for key in sorted(self.buckets[name]):
            if not key.startswith(prefix) or key <= after:
                continue
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            folder = "" if end < 0 else key[: end + len(delimiter)]
            if folder and (folder in folders or after.startswith(folder)):
                last = key if folder in folders else last
                continue
            if len(shown) + len(folders) >= most:
                is_more = True
                break
            (folders if folder else shown).append(folder or key)
            last = key
        stored = self.buckets[name]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(stored[key].body)}</Size>"
            f"<LastModified>{stored[key].modified.isoformat()}</LastModified>"
            f"<ETag>{escape(stored[key].etag)}</ETag></Contents>"
            for key in shown
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in folders
        )
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if is_more else ""
        truncated = str(is_more).lower()
        return self._xml(
            f"<ListBucketResult><Name>{name}</Name><IsTruncated>{truncated}</IsTruncated>"
            f"{token}{contents}{common}</ListBucketResult>"
        )

    def _elsewhere(self, http: web.Request) -> web.Response | None:
        if self.region is None or f"/{self.region}/s3/" in http.headers["Authorization"]:
            return None
        text = f"<Code>PermanentRedirect</Code><Message>the bucket is in {self.region}</Message>"
        headers = {"x-amz-bucket-region": self.region}
        return self._xml(f"<Error>{text}</Error>", status=301, headers=headers)

    def error_answer(self, refusal: Refusal) -> web.Response:
        """The answer that carries a refusal."""
        text = f"<Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message>"
        return self._xml(f"<Error>{text}</Error>", status=refusal.status)

    def _xml(self, text: str, **options: Any) -> web.Response:
        body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'
        return web.Response(text=body, content_type=self.content_type, **options)
