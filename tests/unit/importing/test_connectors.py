"""Kafka Connect's source connectors: Confluent's two, and trustpilot's."""

from __future__ import annotations

import pytest

from replicator.importing import Kind
from tests.imports import kinds, of, pipeline, said, sample, unknown

KINESIS = {
    "name": "n",
    "connector.class": "io.confluent.connect.kinesis.KinesisSourceConnector",
    "kafka.topic": "t",
    "kinesis.stream": "s",
}
DYNAMODB = {"name": "n", "connector.class": "DynamoDbCdcSource"}
TRUSTPILOT = {
    "name": "n",
    "connector.class": "com.trustpilot.connector.dynamodb.DynamoDBSourceConnector",
}

# https://docs.confluent.io/kafka-connectors/kinesis/current/kinesis_source_connector_config.html
KINESIS_OPTIONS = """
kinesis.stream kinesis.position kinesis.shard.timestamp kinesis.region kinesis.base.url
kinesis.record.limit kinesis.empty.records.backoff.ms kinesis.throughput.exceeded.backoff.ms
kinesis.credentials.provider.class kinesis.proxy.url kinesis.proxy.username kinesis.proxy.password
kinesis.non.proxy.hosts kinesis.shard.id shard.ids kafka.topic aws.access.key.id aws.secret.key.id
confluent.license confluent.topic confluent.topic.bootstrap.servers
confluent.topic.replication.factor confluent.topic.ssl.truststore.password
aws.secret.access.key kafka.auth.mode kafka.api.key kafka.api.secret kafka.service.account.id
output.data.format authentication.method provider.integration.id tasks.max
""".split()
# https://kafka.apache.org/documentation/#sourceconnectconfigs
FRAMEWORK_OPTIONS = """
name connector.class tasks.max tasks.max.enforce key.converter value.converter header.converter
config.action.reload transforms transforms.a.type predicates errors.retry.timeout
errors.retry.delay.max.ms errors.tolerance errors.log.enable errors.log.include.messages
topic.creation.groups topic.creation.default.replication.factor exactly.once.support
transaction.boundary transaction.boundary.interval.ms offsets.storage.topic
value.converter.schema.registry.url value.converter.schema.registry.basic.auth.user.info
producer.override.linger.ms producer.override.sasl.jaas.config
""".split()
# https://docs.confluent.io/cloud/current/connectors/cc-amazon-dynamodb-cdc-source/cc-amazon-dynamodb-cdc-source.md
DYNAMODB_OPTIONS = """
dynamodb.service.endpoint dynamodb.table.discovery.mode dynamodb.table.sync.mode
dynamodb.table.includelist max.batch.size poll.linger.ms dynamodb.snapshot.max.poll.records
dynamodb.cdc.checkpointing.table.prefix dynamodb.cdc.table.billing.mode
dynamodb.cdc.max.poll.records schema.context.name kafka.auth.mode kafka.api.key kafka.api.secret
aws.access.key.id aws.secret.access.key output.data.format tasks.max aws.region
""".split()
# https://github.com/trustpilot/kafka-connect-dynamodb/blob/master/docs/options.md
TRUSTPILOT_OPTIONS = """
aws.region aws.access.key.id aws.secret.key dynamodb.table.env.tag.key dynamodb.table.env.tag.value
dynamodb.table.ingestion.tag.key dynamodb.table.whitelist dynamodb.service.endpoint
kcl.table.billing.mode resource.tagging.service.endpoint kafka.topic.prefix tasks.max
init.sync.delay.period connect.dynamodb.rediscovery.period
""".split()


@pytest.mark.parametrize(
    ("least", "options"),
    [
        (KINESIS, KINESIS_OPTIONS),
        (DYNAMODB, DYNAMODB_OPTIONS),
        (TRUSTPILOT, TRUSTPILOT_OPTIONS),
    ],
)
def test_every_documented_option_is_known(least: dict[str, str], options: list[str]) -> None:
    result = of(dict.fromkeys([*options, *FRAMEWORK_OPTIONS], "1") | least)
    assert unknown(result) == set()


