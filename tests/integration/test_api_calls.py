"""Every attempt of a call is counted, those too that the driver repeats by itself."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from replicator.api_calls import APICalls
from replicator.aws import AWSSettings, aws_client
from replicator.core.budget import Budget
from replicator.telemetry.metrics import Metrics
from replicator.telemetry.stats import Stats
from replicator.telemetry.watched import Watched, WatchedSink
from replicator.testing.cloud import Fault, FaultCloud


def samples(calls: APICalls) -> dict[tuple[str, ...], float]:
    """What a scrape tells of them: by series, operation, code or bucket."""
    watched = Watched(
        "p", [WatchedSink("w", Stats())], Stats(), Budget(1), list, lambda: "", dict, api=calls
    )
    text = Metrics([watched]).text().decode()
    return {
        (sample.name, labels["operation"], labels.get("code", labels.get("le", ""))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith("replicator_api")
        for labels in [sample.labels]
    }


@pytest.mark.usefixtures("credentials")
async def test_attempts_that_the_driver_repeats_are_told() -> None:
    script = (
        Fault(kind="throttle", operation="ListShards", calls=(1,)),
        Fault(kind="drop", operation="ListShards", calls=(2,)),
        Fault(kind="error", operation="DescribeStreamSummary", calls=(1,)),
        Fault(kind="slow", operation="DescribeStreamSummary", calls=(2,), seconds=0.3),
    )
    calls = APICalls()
    async with FaultCloud(script=script) as cloud:
        settings = AWSSettings(region="eu-north-1", endpoint_url=cloud.url, calls=calls)
        async with asyncio.timeout(60), aws_client(settings, "kinesis") as kinesis:
            await kinesis.list_shards(StreamName=cloud.name)
            await kinesis.describe_stream_summary(StreamName=cloud.name)
    told = samples(calls)
    errors = {key[1:]: n for key, n in told.items() if key[0] == "replicator_api_errors_total"}
    assert errors == {
        ("ListShards", "LimitExceededException"): 1,
        ("ListShards", "ConnectionClosedError"): 1,
        ("DescribeStreamSummary", "InternalFailureException"): 1,
    }
    attempts = {key[1]: n for key, n in told.items() if key[0] == "replicator_api_seconds_count"}
    assert attempts == {"ListShards": 3, "DescribeStreamSummary": 2}
    quick = told["replicator_api_seconds_bucket", "DescribeStreamSummary", "0.25"]
    assert quick < 2, "the slow answer shows"


@pytest.mark.usefixtures("credentials")
async def test_calls_that_the_driver_makes_for_credentials_are_told(ministack_url: str) -> None:
    """Each once, and those of a role's own client once too."""
    calls = APICalls()
    settings = AWSSettings(
        region="eu-north-1",
        endpoint_url=ministack_url,
        role_arn="arn:aws:iam::111122223333:role/reader",
        calls=calls,
    )
    async with aws_client(settings, "kinesis") as kinesis:
        await kinesis.list_streams()
    told = {call: sum(took.counts) for call, took in calls.durations.items()}
    assert told == {("sts", "AssumeRole"): 1, ("kinesis", "ListStreams"): 1}
    assert not calls.failures
