"""The one place that makes AWS clients, and the one table that names AWS errors.

Credentials come from the standard chain (environment, profile, container,
instance) and are never settings of ours, so that none can end up in a
configuration file, a log or an error message.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioDeferredRefreshableCredentials,
)
from aiobotocore.session import AioSession
from botocore import exceptions as boto

from replicator.api_calls import APICalls
from replicator.errors import FatalError, PositionLost, ReplicatorError, TransientError

CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 60.0
ATTEMPTS_MAX = 4
# A subscription holds its connection for minutes, so the pool must not be the limit.
CONNECTIONS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class AWSSettings:
    """How AWS is reached; what is None follows the standard environment."""

    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    role_arn: str | None = None
    external_id: str | None = None
    calls: APICalls = field(default_factory=APICalls, compare=False, repr=False)
    """Counts what the clients made with these settings meet."""


class _RoleCredentials:
    """A credential provider (botocore's component) that assumes one role and assumes
    it again before the credentials expire."""

    def __init__(self, source: AioSession, settings: AWSSettings) -> None:
        self._source = source
        self._settings = settings

    async def load_credentials(self) -> AioDeferredRefreshableCredentials:
        source_credentials = await self._source.get_credentials()
        if source_credentials is None:
            raise boto.NoCredentialsError
        extra = {"RoleSessionName": "replicator"}
        if self._settings.external_id is not None:
            extra["ExternalId"] = self._settings.external_id
        fetcher = AioAssumeRoleCredentialFetcher(
            client_creator=functools.partial(
                self._source.create_client,
                region_name=_region(self._settings),
                endpoint_url=self._settings.endpoint_url,
                config=_client_config(READ_TIMEOUT_SECONDS),
            ),
            source_credentials=source_credentials,
            role_arn=self._settings.role_arn,
            extra_args=extra,
        )
        return AioDeferredRefreshableCredentials(
            refresh_using=fetcher.fetch_credentials, method="assume-role"
        )


def make_session(settings: AWSSettings) -> AioSession:
    """A session of these settings. Nothing is connected yet: a missing profile or
    missing credentials show when the first client is made or used."""
    session = AioSession(profile=settings.profile)
    settings.calls.watch(session)
    if settings.role_arn is None:
        return session
    assumed = AioSession(profile=settings.profile)
    settings.calls.watch(assumed)
    assumed.register_component("credential_provider", _RoleCredentials(session, settings))
    return assumed


@asynccontextmanager
async def aws_client(
    settings: AWSSettings,
    service: str,
    *,
    session: AioSession | None = None,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    attempts_max: int = ATTEMPTS_MAX,
) -> AsyncIterator[Any]:
    """An aiobotocore client of `service` ("kinesis"), closed at the end of the block.

    `attempts_max` 1 is for callers that keep a pace of their own: no call is repeated then. Calls
    of a `session` from elsewhere are counted by who `watch`es it.

    Raises FatalError for settings that can't work (`profile_missing`,
    `region_missing`, `endpoint_invalid`).
    """
    if session is None:
        session = make_session(settings)
    context = session.create_client(
        service,
        region_name=_region(settings),
        endpoint_url=settings.endpoint_url,
        config=_client_config(read_timeout_seconds, attempts_max),
    )
    # Only the way in is mapped: errors of the block belong to the operation that raised them.
    try:
        with aws_errors("connect", service):
            client = await context.__aenter__()
    except ValueError as error:
        raise FatalError(
            "endpoint_invalid",
            f"aws.endpoint_url or region can't be used: {_clean(str(error))}; "
            "write the URL as https://host:port",
        ) from None
    try:
        yield client
    finally:
        await context.__aexit__(None, None, None)


def _region(settings: AWSSettings) -> str | None:
    # The driver itself reads AWS_DEFAULT_REGION only; every other AWS tool knows both.
    return settings.region or os.environ.get("AWS_REGION")


def _client_config(read_timeout_seconds: float, attempts_max: int = ATTEMPTS_MAX) -> AioConfig:
    return AioConfig(
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=read_timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts_max},
        max_pool_connections=CONNECTIONS_MAX,
        user_agent_extra="replicator",
    )


@dataclass(frozen=True, slots=True)
class _Rule:
    """What one AWS error means to the engine, and what the operator should do.
    `is_quoted` is false where the service's text may repeat parts of a signed request."""

    error: type[ReplicatorError]
    code: str
    advice: str
    retry_after_seconds: float | None = None
    is_quoted: bool = True


_DENIED = _Rule(FatalError, "access_denied", "grant the permission to the credentials in use")
_CREDENTIALS = _Rule(
    FatalError,
    "credentials_invalid",
    "check the access key, the secret key and this machine's clock",
    is_quoted=False,
)
_EXPIRED = _Rule(
    FatalError,
    "credentials_expired",
    "renew the session's credentials, or use a role that renews itself",
    is_quoted=False,
)
_THROTTLED = _Rule(TransientError, "throttled", "it is tried again more slowly", 1.0)
_SERVICE = _Rule(TransientError, "service_error", "it is tried again", 1.0)
_REGION = _Rule(FatalError, "region_wrong", "set aws.region to the bucket's Region")
_KMS_KEY = "enable the stream's KMS key and grant kms:Decrypt on it, or change the stream's key"

