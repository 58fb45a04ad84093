"""The topics that the sink writes to: found, made or refused.

Settings: https://kafka.apache.org/documentation/#topicconfigs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from replicator.errors import FatalError
from replicator.model import SinkFinding, SinkPlan, TableSchema
from replicator.sink.kafka_client import Options, mapped, started
from replicator.sink.kafka_kept import Kept, of_new
from replicator.sink.kafka_settings import KafkaConfig

_LOOKS_MAX: Final = 20
MESSAGE_BYTES_MAX: Final = 1_048_588
"""What a topic takes by default, in a record batch, compressed."""
DEAD_LETTER_BYTES_MAX: Final = 2_097_152
"""A change of DynamoDB has both images, of 400 KB at most; a dead letter has all of its bytes, and
headers. Services that host Kafka allow no more than some megabytes."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic that exists. `bytes_max` is of a record batch. Where its settings may not be seen
    (`is_seen`), that is what the sink needs or Kafka's default, and `cleanup` is empty. `risk`
    says what lets it lose records that it acknowledged."""

    name: str
    partitions: int
    bytes_max: int
    cleanup: str
    is_seen: bool = True
    risk: str = ""
    kept: Kept = field(default_factory=Kept)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A topic as the sink needs it. None: whatever the broker's default is."""

    name: str
    subject: str
    partitions: int | None
    settings: Mapping[str, str]
    bytes_min: int = 0

    def command(self, config: KafkaConfig) -> str:
        """How an operator makes it."""
        words = [
            f"kafka-topics.sh --bootstrap-server {','.join(config.servers)}",
            f"--create --topic {self.name}",
        ]
        if self.partitions is not None:
            words.append(f"--partitions {self.partitions}")
        if config.replication_factor is not None:
            words.append(f"--replication-factor {config.replication_factor}")
        words += [f"--config {name}={value}" for name, value in self.settings.items()]
        return " ".join(words)

    def new(self, config: KafkaConfig) -> NewTopic:
        # An empty assignment is what makes the driver accept -1, the broker's default.
        replicas = -1 if config.replication_factor is None else config.replication_factor
        partitions = -1 if self.partitions is None else self.partitions
        has_default = -1 in {replicas, partitions}
        return NewTopic(
            self.name, partitions, replicas, {} if has_default else None, dict(self.settings)
        )

    def problem(self, found: Topic) -> str | None:
        """What keeps the sink from using the topic that is there."""
        cleanup = self.settings.get("cleanup.policy", "delete")
        if found.cleanup and ("compact" in found.cleanup) != ("compact" in cleanup):
            if self.subject == "table":
                return (
                    f"topic {found.name} has cleanup.policy={found.cleanup} and the sink has "
                    f"cleanup: {cleanup}: they must be the same, for in a compacted topic a late "
                    "change would undo a newer one"
                )
            return (
                f"topic {found.name} has cleanup.policy={found.cleanup}: it needs {cleanup}, or "
                "what it must keep is deleted"
            )
        if self.subject == "positions" and found.partitions != 1:
            return f"topic {found.name} has {found.partitions} partitions: it needs one"
        if self.partitions is not None and found.partitions < self.partitions:
            return (
                f"topic {found.name} has {found.partitions} partitions and the sink has "
                f"partitions: {self.partitions}: add some (keys move to others then), or lower it"
            )
        if found.is_seen and found.bytes_max < self.bytes_min:
            return (
                f"topic {found.name} takes records of {found.bytes_max} bytes: set its "
                f"max.message.bytes to {self.bytes_min}, so that every record fits"
            )
        return None


# The segment that is written to isn't compacted, and every start reads all of it: as small as that
# of Kafka's own topic of offsets
# (https://kafka.apache.org/documentation/#brokerconfigs_offsets.topic.segment.bytes).
_POSITIONS_SETTINGS: Final = {"cleanup.policy": "compact", "segment.bytes": str(100 * 1024 * 1024)}


def wanted(config: KafkaConfig, tables: Sequence[TableSchema]) -> list[Wanted]:
    """All that the sink writes to, each once."""
    settings = {"cleanup.policy": config.cleanup} | config.topic_settings
    names = dict.fromkeys(config.topic_of(table.name) for table in tables)
    return [
        Wanted(config.positions_topic, "positions", 1, _POSITIONS_SETTINGS),
        Wanted(
            config.dead_letters_topic,
            "dead letters",
            None,
            {"max.message.bytes": str(DEAD_LETTER_BYTES_MAX), "retention.ms": "-1"},
            DEAD_LETTER_BYTES_MAX,
        ),
        *(Wanted(name, "table", config.partitions, settings) for name in names),
    ]


