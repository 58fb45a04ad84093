"""`replicator archive`: what the S3 sink wrote, in each of its formats, listed, printed, asked."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from replicator import _core, archive
from replicator import config as configuration
from replicator.archive import Asked
from replicator.config import Config
from replicator.errors import FatalError
from replicator.model import SHARD_END
from replicator.sink.place import SinkPlace
from replicator.sink.s3 import S3Sink
from replicator.sink.s3_settings import S3Config
from replicator.testing.s3_server import Request, S3Server, StoredObject
from tests.archive import HOUR_US, NOON_US, ORDERS, PRODUCTS, write
from tests.changes import STREAM, number, pending, put, remove

APPLE = {"id": {"S": "apple"}}
HISTORY = [
    put("products", APPLE, NOON_US, stock={"N": "5"}),
    put("products", APPLE, NOON_US + 1, {**APPLE, "stock": {"N": "5"}}, stock={"N": "4"}),
    remove("products", APPLE, NOON_US + HOUR_US, {**APPLE, "stock": {"N": "4"}}),
    put(
        "orders",
        {"customer": {"S": "ann"}, "number": {"N": "7"}},
        NOON_US + 2 * HOUR_US,
        total={"N": "0.10000000000000000000000000000000000001"},
    ),
]


@pytest.fixture
async def server(credentials: None) -> AsyncIterator[S3Server]:
    async with S3Server() as running:
        yield running


def config(server: S3Server, folder: Path, **sink: Any) -> Config:
    pipeline = {
        "name": "p",
        "tables": ["products", "orders"],
        "source": {"kind": "kinesis", "stream": "s"},
        "sinks": [{"name": "archive", "kind": "s3", "bucket": "archive", **sink}],
    }
    aws = {"region": "eu-north-1", "endpoint_url": server.url}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"aws": aws, "pipelines": [pipeline]}))
    return configuration.load(path, {})


async def filled(
    config: Config, more: Sequence[bytes] = (), *, history: Sequence[bytes] = HISTORY, n: int = 1
) -> None:
    (sink_config,) = config.pipelines[0].sinks
    assert isinstance(sink_config, S3Config)
    settings = archive.settings_of(config, Asked())
    assert settings == sink_config.settings(
        SinkPlace(f"replicator/p/{sink_config.name}", "x", "", settings.aws)
    )
    sink = S3Sink(settings)
    await sink.open([PRODUCTS, ORDERS])
    fence = await sink.fence(STREAM, f"shard-{n}", "me")
    await write(sink, pending(fence, [*history, *more], then=SHARD_END))
    await sink.close()


@pytest.mark.parametrize(
    "sink",
    [
        {},
        {"compression": "zstd", "prefix": "{table}/"},
        {"compression": "none"},
        {"format": "plain"},
        {"format": "plain", "compression": "zstd"},
        {"format": "parquet", "prefix": "x/"},
        {"format": "parquet", "prefix": "{table}/", "columns_max": 0},
    ],
    ids=str,
)
async def test_every_format_is_asked_alike(
    server: S3Server, tmp_path: Path, sink: dict[str, Any]
) -> None:
    settings = config(server, tmp_path, **sink)
    await filled(settings)
    sql = (
        "SELECT event, key->>'id', item->>'stock', old->>'stock', epoch_us(time), version"
        " FROM changes WHERE \"table\" = 'products' ORDER BY time"
    )
    answer = await archive.queried(settings, Asked(), sql)
    assert answer.rows == (
        ("INSERT", "apple", "5", None, NOON_US, str(NOON_US)),
        ("MODIFY", "apple", "4", "5", NOON_US + 1, str(NOON_US + 1)),
        ("REMOVE", "apple", None, "4", NOON_US + HOUR_US, str(NOON_US + HOUR_US)),
    )
    if sink.get("format") != "plain":
        numbers = await archive.queried(
            settings, Asked(), "SELECT position FROM changes ORDER BY 1"
        )
        assert numbers.rows == tuple((number(n),) for n in range(1, 5))
    # (What DuckDB takes out of JSON as a number is a double; the text has all digits.)
    exact = "SELECT item::VARCHAR FROM changes WHERE \"table\" = 'orders'"
    ((text,),) = (await archive.queried(settings, Asked(), exact)).rows
    is_exact = sink.get("format") != "plain"
    assert ('"total":0.10000000000000000000000000000000000001' in text) == is_exact
    noon = Asked(begin="2023-11-15T12:00:00Z", end="2023-11-15T13:00:00Z")
    counted = await archive.queried(settings, noon, "SELECT count(*) AS n FROM changes")
    assert counted.as_dict() == [{"n": 2}]
    assert len(await archive.listed(settings, noon)) == 1
    printed = b"".join([lines async for lines in archive.printed(settings, noon)])
    assert len(printed.splitlines()) == 2
    late = Asked(begin="1999-01-01T00:00:00Z", end="2000-01-01T00:00:00Z")
    assert (await archive.queried(settings, late, "SELECT * FROM changes")).rows == ()


@pytest.mark.parametrize("compression", ["gzip", "none", "zstd"])
async def test_raw_records_are_printed_a_line_each(
    server: S3Server, tmp_path: Path, compression: str
) -> None:
    settings = config(server, tmp_path, format="raw", compression=compression)
    await filled(settings)
    printed = b"".join([lines async for lines in archive.printed(settings, Asked())])
    assert printed.splitlines() == HISTORY
    later = Asked(begin="2023-11-15T12:00:00.000001Z", end="2023-11-15T13:00:00Z")
    printed = b"".join([lines async for lines in archive.printed(settings, later)])
    assert printed.splitlines() == HISTORY[1:2]


@pytest.mark.parametrize(
    "sink",
    [
        {"prefix": "logs/", "error_output_prefix": "logs/!{firehose:error-output-type}/"},
        {"prefix": "logs/data/", "error_output_prefix": "logs/"},
        {"prefix": "data/", "error_output_prefix": "failed-"},
        {"prefix": "a/", "state_prefix": "a/"},
        {"state_prefix": "a/b/"},
    ],
    ids=str,
)
async def test_data_is_found_beside_what_is_none(
    server: S3Server, tmp_path: Path, sink: dict[str, Any]
) -> None:
    settings = config(server, tmp_path, **sink)
    await filled(settings, [b"broken"])
    assert len(await archive.listed(settings, Asked())) == 3
    answer = await archive.queried(settings, Asked(), "SELECT count(*) FROM changes")
    assert answer.rows == ((4,),)
    other = S3Sink(archive.settings_of(settings, Asked()))
    assert await other.holds_data()
    assert (await other.report()).dead_letters in ({"objects": 1}, {})
    await other.close()


async def test_typed_columns_stand_beside_the_images(server: S3Server, tmp_path: Path) -> None:
    settings = config(server, tmp_path, format="parquet", columns={"stock": "bigint"})
    await filled(settings)
    sql = "SELECT sum(stock), list(old->>'stock' ORDER BY time) FROM changes"
    assert (await archive.queried(settings, Asked(table="products"), sql)).rows == (
        (9, [None, "5", "4"]),
    )


async def test_columns_that_grew_are_asked_together_with_objects_of_before(
    server: S3Server, tmp_path: Path
) -> None:
    """Of types that DuckDB doesn't make one, and of names that the view has too."""
    prefix = {"format": "parquet", "prefix": "{table}/"}
    await filled(config(server, tmp_path, **prefix, columns_max=0))
    kinds: list[dict[str, Any]] = [
        {"N": "5"},
        {"BOOL": True},
        {"SS": ["b", "a"]},
        {"BS": ["AQ=="]},
        {"B": "/w=="},
    ]
    settings = config(server, tmp_path, **prefix)
    for n, kind in enumerate(kinds, 2):
        tables = ("products", "orders") if n % 2 else ("orders", "products")
        records = [
            put(tables[0], {"id": {"S": f"{n}"}}, NOON_US + n, **{f"c{n}": kind}, time=kind),
            put(tables[1], {"id": {"S": f"{n}"}}, NOON_US + n, **{f"c{n}": {"S": "x"}}),
        ]
        await filled(settings, history=records, n=n)
    told = config(server, tmp_path, **prefix, columns={"c2": "bigint", "at": "timestamptz"})
    records = [put("orders", APPLE, NOON_US, at={"S": "2026-01-31T12:00:00Z"}, c2={"N": "2"})]
    await filled(told, history=records, n=7)

    async def asked(sql: str, table: str | None = None) -> Any:
        return (await archive.queried(settings, Asked(table=table), sql)).rows

    assert await asked("SELECT count(*), count(extra), count(id) FROM changes") == ((15, 11, 11),)
    assert await asked("SELECT c2 FROM changes WHERE c2 IS NOT NULL ORDER BY 1") == (
        ("2",),
        ("5",),
        ("x",),
    )
    both = 'SELECT c{} FROM changes WHERE c{} IS NOT NULL ORDER BY "table"'
    texts = [("x", "true"), ('["a","b"]', "x"), ("x", '["AQ=="]'), ("/w==", "x")]
    for n, wanted in enumerate(texts, 3):
        assert await asked(both.format(n, n)) == tuple((each,) for each in wanted)
    assert await asked("SELECT c6 FROM changes WHERE c6 IS NOT NULL", "orders") == ((b"\xff",),)
    assert await asked("SELECT time_ FROM changes WHERE time_ IS NOT NULL ORDER BY time") == (
        ("5",),
        ("true",),
    )
    assert len(await asked("SELECT * FROM changes")) == 15
    printed = b"".join([each async for each in archive.printed(settings, Asked(table="orders"))])
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["c6"] for line in lines if line.get("c6")] == ["/w=="]
    assert [line["at"] for line in lines if line.get("at")] == ["2026-01-31T12:00:00+00:00"]


