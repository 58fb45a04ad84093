"""What lies in a bucket, for who reads it back: objects by table and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from replicator.aws import aws_client
from replicator.sink.s3_objects import Bucket, Entry
from replicator.sink.s3_settings import S3Settings


@dataclass(frozen=True, slots=True)
class Span:
    """What is asked for: changes created in [`from_us`, `to_us`), UTC microseconds, of a table;
    None for all."""

    from_us: int | None = None
    to_us: int | None = None
    table: str | None = None

    def may_hold(self, start_us: int | None, period_us: int, table: str | None) -> bool:
        """True unless an object of this period and table can hold nothing of it."""
        if None not in (self.table, table) and self.table != table:
            return False
        if start_us is None:
            return True
        is_before = self.from_us is not None and start_us + period_us <= self.from_us
        return not is_before and (self.to_us is None or start_us < self.to_us)


@dataclass(frozen=True, slots=True)
class ArchivedObject:
    """One object. `start_us` (UTC microseconds) and `table` are None where its key tells none."""

    key: str
    nbytes: int
    start_us: int | None
    table: str | None


class S3Archive:
    """The data of one S3 sink, read only. Raises TransientError and FatalError."""

    def __init__(self, settings: S3Settings, bucket: Bucket) -> None:
        self._settings = settings
        self._bucket = bucket

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: S3Settings) -> AsyncIterator[S3Archive]:
        """The archive, for as long as the block lasts."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(aws_client(settings.aws, "s3"))
            bucket = Bucket(client, settings.bucket, settings.options, asyncio.sleep)
            yield cls(settings, bucket)

    async def objects(self, span: Span) -> list[ArchivedObject]:
        """Those that may hold some of it, in the order of their keys."""
        settings = self._settings
        prefix = settings.prefix
        entries: list[Entry] = []
        async for some, folders in self._bucket.level(prefix.root):
            entries += some
            for folder in filter(settings.is_data, folders):
                entries += [entry async for entry in self._bucket.entries(folder)]
        found = []
        for entry in sorted(entries, key=lambda entry: entry.key):
            if not settings.is_data(entry.key):
                continue
            table, start_us = prefix.place(entry.key)
            if span.may_hold(start_us, prefix.period_us, table):
                found.append(ArchivedObject(entry.key, entry.nbytes, start_us, table))
        return found

    async def read(self, key: str) -> bytes:
        """An object's bytes; none when it went meanwhile."""
        return await self._bucket.read(key) or b""