@asynccontextmanager
async def admin(options: Options, doing: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client for the block. Raises TransientError and FatalError in place of the driver's."""
    with mapped(doing):
        client = AIOKafkaAdminClient(**options)
        try:
            await started(client, options)
            yield client
        finally:
            await client.close()


async def look(client: AIOKafkaAdminClient, needs: Sequence[Wanted]) -> dict[str, Topic]:
    """Those of the topics that exist. All are listed: to ask for one could make it."""
    listed = {each["topic"]: each for each in await client.describe_topics()}
    present = [need for need in needs if need.name in listed]
    settings = await _settings(client, [need.name for need in present])
    return {
        need.name: _topic(need, listed[need.name]["partitions"], settings[need.name])
        for need in present
    }


def _topic(need: Wanted, partitions: Sequence[Any], settings: Mapping[str, str]) -> Topic:
    # Services that host Kafka, or only speak its protocol, tell some settings only.
    limit = settings.get("max.message.bytes")
    bytes_max = int(limit or max(need.bytes_min, MESSAGE_BYTES_MAX))
    # A batch goes into one segment.
    bytes_max = min(bytes_max, int(settings.get("segment.bytes") or bytes_max))
    return Topic(
        need.name,
        len(partitions),
        bytes_max,
        settings.get("cleanup.policy", ""),
        bool(limit),
        _risk(min((len(each["replicas"]) for each in partitions), default=0), settings),
        Kept.by(settings),
    )


def _risk(replicas: int, settings: Mapping[str, str]) -> str:
    if replicas == 1:
        return "one replica"
    if settings.get("unclean.leader.election.enable") == "true":
        return "unclean.leader.election.enable=true"
    if settings.get("min.insync.replicas") == "1":
        return "min.insync.replicas=1"
    return ""


async def _settings(client: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What each topic is set to; nothing where that may not be seen."""
    return await _described(client, ConfigResourceType.TOPIC, names)


async def _described(
    client: AIOKafkaAdminClient, kind: ConfigResourceType, names: Sequence[str]
) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    if not names:
        return found
    resources = [ConfigResource(kind, name) for name in names]
    for answer in await client.describe_configs(resources):
        for error_code, _message, _kind, name, entries in answer.resources:
            if error_code == 0:
                found[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    return found


async def plan(
    options: Options, config: KafkaConfig, tables: Sequence[TableSchema]
) -> tuple[SinkPlan, dict[str, Topic]]:
    """What `make` would find and do, and the topics that are there."""
    async with admin(options, f"looking at the topics of sink {config.name}") as client:
        needs = wanted(config, tables)
        found = await look(client, needs)
    findings = [_finding(each, found.get(each.name), config) for each in needs]
    findings += _warnings(found.values())
    server = f"Kafka at {','.join(config.servers)}, {config.delivery.replace('_', ' ')}"
    return SinkPlan(server, tuple(findings), config.create), found


def _finding(need: Wanted, found: Topic | None, config: KafkaConfig) -> SinkFinding:
    if found is None:
        return SinkFinding(need.subject, f"topic {need.name} is missing", ddl=need.command(config))
    if (problem := need.problem(found)) is not None:
        return SinkFinding(need.subject, problem, "kafka_topic_shape")
    partitions = "1 partition" if found.partitions == 1 else f"{found.partitions} partitions"
    cleanup = f", cleanup.policy={found.cleanup}" if found.cleanup else ""
    return SinkFinding(need.subject, f"topic {found.name}: {partitions}{cleanup}")


def _warnings(found: Iterable[Topic]) -> Iterator[SinkFinding]:
    risks: dict[str, list[str]] = {}
    hidden = []
    for topic in found:
        if topic.risk:
            risks.setdefault(topic.risk, []).append(topic.name)
        if not topic.is_seen:
            hidden.append(topic.name)
    for risk, names in risks.items():
        message = (
            f"{risk}: what was acknowledged can be lost with a broker, in topics "
            f"{', '.join(names)}; have three replicas, min.insync.replicas=2 and "
            "unclean.leader.election.enable=false"
        )
        yield SinkFinding("topics", message, "kafka_topic_unsafe", is_warning=True)
    if hidden:
        message = (
            f"the settings of topics {', '.join(hidden)} may not be seen: grant DescribeConfigs, "
            "or take care that their max.message.bytes is Kafka's default or more (dead letters: "
            f"{DEAD_LETTER_BYTES_MAX}), their cleanup.policy what it would be if they were made, "
            "and their retention.ms longer than the oldest change read is old"
        )
        yield SinkFinding("topics", message, "kafka_settings_hidden", is_warning=True)


async def expiring(
    options: Options, config: KafkaConfig, tables: Sequence[TableSchema], reach_us: int
) -> list[SinkFinding]:
    """What becomes of changes that are up to so old, in each table's topic."""
    needs = [each for each in wanted(config, tables) if each.subject == "table"]
    async with admin(options, f"looking at the topics of sink {config.name}") as client:
        found = await look(client, needs)
        broker = {} if len(found) == len(needs) else await _broker(client)
    kept = {
        need.name: found[need.name].kept
        if need.name in found
        else Kept.by(of_new(need.settings, broker))
        for need in needs
    }
    return [each for name, of in kept.items() for each in of.warnings(name, reach_us)]


async def _broker(client: AIOKafkaAdminClient) -> Mapping[str, str]:
    """What a broker is set to; nothing where that may not be seen, or that one can't be asked:
    what is written is others' to take."""
    with suppress(KafkaError, OSError):
        for each in (await client.describe_cluster())["brokers"][:1]:
            node = str(each["node_id"])
            return (await _described(client, ConfigResourceType.BROKER, [node]))[node]
    return {}


async def make(
    options: Options, config: KafkaConfig, tables: Sequence[TableSchema]
) -> dict[str, Topic]:
    """All topics as the sink needs them; those that are missing are made. Raises FatalError with
    what to do."""
    planned, found = await plan(options, config, tables)
    _refuse(planned, config)
    missing = [each for each in wanted(config, tables) if each.name not in found]
    if not missing:
        return found
    if not config.create:
        commands = "\n".join(each.command(config) for each in missing)
        raise FatalError(
            "kafka_topic_missing",
            f"sink {config.name} has create: false and these topics are missing, or may not be "
            f"seen (grant Describe on them); run\n{commands}",
        )
    async with admin(options, f"making topics of sink {config.name}") as client:
        await _create(client, config, missing)
    # Made a moment ago, it may not be listed everywhere yet.
    for _ in range(_LOOKS_MAX):
        planned, found = await plan(options, config, tables)
        _refuse(planned, config)
        if len(found) == len(wanted(config, tables)):
            return found
    with mapped(f"making topics of sink {config.name}"):
        raise TimeoutError


def _refuse(planned: SinkPlan, config: KafkaConfig) -> None:
    for first in planned.problems:
        raise FatalError(first.code, f"sink {config.name}: {first.message}")


async def _create(
    client: AIOKafkaAdminClient, config: KafkaConfig, missing: Sequence[Wanted]
) -> None:
    answer = await client.create_topics([each.new(config) for each in missing])
    known = []
    for name, error_code, *message in answer.topic_errors:
        error = for_code(error_code)
        if error is TopicAlreadyExistsError:
            known.append(name)
        elif error in {TopicAuthorizationFailedError, ClusterAuthorizationFailedError}:
            raise FatalError(
                "kafka_denied",
                f"sink {config.name} may not create topic {name}: grant Create on it, or make "
                "it and set create: false",
            )
        elif error_code:
            raise error(f"topic {name}: {' '.join(filter(None, message)) or error.__name__}")
    # Those were made meanwhile, or nobody may tell us of them. To ask makes none of them now.
    for each in await client.describe_topics(known) if known else ():
        if for_code(each["error_code"]) is TopicAuthorizationFailedError:
            raise TopicAuthorizationFailedError(f"topic {each['topic']} may not be seen")


async def holds_records(options: Options, topics: Sequence[Topic], doing: str) -> bool:
    """True when a record stands in one of them."""
    places = [
        TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)
    ]
    if not places:
        return False
    with mapped(doing):
        consumer: Any = AIOKafkaConsumer(**options, enable_auto_commit=False)
        try:
            await started(consumer, options)
            first = await consumer.beginning_offsets(places)
            ends = await consumer.end_offsets(places)
            return any(end > first[place] for place, end in ends.items())
        finally:
            await consumer.stop()
