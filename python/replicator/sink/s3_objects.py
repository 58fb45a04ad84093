"""What the S3 sink asks of a bucket: objects that are created once, and read, and listed.

An object is put in one request, so it is there whole or not at all: no upload in parts is ever
begun, and none is left behind. `If-None-Match: *` refuses a name that is taken
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html).
"""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from replicator.aws import aws_errors
from replicator.core.retry import Backoff
from replicator.errors import TransientError

_CONFLICTS_MAX = 6
_CONFLICTS = Backoff(0.05, 1.0)
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as a listing shows it; `nbytes` as it is stored."""

    key: str
    nbytes: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class ObjectOptions:
    """How objects are stored. `owner`: the account that the bucket has to belong to."""

    kms_key: str | None = None
    owner: str | None = None
    storage_class: str | None = None


class Bucket:
    """One bucket through one client. Every method may be called twice; they raise
    TransientError and FatalError."""

    def __init__(
        self,
        client: Any,
        name: str,
        options: ObjectOptions,
        sleep: Callable[[float], Awaitable[None]],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._client = client
        self._options = options
        self._sleep = sleep
        self._jitter = jitter
        self._whose = {} if options.owner is None else {"ExpectedBucketOwner": options.owner}

    async def create(self, key: str, body: bytes, *, content_type: str, is_data: bool) -> bool:
        """Creates the object; False when the name is taken. What is no data (a plan) stays in
        the standard class: it is small, and read again soon."""
        arguments = self._arguments(key, body, content_type, is_data=is_data)
        for attempt in range(_CONFLICTS_MAX):
            with aws_errors("PutObject", self._place(key)):
                try:
                    await self._client.put_object(**arguments)
                except ClientError as error:
                    match _status(error):
                        case 412:
                            return False
                        case 409:  # another request for the same name is under way
                            pass
                        case _:
                            raise
                else:
                    return True
            await self.pause(attempt)
        raise self.conflict(key)

    async def pause(self, attempt: int) -> None:
        """The wait after the conflict number `attempt` (from 0) with others who write the same."""
        await self._sleep(_CONFLICTS.next(attempt, self._jitter()))

    def conflict(self, key: str) -> TransientError:
        """What is raised when the pauses were of no use."""
        return TransientError(
            "object_conflict",
            f"PutObject of {self._place(key)}: others write the same name again and again. What "
            "to do: nothing, it is tried again; look for two workers at one shard if it stays",
            retry_after_seconds=1.0,
        )

    async def read(self, key: str) -> bytes | None:
        """The object's bytes; None when there is none."""
        with aws_errors("GetObject", self._place(key)):
            try:
                answer = await self._client.get_object(Bucket=self.name, Key=key, **self._whose)
            except ClientError as error:
                if _is_missing(error):
                    return None
                raise
            async with answer["Body"] as body:
                data: bytes = await body.read()
        return data

    async def exists(self, key: str) -> bool:
        """True when the object is there."""
        with aws_errors("HeadObject", self._place(key)):
            try:
                await self._client.head_object(Bucket=self.name, Key=key, **self._whose)
            except ClientError as error:
                if _is_missing(error):
                    return False
                raise
        return True

    async def first(self, prefix: str) -> str | None:
        """The first key with the prefix; None when there is none. One request."""
        with aws_errors("ListObjectsV2", self._place(prefix)):
            answer = await self._client.list_objects_v2(
                Bucket=self.name, Prefix=prefix, MaxKeys=1, **self._whose
            )
        found: list[Mapping[str, Any]] = answer.get("Contents", [])
        return str(found[0]["Key"]) if found else None

    async def entries(self, prefix: str, *, after: str = "") -> AsyncIterator[Entry]:
        """Every object with the prefix, behind the key `after`, in the order of keys."""
        async for answer in self._pages(prefix, StartAfter=after):
            for found in answer.get("Contents", ()):
                yield _entry(found)

    async def level(self, prefix: str) -> AsyncGenerator[tuple[list[Entry], list[str]], None]:
        """By pages: the objects with the prefix and no slash behind it, and the prefixes up to the
        next slash of all others, each once; both sorted. One request a page, however many objects
        lie behind a slash."""
        async for answer in self._pages(prefix, Delimiter="/"):
            folders = [each["Prefix"] for each in answer.get("CommonPrefixes", ())]
            yield [_entry(found) for found in answer.get("Contents", ())], folders

    async def _pages(self, prefix: str, **arguments: str) -> AsyncIterator[Mapping[str, Any]]:
        token: dict[str, str] = {}
        given = {name: value for name, value in arguments.items() if value}
        while True:
            with aws_errors("ListObjectsV2", self._place(prefix)):
                answer = await self._client.list_objects_v2(
                    Bucket=self.name, Prefix=prefix, **given, **token, **self._whose
                )
            yield answer
            if not answer.get("IsTruncated"):
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def _arguments(
        self, key: str, body: bytes, content_type: str, *, is_data: bool
    ) -> dict[str, Any]:
        options = self._options
        arguments: dict[str, Any] = {
            "Bucket": self.name,
            "Key": key,
            "Body": body,
            "ContentType": content_type,
            "IfNoneMatch": "*",
            # Compared by the service: what arrives is what was sent.
            "ChecksumCRC32": base64.b64encode(zlib.crc32(body).to_bytes(4)).decode(),
            **self._whose,
        }
        if options.kms_key is not None:
            arguments |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": options.kms_key}
        if options.storage_class is not None and is_data:
            arguments["StorageClass"] = options.storage_class
        return arguments

    def _place(self, key: str) -> str:
        return f"s3://{self.name}/{key}"


def _entry(found: Mapping[str, Any]) -> Entry:
    return Entry(found["Key"], found["Size"], found["LastModified"])


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_missing(error: ClientError) -> bool:
    # Of a bucket that is missing the service says another code, but to HEAD.
    return error.response.get("Error", {}).get("Code") in _MISSING