@pytest.mark.parametrize("least", [KINESIS, DYNAMODB, TRUSTPILOT])
def test_every_way_in_which_connect_shows_a_connector(least: dict[str, str]) -> None:
    expected = of(least)
    config = {key: value for key, value in least.items() if key != "name"}
    for form in (
        {"name": "n", "config": config},
        {"name": "n", "config": least, "tasks": [], "type": "source"},
        {"n": {"info": {"name": "n", "config": config, "tasks": []}}},
        {"n": {"name": "n", "config": config}},
    ):
        assert of(form) == expected


# ---- Confluent's Kinesis source


def test_kinesis_to_a_topic() -> None:
    result = sample("confluent-kinesis.json")
    assert result.config["aws"] == {"region": "eu-north-1"}
    assert pipeline(result) == {
        "name": "products-from-kinesis",
        "tables": ["REPLACE-ME"],
        "source": {
            "kind": "kinesis",
            "stream": "products",
            "mode": "polling",
            "start": "2026-01-31T12:00:00.000Z",
            "idle_seconds_max": 5,
        },
        "sinks": [
            {
                "name": "kafka",
                "kind": "kafka",
                "bootstrap_servers": "REPLACE-ME:9092",
                "format": "change",
                "topic": "products-changes",
            }
        ],
    }
    assert kinds(result, "kinesis.proxy.password") == {Kind.SECRET}
    assert "HTTPS_PROXY" in said(result, "kinesis.proxy.password")
    assert kinds(result, "transforms.route.type") == {Kind.NO_EQUAL}


def test_confluent_cloud_tells_its_brokers_and_login() -> None:
    result = sample("confluent-kinesis-cloud.properties")
    (sink,) = pipeline(result)["sinks"]
    assert sink["bootstrap_servers"] == "pkc-12345.eu-north-1.aws.confluent.cloud:9092"
    assert sink["tls"] == {}
    assert "PASSWORD_FILE" in said(result, "kafka.api.secret")
    assert kinds(result, "kafka.api.key") == {Kind.SECRET}
    assert sink["format"] == "avro"
    assert sink["registry"] == {"url": "https://REPLACE-ME"}
    assert "sink.registry.url" in said(result)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, "TRIM_HORIZON"),
        ({"kinesis.position": "LATEST"}, "LATEST"),
        (
            {"kinesis.position": "AT_TIMESTAMP", "kinesis.shard.timestamp": "1769860800000"},
            "1769860800000",
        ),
        (
            {
                "kinesis.position": "AT_TIMESTAMP",
                "kinesis.shard.timestamp": "2026-01-31T13:00:00.000+01:00",
            },
            "2026-01-31T13:00:00.000+01:00",
        ),
        (
            {"kinesis.position": "AT_TIMESTAMP", "kinesis.shard.timestamp": "2026-01-31"},
            "2026-01-31T00:00:00Z",
        ),
        (
            {"kinesis.position": "AT_TIMESTAMP", "kinesis.shard.timestamp": "2026-01-31T12:00:00"},
            "2026-01-31T12:00:00Z",
        ),
        ({"kinesis.position": "AT_SEQUENCE_NUMBER"}, None),
    ],
)
def test_where_kinesis_begins(options: dict[str, str], start: str | None) -> None:
    result = of(KINESIS | options)
    assert pipeline(result)["source"].get("start") == start
    if start is None:
        assert Kind.FILL_IN in kinds(result, "kinesis.position")


def test_a_single_shard_has_no_equal() -> None:
    result = of(KINESIS | {"kinesis.shard.id": "shardId-000000000001"})
    assert kinds(result, "kinesis.shard.id") == {Kind.NO_EQUAL}
    assert kinds(of(KINESIS | {"kinesis.shard.id": ".*"}), "kinesis.shard.id") == set()


@pytest.mark.parametrize("codec", ["gzip", "zstd", "snappy"])
def test_the_producers_compression(codec: str) -> None:
    option = "producer.override.compression.type"
    result = of(KINESIS | {option: codec})
    (sink,) = pipeline(result)["sinks"]
    if codec == "snappy":
        assert "compression" not in sink
        assert kinds(result, option) == {Kind.FILL_IN}
    else:
        assert sink["compression"] == codec