async def test_whole_changes_are_printed_as_they_were_written(
    server: S3Server, tmp_path: Path
) -> None:
    settings = config(server, tmp_path)
    await filled(settings)
    printed = b"".join([lines async for lines in archive.printed(settings, Asked())])
    changes = [json.loads(line) for line in printed.splitlines()]
    assert [each["eventID"] for each in changes] == [
        json.loads(each)["eventID"] for each in HISTORY
    ]
    some = [lines async for lines in archive.printed(settings, Asked(table="orders"))]
    assert json.loads(b"".join(some)) == changes[3]


async def test_plain_changes_whose_time_is_not_told_are_not_left_out(
    server: S3Server, tmp_path: Path
) -> None:
    """Regression: a line of DynamoDB Streams tells no time in `plain`, and none was in any time."""
    settings = config(server, tmp_path, format="plain", compression="none")
    for hour, name in (("12", "in"), ("13", "later")):
        line = {"table": "products", "event": "REMOVE", "key": {"id": name}}
        text = json.dumps({**line, "version": "4" * 21, "item": None, "old": None}).encode()
        key = f"2023/11/15/{hour}/p-shard-1-000000001-1-0123456789.jsonl"
        server.buckets["archive"][key] = StoredObject(text, {})
    noon = Asked(begin="2023-11-15T12:30:00Z", end="2023-11-15T13:00:00Z")
    answer = await archive.queried(settings, noon, "SELECT key->>'id', time FROM changes")
    assert answer.rows == (("in", None),)
    printed = b"".join([lines async for lines in archive.printed(settings, noon)])
    assert json.loads(printed)["key"] == {"id": "in"}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("x.jsonl.gz", b"no gzip"),
        ("x.jsonl.gz", gzip.compress(b"{}" * 99)[:-9]),
        ("x.jsonl.zst", b"no zstd"),
        ("x.parquet", b"no Parquet"),
        ("x.parquet", _core.ChangeBatch.concat(()).parquet()[:-9]),
        ("x.jsonl", b"\xff"),
        ("notes.txt", b"hello"),
    ],
)
async def test_what_somebody_else_put_there_is_named(
    server: S3Server, tmp_path: Path, name: str, body: bytes
) -> None:
    """Regression: most of it ended in an error of ours, and nobody knew of which object."""
    settings = config(server, tmp_path)
    await filled(settings)
    key = f"2023/11/15/12/{name}"
    server.buckets["archive"][key] = StoredObject(body, {})
    with pytest.raises(FatalError) as query:
        await archive.queried(settings, Asked(), "SELECT count(*) FROM changes")
    assert (query.value.code, key in query.value.message) == ("archive_unreadable", True)
    noon = Asked(begin="2023-11-15T12:00:00.000001Z")
    with pytest.raises(FatalError) as cat:
        [lines async for lines in archive.printed(settings, noon)]
    assert (cat.value.code, key in cat.value.message) == ("archive_unreadable", True)


