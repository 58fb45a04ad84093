"""What all source connectors of Kafka Connect share: how the file looks, and the options of the
framework, of converters and of Confluent Cloud.

https://kafka.apache.org/documentation/#sourceconnectconfigs and
https://docs.confluent.io/cloud/current/connectors/connect-api-section.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from replicator.importing import aws, registry, sinks
from replicator.importing.draft import Draft, Kind, NoEqual, Secret, Table, To, named, number, text
from replicator.importing.reading import mapping

_CONVERTERS: Final = NoEqual("keys and values are written in the sink's format")
_TRANSFORMS: Final = NoEqual(
    "there are no transforms: the sink's filter, attributes and topic do what most of them do"
)
_ERRORS: Final = NoEqual(
    "what may work later is tried until it does; what never will goes to the dead letters, whole"
)
_FRAMEWORK: Final = NoEqual("there is no Connect worker that would need it")
_TRANSACTIONS: Final = NoEqual("records and position are written in one transaction by default")
_CLOUD: Final = NoEqual("tells who the connector is in Confluent Cloud; see sinks[].sasl")
_REGISTRY: Final = NoEqual("no schema registry is used by the format that is written")
_PRODUCER: Final = NoEqual("the producer's inside isn't configured")
KAFKA_LOGIN: Final = (
    "put sasl: {mechanism: PLAIN, username: …} to the sink, and a file's path into the "
    "environment: REPLICATOR_PIPELINES__<pipeline>__SINKS__kafka__SASL__PASSWORD_FILE"
)


def _count(value: object) -> int | None:
    """A count of partitions or replicas; -1 leaves it to the broker, as does None here.
    https://kafka.apache.org/documentation/#sourceconnectconfigs"""
    return None if text(value) == "-1" else int(number(value, 1, 100_000))


def _cleanup(value: object) -> str:
    if text(value) not in {"delete", "compact"}:
        raise ValueError("delete or compact is wanted")
    return text(value)


def _codec(value: object) -> str:
    codec = text(value).lower()
    if codec not in {"none", "gzip", "lz4", "zstd"}:
        raise ValueError("none, gzip, lz4 or zstd is wanted")
    return codec


# Whole families of options, of which some are secrets.
_OF_OTHERS: Final = ("key.converter", "value.converter", "transforms", "confluent.topic", "csfle")
_SECRETS: Final = (
    "basic.auth.user.info",
    "bearer.auth.token",
    "password",
    "secret",
    "sasl.jaas.config",
)

COMMON: Final[Table] = {
    "connector.class": _FRAMEWORK,
    "connector.plugin.version": _FRAMEWORK,
    "tasks.max": NoEqual("every shard is read; processes share them, tasks are not counted"),
    "tasks.max.enforce": _FRAMEWORK,
    "config.action.reload": _FRAMEWORK,
    "auto.restart.on.user.error": _FRAMEWORK,
    "offsets.storage.topic": NoEqual("positions are kept in the sink's own positions_topic"),
    "exactly.once.support": _TRANSACTIONS,
    "transaction.boundary*": _TRANSACTIONS,
    "key.converter*": _CONVERTERS,
    "value.converter*": _CONVERTERS,
    "header.converter*": _CONVERTERS,
    "key.subject.name.strategy": _REGISTRY,
    "value.subject.name.strategy": _REGISTRY,
    "schema.context.name": _REGISTRY,
    "csfle.*": _REGISTRY,
    "sr.*": _REGISTRY,
    "transforms*": _TRANSFORMS,
    "predicates*": _TRANSFORMS,
    "errors.*": _ERRORS,
    "topic.creation.default.partitions": To(sinks.KAFKA_PARTITIONS, _count),
    "topic.creation.default.replication.factor": To(sinks.KAFKA_REPLICATION, _count),
    "topic.creation.default.cleanup.policy": To(sinks.KAFKA_CLEANUP, _cleanup),
    "topic.creation.*": NoEqual("settings of created topics belong into sinks[].topic_settings"),
    "producer.override.compression.type": To(sinks.KAFKA_COMPRESSION, _codec),
    "producer.override.*": _PRODUCER,
    "producer.override.sasl.*": Secret(KAFKA_LOGIN),
    "producer.override.ssl.*": Secret(
        "put tls: {…} to the sink: ca_file, certificate_file, key_file"
    ),
    "kafka.topic": To(sinks.KAFKA_TOPIC),
    "kafka.api.key": Secret(KAFKA_LOGIN),
    "kafka.api.secret": Secret(KAFKA_LOGIN),
    "kafka.auth.mode": _CLOUD,
    "kafka.service.account.id": _CLOUD,
    "kafka.region": _CLOUD,
    "cloud.*": _CLOUD,
    "confluent.license": NoEqual("there is no licence to give"),
    "confluent.topic*": NoEqual("there is no licence, and so no topic for it"),
    "aws.access.key.id": Secret(aws.CREDENTIALS),
    "aws.secret.access.key": Secret(aws.CREDENTIALS),
    "aws.secret.key.id": Secret(aws.CREDENTIALS),
    "aws.secret.key": Secret(aws.CREDENTIALS),
    "aws.session.token": Secret(aws.CREDENTIALS),
    "authentication.method": NoEqual(aws.CREDENTIALS),
    "provider.integration.id": NoEqual(
        "a role is assumed by its ARN: aws.role_arn, and aws.external_id where it asks for one"
    ),
}


