"""`replicator setup` against the emulator: what is lacking is told, made once, and removed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from replicator import config, setup
from replicator.aws import AWSSettings, aws_client
from replicator.cli import app
from replicator.errors import FatalError
from replicator.setup import Report
from tests.integration.test_check import replicator
from tests.shop import TABLE
from tests.stack import CREDENTIALS, Stack

pytestmark = pytest.mark.timeout(120)
STREAM = "changes"


@dataclass
class Place:
    """A table with an item in the emulator, no stream, and a configuration that wants one."""

    config: Path
    dynamodb: Any
    kinesis: Any

    async def states(self, **how: Any) -> dict[str, str]:
        report = await setup.setup(config.load(self.config, {}), **how)
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


async def test_a_stream_of_somebody_elses_is_left_unless_it_is_named(place: Place) -> None:
    await place.kinesis.create_stream(StreamName=STREAM, ShardCount=1)
    await place.states(apply=True)
    removed = await place.states(apply=True, remove=True)
    assert removed == {
        f"stream {STREAM}": "left",
        f"destination of table {TABLE}": "left",
        "consumer test-p": "done",
    }
    assert await place.streams() == [STREAM]
    await place.states(apply=True, remove=True, only=["destination", "stream"])
    assert await place.streams() == []
    assert await place.precision() == []


async def test_the_view_type_of_a_tables_own_stream(place: Place) -> None:
    view = setup._View(place.dynamodb, TABLE)
    assert (await view.look())[0] == "todo"
    await view.make()
    assert (await view.look())[0] == "ok"
    assert (await view.removable(named=False))[0] == "left"
    await view.remove()
    assert (await view.removable(named=True))[0] == "ok"
    await place.dynamodb.update_table(
        TableName=TABLE,
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "KEYS_ONLY"},
    )
    with pytest.raises(FatalError, match="can't be changed") as caught:
        await view.look()
    assert caught.value.code == "view_type"


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