async def test_lines_are_the_changes_or_the_object_is_named(
    server: S3Server, tmp_path: Path
) -> None:
    """Regression: a line with none, or with two, ended in an error of ours that named nothing."""
    settings = config(server, tmp_path, compression="none")
    await filled(settings)
    (first, body), *_ = server.objects(prefix="2023/").items()
    change, *_ = body.splitlines(keepends=True)
    key = first.rpartition("/")[0] + "/x.jsonl"
    noon = Asked(begin="2023-11-15T00:00:01Z")
    server.buckets["archive"][key] = StoredObject(b"\n" + change + b"\n", {})
    printed = b"".join([lines async for lines in archive.printed(settings, noon)])
    assert printed.splitlines(keepends=True).count(change) == 2
    record = json.loads(change)
    del record["position"]
    two = json.dumps(record).encode() * 2
    server.buckets["archive"][key] = StoredObject(two + b"\n", {})
    with pytest.raises(FatalError) as cat:
        [lines async for lines in archive.printed(settings, noon)]
    assert (cat.value.code, key in cat.value.message) == ("archive_unreadable", True)
    assert "lines: 1, changes: 2" in cat.value.message


@pytest.mark.parametrize("form", ["change", "parquet"])
async def test_what_expires_meanwhile_is_passed_over(
    server: S3Server, tmp_path: Path, form: str
) -> None:
    """Regression: an object of Parquet that went between the listing and its turn was an error."""
    settings = config(server, tmp_path, format=form)
    await filled(settings)
    first, *_ = server.objects(prefix="2023/")

    async def expire(request: Request) -> None:
        if request.operation == "GetObject":
            server.buckets["archive"].pop(first, None)

    server.before = expire
    answer = await archive.queried(settings, Asked(), "SELECT count(*) FROM changes")
    assert answer.rows == ((2,),)
    assert b"".join([lines async for lines in archive.printed(settings, Asked())]).count(b"\n") == 2