def test_how_topics_are_made() -> None:
    created = {
        "topic.creation.default.partitions": "6",
        "topic.creation.default.replication.factor": "-1",
        "topic.creation.default.cleanup.policy": "compact",
        "topic.creation.default.retention.ms": "1000",
    }
    one = of(KINESIS | created)
    assert "cleanup" not in pipeline(one)["sinks"][0], "its topic takes several tables"
    assert "sink.cleanup" in said(one)
    result = of(KINESIS | created | {"kafka.topic": "cdc.{table}"})
    (sink,) = pipeline(result)["sinks"]
    assert (sink["partitions"], sink["replication_factor"]) == (6, None)
    assert sink["cleanup"] == "compact"
    assert kinds(result, "topic.creation.default.retention.ms") == {Kind.NO_EQUAL}


@pytest.mark.parametrize(
    "option",
    [
        "value.converter.schema.registry.basic.auth.user.info",
        "confluent.topic.ssl.keystore.password",
        "producer.override.sasl.jaas.config",
        "kafka.api.secret",
        "aws.secret.access.key",
        "kinesis.proxy.username",
    ],
)
def test_secrets_are_called_so(option: str) -> None:
    result = of(KINESIS | {option: "geheim"})
    assert kinds(result, option) == {Kind.SECRET}
    assert "geheim" not in repr(result)


# ---- Confluent's DynamoDB CDC source


def test_a_pipeline_for_each_table() -> None:
    result = sample("confluent-dynamodb.json")
    assert result.config["aws"] == {"region": "us-east-2"}
    assert result.config["limits"] == {"batch_delay_ms_max": 5000}
    assert [(each["name"], each["tables"]) for each in result.config["pipelines"]] == [
        ("DynamoDbCdcSource_0-customers", ["customers"]),
        ("DynamoDbCdcSource_0-products", ["products"]),
    ]
    for each in result.config["pipelines"]:
        assert each["source"] == {"kind": "streams"}
        assert each["sinks"][0]["topic"] == "{table}"
        assert each["sinks"][0]["format"] == "json_schema"
    assert "snapshots are not there yet" in said(result, "dynamodb.table.sync.mode")


def test_tables_by_tag() -> None:
    result = sample("confluent-dynamodb-tags.properties")
    assert pipeline(result)["name"] == "by-tag"
    assert pipeline(result)["tables"] == {
        "tags": {"replicate": ["yes", "always"], "team": ["shop"], "audited": None}
    }
    assert result.config["aws"] == {"endpoint_url": "http://localhost:8000"}
    assert kinds(result, "dynamodb.table.sync.mode") == set(), "CDC is what we do"
    assert pipeline(result)["sinks"][0]["format"] == "avro"


def test_values_by_schemas_take_their_registry_along() -> None:
    converter = "io.confluent.connect.avro.AvroConverter"
    options = {
        "key.converter": converter,
        "value.converter": converter,
        "value.converter.schema.registry.url": "https://a:8081,https://b:8081",
        "value.converter.basic.auth.credentials.source": "USER_INFO",
        "value.converter.basic.auth.user.info": "user:geheim",
        "value.converter.auto.register.schemas": "false",
        "value.converter.value.subject.name.strategy": (
            "io.confluent.kafka.serializers.subject.TopicRecordNameStrategy"
        ),
        "value.converter.schema.registry.ssl.truststore.password": "geheim",
        "value.converter.enhanced.avro.schema.support": "true",
    }
    result = of(KINESIS | options)
    (sink,) = pipeline(result)["sinks"]
    assert sink["format"] == "avro"
    assert sink["registry"] == {
        "url": "https://a:8081,https://b:8081",
        "subject_name_strategy": "topic_record_name",
        "auto_register": False,
    }
    assert kinds(result, "value.converter.basic.auth.user.info") == {Kind.SECRET}
    assert "REGISTRY__PASSWORD_FILE" in said(result, "value.converter.basic.auth.user.info")
    assert "geheim" not in repr(result)
    assert "JSON text" in said(result, "key.converter")
    assert kinds(result, "value.converter.enhanced.avro.schema.support") == {Kind.NO_EQUAL}
    json_ = "io.confluent.connect.json.JsonSchemaConverter"
    assert pipeline(of(KINESIS | {"value.converter": json_}))["sinks"][0]["format"] == "json_schema"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("value.converter.schema.registry.url", "https://me:geheim@registry"),
        ("value.converter.value.subject.name.strategy", "com.shop.OurStrategy"),
        ("value.converter.auto.register.schemas", "maybe"),
    ],
)
def test_what_a_registry_cannot_be_told_is_to_be_filled_in(option: str, value: str) -> None:
    result = of(KINESIS | {"value.converter": "AvroConverter", option: value})
    assert Kind.FILL_IN in kinds(result, option)
    assert "geheim" not in repr(result)


