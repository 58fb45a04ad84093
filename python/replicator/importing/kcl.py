"""KCL 1, 2 and 3: the MultiLangDaemon's .properties file.

Names from awslabs/amazon-kinesis-client, amazon-kinesis-client-multilang:
https://github.com/awslabs/amazon-kinesis-client/tree/master/amazon-kinesis-client-multilang/src/main/java/software/amazon/kinesis/multilang/config
and https://docs.aws.amazon.com/streams/latest/dev/kcl-configuration.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from replicator.importing import aws, sinks
from replicator.importing.draft import (
    Draft,
    Kind,
    NoEqual,
    Secret,
    Table,
    To,
    named,
    number,
)
from replicator.importing.reading import mapping

_PROCESS: Final = NoEqual(
    "no other process is started: changes are decoded and written by replicator itself"
)
_LEASES: Final = NoEqual(
    "leases are kept in a file under state_directory, and balanced among its processes"
)
_LEASE_TABLE: Final = NoEqual(
    "no lease table is made or read: checkpoints in it aren't taken over, see source.start"
)
_METRICS: Final = NoEqual("metrics are served at /metrics, and not sent to CloudWatch")
_WORKERS: Final = NoEqual("shards are shared by number, not by the load of the workers")
_LISTING: Final = NoEqual("shards are listed when one ends and now and then, by a pace of its own")
_FETCHING: Final = NoEqual(
    "fetching paces itself; what is held is bounded by limits.memory_bytes_max"
)
_RETRIES: Final = NoEqual("retries wait longer each time, and are not configured")
_PARENTS: Final = NoEqual("a child shard begins as soon as its parents are durable, without asking")

TABLE: Final[Table] = {
    "regionName": To("aws.region", aws.region),
    "kinesisEndpoint": aws.ENDPOINT,
    "dynamoDBEndpoint": _LEASE_TABLE,
    "failoverTimeMillis": To(
        "leases.duration_seconds", lambda value: number(value, 1, 3_600, divisor=1_000)
    ),
    "shutdownGraceMillis": To(
        "drain_timeout_seconds", lambda value: number(value, 1, 3_600, divisor=1_000)
    ),
    "idleTimeBetweenReadsInMillis": To(
        "source.idle_seconds_max",
        lambda value: number(value, 0.25, 60, divisor=1_000),
        differs="a shard with changes is asked at once again; this is the longest pause of an "
        "idle one (0.25 to 60 s)",
    ),
    "fanoutConfig.consumerName": To("source.consumer"),
    "fanoutConfig.*": _RETRIES,
    "maxRecords": _FETCHING,
    "millisBehindLatestThresholdForReducedTps": _FETCHING,
    "maxGetRecordsThreadPool": _FETCHING,
    "retryGetRecordsInSeconds": _RETRIES,
    "maxPendingProcessRecordsInput": _FETCHING,
    "maxCacheByteSize": _FETCHING,
    "dataFetchingStrategy": _FETCHING,
    "maxRecordsCount": _FETCHING,
    "idleMillisBetweenCalls": _FETCHING,
    "timeoutInSeconds": _PROCESS,
    "executableName": _PROCESS,
    "processingLanguage": _PROCESS,
    "maxActiveThreads": _PROCESS,
    "callProcessRecordsEvenForEmptyRecordList": _PROCESS,
    "logWarningForTaskAfterMillis": NoEqual("/healthz names a shard that makes no progress"),
    "taskBackoffTimeMillis": _RETRIES,
    "schedulerInitializationBackoffTimeMillis": _RETRIES,
    "awsCredentialsProvider": NoEqual(aws.CREDENTIALS),
    "awsCredentialsProviderDynamoDB": _LEASE_TABLE,
    "awsCredentialsProviderCloudWatch": _METRICS,
    # Java's clients can be built up in the file; keys may stand in it.
    "awsCredentialsProvider*": Secret(aws.CREDENTIALS),
    "kinesisCredentialsProvider*": Secret(aws.CREDENTIALS),
    "dynamoDBCredentialsProvider*": Secret(aws.CREDENTIALS),
    "cloudWatchCredentialsProvider*": Secret(aws.CREDENTIALS),
    "kinesisClient.*": NoEqual("the client's inside isn't configured; endpoint and Region are"),
    "dynamoDbClient.*": _LEASE_TABLE,
    "cloudWatchClient.*": _METRICS,
    "tableName": _LEASE_TABLE,
    "leaseTableName": _LEASE_TABLE,
    "billingMode": _LEASE_TABLE,
    "initialLeaseTable*": _LEASE_TABLE,
    "leaseTable*": _LEASE_TABLE,
    "migrateAllEntitiesToLeaseTable": _LEASE_TABLE,
    "tableMigrationCompleteBakeTimeSeconds": _LEASE_TABLE,
    "coordinatorState*": _LEASE_TABLE,
    "workerId": _LEASES,
    "workerIdentifier": _LEASES,
    "maxLease*": _LEASES,
    "leaseAssignmentIntervalMillis": _LEASES,
    "enablePriorityLeaseAssignment": _LEASES,
    "cleanupLeasesUponShardCompletion": _LEASES,
    "gracefulLeaseHandoffTimeoutMillis": _LEASES,
    "isGracefulLeaseHandoffEnabled": _LEASES,
    "clientVersionConfig": _LEASES,
    "workerMetrics*": _WORKERS,
    "inMemoryWorkerMetricsCaptureFrequencyMillis": _WORKERS,
    "noOfPersistedMetricsPerWorkerMetrics": _WORKERS,
    "disableWorkerMetrics": _WORKERS,
    "maxThroughputPerHostKBps": _WORKERS,
    "dampeningPercentage": _WORKERS,
    "reBalanceThresholdPercentage": _WORKERS,
    "allowThroughputOvershoot": _WORKERS,
    "varianceBalancingFrequency": _WORKERS,
    "staleWorkerMetricsEntryCleanupDuration": _WORKERS,
    "metrics*": _METRICS,
    "shardSyncIntervalMillis": _LISTING,
    "listShardsBackoffTimeInMillis": _LISTING,
    "maxListShardsRetryAttempts": _LISTING,
    "skipShardSyncAt*": _LISTING,
    "ignoreUnexpectedChildShards": _PARENTS,
    "parentShardPollIntervalMillis": _PARENTS,
    "shardPrioritization*": _PARENTS,
    "validateSequenceNumberBeforeCheckpointing": NoEqual(
        "positions are those that the stream gave, written with the data"
    ),
    "userAgent": NoEqual("the user agent isn't configured"),
}
# https://github.com/awslabs/amazon-kinesis-client/blob/master/amazon-kinesis-client-multilang/src/main/java/software/amazon/kinesis/multilang/config/PollingConfigBean.java
_MEANS_POLLING: Final = (
    "retryGetRecordsInSeconds",
    "maxGetRecordsThreadPool",
    "idleTimeBetweenReadsInMillis",
    "maxRecords",
)
_ONLY_KINESIS: Final[Table] = {
    name: NoEqual("a table's own stream can be polled only")
    for name in ("retrievalMode", "fanoutConfig.*")
}
_MODES: Final = {"POLLING": "polling", "FANOUT": "fan_out"}


def recognises(content: Any) -> bool:
    """True for a mapping with an application and a stream, as the daemon insists on."""
    if not isinstance(content, Mapping):
        return False
    names = {_bean(name) for name in content}
    return "applicationName" in names and bool(names & {"streamName", "streamArn"})


def drafts(content: Any) -> list[Draft]:
    """The pipeline that reads what the application reads."""
    draft = Draft({_bean(name): value for name, value in mapping(content).items()})
    draft.name = named(draft.take("applicationName", "name of the pipeline"))
    draft.source = {"kind": "kinesis"}
    sinks.postgres(draft, "the application's record processor")
    draft.note(Kind.FILL_IN, f"source.start: {aws.POSITION}")
    _stream(draft)
    _start(draft)
    if draft.source["kind"] == "kinesis":
        _mode(draft)
    aws.take_own_endpoint(draft, "kinesisEndpoint")
    if "|" in draft.get("awsCredentialsProvider"):  # StaticCredentialsProvider|key|secret
        draft.note(Kind.SECRET, aws.CREDENTIALS, "awsCredentialsProvider")
    region = draft.top.get("aws", {}).get("region")
    if region and draft.get("regionName") not in {"", region}:
        draft.note(Kind.DIFFERS, "the ARN names another Region, which counts", "regionName")
    draft.settle({} if draft.source["kind"] == "kinesis" else _ONLY_KINESIS, TABLE)
    return [draft]


def _bean(name: str) -> str:
    """The bean's property; the daemon takes `AwsCredentialsProvider` in any case."""
    if name.lower().startswith("awscredentialsprovider"):
        return f"awsCredentialsProvider{name[len('awsCredentialsProvider') :]}"
    return name[:1].lower() + name[1:]


