"""How the cluster is reached, and what its errors mean: mapped once, for all files of the sink.

Error codes: https://kafka.apache.org/protocol#protocol_error_codes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from aiokafka import errors as kafka
from aiokafka.conn import collect_hosts, create_conn

from replicator.aws import AWSSettings
from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.sink.kafka_iam import IAMTokens
from replicator.sink.kafka_oauth import ClientTokens
from replicator.sink.kafka_settings import KafkaConfig, SASLConfig
from replicator.sink.kafka_token import Tokens, TriedTokens
from replicator.sink.tls import context

REQUEST_SECONDS_MAX: Final = 10.0
"""One request's answer is waited for this long; then it is tried again, or the write fails."""

Options = Mapping[str, Any]
"""Keyword arguments of every client of aiokafka."""


class Fenced(Exception):
    """Another producer of the same transactional id is newer: the shard is somebody else's."""


# Another producer took the id over; or the broker has forgotten ours, or aborted what took too
# long: only a new fence helps.
_FENCED: Final = (
    kafka.ProducerFenced,
    kafka.InvalidProducerEpoch,
    kafka.InvalidProducerIdMapping,
    kafka.InvalidTxnState,
)

# The broker doesn't know the last records of a producer, though it acknowledged them.
_WENT_BACK: Final = (kafka.OutOfOrderSequenceNumber, kafka.UnknownProducerId)

# An assertion of the driver's is one of its states that a connection's end left behind.
_DRIVERS: Final = (
    kafka.KafkaError,
    kafka.IllegalOperation,
    kafka.ConsumerStoppedError,
    OSError,
    AssertionError,
)

# Each class with what the operator should do; the first that fits decides.
_FATAL: Final[tuple[tuple[tuple[type[BaseException], ...], str, str], ...]] = (
    (
        (kafka.TopicAuthorizationFailedError,),
        "kafka_denied",
        "grant Describe and Write on the topics, and Read on the positions topic",
    ),
    (
        (kafka.TransactionalIdAuthorizationFailed,),
        "kafka_denied",
        "grant Describe and Write on the transactional ids that begin like that, up to its last /",
    ),
    (
        (kafka.ClusterAuthorizationFailedError,),
        "kafka_denied",
        "brokers before 3.0 want IdempotentWrite on the cluster",
    ),
    (
        (
            kafka.SaslAuthenticationFailed,
            kafka.AuthenticationFailedError,
            kafka.UnsupportedSaslMechanismError,
            kafka.IllegalSaslStateError,
            kafka.AuthenticationMethodNotSupported,
        ),
        "kafka_authentication",
        "check sasl: mechanism and who signs in",
    ),
    ((ssl.SSLError,), "kafka_tls", "check tls: ca_file, and that the brokers speak TLS there"),
    (
        (kafka.UnknownTopicOrPartitionError, kafka.InvalidTopicError),
        "kafka_topic_missing",
        "create the topic again, or restart with create: true",
    ),
    (
        (kafka.PolicyViolationError, kafka.InvalidReplicationFactorError),
        "kafka_topic_refused",
        "correct partitions, replication_factor or topic_settings, or create the topic by hand",
    ),
    (
        (kafka.InvalidTransactionTimeout,),
        "kafka_settings",
        "set transaction_timeout_seconds to no more than the brokers' transaction.max.timeout.ms",
    ),
    (
        (kafka.InvalidTimestampError,),
        "kafka_time_refused",
        "raise the topic's message.timestamp.before.max.ms: records bear their change's time",
    ),
    (
        (kafka.IncompatibleBrokerVersion, kafka.UnsupportedVersionError),
        "kafka_version",
        "the sink needs Kafka 2.5 or newer",
    ),
)


def options(config: KafkaConfig, aws: AWSSettings) -> Options:
    """What every client of the cluster is made with; `aws` is how AWS is reached where the sink
    has nothing of its own. Raises FatalError for settings that can't
    work: no server, a certificate that can't be read."""
    if not config.servers:
        raise FatalError(
            "kafka_settings",
            f"sink {config.name}: no broker is named: set bootstrap_servers to host:port, or "
            "KAFKA_BOOTSTRAP_SERVERS",
        )
    made: dict[str, Any] = {
        "bootstrap_servers": config.servers,
        "client_id": "replicator",
        "request_timeout_ms": round(REQUEST_SECONDS_MAX * 1_000),
        "security_protocol": _protocol(config),
    }
    if config.tls is not None:
        made["ssl_context"] = context(config.tls, "kafka_settings", f"sink {config.name}, tls")
    if (sasl := config.sasl) is not None:
        if sasl.mechanism == "OAUTHBEARER":
            connect = made | {"security_protocol": _protocol(config, signs_in=False)}
            made["sasl_oauth_token_provider"] = TriedTokens(
                _tokens(sasl, aws), connect, sasl.extensions
            )
        else:
            made["sasl_plain_username"] = sasl.username
            made["sasl_plain_password"] = sasl.password.get_secret_value()
        made["sasl_mechanism"] = sasl.mechanism
    return made


