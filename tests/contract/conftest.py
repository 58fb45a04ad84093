from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from replicator.testing.s3_server import S3Server
from tests.crate_database import crate_database
from tests.kafka_rig import kafka_rig
from tests.sink_rig import (
    LOG_SINKS,
    STATE_SINKS,
    Rig,
    crate_rig,
    memory_rig,
    postgres_rig,
    s3_rig,
    topics_rig,
)


@pytest.fixture(params=[*STATE_SINKS, *LOG_SINKS])
async def rig(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    """Every sink in turn; suites of some of them name those."""
    async with AsyncExitStack() as stack:
        match request.param:
            case "memory":
                yield memory_rig(stack)
            case "cratedb":
                yield crate_rig(stack, await stack.enter_async_context(crate_database()))
            case "postgres":
                server = request.getfixturevalue("postgres_server")
                yield postgres_rig(stack, server, request.getfixturevalue("postgres_dsn"))
            case "s3":
                monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
                monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
                yield s3_rig(stack, await stack.enter_async_context(S3Server()))
            case "kafka":
                server = request.getfixturevalue("kafka_server")
                yield topics_rig(await stack.enter_async_context(kafka_rig(server)))
            case other:
                raise AssertionError(f"no rig of {other}")
