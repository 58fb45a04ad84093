from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from botocore import exceptions as boto

from replicator.aws import AWSSettings, aws_client, aws_errors, service_error
from replicator.errors import FatalError, PositionLost, ReplicatorError, TransientError

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def client_error(code: str, message: str = "why", status: int = 400) -> boto.ClientError:
    return boto.ClientError(
        {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status},
        },
        "Operation",
    )


def mapped(error: BaseException, position: str | None = None) -> ReplicatorError:
    with (
        pytest.raises(ReplicatorError) as caught,
        aws_errors("DescribeThing", "thing-1", position=position),
    ):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("code", "kind", "slug"),
    [
        ("AccessDeniedException", FatalError, "access_denied"),
        ("AccessDenied", FatalError, "access_denied"),
        ("UnrecognizedClientException", FatalError, "credentials_invalid"),
        ("ExpiredTokenException", FatalError, "credentials_expired"),
        ("ExpiredToken", FatalError, "credentials_expired"),
        ("ThrottlingException", TransientError, "throttled"),
        ("ProvisionedThroughputExceededException", TransientError, "throttled"),
        ("LimitExceededException", TransientError, "limit_exceeded"),
        ("ResourceInUseException", TransientError, "resource_in_use"),
        ("ResourceNotFoundException", FatalError, "resource_missing"),
        ("ExpiredIteratorException", TransientError, "iterator_expired"),
        ("TrimmedDataAccessException", PositionLost, "position_trimmed"),
        ("InvalidArgumentException", FatalError, "request_invalid"),
        ("KMSThrottlingException", TransientError, "kms_throttled"),
        ("KMSAccessDeniedException", FatalError, "kms_denied"),
        ("KMSOptInRequired", FatalError, "kms_unusable"),
        ("InternalFailureException", TransientError, "service_error"),
        ("com.amazonaws.kinesis#ResourceNotFoundException", FatalError, "resource_missing"),
    ],
)
def test_service_codes(code: str, kind: type[ReplicatorError], slug: str) -> None:
    error = mapped(client_error(code))
    assert type(error) is kind
    assert error.code == slug
    assert "DescribeThing of thing-1" in error.message
    assert "What to do" in error.message


@pytest.mark.parametrize(
    ("status", "kind", "slug"),
    [
        (400, FatalError, "request_refused"),
        (429, TransientError, "throttled"),
        (500, TransientError, "service_error"),
        (503, TransientError, "service_error"),
    ],
)
def test_unknown_codes_go_by_status(status: int, kind: type[ReplicatorError], slug: str) -> None:
    error = mapped(client_error("BrandNewException", status=status))
    assert (type(error), error.code) == (kind, slug)


def test_transient_errors_say_when() -> None:
    error = mapped(client_error("LimitExceededException"))
    assert isinstance(error, TransientError)
    assert error.retry_after_seconds == 5.0


def test_a_refused_stored_number_is_a_gap() -> None:
    error = mapped(client_error("InvalidArgumentException"), position="4957")
    assert isinstance(error, PositionLost)
    assert "4957" in error.message
    denied = mapped(client_error("AccessDeniedException"), position="4957")
    assert isinstance(denied, FatalError)


@pytest.mark.parametrize(
    ("error", "kind", "slug"),
    [
        (boto.NoCredentialsError(), FatalError, "credentials_missing"),
        (
            boto.PartialCredentialsError(provider="env", cred_var="x"),
            FatalError,
            "credentials_missing",
        ),
        (boto.ProfileNotFound(profile="nobody"), FatalError, "profile_missing"),
        (boto.NoRegionError(), FatalError, "region_missing"),
        (
            boto.EndpointConnectionError(endpoint_url="http://user:pw@host/"),
            TransientError,
            "connection_failed",
        ),
        (boto.ConnectTimeoutError(endpoint_url="http://host/"), TransientError, "timed_out"),
        (boto.ReadTimeoutError(endpoint_url="http://host/"), TransientError, "timed_out"),
        (
            boto.ConnectionClosedError(endpoint_url="http://host/"),
            TransientError,
            "connection_failed",
        ),
        (
            boto.SSLError(endpoint_url="https://h/", error="certificate verify failed"),
            FatalError,
            "certificate_refused",
        ),
        (
            boto.SSLError(endpoint_url="https://h/", error="bad record"),
            TransientError,
            "connection_failed",
        ),
        (boto.ParamValidationError(report="bad"), FatalError, "request_invalid"),
        (boto.UnauthorizedSSOTokenError(), FatalError, "credentials_expired"),
        (aiohttp.ServerDisconnectedError(), TransientError, "connection_failed"),
        (TimeoutError(), TransientError, "timed_out"),
        (ConnectionResetError(), TransientError, "connection_failed"),
    ],
)
def test_driver_errors(error: Exception, kind: type[ReplicatorError], slug: str) -> None:
    result = mapped(error)
    assert (type(result), result.code) == (kind, slug)
    assert "user:pw" not in result.message


def test_the_text_of_a_refused_signature_is_not_repeated() -> None:
    error = mapped(client_error("SignatureDoesNotMatch", f"X-Amz-Security-Token:{SECRET}"))
    assert SECRET not in str(error)
    assert "SignatureDoesNotMatch" in str(error)


def test_our_own_errors_pass_unchanged() -> None:
    own = TransientError("mine", "mine")
    assert mapped(own) is own


def test_in_stream_codes_use_the_same_table() -> None:
    error = service_error("KMSDisabledException", "why", "SubscribeToShard", "shard")
    assert (type(error), error.code) == (FatalError, "kms_disabled")


@pytest.mark.parametrize(
    ("settings", "slug"),
    [
        ({"profile": "nobody-has-this", "region": "eu-north-1"}, "profile_missing"),
        ({"region": "eu-north-1", "endpoint_url": "no url at all"}, "endpoint_invalid"),
        ({}, "region_missing"),
    ],
)
async def test_impossible_settings_are_named(
    settings: dict[str, Any], slug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(FatalError) as caught:
        async with aws_client(AWSSettings(**settings), "kinesis"):
            pass
    assert caught.value.code == slug
    assert SECRET not in str(caught.value)


async def test_the_region_may_come_from_either_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    async with aws_client(AWSSettings(), "kinesis") as client:
        assert client.meta.region_name == "eu-north-1"
    async with aws_client(AWSSettings(region="eu-west-1"), "kinesis") as client:
        assert client.meta.region_name == "eu-west-1"
