"""Up to which shard nobody looks any more: those that ended longer ago than a stream keeps records.

Plans stay for good, for a plan's name is what keeps a second one from being made (law 7). So a
stream's listing grows by two names for each shard that ever ended. What is passed over here is
passed over by that listing alone: whoever asks for one of these shards finds its plans, its fences
and its end as ever, and writes nothing. How old an end is, the bucket's own clock says: by the
newest end beside it, so that no worker's wrong clock takes a shard for old that is still listed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

import orjson

from replicator.core.plan import numbered, ordinal_of
from replicator.model import Stream
from replicator.sink.s3_objects import Bucket

# A stream lists a closed shard for as long as it keeps records, 365 days at most
# (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_IncreaseStreamRetentionPeriod.html).
PAST_US = 400 * 24 * 3_600_000_000
# A page of the listing.
_SHARDS_MIN = 500


def folder_order(shard_id: str) -> str:
    """What a listing of the shards' folders sorts them by."""
    return f"{shard_id}/"


def passed(shards: Iterable[str], ended_us: Mapping[str, int]) -> list[str]:
    """The first of the shards, in a listing's order, that are to be passed over: each of them
    ended (at `ended_us`) too long before the last one did to be listed by its stream. Pure."""
    past_us = max(ended_us.values(), default=0) - PAST_US

    def is_past(shard_id: str) -> bool:
        return ended_us.get(shard_id, past_us) < past_us

    return list(itertools.takewhile(is_past, sorted(shards, key=folder_order)))


class S3Past:
    """The last shard of each stream that is passed over; it only moves forward. Raises
    TransientError and FatalError."""

    def __init__(self, bucket: Bucket, folder: Callable[[Stream], str]) -> None:
        self._bucket = bucket
        self._folder = folder
        self._known: dict[Stream, tuple[int, str]] = {}

    async def through(self, stream: Stream) -> str:
        """The last shard; empty for none. Asked for once: a request, and one if there is any."""
        if stream not in self._known:
            newest = await self._bucket.first(self._folder(stream))
            data = None if newest is None else await self._bucket.read(newest.key)
            if newest is None or data is None:
                self._known[stream] = (0, "")
            else:
                with self._bucket.reading(newest.key):
                    shard_id = str(orjson.loads(data)["through"])
                    self._known[stream] = (ordinal_of(newest.key), shard_id)
        return self._known[stream][1]

    async def look(
        self, stream: Stream, shards: Iterable[str], ended_us: Mapping[str, int]
    ) -> None:
        """Moves it forward, when that spares a page. `shards` are all that were listed."""
        past = passed(shards, ended_us)
        if len(past) < _SHARDS_MIN:
            return
        ordinal = 1 + self._known[stream][0]
        key = f"{self._folder(stream)}{numbered(ordinal)}.json"
        body = orjson.dumps({"through": past[-1]})
        if await self._bucket.create(key, body, content_type="application/json", is_data=False):
            self._known[stream] = (ordinal, past[-1])
        else:  # somebody else was quicker
            del self._known[stream]
