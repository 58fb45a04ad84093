"""The Kafka sink where it has to sign in, over TLS too, and what it says when it may not."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.credentials import ReadOnlyCredentials

from replicator.aws import AWSSettings
from replicator.errors import FatalError, TransientError
from replicator.model import TableSchema
from replicator.sink.kafka import KafkaSink
from replicator.sink.kafka_iam import signed_token
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.place import SinkPlace
from replicator.testing.kafka_server import KafkaServer, Security, start_kafka
from tests.changes import STREAM, pending, put

PRODUCTS = TableSchema("products", (("id", "S"),))
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaServer, Security]]:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate, pem = folder / "key.pem", folder / "certificate.pem", folder / "server.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    pem.write_text(key.read_text() + certificate.read_text())
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
    place = SinkPlace("shop", "me", "", AWSSettings())
    return KafkaSink(KafkaConfig.model_validate(settings), place)


async def used(made: KafkaSink) -> None:
    """Everything a run asks of the cluster, once."""
    try:
        await made.open([PRODUCTS])
        fence = await made.fence(STREAM, "shard-1", "me")
        await made.position(fence)
        writer = made.writer(fence)
        change = put("products", {"id": {"S": "a"}}, 1_700_000_000_000_000)
        await writer.write(writer.encode([pending(fence, [change])]))
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
