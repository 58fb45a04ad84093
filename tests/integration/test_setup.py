"""`replicator setup` against the emulator: what is lacking is told, made once, and removed."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from replicator import config, setup, setup_pieces
from replicator.aws import AWSSettings, aws_client
from replicator.cli import app
from replicator.errors import FatalError
from replicator.model import TableSchema
from replicator.setup import Report
from replicator.testing.clock import VirtualClock
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.integration.test_check import replicator
from tests.shop import TABLE
from tests.stack import CREDENTIALS, Stack

STREAM = "changes"


@dataclass
class Place:
    """A table with an item in the emulator, no stream, and a configuration that wants one."""

    config: Path
    dynamodb: Any
    kinesis: Any

    async def states(self, **how: Any) -> dict[str, str]:
        report = await setup.setup(config.load(self.config, {}), clock=VirtualClock(), **how)
        return {step.subject: step.state for step in report.steps}

    async def precision(self) -> list[tuple[str, str]]:
        answer = await self.dynamodb.describe_kinesis_streaming_destination(TableName=TABLE)
        return [
            (one["DestinationStatus"], one["ApproximateCreationDateTimePrecision"])
            for one in answer["KinesisDataStreamDestinations"]
            if one["DestinationStatus"] == "ACTIVE"
        ]

    async def shards(self) -> int:
        answer = await self.kinesis.describe_stream_summary(StreamName=STREAM)
        return int(answer["StreamDescriptionSummary"]["OpenShardCount"])

    async def streams(self) -> list[str]:
        return list((await self.kinesis.list_streams())["StreamNames"])


@pytest.fixture
async def place(
    ministack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    settings = AWSSettings(region="us-east-1", endpoint_url=ministack_url)
    path = Stack(ministack_url, "postgresql://nowhere", tmp_path, None).config(
        pipelines=[
            {
                "name": "p",
                "tables": [TABLE],
                "source": {"kind": "kinesis", "stream": STREAM},
                "sinks": [{"name": "w", "kind": "postgres"}],
            }
        ]
    )
    async with AsyncExitStack() as stack:
        dynamodb = await stack.enter_async_context(aws_client(settings, "dynamodb"))
        kinesis = await stack.enter_async_context(aws_client(settings, "kinesis"))
        await dynamodb.create_table(
            TableName=TABLE,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        )
        await dynamodb.put_item(TableName=TABLE, Item={"id": {"S": "1"}})
        yield Place(path, dynamodb, kinesis)


@dataclass
class Aws:
    """A server that keeps the service's rules of tags, and a configuration for it."""

    server: KinesisServer
    config: Path

    async def states(self, **how: Any) -> dict[str, str]:
        report = await setup.setup(config.load(self.config, {}), clock=VirtualClock(), **how)
        return {step.subject: step.state for step in report.steps}


CONSUMER = "consumer test-p"
ALL = {f"stream {STREAM}", f"destination of table {TABLE}", "consumer test-p"}


async def test_it_tells_makes_and_makes_nothing_twice(place: Place) -> None:
    assert await place.states(apply=False) == dict.fromkeys(ALL, "todo")
    assert await place.streams() == [], "it only looked"
    assert await place.states(apply=True, shards=3) == dict.fromkeys(ALL, "done")
    assert await place.shards() == 3
    assert await place.precision() == [("ACTIVE", "MICROSECOND")]
    assert await place.states(apply=True, shards=3) == dict.fromkeys(ALL, "ok")


async def test_milliseconds_become_microseconds(place: Place) -> None:
    await place.states(apply=True, shards=1, only=["stream"])
    answer = await place.kinesis.describe_stream_summary(StreamName=STREAM)
    await place.dynamodb.enable_kinesis_streaming_destination(
        TableName=TABLE,
        StreamArn=answer["StreamDescriptionSummary"]["StreamARN"],
        EnableKinesisStreamingConfiguration={"ApproximateCreationDateTimePrecision": "MILLISECOND"},
    )
    states = await place.states(apply=True)
    assert states[f"stream {STREAM}"] == "ok"
    assert states[f"destination of table {TABLE}"] == "done"
    assert await place.precision() == [("ACTIVE", "MICROSECOND")]


async def test_what_it_made_is_removed_and_the_table_kept(place: Place) -> None:
    await place.states(apply=True, shards=1)
    asked: list[Report] = []

    def no(report: Report) -> bool:
        asked.append(report)
        return False

    assert await place.states(apply=True, remove=True, confirm=no) == dict.fromkeys(ALL, "todo")
    assert len(asked) == 1
    assert await place.streams() == [STREAM]
    assert await place.states(apply=True, remove=True) == dict.fromkeys(ALL, "done")
    assert await place.streams() == []
    assert await place.precision() == []
    assert await place.states(apply=True, remove=True) == dict.fromkeys(ALL, "ok")
    item = await place.dynamodb.get_item(TableName=TABLE, Key={"id": {"S": "1"}})
    assert item["Item"] == {"id": {"S": "1"}}


