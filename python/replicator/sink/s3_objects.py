"""What the S3 sink asks of a bucket: objects that are created once, and read, and listed.

An object is put in one request, so it is there whole or not at all: no upload in parts is ever
begun, and none is left behind. `If-None-Match: *` refuses a name that is taken
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html).
"""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from replicator.aws import aws_errors
from replicator.core.retry import Backoff
from replicator.errors import FatalError, TransientError

_CONFLICTS_MAX = 6
_CONFLICTS = Backoff(0.05, 1.0)
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as a listing shows it; `nbytes` as it is stored."""

    key: str
    nbytes: int
    modified: datetime

    @property
    def modified_us(self) -> int:
        """When it was put, by the service's clock (UTC microseconds)."""
        return round(self.modified.timestamp() * 1_000_000)


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
        self._advice = _advice(name, options)
        self._whose = {} if options.owner is None else {"ExpectedBucketOwner": options.owner}

    async def create(self, key: str, body: bytes, *, content_type: str, is_data: bool) -> bool:
        """Creates the object; False when the name is taken. What is no data (a plan) stays in
        the standard class: it is small, and read again soon."""
        arguments = self._arguments(key, body, content_type, is_data=is_data)
        for attempt in range(_CONFLICTS_MAX):
            with self._asking("PutObject", key):
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

    async def require_access(self, key: str) -> None:
        """Raises FatalError unless objects may be listed, read and created here. Nothing is made:
        the request to create asks for an object to replace, and there is none of this key."""
        await self.first(key)
        await self.read(key)
        arguments = self._arguments(key, b"", "text/plain", is_data=True)
        del arguments["IfNoneMatch"]
        with self._asking("PutObject", key):
            try:
                await self._client.put_object(**arguments, IfMatch='"0"')
            except ClientError as error:
                if not _is_missing(error) and _status(error) not in {409, 412}:
                    raise

    async def lifecycle(self) -> Mapping[str, Any] | None:
        """The bucket's lifecycle rules as the service tells them; None where it tells nobody, or
        not these credentials."""
        with self._asking("GetBucketLifecycleConfiguration", ""):
            try:
                answer: Mapping[str, Any] = await self._client.get_bucket_lifecycle_configuration(
                    Bucket=self.name, **self._whose
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "NoSuchLifecycleConfiguration":
                    return {}
                # Whatever refuses it: stores that don't know the request say so in many ways.
                if _status(error) < 500 or _status(error) == 501:
                    return None
                raise
        return answer

    async def read(self, key: str) -> bytes | None:
        """The object's bytes; None when there is none."""
        with self._asking("GetObject", key):
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
        with self._asking("HeadObject", key):
            try:
                await self._client.head_object(Bucket=self.name, Key=key, **self._whose)
            except ClientError as error:
                if _is_missing(error):
                    return False
                raise
        return True

    async def first(self, prefix: str) -> Entry | None:
        """The first object with the prefix; None when there is none. One request."""
        with self._asking("ListObjectsV2", prefix):
            answer = await self._client.list_objects_v2(
                Bucket=self.name, Prefix=prefix, MaxKeys=1, **self._whose
            )
        found: list[Mapping[str, Any]] = answer.get("Contents", [])
        return _entry(found[0]) if found else None

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
            with self._asking("ListObjectsV2", prefix):
                answer = await self._client.list_objects_v2(
                    Bucket=self.name, Prefix=prefix, **given, **token, **self._whose
                )
            yield answer
            if not answer.get("IsTruncated"):
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    @contextmanager
    def reading(self, key: str) -> Iterator[None]:
        """For what is made of an object of ours, or of its name: FatalError when it can't be."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FatalError(
                "state_unreadable",
                f"{self._place(key)} is none of the objects that belong there, or of "
                f"another version ({error}). What to do: run the version that wrote it, or a later "
                "one; take away what somebody else put there",
            ) from error

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

    def _asking(self, operation: str, key: str) -> AbstractContextManager[None]:
        return aws_errors(operation, self._place(key), advice=self._advice[operation])

    def _place(self, key: str) -> str:
        return f"s3://{self.name}/{key}"


def _advice(bucket: str, options: ObjectOptions) -> Mapping[str, Mapping[str, str]]:
    """What an operator does about errors of each operation, by the error's code."""
    arn = f"arn:aws:s3:::{bucket}"
    key = "the bucket's default KMS key" if options.kms_key is None else options.kms_key
    kms = f"enable {key} and grant kms:GenerateDataKey and kms:Decrypt on it, or name another key"
    owner = "" if options.owner is None else f" (is it the bucket of account {options.owner}?)"
    shared = {
        "resource_missing": f"make the bucket (aws s3 mb s3://{bucket}), or correct `bucket`",
        "region_wrong": "set the Region of the bucket in the sink's `aws`",
        **dict.fromkeys(("kms_missing", "kms_disabled", "kms_unusable", "kms_denied"), kms),
    }
    allow = "grant the credentials in use"
    read = f"{allow} s3:GetObject on {arn}/*, and kms:Decrypt on its KMS key if it has one{owner}"
    denied = {
        "ListObjectsV2": f"{allow} s3:ListBucket on {arn}{owner}",
        "PutObject": f"{allow} s3:PutObject on {arn}/*, and kms:GenerateDataKey and kms:Decrypt on "
        f"its KMS key if it has one{owner}",
        "GetObject": read,
        "HeadObject": read,
    }
    return {
        "GetBucketLifecycleConfiguration": shared,  # who is denied it isn't in trouble
        **{operation: {**shared, "access_denied": what} for operation, what in denied.items()},
    }


def _entry(found: Mapping[str, Any]) -> Entry:
    return Entry(found["Key"], found["Size"], found["LastModified"])


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_missing(error: ClientError) -> bool:
    # Of a bucket that is missing the service says another code, but to HEAD.
    return error.response.get("Error", {}).get("Code") in _MISSING
