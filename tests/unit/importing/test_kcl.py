"""KCL applications: every property that the daemon has, and what the important ones become."""

from __future__ import annotations

import pytest

from replicator import config
from replicator.importing import Kind
from tests.imports import kinds, of, pipeline, said, sample, unknown

# The beans' properties of KCL 3.5, and those that only earlier ones have:
# https://github.com/awslabs/amazon-kinesis-client/tree/master/amazon-kinesis-client-multilang/src/main/java/software/amazon/kinesis
PROPERTIES = """
executableName processingLanguage maxActiveThreads applicationName streamName streamArn tableName
workerIdentifier workerId failoverTimeMillis leaseAssignmentIntervalMillis
enablePriorityLeaseAssignment
leaseTableDeletionProtectionEnabled leaseTablePitrEnabled shardSyncIntervalMillis
cleanupLeasesUponShardCompletion ignoreUnexpectedChildShards maxLeasesForWorker
maxLeasesToStealAtOneTime initialLeaseTableReadCapacity initialLeaseTableWriteCapacity
leaseTableScanTotalSegments initialPositionInStream initialPositionInStreamExtended
maxLeaseRenewalThreads listShardsBackoffTimeInMillis maxListShardsRetryAttempts
callProcessRecordsEvenForEmptyRecordList parentShardPollIntervalMillis shardPrioritization
skipShardSyncAtWorkerInitializationIfLeasesExist skipShardSyncAtStartupIfLeasesExist
schedulerInitializationBackoffTimeMillis clientVersionConfig migrateAllEntitiesToLeaseTable
tableMigrationCompleteBakeTimeSeconds taskBackoffTimeMillis metricsBufferTimeMillis
metricsMaxQueueSize metricsLevel logWarningForTaskAfterMillis metricsEnabledDimensions retrievalMode
validateSequenceNumberBeforeCheckpointing shutdownGraceMillis timeoutInSeconds
awsCredentialsProvider awsCredentialsProviderDynamoDB awsCredentialsProviderCloudWatch
AwsCredentialsProvider AWSCredentialsProviderCloudWatch kinesisEndpoint dynamoDBEndpoint regionName
retryGetRecordsInSeconds maxGetRecordsThreadPool idleTimeBetweenReadsInMillis
millisBehindLatestThresholdForReducedTps maxRecords gracefulLeaseHandoffTimeoutMillis
isGracefulLeaseHandoffEnabled inMemoryWorkerMetricsCaptureFrequencyMillis
workerMetricsReporterFreqInMillis noOfPersistedMetricsPerWorkerMetrics disableWorkerMetrics
maxThroughputPerHostKBps dampeningPercentage reBalanceThresholdPercentage allowThroughputOvershoot
varianceBalancingFrequency workerMetricsEMAAlpha staleWorkerMetricsEntryCleanupDuration
workerMetricsTableName workerMetricsBillingMode workerMetricsReadCapacity workerMetricsWriteCapacity
workerMetricsPointInTimeRecoveryEnabled workerMetricsDeletionProtectionEnabled workerMetricsTags
coordinatorStateTableName coordinatorStateBillingMode coordinatorStateReadCapacity
coordinatorStateWriteCapacity coordinatorStatePointInTimeRecoveryEnabled
coordinatorStateDeletionProtectionEnabled coordinatorStateTags billingMode leaseTableName
fanoutConfig.maxDescribeStreamSummaryRetries fanoutConfig.consumerArn fanoutConfig.consumerName
fanoutConfig.maxDescribeStreamConsumerRetries fanoutConfig.registerStreamConsumerRetries
fanoutConfig.retryBackoffMillis maxPendingProcessRecordsInput maxCacheByteSize dataFetchingStrategy
maxRecordsCount idleMillisBetweenCalls userAgent kinesisClient.endpoint
""".split()
LEAST = {"applicationName": "shop", "streamName": "products"}


def test_every_property_of_the_daemon_is_known() -> None:
    result = of(LEAST | dict.fromkeys(PROPERTIES, "1"))
    assert unknown(result) == set()


