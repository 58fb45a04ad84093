"""What lies in a bucket, for who reads it back: objects by table and time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from replicator.aws import aws_client
from replicator.core.places import Places, Told
from replicator.sink.s3_objects import Bucket, Entry
from replicator.sink.s3_settings import S3Settings
from replicator.sink.together import together

log = structlog.get_logger()

# Listing requests at once.
_LOOKS_MAX = 8


@dataclass(frozen=True, slots=True)
class Span:
    """What is asked for: changes created in [`from_us`, `to_us`), UTC microseconds, of a table;
    None for all."""

    from_us: int | None = None
    to_us: int | None = None
    table: str | None = None

    @property
    def has_time(self) -> bool:
        """True unless all times are asked for."""
        return self.from_us is not None or self.to_us is not None

    def may_hold(self, told: Told) -> bool:
        """True unless what tells this can hold nothing of it."""
        if None not in (self.table, told.table) and self.table != told.table:
            return False
        if told.from_us is None or told.to_us is None:
            return True
        is_before = self.from_us is not None and told.to_us <= self.from_us
        return not is_before and (self.to_us is None or told.from_us < self.to_us)

    def covers(self, told: Told) -> bool:
        """True when the whole period is asked for."""
        if told.from_us is None or told.to_us is None:
            return not self.has_time
        is_begun = self.from_us is None or self.from_us <= told.from_us
        return is_begun and (self.to_us is None or told.to_us <= self.to_us)


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
        self._places = Places(settings.prefix)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: S3Settings) -> AsyncIterator[S3Archive]:
        """The archive, for as long as the block lasts."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(aws_client(settings.aws, "s3"))
            bucket = Bucket(client, settings.bucket, settings.options, asyncio.sleep)
            yield cls(settings, bucket)

    async def objects(self, span: Span) -> list[ArchivedObject]:
        """Those that may hold some of it, in the order of their keys. Folders of other times are
        passed over, where folders tell time."""
        prefix = self._settings.prefix
        if span.has_time and not self._places.tells_time:
            log.warning(
                "archive_listed_whole",
                prefix=prefix.text,
                action="nothing, or be patient: its folders don't tell by themselves in which time "
                "their changes were made, so all names are looked at",
            )
        found = await self._walked(prefix.root, span, asyncio.Semaphore(_LOOKS_MAX))
        objects = []
        for entry in sorted(found, key=lambda entry: entry.key):
            told = self._places.told(entry.key)
            if self._settings.is_data(entry.key) and span.may_hold(told):
                objects.append(ArchivedObject(entry.key, entry.nbytes, told.from_us, told.table))
        return objects

    async def _walked(self, folder: str, span: Span, looks: asyncio.Semaphore) -> list[Entry]:
        """What lies in the folder, but for folders that can hold nothing of it."""
        found: list[Entry] = []
        further: list[str] = []
        async with looks:
            async for entries, folders in self._bucket.level(folder):
                found += entries
                further += filter(self._settings.is_data, folders)
        asked = [(each, told) for each in further if span.may_hold(told := self._places.told(each))]
        walks = [
            self._walked(each, span, looks)
            if self._places.leads_on(each) and not span.covers(told)
            else self._whole(each, looks)
            for each, told in asked
        ]
        return list(itertools.chain(found, *await together(walks)))

    async def _whole(self, folder: str, looks: asyncio.Semaphore) -> list[Entry]:
        async with looks:
            return [entry async for entry in self._bucket.entries(folder)]

    async def read(self, key: str) -> bytes | None:
        """An object's bytes; None when it went meanwhile."""
        return await self._bucket.read(key)