_NO_ADVICE: Mapping[str, str] = MappingProxyType({})

# By the service's code without its "Exception" suffix. The five error classes of the
# Kinesis, DynamoDB and STS APIs: denied, throttled, gone, lost and transient.
_RULES: dict[str, _Rule] = {
    "AccessDenied": _DENIED,
    "UnauthorizedOperation": _DENIED,
    "AllAccessDisabled": _DENIED,
    "403": _DENIED,  # the answer to a HEAD has no words
    "OptInRequired": _DENIED,
    "UnrecognizedClient": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "RequestTimeTooSkewed": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "InvalidSignature": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "IncompleteSignature": _CREDENTIALS,
    "MissingAuthenticationToken": _CREDENTIALS,
    "AuthFailure": _CREDENTIALS,
    "ExpiredToken": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "Throttling": _THROTTLED,
    "Throttled": _THROTTLED,
    "ThrottledRequest": _THROTTLED,
    "RequestLimitExceeded": _THROTTLED,
    "TooManyRequests": _THROTTLED,
    "SlowDown": _THROTTLED,
    "ProvisionedThroughputExceeded": _THROTTLED,
    "LimitExceeded": _Rule(
        TransientError, "limit_exceeded", "raise the quota or lower the number of callers", 5.0
    ),
    "ResourceInUse": _Rule(TransientError, "resource_in_use", "it is tried again", 5.0),
    "ResourceNotFound": _Rule(
        FatalError, "resource_missing", "check its name, the Region and the account"
    ),
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraint": _REGION,
    "NoSuchBucket": _Rule(FatalError, "resource_missing", "check its name and the Region"),
    "ExpiredIterator": _Rule(
        TransientError, "iterator_expired", "a new one is taken from the last position", 0.0
    ),
    "ExpiredNextToken": _Rule(TransientError, "token_expired", "the listing starts again", 0.0),
    "TrimmedDataAccess": _Rule(
        PositionLost, "position_trimmed", "the records are no longer kept: see on_gap"
    ),
    "InvalidArgument": _Rule(FatalError, "request_invalid", "check the configured names and start"),
    "Validation": _Rule(FatalError, "request_invalid", "check the configured names and start"),
    "KMSThrottling": _Rule(TransientError, "kms_throttled", "it is tried again more slowly", 5.0),
    "KMSAccessDenied": _Rule(FatalError, "kms_denied", _KMS_KEY),
    "KMSDisabled": _Rule(FatalError, "kms_disabled", _KMS_KEY),
    "KMSInvalidState": _Rule(FatalError, "kms_unusable", _KMS_KEY),
    "KMSNotFound": _Rule(FatalError, "kms_missing", _KMS_KEY),
    "KMSOptInRequired": _Rule(FatalError, "kms_unusable", _KMS_KEY),
    "KMSInvalidKeyUsage": _Rule(FatalError, "kms_unusable", _KMS_KEY),
    "InternalFailure": _SERVICE,
    "InternalServerError": _SERVICE,
    "InternalServer": _SERVICE,
    "InternalError": _SERVICE,
    "ServiceUnavailable": _SERVICE,
    "RequestTimeout": _SERVICE,
}
# A stored sequence number that the service doesn't accept is one it no longer knows.
_POSITION = _Rule(
    PositionLost, "position_invalid", "the service no longer knows this position: see on_gap"
)
_REFUSED = _Rule(FatalError, "request_refused", "see the service's reason")

_CONNECTION = _Rule(
    TransientError,
    "connection_failed",
    "check the network and endpoint_url; it is tried again",
    1.0,
)
_TIMEOUT = _Rule(TransientError, "timed_out", "it is tried again", 1.0)
_SSO = _Rule(FatalError, "credentials_expired", "sign in again (aws sso login)", is_quoted=False)
_SETTINGS = _Rule(FatalError, "aws_settings_invalid", "check the AWS configuration files")