def connector(content: Any) -> Mapping[str, Any] | None:
    """The connector's own options, of the REST API's `{name, config}`, of `GET
    /connectors?expand=info`, of a PUT's body, and of a .properties file alike. None when it is no
    connector's.
    https://kafka.apache.org/documentation/#connect_rest"""
    if not isinstance(content, Mapping):
        return None
    if len(content) == 1 and isinstance(only := next(iter(content.values())), Mapping):
        content = only.get("info", only)
    if not isinstance(content, Mapping):
        return None
    if isinstance(inner := content.get("config"), Mapping):
        content = {"name": content.get("name", ""), **inner}
    return content if "connector.class" in content else None


def class_of(content: Any) -> str:
    """The connector's class without its package, in lower case; empty when it is none."""
    options = connector(content)
    name = "" if options is None else text(options["connector.class"]).rpartition(".")[2]
    return name.lower().removesuffix("connector")


def begun(content: Any) -> Draft:
    """A draft named like the connector, that writes to Kafka."""
    draft = Draft(dict(connector(content) or mapping(content)))
    draft.name = named(draft.take("name", "name of the pipeline") or "imported")
    servers = draft.take("kafka.endpoint", sinks.KAFKA_SERVERS)
    sinks.kafka(draft, servers.rpartition("://")[2])
    if draft.get("kafka.api.key") or servers.startswith("SASL_SSL:"):
        draft.put(sinks.KAFKA_TLS, {})
    return draft


def take_format(draft: Draft, alike: str, why: str) -> None:
    """The sink's format: where values are by schemas, theirs; else `alike` is the one of our JSON
    forms that is most like the connector's values."""
    of_registry = registry.take(draft)
    if not of_registry:
        draft.put(sinks.KAFKA_FORMAT, alike)
        draft.note(Kind.DIFFERS, why)
    draft.settle_these(of_registry)
    for option in draft.options:
        is_theirs = option not in draft.settled and option.startswith(_OF_OTHERS)
        if is_theirs and option.endswith(_SECRETS):
            draft.note(Kind.SECRET, "it belongs to what isn't needed here", option)


def settle(draft: Draft, table: Table) -> list[Draft]:
    """Goes by the connector's own table, then by what they share."""
    draft.settle(table, COMMON)
    topic = draft.sink.get("topic", "{table}")
    if draft.sink.get("cleanup") == "compact" and "{table}" not in topic:
        del draft.sink["cleanup"]
        draft.note(
            Kind.FILL_IN,
            f"{sinks.KAFKA_CLEANUP}: compact is left out: a compacted topic is about one table. "
            "Put {table} into topic first",
        )
    return [draft]