async def test_what_it_made_is_removed_though_the_table_is_gone(place: Place) -> None:
    """Regression: it ended with the table that isn't there."""
    await place.states(apply=True, shards=1)
    await place.dynamodb.delete_table(TableName=TABLE)
    report = await setup.setup(
        config.load(place.config, {}), apply=True, remove=True, clock=VirtualClock()
    )
    assert {step.subject: step.state for step in report.steps} == {
        "consumer test-p": "done",
        f"destination of table {TABLE}": "ok",
        f"stream {STREAM}": "done",
    }
    assert f"table {TABLE} isn't there" in report.as_text()
    assert report.is_complete
    assert await place.streams() == []


async def test_a_stream_of_somebody_elses_is_left_unless_it_is_named(place: Place) -> None:
    await place.kinesis.create_stream(StreamName=STREAM, ShardCount=1)
    await place.states(apply=True)
    removed = await place.states(apply=True, remove=True)
    assert removed == {
        f"stream {STREAM}": "left",
        f"destination of table {TABLE}": "left",
        "consumer test-p": "left",
    }
    assert await place.streams() == [STREAM]
    only = ["consumer", "destination", "stream"]
    assert set((await place.states(apply=True, remove=True, only=only)).values()) <= {"done", "ok"}
    assert await place.streams() == []
    assert await place.precision() == []


async def view_type(place: Place) -> str | None:
    table = (await place.dynamodb.describe_table(TableName=TABLE))["Table"]
    wanted = table.get("StreamSpecification") or {}
    return wanted.get("StreamViewType") if wanted.get("StreamEnabled") else None


@pytest.fixture
def streams(place: Place) -> Place:
    """The place, with a pipeline that reads the table's own stream."""
    settings = yaml.safe_load(place.config.read_text())
    settings["pipelines"][0]["source"] = {"kind": "streams"}
    place.config.write_text(yaml.safe_dump(settings))
    return place


OWN = f"stream of table {TABLE}"


async def enable(place: Place, view: str) -> None:
    wanted = {"StreamEnabled": True, "StreamViewType": view}
    await place.dynamodb.update_table(TableName=TABLE, StreamSpecification=wanted)


async def test_a_tables_own_stream_is_enabled_once_and_disabled_again(streams: Place) -> None:
    assert await streams.states(apply=False) == {OWN: "todo"}
    assert await view_type(streams) is None, "it only looked"
    assert await streams.states(apply=True) == {OWN: "done"}
    assert await view_type(streams) == "NEW_AND_OLD_IMAGES"
    assert await streams.states(apply=True) == {OWN: "ok"}
    assert await streams.states(apply=True, remove=True) == {OWN: "done"}
    assert await view_type(streams) is None
    assert await streams.states(apply=True, remove=True) == {OWN: "ok"}


async def test_a_stream_whose_table_is_gone_needs_no_removing(streams: Place) -> None:
    """Regression: it ended with the table that isn't there."""
    await streams.states(apply=True)
    await streams.dynamodb.delete_table(TableName=TABLE)
    for only in ((), ("view",)):
        assert await streams.states(apply=True, remove=True, only=only) == {OWN: "ok"}
    with pytest.raises(FatalError) as missing:
        await streams.states(apply=True)
    assert missing.value.code == "resource_missing"


async def test_a_stream_that_somebody_enabled_stays(streams: Place) -> None:
    await enable(streams, "NEW_IMAGE")
    assert await streams.states(apply=True) == {OWN: "ok"}, "a sink of whole items needs no more"
    assert await streams.states(apply=True, remove=True) == {OWN: "left"}
    assert await streams.states(apply=True, remove=True, only=["view"]) == {OWN: "done"}
    # The tag of an earlier stream says nothing of a later one.
    await streams.states(apply=True)
    await streams.dynamodb.update_table(
        TableName=TABLE, StreamSpecification={"StreamEnabled": False}
    )
    await asyncio.sleep(0.01)
    await enable(streams, "NEW_AND_OLD_IMAGES")
    assert await streams.states(apply=True, remove=True) == {OWN: "left"}
    assert await view_type(streams) == "NEW_AND_OLD_IMAGES"


@pytest.mark.parametrize("view", ["KEYS_ONLY", "OLD_IMAGE"])
async def test_a_view_type_that_does_not_do_is_changed_only_when_it_is_named(
    streams: Place, view: str
) -> None:
    await enable(streams, view)
    report = await setup.setup(config.load(streams.config, {}), apply=True)
    assert [step.state for step in report.steps] == ["stuck"]
    assert f"{view}, which carries no new images" in report.steps[0].message
    assert not report.is_complete
    assert await view_type(streams) == view
    assert await streams.states(apply=False, only=["view"]) == {OWN: "todo"}
    assert await view_type(streams) == view, "it only looked"
    assert await streams.states(apply=True, only=["view"]) == {OWN: "done"}
    assert await view_type(streams) == "NEW_AND_OLD_IMAGES"
    assert await streams.states(apply=True) == {OWN: "ok"}
    assert await streams.states(apply=True, remove=True) == {OWN: "done"}, "this one it made"