# By the driver's own class; the first that fits decides, so children stand before parents.
_DRIVER_RULES: tuple[tuple[type[BaseException], _Rule], ...] = (
    (
        boto.NoCredentialsError,
        _Rule(
            FatalError,
            "credentials_missing",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or run under a role",
        ),
    ),
    (
        boto.PartialCredentialsError,
        _Rule(FatalError, "credentials_missing", "set both the access key and the secret key"),
    ),
    (boto.ProfileNotFound, _Rule(FatalError, "profile_missing", "correct aws.profile")),
    (boto.NoRegionError, _Rule(FatalError, "region_missing", "set aws.region or AWS_REGION")),
    (boto.UnauthorizedSSOTokenError, _SSO),
    (boto.SSOTokenLoadError, _SSO),
    (boto.LoginError, _SSO),
    (boto.TokenRetrievalError, _SSO),
    (
        boto.CredentialRetrievalError,
        _Rule(
            TransientError,
            "credentials_unavailable",
            "check the credential process or metadata service",
            5.0,
            is_quoted=False,
        ),
    ),
    (
        boto.MetadataRetrievalError,
        _Rule(
            TransientError,
            "credentials_unavailable",
            "check the container's credential endpoint",
            5.0,
        ),
    ),
    (boto.ReadTimeoutError, _TIMEOUT),
    (boto.ConnectTimeoutError, _TIMEOUT),
    (boto.ConnectionError, _CONNECTION),
    (boto.HTTPClientError, _CONNECTION),
    (
        boto.ParamValidationError,
        _Rule(FatalError, "request_invalid", "check the configured names and start"),
    ),
    (boto.ChecksumError, _CONNECTION),
    (boto.IncompleteReadError, _CONNECTION),
    (boto.BotoCoreError, _SETTINGS),
    (TimeoutError, _TIMEOUT),
    (aiohttp.ClientError, _CONNECTION),
    (ConnectionError, _CONNECTION),
)
_CAUGHT = (
    boto.ClientError,
    boto.BotoCoreError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)


def service_time_us(answer: dict[str, Any], resource: str) -> int:
    """The service's clock in UTC microseconds, from the `Date` header of any small answer:
    whole seconds, rounded down by the service. Raises TransientError when there is none."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    try:
        return int(parsedate_to_datetime(date).timestamp()) * 1_000_000
    except (TypeError, ValueError):
        raise TransientError(
            "service_time_missing",
            f"the answer for {resource} has no usable Date header ({date!r}). What to do: look "
            "for a proxy that removes it, or start at TRIM_HORIZON.",
        ) from None


@contextmanager
def aws_errors(
    operation: str,
    resource: str,
    *,
    position: str | None = None,
    advice: Mapping[str, str] = _NO_ADVICE,
) -> Iterator[None]:
    """Turns the AWS driver's exceptions of the block into `replicator.errors`.

    `operation` is the API's name, `resource` what it was asked for, both for the
    message. With `position` (a stored sequence number) an InvalidArgument, or in DynamoDB a
    ValidationException, means that the service no longer knows it: PositionLost. `advice` is
    what to do, by the error's code, where the caller knows better.
    """
    try:
        yield
    except _CAUGHT as error:
        rule, reason, resource = _rule_of(error, resource, position)
        raise _make(rule, reason, operation, resource, advice) from error


def service_error(
    code: str, message: str, operation: str, resource: str, *, status: int = 0
) -> ReplicatorError:
    """The error for a code that the service sent (also inside an event stream)."""
    return _make(*_said(code, message, status), operation, resource)


def _said(code: str, message: str, status: int) -> tuple[_Rule, str]:
    """What the service's answer means, and its words as they may be shown."""
    slug = code.rsplit("#", 1)[-1].removesuffix("Exception")
    # S3 names KMS's errors by a prefix.
    rule = _RULES.get(slug.replace("KMS.", "KMS").replace("KMSKMS", "KMS"))
    if rule is None:
        rule = _THROTTLED if status == 429 else _SERVICE if status >= 500 else _REFUSED
    return rule, f"{code}: {message}" if rule.is_quoted else code


def _rule_of(error: BaseException, resource: str, position: str | None) -> tuple[_Rule, str, str]:
    """What it means, the reason to show, and the resource with what else it was asked for."""
    if isinstance(error, boto.ClientError):
        details = error.response.get("Error", {})
        code = str(details.get("Code", ""))
        message = str(details.get("Message", ""))
        if position is not None and code.startswith(("InvalidArgument", "Validation")):
            return _POSITION, f"{code}: {message}", f"{resource} at {position}"
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return (*_said(code, message, status), resource)
    text = str(error)
    if isinstance(error, boto.SSLError | aiohttp.ClientSSLError) and "CERTIFICATE" in text.upper():
        rule = _Rule(FatalError, "certificate_refused", "set AWS_CA_BUNDLE to the right authority")
        return rule, text, resource
    rule = next(rule for kind, rule in _DRIVER_RULES if isinstance(error, kind))
    return rule, text if rule.is_quoted and text else type(error).__name__, resource


def _make(
    rule: _Rule,
    reason: str,
    operation: str,
    resource: str,
    advice: Mapping[str, str] = _NO_ADVICE,
) -> ReplicatorError:
    reason = _clean(reason).strip().rstrip(".")
    do = advice.get(rule.code, rule.advice)
    message = f"{operation} of {resource} failed: {reason}. What to do: {do}."
    if issubclass(rule.error, TransientError):
        return rule.error(rule.code, message, retry_after_seconds=rule.retry_after_seconds)
    return rule.error(rule.code, message)


def _clean(text: str) -> str:
    """The text without a URL's user and password."""
    return re.sub(r"//[^/@\s]+@", "//", text)