def test_protobuf_has_no_equal() -> None:
    result = of(KINESIS | {"value.converter": "io.confluent.connect.protobuf.ProtobufConverter"})
    assert kinds(result, "value.converter") == {Kind.NO_EQUAL}
    assert pipeline(result)["sinks"][0]["format"] == "change"


def test_tags_that_arent_said_are_to_be_filled_in() -> None:
    result = of(DYNAMODB | {"dynamodb.table.discovery.mode": "TAG"})
    assert pipeline(result)["tables"] == {"tags": {"REPLACE-ME": None}}
    assert "which tags" in said(result)
    assert "no table is named" in said(of(DYNAMODB))


def test_a_snapshot_alone_isnt_done() -> None:
    result = of(
        DYNAMODB | {"dynamodb.table.sync.mode": "SNAPSHOT", "dynamodb.table.includelist": "a"}
    )
    assert "aren't copied once" in said(result, "dynamodb.table.sync.mode")
    assert "snapshots are not there yet" in said(of(DYNAMODB)), "it is what it does by default"


@pytest.mark.parametrize(
    ("least", "option"),
    [
        (KINESIS, "kinesis.base.url"),
        (KINESIS, "kinesis.endpoint"),
        (DYNAMODB, "dynamodb.service.endpoint"),
        (TRUSTPILOT, "dynamodb.service.endpoint"),
    ],
)
def test_endpoints(least: dict[str, str], option: str) -> None:
    service = option.partition(".")[0]
    own = of(least | {option: f"https://{service}.us-east-2.amazonaws.com"})
    assert own.config["aws"] == {"region": "us-east-2"}
    other = of(least | {option: "localhost:4566"})
    assert other.config["aws"]["endpoint_url"] == "https://localhost:4566"
    assert kinds(other, option) == {Kind.DIFFERS}
    secret = of(least | {option: "https://me:geheim@localhost:4566"})
    assert "endpoint_url" not in secret.config.get("aws", {})
    assert kinds(secret, option) == {Kind.FILL_IN}
    assert "geheim" not in repr(secret)


# ---- trustpilot


def test_trustpilot_by_tags() -> None:
    result = sample("trustpilot.json")
    assert result.config["aws"] == {"region": "eu-west-1"}
    assert pipeline(result)["tables"] == {
        "tags": {"datalake-ingest": None, "environment": "production"}
    }
    assert pipeline(result)["sinks"][0]["topic"] == "cdc.{table}"
    assert unknown(result) == set()


def test_trustpilots_defaults_are_written_out() -> None:
    result = of(TRUSTPILOT)
    assert result.config["aws"] == {"region": "eu-west-1"}
    assert pipeline(result)["tables"] == {"tags": {"datalake-ingest": None, "environment": "dev"}}
    assert pipeline(result)["sinks"][0]["topic"] == "dynamodb-{table}"
    assert "snapshots are not there yet" in said(result)


def test_trustpilots_list_wins_over_its_tags() -> None:
    result = of(TRUSTPILOT | {"dynamodb.table.whitelist": "a,b"})
    assert [each["tables"] for each in result.config["pipelines"]] == [["a"], ["b"]]
