"""The demo's table as an archive in the emulator's S3, read back by `archive query`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from replicator import archive
from replicator.config import Config
from replicator.demo.asked import AskedPlace
from replicator.demo.child import REGION, TABLE, client

BUCKET = "demo-archive"
_NEWEST = """
SELECT id, arg_max(item, rank) FROM (
    SELECT key->>'id' AS id, coalesce(item::VARCHAR, '') AS item,
        lpad(version, 40, '0') || lpad(position, 64, '0') AS rank
    FROM changes
) GROUP BY id
"""
_STOCK = """
SELECT key->>'id' AS id, any_value(item->>'name') AS name, count(*) AS changes,
    min((item->>'Stock')::INTEGER) AS lowest_stock, max((item->>'Stock')::INTEGER) AS highest_stock,
    max(time) AS last_change
FROM changes GROUP BY id ORDER BY changes DESC, id LIMIT 5
"""


class ArchivePlace(AskedPlace):
    """Every change is a line of an object; the newest of each key is its item."""

    name = "the archive"
    newest = _NEWEST

    def __init__(self) -> None:
        super().__init__()
        self.sink: Mapping[str, Any] = {
            "name": "archive",
            "kind": "s3",
            "bucket": BUCKET,
            "prefix": "{table}/",
            "buffering": {"size_mb": 5, "interval_seconds": 1},
        }

    async def make(self) -> None:
        async with client("s3") as s3:
            where = {"LocationConstraint": REGION}
            await s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)

    async def rows(self, sql: str) -> Sequence[tuple[Any, ...]]:
        return (await _asked(self.sink, sql)).rows

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
