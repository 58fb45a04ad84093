"""What the S3 sink is told: in the file, and by the service. Never changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from replicator._core import Pattern, Projection
from replicator.aws import AWSSettings
from replicator.core.plan import Encoding
from replicator.core.prefix import Prefix
from replicator.model import Batching
from replicator.sink.s3_objects import ObjectOptions

MEBIBYTE = 1_048_576
# Bytes and seconds cut; this is only so that a plan never counts without end.
ROWS_MAX = 1_000_000


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
    pattern: Pattern | None = None
    projection: Projection | None = None
    filters: tuple[str, ...] = ()
    """What was told of `pattern` and `projection`, as text, to know another one by."""
    reorder_us: int = 1_000_000
    duplicate_us: int = 60_000_000
    window_bytes_max: int = 67_108_864

    def __post_init__(self) -> None:
        assert self.state_prefix.endswith("/"), self
