"""Firehose and Lambda: every member of the services' own models, and what they become."""

from __future__ import annotations

from typing import Any

import botocore.session
import pytest

from replicator.errors import FatalError
from replicator.importing import Kind
from tests.imports import kinds, of, pipeline, said, sample, unknown

KINESIS = "arn:aws:kinesis:eu-north-1:111122223333:stream/products"
STREAM = "arn:aws:dynamodb:eu-north-1:111122223333:table/orders/stream/2026-01-31T12:00:00.000"


def example(shape: Any, seen: tuple[str, ...] = ()) -> Any:
    """A value for every member, as the service's model has them."""
    if shape.type_name == "structure":
        return {
            name: example(member, (*seen, shape.name))
            for name, member in shape.members.items()
            if member.name not in seen
        }
    if shape.type_name == "list":
        return [example(shape.member, seen)]
    if shape.type_name == "map":
        return {"name": example(shape.value, seen)}
    return {"integer": 7, "double": 0.5, "boolean": True, "timestamp": "2026-01-31T12:00:00Z"}.get(
        shape.type_name, (getattr(shape, "enum", None) or ["text"])[0]
    )


def shapes(service: str, operation: str) -> tuple[Any, Any]:
    """What goes in and what comes out of an operation."""
    model = botocore.session.get_session().get_service_model(service).operation_model(operation)
    return model.input_shape, model.output_shape


# ---- Firehose


def test_every_member_of_create_delivery_stream_is_known() -> None:
    content = example(shapes("firehose", "CreateDeliveryStream")[0])
    content["KinesisStreamSourceConfiguration"]["KinesisStreamARN"] = KINESIS
    assert unknown(of(content)) == set()


def test_every_member_of_describe_delivery_stream_is_known() -> None:
    content = example(shapes("firehose", "DescribeDeliveryStream")[1])
    assert unknown(of(content)) == set()


def test_a_delivery_stream_as_described() -> None:
    result = sample("firehose-describe.json")
    assert result.config["aws"] == {"region": "eu-north-1"}
    made = pipeline(result)
    assert made["name"] == "products-archive"
    assert made["source"] == {"kind": "kinesis", "stream": KINESIS, "mode": "polling"}
    (sink,) = made["sinks"]
    assert sink["bucket"] == "shop-archive"
    assert sink["prefix"] == "products/!{timestamp:yyyy/MM/dd/HH}/"
    assert sink["error_output_prefix"] == "errors/!{firehose:error-output-type}/"
    assert sink["buffering"] == {"size_mb": 64, "interval_seconds": 120}
    assert sink["kms_key"] == "arn:aws:kms:eu-north-1:111122223333:key/1234"
    assert sink["compression"] == "gzip"
    assert sink["format"] == "change", "a delimiter was asked for: lines"
    assert "no function changes records" in said(
        result, "ProcessingConfiguration.Processors.Lambda"
    )
    assert kinds(result, "S3DestinationDescription") == {Kind.NO_EQUAL}
    assert "oldest record" in said(result)


def test_a_destination_that_converts_writes_parquet() -> None:
    result = sample("firehose-parquet.json")
    (sink,) = pipeline(result)["sinks"]
    assert sink["format"] == "parquet"
    assert "compression" not in sink
    assert pipeline(result)["source"]["stream"] == "REPLACE-ME"
    assert "source.stream" in said(result)


def destination(**options: Any) -> dict[str, Any]:
    return {"BucketARN": "arn:aws:s3:::b", **options}


def test_a_conversion_that_is_switched_off_writes_lines() -> None:
    result = of(destination(DataFormatConversionConfiguration={"Enabled": False}))
    assert pipeline(result)["sinks"][0]["format"] == "raw"


@pytest.mark.parametrize(
    ("given", "written", "is_told"),
    [
        ("UNCOMPRESSED", "none", False),
        ("GZIP", "gzip", False),
        ("ZIP", "gzip", True),
        ("Snappy", "gzip", True),
        ("HADOOP_SNAPPY", "gzip", True),
    ],
)
def test_compression(given: str, written: str, is_told: bool) -> None:
    result = of(destination(CompressionFormat=given))
    assert pipeline(result)["sinks"][0]["compression"] == written
    assert kinds(result, "CompressionFormat") == ({Kind.DIFFERS} if is_told else set())


def test_no_compression_is_written_out_where_firehose_has_it_by_default() -> None:
    assert pipeline(of(destination()))["sinks"][0]["compression"] == "none"


def test_partition_keys_in_a_prefix_are_to_be_replaced() -> None:
    result = of(destination(Prefix="c=!{partitionKeyFromQuery:c}/"))
    assert "partition keys" in said(result, "Prefix")
    assert "prefix" not in pipeline(result)["sinks"][0]


def test_a_destination_of_another_kind_is_refused() -> None:
    content = {
        "DeliveryStreamName": "x",
        "RedshiftDestinationConfiguration": {"Password": "geheim"},
    }
    with pytest.raises(FatalError, match="only Redshift") as caught:
        of(content)
    assert caught.value.code == "config_import_destination"
    with pytest.raises(FatalError, match="only none"):
        of({"DeliveryStreamName": "x"})


