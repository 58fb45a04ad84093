"""What the S3 sink is told: in the file, and by the service. Never changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from replicator._core import Columns
from replicator.aws import AWSSettings
from replicator.core.plan import Compression, Encoding, Format
from replicator.core.prefix import Prefix
from replicator.model import Batching
from replicator.settings import AttributesConfig, AWSConfig, Settings, SinkConfig
from replicator.sink.place import SinkPlace
from replicator.sink.s3_objects import ObjectOptions

MEBIBYTE = 1_048_576
# Bytes and seconds cut; this is only so that a plan never counts without end.
ROWS_MAX = 1_000_000
# Firehose's names, and where they stand here
# (https://docs.aws.amazon.com/firehose/latest/APIReference/API_ExtendedS3DestinationConfiguration.html).
_FIREHOSE = {
    "BucketARN": "bucket",
    "Prefix": "prefix",
    "ErrorOutputPrefix": "error_output_prefix",
    "CompressionFormat": "compression",
    "BufferingHints": "buffering",
    "SizeInMBs": "size_mb",
    "IntervalInSeconds": "interval_seconds",
}
_COMPRESSIONS = {"UNCOMPRESSED": "none", "GZIP": "gzip", "ZSTD": "zstd"}


STATE_KINDS = ("begun", "fences", "memories", "plans", "schemas")
_LETTERS = re.compile(r"-0-[0-9a-f]{10}\.jsonl")


def is_letters(key: str) -> bool:
    """True for the name of an object with refused records: data counts its objects from 1."""
    return _LETTERS.fullmatch(key[-len("-0-0123456789.jsonl") :]) is not None


def _our_names(data: object) -> object:
    if not isinstance(data, Mapping):
        return data
    ours: dict[str, object] = {}
    for name, value in data.items():
        known = _FIREHOSE.get(str(name), str(name))
        if known in ours:
            raise ValueError(f"{known} is said twice, once by Firehose's name")
        ours[known] = value
    return ours


class BufferingConfig(Settings):
    """When what was read becomes objects: at whichever comes first."""

    size_mb: int = Field(
        5, ge=1, le=128, description="MiB of a shard's records, as they came (SizeInMBs)."
    )
    interval_seconds: float = Field(
        300, ge=0, le=900, description="Longest wait for more (IntervalInSeconds)."
    )

    @model_validator(mode="before")
    @classmethod
    def _firehoses_names(cls, data: object) -> object:
        return _our_names(data)


class S3Config(SinkConfig):
    """Objects of an S3 bucket. Firehose's own names of options are understood too."""

    kind: Literal["s3"] = "s3"
    bucket: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]$", description="The bucket's name."
    )
    prefix: str = Field(
        "",
        description="Where objects lie, by the creation of their changes: Firehose's expressions "
        "!{timestamp:yyyy/MM/dd/HH} (UTC) and !{firehose:random-string}, and {table}. Without a "
        "timestamp yyyy/MM/dd/HH/ comes behind it.",
    )
    error_output_prefix: str = Field(
        "errors/!{firehose:error-output-type}/",
        description="Where refused records lie, by their arrival; the same expressions.",
    )
    state_prefix: str = Field(
        "_replicator/",
        pattern=r"^[^/].*/$",
        description="Where plans and positions lie; never to be moved or cleaned.",
    )
    format: Format = Field(
        "change",
        description="change: JSON lines of whole changes, which a replay reads without loss. "
        "plain: JSON lines with plain items. raw: the records as they came, joined, as Firehose "
        "does. parquet: a row a change.",
    )
    compression: Compression = Field("gzip", description="gzip, zstd or none; Parquet's is zstd.")
    columns: dict[str, str] = Field(
        {}, description="Parquet: types of attributes' columns that are known beforehand."
    )
    columns_max: int = Field(
        300,
        ge=0,
        le=1_500,
        description="Parquet: columns that a table's items may come to; all else is in `extra`. "
        "0: only `columns` have one.",
    )
    buffering: BufferingConfig = BufferingConfig()
    kms_key: str | None = Field(None, description="KMS key (ARN, id, alias) that encrypts objects.")
    bucket_owner: str | None = Field(
        None, pattern=r"^[0-9]{12}$", description="Account that the bucket has to belong to."
    )
    storage_class: str | None = Field(
        None, pattern=r"^[A-Z_]+$", description="Storage class of data, such as GLACIER_IR."
    )
    reorder_window_seconds: float = Field(
        1.0, ge=0, le=60, description="Changes are sorted within this time of their creation."
    )
    duplicate_window_seconds: float = Field(
        60.0, ge=1, le=900, description="Copies of a change are known for this time."
    )
    aws: AWSConfig | None = Field(None, description="Overrides the top-level aws.")

    @model_validator(mode="before")
    @classmethod
    def _firehoses_names(cls, data: object) -> object:
        ours = _our_names(data)
        if isinstance(ours, dict):
            arn, codec = ours.get("bucket"), ours.get("compression")
            if isinstance(arn, str) and arn.startswith("arn:"):
                ours["bucket"] = arn.rpartition(":")[2]
            if isinstance(codec, str):
                ours["compression"] = _COMPRESSIONS.get(codec, codec)
        return ours

    @field_validator("prefix", "error_output_prefix")
    @classmethod
    def _can_be_read(cls, value: str, info: ValidationInfo) -> str:
        if Prefix.parse(value).names_error and info.field_name == "prefix":
            raise ValueError(
                f"{value!r}: !{{firehose:error-output-type}} stands in error_output_prefix only"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> S3Config:
        is_told = self.columns or "columns_max" in self.model_fields_set
        if is_told and self.format != "parquet":
            raise ValueError(
                "columns, columns_max: they are Parquet's: write format: parquet, or leave them out"
            )
        if self.format == "raw" and self.attributes is not None:
            raise ValueError(
                "attributes: the records of format raw are written as they came, with all their "
                "attributes: write format: change, plain or parquet, or leave them out"
            )
        if self.columns:
            Columns(tuple(self.columns.items()))
        if self.duplicate_window_seconds < self.reorder_window_seconds:
            raise ValueError("duplicate_window_seconds: no less than reorder_window_seconds")
        return self

    def settings(self, place: SinkPlace) -> S3Settings:
        """The same for the sink of one pipeline."""
        return S3Settings(
            name=self.name,
            pipeline=place.pipeline,
            bucket=self.bucket,
            prefix=Prefix.parse(self.prefix),
            error_prefix=Prefix.parse(self.error_output_prefix),
            state_prefix=self.state_prefix,
            encoding=Encoding(self.format, self.compression, tuple(self.columns.items())),
            options=ObjectOptions(self.kms_key, self.bucket_owner, self.storage_class),
            batching=Batching(
                ROWS_MAX, self.buffering.size_mb * MEBIBYTE, self.buffering.interval_seconds
            ),
            aws=place.aws,
            filters=self.filter,
            attributes=self.attributes,
            columns_max=self.columns_max,
            reorder_us=round(self.reorder_window_seconds * 1_000_000),
            duplicate_us=round(self.duplicate_window_seconds * 1_000_000),
        )


@dataclass(frozen=True, slots=True)
class S3Settings:
    """The settings of one sink of one pipeline.

    Plans, fences and first positions lie under `state_prefix`; it isn't derived from `prefix`, so
    that another layout of the data doesn't begin anew. A write waits for `batching`'s bytes or
    seconds. `reorder_us` and `duplicate_us` are those of `sink.log_shard`.
    """

    name: str
    pipeline: str
    bucket: str
    prefix: Prefix = field(default_factory=lambda: Prefix.parse(""))
    error_prefix: Prefix = field(
        default_factory=lambda: Prefix.parse("errors/!{firehose:error-output-type}/")
    )
    state_prefix: str = "_replicator/"
    encoding: Encoding = field(default_factory=Encoding)
    options: ObjectOptions = field(default_factory=ObjectOptions)
    batching: Batching = field(default_factory=lambda: Batching(ROWS_MAX, 5 * MEBIBYTE, 300.0))
    aws: AWSSettings = field(default_factory=AWSSettings)
    filters: tuple[str, ...] = ()
    attributes: AttributesConfig | None = None
    columns_max: int = 300
    reorder_us: int = 1_000_000
    duplicate_us: int = 60_000_000
    window_bytes_max: int = 67_108_864

    @property
    def stem(self) -> str:
        """How names of objects begin: the pipeline, without the namespace before it, and the
        sink's own name behind it."""
        return f"{self.pipeline.split('/')[-2:][0]}-"

    @property
    def follows_items(self) -> bool:
        """True when typed columns grow with the items."""
        return self.encoding.format == "parquet" and self.columns_max > 0

    @property
    def lacks(self) -> tuple[str, ...]:
        """What of the settings keeps a replay from reading every change again, whole."""
        lossy = () if self.encoding.is_lossless else (f"format {self.encoding.format}",)
        filtered = ("filter",) if self.filters else ()
        return (*lossy, *filtered, *(("attributes",) if self.attributes is not None else ()))

    def is_data(self, place: str) -> bool:
        """False for a key or folder of plans, or of refused records."""
        if is_letters(place):
            return False
        # Where data lies below or beside them in the same folder, that folder tells nothing.
        roots = (self.state_prefix, self.error_prefix.root)
        others = [root for root in roots if root and not self.prefix.root.startswith(root)]
        others += [f"{self.state_prefix}{kind}/" for kind in STATE_KINDS]
        return not place.startswith(tuple(others))

    def __post_init__(self) -> None:
        assert self.state_prefix.endswith("/"), self