async def test_what_cannot_be_is_said(server: S3Server, tmp_path: Path) -> None:
    settings = config(server, tmp_path)
    await filled(settings)
    with pytest.raises(FatalError) as query:
        await archive.queried(settings, Asked(), "SELECT nonsense FROM changes")
    assert query.value.code == "usage_query"
    with pytest.raises(FatalError) as sink:
        await archive.queried(settings, Asked(sink="other"), "SELECT 1")
    assert "archive" in sink.value.message
    for begin in ("yesterday", "LATEST"):
        with pytest.raises(FatalError) as time:
            await archive.listed(settings, Asked(begin=begin))
        assert time.value.code == "usage_time"


async def test_the_command_line(server: S3Server, tmp_path: Path) -> None:
    await filled(config(server, tmp_path))

    async def said(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "replicator",
            "archive",
            *arguments,
            "--config",
            str(tmp_path / "config.yaml"),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    assert "2023-11-15T12:00:00+00:00" in await said("ls")
    (shown,) = json.loads(await said("ls", "--to", "2023-11-15T12:30:00Z", "--output", "json"))
    assert shown["from"] == "2023-11-15T12:00:00+00:00"
    assert len((await said("cat", "--table", "products")).splitlines()) == 3
    sql = "SELECT event, count(*) AS n FROM changes GROUP BY ALL ORDER BY ALL"
    assert json.loads(await said("query", sql, "--output", "json")) == [
        {"event": "INSERT", "n": 2},
        {"event": "MODIFY", "n": 1},
        {"event": "REMOVE", "n": 1},
    ]
    assert (await said("query", sql)).splitlines()[0].split() == ["event", "n"]