def _tokens(sasl: SASLConfig, aws: AWSSettings) -> Tokens:
    if sasl.token_endpoint:
        return ClientTokens(sasl)
    return IAMTokens(aws if sasl.aws is None else AWSSettings(**sasl.aws.model_dump()))


def _protocol(config: KafkaConfig, *, signs_in: bool = True) -> str:
    # https://kafka.apache.org/documentation/#producerconfigs_security.protocol
    if config.sasl is None or not signs_in:
        return "PLAINTEXT" if config.tls is None else "SSL"
    return "SASL_PLAINTEXT" if config.tls is None else "SASL_SSL"


class Ends:
    """What is being closed: to its end, also when whoever waits for it is cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[None]] = set()

    async def wait_for(self, end: Coroutine[Any, Any, None]) -> None:
        """Returns when it has ended."""
        task = asyncio.ensure_future(end)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def all(self) -> None:
        """Returns when everything has."""
        while self._tasks:
            await asyncio.wait(self._tasks)


class Startable(Protocol):
    """A producer, consumer or administrator of aiokafka."""

    async def start(self) -> None: ...


async def started(client: Startable, using: Options) -> None:
    """Starts a client made with these options. Raises the driver's errors; where it says only
    that it reached no broker, what the last of them said."""
    try:
        await client.start()
    except kafka.KafkaConnectionError as error:
        raise await _why(using) or error from None


async def _why(using: Options) -> BaseException | None:
    cause: BaseException | None = None
    made = {name: value for name, value in using.items() if name != "bootstrap_servers"}
    for host, port, _ in collect_hosts(using["bootstrap_servers"]):
        try:
            (await create_conn(host, port, **made)).close()
        except (kafka.KafkaError, OSError) as error:
            cause = error
    return cause


@contextmanager
def mapped(doing: str) -> Iterator[None]:
    """Raises TransientError or FatalError in place of any driver's error inside, Fenced for a
    producer that is no longer the newest; `doing` begins the message: what was tried, on what."""
    try:
        yield
    except (ReplicatorError, Fenced):
        raise
    except _FENCED as error:
        raise Fenced(f"{doing}: {_said(error)}") from error
    except _WENT_BACK as error:
        raise went_back(f"{doing}: {_said(error)}: a partition") from error
    except TimeoutError as error:
        raise TransientError(
            "kafka_timeout",
            f"{doing}: not done in time: brokers are away or slow, or their logs say why they "
            "don't take it (no room on a disk, too few replicas in sync)",
        ) from error
    except UnicodeDecodeError:
        raise
    except UnicodeError as error:  # of a host that is no name
        raise FatalError(
            "kafka_settings", f"{doing}: {error}: correct the hosts of bootstrap_servers"
        ) from error
    except _DRIVERS as error:
        raise translated(error, doing) from error


def went_back(place: str) -> TransientError:
    """What is said of a partition that lacks records which were acknowledged."""
    return TransientError(
        "kafka_went_back",
        f"{place} lacks records that were acknowledged: a replica without them became its leader. "
        "Reading goes on from the stored position; if records of a table are gone that lie before "
        "it, set it back (`replicator positions set`). It can't happen with at least two "
        "min.insync.replicas and unclean.leader.election.enable=false",
    )


def translated(error: BaseException, doing: str) -> ReplicatorError:
    """The engine's error for one of the driver's, or what caused that."""
    if isinstance(error, ReplicatorError):
        return error
    for kinds, code, action in _FATAL:
        if isinstance(error, kinds):
            return FatalError(code, f"{doing}: {_said(error)}; {action}")
    if isinstance(error, kafka.KafkaError) and (error.__cause__ is not None):
        cause = error.__cause__
        if not isinstance(cause, type(error)):
            return translated(cause, doing)
    return TransientError("kafka_unavailable", f"{doing}: {_said(error)}")


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
