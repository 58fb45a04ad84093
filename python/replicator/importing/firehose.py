"""Firehose with a destination in S3: what `aws firehose describe-delivery-stream` gives, the input
of `create-delivery-stream`, or the destination alone.

https://docs.aws.amazon.com/firehose/latest/APIReference/API_ExtendedS3DestinationConfiguration.html
https://docs.aws.amazon.com/firehose/latest/APIReference/API_DeliveryStreamDescription.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from replicator.errors import FatalError
from replicator.importing import aws, sinks
from replicator.importing.draft import (
    REPLACE_ME,
    Draft,
    Kind,
    NoEqual,
    Secret,
    Table,
    To,
    named,
    number,
    text,
)
from replicator.importing.reading import flat, mapping

_ABOUT: Final = NoEqual("tells of the delivery stream itself, and what became of it")
_ROLE: Final = NoEqual(
    "the worker's own credentials are used: Firehose's role can be assumed by Firehose only"
)
_LOGS: Final = NoEqual("logs go to standard error, metrics are served at /metrics")
_GLUE: Final = NoEqual("a schema follows the items of each table, none is looked up in Glue")
_PARQUET: Final = NoEqual("how Parquet is laid out isn't configured")
_JSON: Final = NoEqual("no JSON is mapped to columns: items become typed columns by themselves")
_ORC: Final = NoEqual("ORC isn't written: Parquet stands in its place")
_BACKUP: Final = NoEqual(
    "nothing is written beside the objects; format: change holds the records whole"
)
_DYNAMIC: Final = NoEqual(
    "objects aren't partitioned by what is in the records, but by table and time"
)
_OTHER: Final = NoEqual("only the destination in S3 can be imported")
_OTHER_SOURCE: Final = NoEqual("only a Kinesis stream can be read")

DESTINATION: Final[Table] = {
    "BucketARN": To(
        sinks.S3_BUCKET, lambda value: text(value).removeprefix("arn:").rpartition(":")[2]
    ),
    "Prefix": To(sinks.S3_PREFIX, str),
    "ErrorOutputPrefix": To(sinks.S3_ERROR_PREFIX, str),
    "BufferingHints.SizeInMBs": To(sinks.S3_SIZE, lambda value: int(number(value, 1, 128))),
    "BufferingHints.IntervalInSeconds": To(sinks.S3_INTERVAL, lambda value: number(value, 0, 900)),
    "EncryptionConfiguration.NoEncryptionConfig": NoEqual("the bucket's own default applies"),
    "EncryptionConfiguration.KMSEncryptionConfig.AWSKMSKeyARN": To(sinks.S3_KMS_KEY),
    "RoleARN": _ROLE,
    "CloudWatchLoggingOptions*": _LOGS,
    "S3BackupMode": _BACKUP,
    "S3BackupConfiguration*": _BACKUP,
    "S3BackupDescription*": _BACKUP,
    "DynamicPartitioningConfiguration*": _DYNAMIC,
    "DataFormatConversionConfiguration.SchemaConfiguration*": _GLUE,
    "DataFormatConversionConfiguration.InputFormatConfiguration*": _JSON,
    "DataFormatConversionConfiguration.OutputFormatConfiguration.Serializer.OrcSerDe*": _ORC,
    "DataFormatConversionConfiguration.OutputFormatConfiguration*": _PARQUET,
    "CustomTimeZone": NoEqual("the times in prefixes are UTC"),
    "FileExtension": NoEqual("objects are named by what is in them"),
}
STREAM: Final[Table] = {
    "DeliveryStreamARN": _ABOUT,
    "DeliveryStreamStatus": _ABOUT,
    "DeliveryStreamType": _ABOUT,
    "FailureDescription*": _ABOUT,
    "DeliveryStreamEncryptionConfiguration*": NoEqual("nothing is kept on the way to the bucket"),
    "VersionId": _ABOUT,
    "CreateTimestamp": _ABOUT,
    "LastUpdateTimestamp": _ABOUT,
    "HasMoreDestinations": _ABOUT,
    "DestinationId": _ABOUT,
    "ResponseMetadata*": _ABOUT,
    "Tags": _ABOUT,
    "Source.KinesisStreamSourceDescription.RoleARN": _ROLE,
    "Source.KinesisStreamSourceDescription.DeliveryStartTimestamp": _ABOUT,
    "KinesisStreamSourceConfiguration.RoleARN": _ROLE,
    "Source*": _OTHER_SOURCE,
    "DirectPutSource*": _OTHER_SOURCE,
    "MSKSource*": _OTHER_SOURCE,
    "DatabaseSource*": _OTHER_SOURCE,
    **{
        f"{name}Destination{end}*": rule
        for name in (
            "Redshift",
            "Elasticsearch",
            "Amazonopensearchservice",
            "AmazonOpenSearchServerless",
            "Splunk",
            "HttpEndpoint",
            "Snowflake",
            "Iceberg",
        )
        for end in ("Configuration", "Description")
        for rule in (_OTHER,)
    },
    "RedshiftDestinationConfiguration.Password": Secret(
        "it belongs to a destination of another kind"
    ),
}
_DESTINATIONS: Final = (
    "ExtendedS3DestinationConfiguration",
    "ExtendedS3DestinationDescription",
    "S3DestinationConfiguration",
    "S3DestinationDescription",
)
_STREAM_ARNS: Final = (
    "KinesisStreamSourceConfiguration.KinesisStreamARN",
    "Source.KinesisStreamSourceDescription.KinesisStreamARN",
)
_PROCESSORS: Final = {
    "RecordDeAggregation": "aggregates of the Kinesis Producer Library are always taken apart",
    "Lambda": "no function changes records: sinks[].attributes can leave out, mask and hash",
    "MetadataExtraction": _DYNAMIC.why,
    "Decompression": "a change comes uncompressed",
    "CloudWatchLogProcessing": "a change is no log of CloudWatch",
}


def recognises(content: Any) -> bool:
    """True for a delivery stream, described or to be created, and for a destination alone."""
    if not isinstance(content, Mapping):
        return False
    return bool(
        {"DeliveryStreamDescription", "DeliveryStreamName", "BucketARN", *_DESTINATIONS}
        & set(content)
    )


def drafts(content: Any) -> list[Draft]:
    """The pipeline that writes what the delivery stream writes.

    Raises FatalError (`config_import_destination`) when it has no destination in S3.
    """
    stream = dict(mapping(mapping(content).get("DeliveryStreamDescription", content)))
    destinations = stream.pop("Destinations", None)
    if isinstance(destinations, list) and destinations and isinstance(destinations[0], Mapping):
        stream |= destinations[0]
    places = [name for name in _DESTINATIONS if isinstance(stream.get(name), Mapping)]
    if "BucketARN" in stream:
        stream, destination = {}, stream
    elif places:
        destination = stream.pop(places[0])
    else:
        raise FatalError(
            "config_import_destination",
            f"the delivery stream has no destination in S3, only {_kinds(stream)}: nothing "
            "else can be imported",
        )
    repeated = [name for name in places[1:] if stream.pop(name, None) is not None]
    draft = Draft(flat(stream) | flat(destination))
    for name in repeated:
        draft.note(Kind.NO_EQUAL, f"repeats {places[0]}", name)
    sinks.s3(draft)
    draft.name = named(draft.take("DeliveryStreamName", "name of the pipeline") or "firehose")
    _source(draft)
    processors = _processors(draft, destination.get("ProcessingConfiguration"))
    _format(draft, destination, has_delimiter="AppendDelimiterToRecord" in processors)
    _expressions(draft)
    draft.settle(DESTINATION, STREAM)
    return [draft]


def _kinds(stream: Mapping[str, Any]) -> str:
    kinds = (re.match(r"(.+)Destination(?:Configuration|Description)$", name) for name in stream)
    return ", ".join(kind[1] for kind in kinds if kind) or "none"


def _source(draft: Draft) -> None:
    draft.source = {"kind": "kinesis", "stream": REPLACE_ME, "mode": "polling"}
    arns = [draft.take(option, "source.stream") for option in _STREAM_ARNS]
    if not any(aws.source_of(draft, arn) for arn in arns):
        draft.note(
            Kind.FILL_IN,
            "source.stream: its source isn't told to be a Kinesis stream. Name the one that "
            "carries the tables' changes; `replicator setup` makes it",
        )
        draft.note(Kind.FILL_IN, aws.TABLES)
    draft.note(
        Kind.FILL_IN,
        "source.start: reading begins at the oldest record that the stream keeps, so that nothing "
        "is missed; what Firehose has written of it already is written again, under other names. "
        "LATEST, or a time, begins later",
    )


def _format(draft: Draft, destination: Mapping[str, Any], *, has_delimiter: bool) -> None:
    """Records one behind the other, or lines where Firehose was told to add a delimiter, or Parquet
    where it converts: when the conversion is configured and not switched off."""
    conversion = destination.get("DataFormatConversionConfiguration")
    switch = draft.take("DataFormatConversionConfiguration.Enabled", sinks.S3_FORMAT)
    if isinstance(conversion, Mapping) and conversion and switch != "false":
        draft.put(sinks.S3_FORMAT, "parquet")
        if draft.take("CompressionFormat", sinks.S3_COMPRESSION):
            draft.note(Kind.NO_EQUAL, "Parquet compresses its own pages", "CompressionFormat")
        return
    draft.put(sinks.S3_FORMAT, "change" if has_delimiter else "raw")
    draft.note(
        Kind.DIFFERS,
        "format: change writes a line for each record, in its own shape, with version and position "
        "beside: a replay can read it"
        if has_delimiter
        else "format: raw writes the records' own bytes one behind the other, as Firehose does. "
        "format: change writes lines that also hold version and position: a replay needs them",
    )
    compression = draft.take("CompressionFormat", sinks.S3_COMPRESSION) or "UNCOMPRESSED"
    draft.put(sinks.S3_COMPRESSION, "none" if compression == "UNCOMPRESSED" else "gzip")
    if compression not in {"UNCOMPRESSED", "GZIP"}:
        draft.note(
            Kind.DIFFERS,
            "isn't written here: gzip stands in its place, zstd is there too",
            "CompressionFormat",
        )


def _expressions(draft: Draft) -> None:
    for option in ("Prefix", "ErrorOutputPrefix"):
        if "!{partitionKeyFrom" in draft.get(option):
            draft.note(
                Kind.FILL_IN,
                "left out: it names partition keys taken out of the records, which aren't looked "
                "for here. {table} and !{timestamp:…} can stand in a prefix",
                option,
            )


def _processors(draft: Draft, processing: object) -> set[str]:
    """The kinds of processors that are at work; each has its own reason."""
    for option in [name for name in draft.options if name.startswith("ProcessingConfiguration")]:
        draft.settled.add(option)
    if not isinstance(processing, Mapping):
        return set()
    is_on = text(processing.get("Enabled")) != "false"
    why = "is told by its processors" if is_on else "is switched off"
    draft.note(Kind.NO_EQUAL, why, "ProcessingConfiguration")
    processors = processing.get("Processors")
    kinds = {
        text(each.get("Type") if isinstance(each, Mapping) else each)
        for each in (processors if is_on and isinstance(processors, list) else ())
    }
    for kind in sorted(kinds):
        option = f"ProcessingConfiguration.Processors.{kind}"
        if kind == "AppendDelimiterToRecord":
            draft.mapped[option] = sinks.S3_FORMAT
        elif kind in _PROCESSORS:
            draft.note(Kind.NO_EQUAL, _PROCESSORS[kind], option)
        else:
            draft.note(Kind.UNKNOWN, "no such processor is known here: look what it did", option)
    return kinds
