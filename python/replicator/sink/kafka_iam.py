"""Tokens by which MSK knows who we are: a request to connect, signed with our AWS credentials.

The token is the signed URL of `kafka-cluster:Connect`, in URL-safe base64 without padding
(https://github.com/aws/aws-msk-iam-sasl-signer-python says how it is made).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any, Final

from aiobotocore.session import AioSession
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest

from replicator.aws import AWSSettings, aws_errors, make_session
from replicator.errors import FatalError

EXPIRES_SECONDS: Final = 900
_RENEW_SECONDS: Final = 300


class IAMTokens:
    """Gives a token that is good for at least ten minutes more."""

    def __init__(
        self, settings: AWSSettings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._session: AioSession | None = None
        self._token: tuple[str, float] | None = None

    async def token(self) -> str:
        """Raises FatalError and TransientError as any use of the credentials."""
        now = self._monotonic()
        if self._token is None or now - self._token[1] >= _RENEW_SECONDS:
            self._token = (await self._signed(), now)
        return self._token[0]

    async def _signed(self) -> str:
        if self._session is None:
            self._session = make_session(self._settings)
        region = self._settings.region or self._session.get_config_variable("region")
        if not region:
            raise FatalError("region_missing", "MSK's IAM needs a Region: set sasl.aws.region")
        with aws_errors("Connect", "MSK"):
            credentials: Any = await self._session.get_credentials()
            if credentials is None:
                raise FatalError(
                    "credentials_missing", "MSK's IAM needs AWS credentials: there are none"
                )
            frozen = await credentials.get_frozen_credentials()
        return signed_token(frozen, region)


def signed_token(credentials: Any, region: str) -> str:
    """The token for frozen credentials of botocore."""
    request = AWSRequest(
        method="GET",
        url=f"https://kafka.{region}.amazonaws.com/",
        params={"Action": "kafka-cluster:Connect"},
    )
    SigV4QueryAuth(credentials, "kafka-cluster", region, expires=EXPIRES_SECONDS).add_auth(request)
    url = f"{request.url}&User-Agent=replicator"
    return base64.urlsafe_b64encode(url.encode()).rstrip(b"=").decode()