def _stream(draft: Draft) -> None:
    """A Kinesis stream by ARN or name; with the DynamoDB Streams Kinesis adapter a table's own
    stream, whose ARN is its name.
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Streams.KCLAdapter.html"""
    name = draft.take("streamName", "source.stream")
    stream = draft.take("streamArn", "source.stream") or name
    if not aws.source_of(draft, stream):
        draft.put("source.stream", stream)
        draft.note(Kind.FILL_IN, aws.TABLES)


def _start(draft: Draft) -> None:
    """The KCL begins at LATEST when nothing is said:
    https://docs.aws.amazon.com/streams/latest/dev/kcl-configuration.html"""
    moment = draft.take("initialPositionInStreamExtended", "source.start")
    position = draft.take("initialPositionInStream", "source.start").upper()
    try:
        draft.put(
            "source.start", aws.start("AT_TIMESTAMP" if moment else position or "LATEST", moment)
        )
    except ValueError as error:
        draft.note(Kind.FILL_IN, f"source.start: {error}", "initialPositionInStream")
    if not moment and not position:
        draft.note(Kind.DIFFERS, "source.start is LATEST, as the KCL begins when it isn't told")


def _mode(draft: Draft) -> None:
    """Its default is polling as soon as anything is said of polling."""
    mode = draft.take("retrievalMode", "source.mode").upper()
    arn = draft.take("fanoutConfig.consumerArn", "source.consumer")
    if arn and not aws.source_of(draft, arn):
        draft.note(Kind.FILL_IN, "source.consumer: no consumer's ARN", "fanoutConfig.consumerArn")
    if mode in {"", "DEFAULT"}:
        says_polling = not arn and any(draft.get(option) for option in _MEANS_POLLING)
        mode = "POLLING" if says_polling else "DEFAULT"
    elif mode not in _MODES:
        draft.note(Kind.DIFFERS, "not one of FANOUT, POLLING and DEFAULT: auto", "retrievalMode")
    draft.put("source.mode", _MODES.get(mode, "auto"))
    if mode != "POLLING" and not arn and not draft.get("fanoutConfig.consumerName"):
        draft.note(
            Kind.DIFFERS,
            "source.mode: KCL 1 polls, KCL 2 and 3 read by fan-out when nothing is said. A "
            "consumer of our own is registered, so that both can run side by side",
        )