@pytest.mark.parametrize(("enabled", "form"), [(True, "change"), (False, "raw")])
def test_a_delimiter_makes_lines(enabled: bool, form: str) -> None:
    processing = {"Enabled": enabled, "Processors": [{"Type": "AppendDelimiterToRecord"}]}
    result = of(destination(ProcessingConfiguration=processing))
    assert pipeline(result)["sinks"][0]["format"] == form


def test_an_unknown_processor_is_named() -> None:
    processing = {"Enabled": True, "Processors": [{"Type": "Polish"}]}
    result = of(destination(ProcessingConfiguration=processing))
    assert unknown(result) == {"ProcessingConfiguration.Processors.Polish"}


# ---- Lambda


@pytest.mark.parametrize("which", ["in", "out"])
def test_every_member_of_an_event_source_mapping_is_known(which: str) -> None:
    given, found = shapes("lambda", "CreateEventSourceMapping")
    content = example(given if which == "in" else found) | {"EventSourceArn": KINESIS}
    assert unknown(of(content)) == set()


def test_a_mapping_of_a_registered_consumer() -> None:
    result = sample("lambda-kinesis.json")
    assert result.config["aws"] == {"region": "eu-north-1"}
    assert result.config["limits"] == {"batch_delay_ms_max": 5000}
    made = pipeline(result)
    assert made["name"] == "copy-products"
    assert made["source"] == {
        "kind": "kinesis",
        "stream": KINESIS,
        "mode": "fan_out",
        "consumer": "lambda",
        "start": "1769860800.500",
    }
    assert made["sinks"] == [
        {
            "name": "warehouse",
            "kind": "postgres",
            "filter": ['{"dynamodb": {"NewImage": {"state": {"S": ["paid"]}}}}'],
        }
    ]
    assert kinds(result, "State") == {Kind.FILL_IN}
    assert kinds(result, "MaximumRecordAgeInSeconds") == {Kind.NO_EQUAL}
    assert "the whole record" in said(result, "DestinationConfig.OnFailure.Destination")


def test_several_mappings_make_several_pipelines() -> None:
    result = sample("lambda-list.json")
    first, second = result.config["pipelines"]
    assert [first["name"], second["name"]] == ["copy", "copy-2"]
    assert first["tables"] == ["orders"]
    assert first["source"] == {
        "kind": "streams",
        "stream": STREAM,
        "start": "LATEST",
        "aws": {"region": "eu-north-1"},
    }
    assert second["source"]["aws"] == {"region": "eu-west-1"}
    assert "aws" not in result.config


def mapping(**options: Any) -> dict[str, Any]:
    return {"EventSourceArn": STREAM, "FunctionName": "f", "StartingPosition": "LATEST", **options}


@pytest.mark.parametrize(
    "pattern",
    [
        '{"eventName": ["INSERT"]}',
        '{"dynamodb": {"OldImage": {"a": {"S": ["b"]}}}}',
        '{"dynamodb": {"NewImage": {}}, "userIdentity": {}}',
        "not json",
        "[]",
    ],
)
def test_a_filter_that_a_table_cant_have_is_left_out_with_all_of_them(pattern: str) -> None:
    good = '{"dynamodb": {"NewImage": {"a": {"S": ["b"]}}}}'
    result = of(mapping(FilterCriteria={"Filters": [{"Pattern": good}, {"Pattern": pattern}]}))
    assert "filter" not in pipeline(result)["sinks"][0]
    assert kinds(result, "FilterCriteria.Filters") == {Kind.FILL_IN}
    assert "FilterCriteria.Filters" not in result.mapped


def test_a_filter_of_a_tables_stream_is_taken_as_it_is() -> None:
    good = '{"dynamodb": {"Keys": {"id": {"S": [{"prefix": "vip#"}]}}}}'
    result = of(mapping(FilterCriteria={"Filters": [{"Pattern": good}]}))
    assert pipeline(result)["sinks"][0]["filter"] == [good]


def test_encrypted_filters_are_to_be_filled_in() -> None:
    result = of(mapping(KMSKeyArn="arn:aws:kms:eu-north-1:1:key/2"))
    assert kinds(result, "KMSKeyArn") == {Kind.FILL_IN}


@pytest.mark.parametrize("arn", ["arn:aws:sqs:eu-north-1:1:queue", "", "nonsense"])
def test_another_event_source_is_refused(arn: str) -> None:
    with pytest.raises(FatalError, match="only Kinesis streams and DynamoDB streams") as caught:
        of(mapping(EventSourceArn=arn))
    assert caught.value.code == "config_import_source"


def test_a_window_longer_than_ours_is_cut() -> None:
    result = of(mapping(MaximumBatchingWindowInSeconds=300))
    assert result.config["limits"] == {"batch_delay_ms_max": 60_000}


def test_windows_that_differ_are_told() -> None:
    result = of(
        {
            "EventSourceMappings": [
                mapping(MaximumBatchingWindowInSeconds=1),
                mapping(MaximumBatchingWindowInSeconds=2),
            ]
        }
    )
    assert result.config["limits"] == {"batch_delay_ms_max": 1_000}
    assert "limits is one for all pipelines" in said(result)
