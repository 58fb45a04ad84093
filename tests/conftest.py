"""Fixtures every suite may ask for: real servers, started once, empty for each test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import pytest
import structlog
from hypothesis import HealthCheck, settings

from replicator.errors import FatalError
from replicator.testing.kafka_server import KafkaServer, start_kafka
from replicator.testing.servers import (
    PostgresServer,
    reset_ministack,
    start_ministack,
    start_postgres,
)

ServerT = TypeVar("ServerT")

# How long an example takes says how busy the machine is.
settings.register_profile(
    "patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


@contextmanager
def _or_skip(server: AbstractContextManager[ServerT]) -> Iterator[ServerT]:
    """The server; where it isn't installed a test is skipped, but never in CI."""
    try:
        running = server.__enter__()
    except FatalError as error:
        if os.environ.get("CI") == "true" or not error.code.endswith("_missing"):
            raise
        pytest.skip(str(error))
    try:
        yield running
    finally:
        server.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    """A test that configured logging (the command line does) leaves nothing of it: its
    standard error is gone when the next test logs."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One Postgres for the whole run; who stops or stalls it puts it back."""
    with _or_skip(start_postgres(durable=False)) as server:
        yield server


@pytest.fixture
def postgres_dsn(postgres_server: PostgresServer) -> str:
    """The DSN of an empty database of this test's own."""
    return postgres_server.database()


@pytest.fixture(scope="session")
def ministack_server() -> Iterator[str]:
    """One AWS emulator for the whole run: its endpoint URL."""
    with _or_skip(start_ministack()) as url:
        yield url


@pytest.fixture
def ministack_url(ministack_server: str) -> str:
    """The endpoint URL of an emulator that is empty when the test begins."""
    reset_ministack(ministack_server)
    return ministack_server


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer]:
    """One Kafka for the whole run; a test makes topics of its own."""
    with _or_skip(start_kafka()) as server:
        yield server


def pytest_sessionstart() -> None:
    """pytest-asyncio leaves the loop that Python 3.11 makes by itself unclosed: no such loop."""
    asyncio.set_event_loop(None)
