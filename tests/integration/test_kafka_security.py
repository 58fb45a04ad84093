"""The Kafka sink where it has to sign in, over TLS too, and what it says when it may not."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest
from botocore.credentials import ReadOnlyCredentials

from replicator.aws import AWSSettings
from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END, TableSchema
from replicator.sink.kafka import KafkaSink
from replicator.sink.kafka_iam import signed_token
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.place import SinkPlace
from replicator.testing.kafka_server import KafkaServer, Security, start_kafka
from tests.certificates import certificate
from tests.changes import STREAM, pending, put
from tests.stack import until

PRODUCTS = TableSchema("products", (("id", "S"),))
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaServer, Security]]:
    folder = tmp_path_factory.mktemp("tls")
    made, pem = certificate(folder), folder / "server.pem"
    pem.write_text(made.key.read_text() + made.file.read_text())
    security = Security(pem)
    with start_kafka(security) as server:
        yield server, security


def sink(name: str, address: str, **more: Any) -> KafkaSink:
    settings = {
        "name": "bus",
        "bootstrap_servers": address,
        "topic": f"{name}.{{table}}",
        "positions_topic": f"{name}.positions",
        "dead_letters_topic": f"{name}.dead",
        "reorder_window_seconds": 0,
        **more,
    }
    place = SinkPlace(name, "me", "", AWSSettings())
    return KafkaSink(KafkaConfig.model_validate(settings), place)


async def used(made: KafkaSink, size: int = 1) -> None:
    """Everything a run asks of the cluster, once."""
    try:
        # What a broker is set to is nobody's to see who has no rights to the cluster.
        assert await made.expiring([PRODUCTS], 10**18) == []
        await made.open([PRODUCTS])
        fence = await made.fence(STREAM, "shard-1", "me")
        await made.position(fence)
        writer = made.writer(fence)
        time_us = 1_700_000_000_000_000 + time.time_ns() // 1_000 % 1_000_000_000
        change = put("products", {"id": {"S": "a"}}, time_us, text={"S": "x" * size})
        await writer.write(writer.encode([pending(fence, [change], then=SHARD_END)]))
    finally:
        await made.close()


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_it_signs_in_and_writes(
    secured: tuple[KafkaServer, Security], mechanism: str
) -> None:
    server, security = secured
    sasl = {"mechanism": mechanism, "username": security.user, "password": security.password}
    name = mechanism.lower()
    await used(sink(name, server.sasl_address, sasl=sasl))
    tls = {"ca_file": str(security.pem.parent / "certificate.pem")}
    await used(sink(name, server.tls_address, sasl=sasl, tls=tls))


async def test_who_may_not_is_told_what_to_do(secured: tuple[KafkaServer, Security]) -> None:
    server, security = secured
    right = {"mechanism": "PLAIN", "username": security.user, "password": security.password}
    wrong = right | {"password": "another"}
    with pytest.raises(FatalError) as refused:
        await used(sink("wrong", server.sasl_address, sasl=wrong))
    assert refused.value.code == "kafka_authentication"
    assert "another" not in str(refused.value)
    # Signed in, but nothing is granted.
    guest = right | {"username": security.guest}
    with pytest.raises(FatalError) as denied:
        await used(sink("guest", server.sasl_address, sasl=guest))
    assert denied.value.code == "kafka_denied"
    # A certificate that nobody here knows.
    with pytest.raises((FatalError, TransientError)) as unknown:
        await used(sink("tls", server.tls_address, sasl=right, tls={}))
    assert unknown.value.code == "kafka_tls"


# https://kafka.apache.org/protocol#The_Messages_CreateAcls: kinds of resources, patterns and
# operations by their numbers.
ANY, TOPIC, TRANSACTIONAL_ID, LITERAL, PREFIXED, ALLOW = 1, 2, 5, 3, 4, 3
READ, WRITE, CREATE, DESCRIBE_CONFIGS = 3, 4, 5, 10


def grants(name: str) -> dict[str, tuple[int, str, int, int]]:
    """All that the sink needs: Write includes Describe."""
    return {
        "write": (TOPIC, f"{name}.", PREFIXED, WRITE),
        "create": (TOPIC, f"{name}.", PREFIXED, CREATE),
        "settings": (TOPIC, f"{name}.", PREFIXED, DESCRIBE_CONFIGS),
        "read": (TOPIC, f"{name}.positions", LITERAL, READ),
        "fence": (TRANSACTIONAL_ID, f"{name}/", PREFIXED, WRITE),
    }


async def granted(server: KafkaServer, user: str, name: str, without: str) -> None:
    """Returns when the broker goes by them, which it does a while after its answer."""
    principal = f"User:{user}"
    given = {what: grant for what, grant in grants(name).items() if what != without}
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()

    async def known() -> bool:
        asked = DescribeAclsRequest(ANY, None, ANY, principal, "*", ANY, ANY)
        found = (await admin._send_request(asked)).resources
        return {
            (kind, place, pattern, operation)
            for kind, place, pattern, acls in found
            for _, _, operation, _ in acls
        } >= {*given.values()}

    try:
        for kind, place, pattern, operation in given.values():
            request = CreateAclsRequest(kind, place, pattern, principal, "*", operation, ALLOW)
            (answer,) = (await admin._send_request(request)).creation_responses
            assert answer[0] == 0, answer
        await until(known)
    finally:
        await admin.close()


@pytest.mark.parametrize(
    ("without", "create", "code", "said"),
    [
        ("nothing", True, "", ""),
        ("write", True, "kafka_denied", "grant Describe and Write on the topics"),
        ("write", False, "kafka_topic_missing", "grant Describe on them"),
        ("create", True, "kafka_denied", "create: false"),
        ("read", True, "kafka_denied", "Read on the positions topic"),
        ("fence", True, "kafka_denied", "on the transactional ids that begin like that"),
        ("settings", True, "", ""),
    ],
)
async def test_each_grant_is_needed_and_asked_for(
    secured: tuple[KafkaServer, Security], without: str, create: bool, code: str, said: str
) -> None:
    server, security = secured
    name = f"{without}-{create}".lower()
    await granted(server, security.guest, name, without)
    if without not in {"nothing", "create"}:
        await used(sink(name, server.address))
    sasl = {"mechanism": "PLAIN", "username": security.guest, "password": security.password}
    made = sink(name, server.sasl_address, sasl=sasl, create=create)
    if not code:
        await used(made)
        warned = {finding.code for finding in (await made.plan([PRODUCTS])).findings}
        assert ("kafka_settings_hidden" in warned) is (without == "settings")
        return
    with pytest.raises(FatalError) as denied:
        await used(made)
    assert (denied.value.code, said in denied.value.message) == (code, True), denied.value.message
    assert f"{name}." in denied.value.message or f"{name}/" in denied.value.message


async def test_a_limit_that_cannot_be_seen_stops_the_shard_and_is_named(
    secured: tuple[KafkaServer, Security],
) -> None:
    """Regression: the topic was asked for its limit again and again."""
    server, security = secured
    await granted(server, security.guest, "hidden", "settings")
    settings = {"max.message.bytes": "2000"}
    await used(sink("hidden", server.address, topic_settings=settings))
    sasl = {"mechanism": "PLAIN", "username": security.guest, "password": security.password}
    made = sink("hidden", server.sasl_address, sasl=sasl, compression="none")
    with pytest.raises(FatalError) as unknown:
        await used(made, size=3_000)
    assert unknown.value.code == "kafka_limit_unknown"
    assert "DescribeConfigs" in unknown.value.message


@pytest.mark.parametrize("tls", [{"ca_file": "/absent.pem"}, {"certificate_file": "/absent.pem"}])
def test_a_file_that_cannot_be_read_is_said_at_once(tls: dict[str, str]) -> None:
    with pytest.raises(FatalError) as missing:
        sink("x", "127.0.0.1:1", tls=tls)
    assert missing.value.code == "kafka_settings"


def test_a_token_is_a_signed_request_to_connect() -> None:
    credentials = ReadOnlyCredentials("AKIDEXAMPLE", "secret", "session")
    token = signed_token(credentials, "eu-north-1")
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert url.hostname == "kafka.eu-north-1.amazonaws.com"
    assert query["Action"] == "kafka-cluster:Connect"
    assert query["X-Amz-Credential"].startswith("AKIDEXAMPLE/")
    assert query["X-Amz-Credential"].endswith("/eu-north-1/kafka-cluster/aws4_request")
    assert (query["X-Amz-Expires"], query["X-Amz-Security-Token"]) == ("900", "session")
    assert len(query["X-Amz-Signature"]) == 64
    assert "secret" not in url.geturl()
