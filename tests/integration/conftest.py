"""What the tests against the emulators share."""

from __future__ import annotations

import pytest

from replicator.aws import AWSSettings


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    # The emulator takes the access key for the account's number.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "000000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def settings(ministack_url: str, credentials: None) -> AWSSettings:
    return AWSSettings(region="eu-north-1", endpoint_url=ministack_url)