def test_the_stream_by_name() -> None:
    result = sample("kcl.properties")
    assert result.config["aws"] == {"region": "eu-north-1"}
    assert pipeline(result) == {
        "name": "products-to-cratedb",
        "tables": ["REPLACE-ME"],
        "source": {
            "kind": "kinesis",
            "stream": "products",
            "start": "TRIM_HORIZON",
            "mode": "polling",
            "idle_seconds_max": 0.5,
        },
        "sinks": [{"name": "warehouse", "kind": "postgres"}],
    }
    assert result.config["leases"] == {"duration_seconds": 30}
    assert "in place of REPLACE-ME" in said(result)
    assert "the application's record processor" in said(result)
    assert kinds(result, "metricsLevel") == {Kind.NO_EQUAL}


def test_the_arn_counts_and_the_timestamp_and_the_consumer() -> None:
    result = sample("kcl3.properties")
    assert pipeline(result)["source"] == {
        "kind": "kinesis",
        "stream": "arn:aws:kinesis:eu-north-1:111122223333:stream/products",
        "start": "1769860800",
        "mode": "fan_out",
        "consumer": "reader",
    }
    assert result.config["drain_timeout_seconds"] == 20
    assert kinds(result, "awsCredentialsProvider") == {Kind.SECRET}
    assert "aren't taken over" in said(result, "leaseTableName")


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "auto"),
        ({"retrievalMode": "DEFAULT"}, "auto"),
        ({"maxRecords": "100"}, "polling"),
        ({"retrievalMode": "DEFAULT", "idleTimeBetweenReadsInMillis": "1000"}, "polling"),
        ({"retrievalMode": "fanout", "maxRecords": "100"}, "fan_out"),
        ({"retrievalMode": "POLLING"}, "polling"),
        ({"retrievalMode": "CARRIER_PIGEON"}, "auto"),
    ],
)
def test_how_it_reads(options: dict[str, str], mode: str) -> None:
    result = of(LEAST | options)
    assert pipeline(result)["source"]["mode"] == mode
    odd = options.get("retrievalMode") == "CARRIER_PIGEON"
    assert kinds(result, "retrievalMode") == ({Kind.DIFFERS} if odd else set())


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, "LATEST"),
        ({"initialPositionInStream": "trim_horizon"}, "TRIM_HORIZON"),
        ({"initialPositionInStream": "LATEST"}, "LATEST"),
        (
            {
                "initialPositionInStream": "AT_TIMESTAMP",
                "initialPositionInStreamExtended": "1636609142",
            },
            "1636609142",
        ),
        ({"initialPositionInStream": "AT_TIMESTAMP"}, None),
    ],
)
def test_where_it_begins(options: dict[str, str], start: str | None) -> None:
    result = of(LEAST | options)
    assert pipeline(result)["source"].get("start") == start
    if start is None:
        assert "no timestamp is given" in said(result, "initialPositionInStream")


def test_a_tables_own_stream_by_the_adapter() -> None:
    arn = "arn:aws:dynamodb:eu-north-1:111122223333:table/orders/stream/2026-01-31T12:00:00.000"
    result = of({"applicationName": "shop", "streamName": arn, "retrievalMode": "POLLING"})
    assert pipeline(result)["tables"] == ["orders"]
    assert pipeline(result)["source"] == {"kind": "streams", "stream": arn, "start": "LATEST"}
    assert kinds(result, "retrievalMode") == {Kind.NO_EQUAL}
    config.checked(result.config, "test")


def test_a_region_that_the_arn_contradicts() -> None:
    arn = "arn:aws:kinesis:eu-north-1:111122223333:stream/products"
    result = of({"applicationName": "shop", "streamArn": arn, "regionName": "us-east-1"})
    assert result.config["aws"] == {"region": "eu-north-1"}
    assert kinds(result, "regionName") == {Kind.DIFFERS}


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("failoverTimeMillis", "soon", "a number is wanted"),
        ("kinesisEndpoint", "https://me:geheim@proxy:1", "a password"),
    ],
)
def test_a_value_that_cant_be_carried_over_is_told(option: str, value: str, problem: str) -> None:
    result = of(LEAST | {option: value})
    assert kinds(result, option) == {Kind.FILL_IN}
    assert problem in said(result, option)
    assert "geheim" not in repr(result)
