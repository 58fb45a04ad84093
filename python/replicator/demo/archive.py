"""The demo's table as an archive in the emulator's S3, read back by `archive query`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from replicator import archive
from replicator.config import Config
from replicator.demo import compare
from replicator.demo.child import REGION, TABLE, client

BUCKET = "demo-archive"
# Each question fetches everything that is there.
_COUNT_SECONDS = 3.0
_NEWEST = """
SELECT id, arg_max(item, rank) FROM (
    SELECT key->>'id' AS id, coalesce(item::VARCHAR, '') AS item,
        lpad(version, 40, '0') || lpad(position, 64, '0') AS rank
    FROM changes
) GROUP BY id
"""
_COPIES = "SELECT event_id, count(*) FROM changes GROUP BY event_id HAVING count(*) > 1"
_STOCK = """
SELECT key->>'id' AS id, any_value(item->>'name') AS name, count(*) AS changes,
    min((item->>'Stock')::INTEGER) AS lowest_stock, max((item->>'Stock')::INTEGER) AS highest_stock,
    max(time) AS last_change
FROM changes GROUP BY id ORDER BY changes DESC, id LIMIT 5
"""


class ArchivePlace:
    """Every change is a line of an object; the newest of each key is its item."""

    name = "the archive"

    def __init__(self) -> None:
        self.sink: Mapping[str, Any] = {
            "name": "archive",
            "kind": "s3",
            "bucket": BUCKET,
            "prefix": "{table}/",
            "buffering": {"size_mb": 5, "interval_seconds": 1},
        }
        self._counted = (float("-inf"), 0)

    async def make(self) -> None:
        async with client("s3") as s3:
            where = {"LocationConstraint": REGION}
            await s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)

    async def open(self) -> None:
        """A question has a client of its own."""

    async def close(self) -> None:
        """See `open`."""

    async def count(self) -> int:
        if time.monotonic() - self._counted[0] > _COUNT_SECONDS:
            self._counted = (time.monotonic(), len(await self.items()))
        return self._counted[1]

    async def items(self) -> dict[str, Any]:
        found = (await _asked(self.sink, _NEWEST)).rows
        return {key: compare.plain_row(text) for key, text in found if text}

    async def faults(self) -> list[str]:
        copies = (await _asked(self.sink, _COPIES)).rows
        return [f"change {each} is there {times} times" for each, times in copies]

    async def ending(self) -> list[str]:
        answer = await _asked(self.sink, _STOCK)
        return ["", f'$ replicator archive query "{_STOCK.strip()}"', *answer.as_text().split("\n")]

    def way_in(self) -> str:
        url = os.environ["AWS_ENDPOINT_URL"]
        return f"aws --endpoint-url {url} s3 ls --recursive s3://{BUCKET}/{TABLE}/"


async def _asked(sink: Mapping[str, Any], sql: str) -> archive.Answer:
    pipeline = {
        "name": "products",
        "tables": [TABLE],
        "source": {"kind": "streams"},
        "sinks": [dict(sink)],
    }
    # The rest by the environment, which is the emulator's.
    config = {"name": "demo", "aws": {"region": REGION}, "pipelines": [pipeline]}
    return await archive.queried(Config.model_validate(config), archive.Asked(), sql)