@pytest.fixture
async def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Aws]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with KinesisServer(
        ScriptedStream(1), name=STREAM, tables=[TableSchema(TABLE, (("id", "S"),))]
    ) as server:
        server.exists = False
        path = Stack(server.url, "postgresql://nowhere", tmp_path, None).config(
            pipelines=[
                {
                    "name": "p",
                    "tables": [TABLE],
                    "source": {"kind": "kinesis", "stream": STREAM},
                    "sinks": [{"name": "w", "kind": "postgres"}],
                }
            ]
        )
        yield Aws(server, path)


async def test_a_stream_that_is_still_being_made_is_tagged_all_the_same(aws: Aws) -> None:
    """AddTagsToStream refuses a stream that is CREATING, so setup ended behind CreateStream."""
    aws.server.creating_answers = 3
    assert await aws.states(apply=True) == dict.fromkeys(ALL, "done")
    assert aws.server.stream_tags == {setup_pieces.TAG: "test/p"}
    assert aws.server.called("AddTagsToStream") == []
    assert aws.server.precisions == {TABLE: "MICROSECOND"}
    assert await aws.states(apply=True) == dict.fromkeys(ALL, "ok")
    assert await aws.states(apply=True, remove=True) == dict.fromkeys(ALL, "done")
    assert not aws.server.exists


@pytest.mark.parametrize("made_by", ["setup", "somebody"])
async def test_a_consumer_at_somebody_elses_stream_goes_if_setup_made_it(
    aws: Aws, made_by: str
) -> None:
    aws.server.recreate()
    tags = {} if made_by == "somebody" else {setup_pieces.TAG: "test/p"}
    aws.server._register({"StreamName": STREAM, "ConsumerName": "test-p", "Tags": tags})
    aws.server._consumers["test-p"].states = deque(["ACTIVE"])
    consumer = "left" if made_by == "somebody" else "done"
    assert await aws.states(apply=True, remove=True) == {
        CONSUMER: consumer,
        f"destination of table {TABLE}": "ok",
        f"stream {STREAM}": "left",
    }
    only = await aws.states(apply=True, remove=True, only=["consumer"])
    assert only == {CONSUMER: "done" if made_by == "somebody" else "ok"}
    assert aws.server.exists


async def test_the_shards_of_a_measured_load(place: Place, ministack_url: str) -> None:
    settings = AWSSettings(region="us-east-1", endpoint_url=ministack_url)
    now = datetime.now(UTC)
    async with aws_client(settings, "cloudwatch") as cloudwatch:
        for table, minutes, units in (
            (TABLE, 60, 90_000.0),
            (TABLE, 120, 750_000.0),
            ("x", 5, 9e9),
        ):
            await cloudwatch.put_metric_data(
                Namespace="AWS/DynamoDB",
                MetricData=[
                    {
                        "MetricName": "ConsumedWriteCapacityUnits",
                        "Dimensions": [{"Name": "TableName", "Value": table}],
                        "Timestamp": now - timedelta(minutes=minutes),
                        "Value": units,
                    }
                ],
            )
    settings_of = config.load(place.config, {})
    report = await setup.setup(settings_of, apply=True, from_metrics=True, clock=VirtualClock())
    assert report.is_complete
    # 750,000 units in 300 s are 2,500 writes a second of a small item.
    assert await place.shards() == 3


async def test_a_table_without_writes_gets_a_stream_on_demand(place: Place) -> None:
    report = await setup.setup(config.load(place.config, {}), apply=False, from_metrics=True)
    assert "on demand: no writes were measured in the last 14 days" in report.steps[0].message


async def test_the_command(place: Place) -> None:
    code, out, err = await replicator("setup", "--config", place.config)
    assert code == 1
    assert "on demand" in out
    code, out, err = await replicator(
        "setup", "--config", place.config, "--apply", "--output", "json",
        "--writes", "1500", "--bytes", "700", "--updates", "50",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["complete"]
    assert "making" in err
    assert await place.shards() == 2
    code, out, err = await replicator("setup", "--config", place.config, "--remove")
    assert code == 2
    assert "would be deleted" in err
    assert await place.streams() == [STREAM]
    code, out, err = await replicator("setup", "--config", place.config, "--remove", "--yes")
    assert code == 0, err
    assert await place.streams() == []


def test_a_piece_that_there_is_not() -> None:
    assert CliRunner().invoke(app, ["setup", "--only", "bucket"]).exit_code == 2
