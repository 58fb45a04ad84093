"""An S3 sink at a small server of our own, and what a reader finds in its bucket."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from replicator.aws import AWSSettings
from replicator.core.plan import Encoding
from replicator.core.prefix import Prefix
from replicator.model import Batching, Pending, TableSchema, WriteResult
from replicator.sink.s3 import S3Sink
from replicator.sink.s3_settings import S3Settings
from replicator.testing.s3_server import S3Server

PRODUCTS = TableSchema("products", (("id", "S"),))
ORDERS = TableSchema("orders", (("customer", "S"), ("number", "N")))
NOON_US = 1_700_049_600_000_000  # 2023-11-15T12:00:00Z
HOUR_US = 3_600_000_000


def settings(url: str, **overrides: Any) -> S3Settings:
    values: dict[str, Any] = {
        "name": "archive",
        "pipeline": "test/shop",
        "bucket": "archive",
        "prefix": Prefix.parse("data/"),
        "batching": Batching(1_000_000, 5_242_880, 0.2),
        "encoding": Encoding(),
        "aws": AWSSettings(region="eu-north-1", endpoint_url=url),
    }
    return S3Settings(**{**values, **overrides})


async def opened(
    server: S3Server, tables: Sequence[TableSchema] = (PRODUCTS, ORDERS), **overrides: Any
) -> S3Sink:
    sink = S3Sink(settings(server.url, **overrides))
    await sink.open(tables)
    return sink


async def write(sink: S3Sink, *several: Pending) -> WriteResult:
    writer = sink.writer(several[0].fence)
    return await writer.write(writer.encode(several))


def lines(server: S3Server, prefix: str = "data/") -> Mapping[str, list[dict[str, Any]]]:
    """Every change in the bucket, by the object's key."""
    return {
        key: [json.loads(line) for line in gzip.decompress(body).splitlines()]
        for key, body in server.objects(prefix=prefix).items()
    }


def rows(server: S3Server, prefix: str = "data/") -> Mapping[str, list[dict[str, Any]]]:
    """Every row of the Parquet files in the bucket, by the object's key."""
    return {
        key: pq.ParquetFile(io.BytesIO(body)).read().to_pylist()
        for key, body in server.objects(prefix=prefix).items()
    }


def schemas(server: S3Server, table: str = "products") -> list[dict[str, str]]:
    """All versions of a table's columns, the oldest first."""
    found = server.objects(prefix=f"_replicator/schemas/test!shop!archive/{table}/")
    return [dict(json.loads(body)["columns"]) for _, body in sorted(found.items(), reverse=True)]


def times_each(server: S3Server) -> Counter[str]:
    """How often each change is there, by its event's id."""
    return Counter(change["eventID"] for each in lines(server).values() for change in each)


def plans(server: S3Server) -> list[dict[str, Any]]:
    """All plans, the newest first within a shard."""
    found = server.objects(prefix="_replicator/plans/")
    return [json.loads(body) for key, body in found.items() if key.endswith(".json")]
