"""Where the imported changes go: the sinks' settings are named here, and in no adapter."""

from __future__ import annotations

from replicator.importing.draft import REPLACE_ME, Draft, Kind

KAFKA_TOPIC = "sink.topic"
KAFKA_SERVERS = "sink.bootstrap_servers"
KAFKA_FORMAT = "sink.format"
KAFKA_COMPRESSION = "sink.compression"
KAFKA_PARTITIONS = "sink.partitions"
KAFKA_REPLICATION = "sink.replication_factor"
KAFKA_CLEANUP = "sink.cleanup"
KAFKA_TLS = "sink.tls"
KAFKA_REGISTRY_URL = "sink.registry.url"
KAFKA_REGISTRY_SUBJECTS = "sink.registry.subject_name_strategy"
KAFKA_REGISTRY_WRITES = "sink.registry.auto_register"
S3_BUCKET = "sink.bucket"
S3_PREFIX = "sink.prefix"
S3_ERROR_PREFIX = "sink.error_output_prefix"
S3_SIZE = "sink.buffering.size_mb"
S3_INTERVAL = "sink.buffering.interval_seconds"
S3_COMPRESSION = "sink.compression"
S3_FORMAT = "sink.format"
S3_KMS_KEY = "sink.kms_key"
POSTGRES_FILTER = "sink.filter"


def kafka(draft: Draft, servers: str) -> None:
    """A Kafka sink. A connector's own configuration seldom says where the brokers are."""
    draft.sink = {"name": "kafka", "kind": "kafka"}
    draft.put(KAFKA_SERVERS, servers or f"{REPLACE_ME}:9092")
    if not servers:
        draft.note(
            Kind.FILL_IN,
            f"{KAFKA_SERVERS}: the brokers stand in the Connect worker's own configuration "
            "(bootstrap.servers), and so do TLS and SASL",
        )


def s3(draft: Draft) -> None:
    """An S3 sink; the bucket is put in later."""
    draft.sink = {"name": "archive", "kind": "s3"}


def postgres(draft: Draft, what: str) -> None:
    """A Postgres sink where the input's destination is the user's own code (`what`)."""
    draft.sink = {"name": "warehouse", "kind": "postgres"}
    draft.note(
        Kind.FILL_IN,
        f"the destination is {what}, which isn't in the configuration: a Postgres stands in its "
        "place, reached by the PG* variables. Choose your sink",
    )
