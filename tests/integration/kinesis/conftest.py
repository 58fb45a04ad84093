"""Enhanced fan-out over the wire, against a server of ours that keeps the service's rules
by the very clock that the source sleeps on: five seconds cost nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from replicator.aws import AWSSettings
from replicator.source import KinesisOptions, KinesisSource
from replicator.testing.clock import VirtualClock
from replicator.testing.kinesis_server import KinesisServer
from tests.integration.kinesis.rig import (
    CONSUMER,
    MakeSource,
)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "000000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def server(clock: VirtualClock) -> AsyncIterator[KinesisServer]:
    async with KinesisServer(
        event_records=2, heartbeat_seconds=0.02, monotonic=clock.monotonic
    ) as running:
        yield running


@pytest.fixture
async def make_source(server: KinesisServer, clock: VirtualClock) -> AsyncIterator[MakeSource]:
    made: list[KinesisSource] = []

    def make(stream: str | None = None, **options: Any) -> KinesisSource:
        source = KinesisSource(
            AWSSettings(region="eu-north-1", endpoint_url=server.url),
            stream or server.name,
            CONSUMER,
            clock,
            options=KinesisOptions(**options),
            jitter=lambda: 0.5,
        )
        made.append(source)
        return source

    yield make
    for source in made:
        await source.close()
