from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.crate_database import crate_database
from tests.sink_rig import Rig, crate_rig, lake_rig, memory_rig, postgres_rig


@pytest.fixture(params=["memory", "postgres", "cratedb", "iceberg"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield memory_rig(stack)
        elif request.param == "cratedb":
            yield crate_rig(stack, await stack.enter_async_context(crate_database()))
        elif request.param == "iceberg":
            yield lake_rig(stack, request.getfixturevalue("tmp_path"))
        else:
            server = request.getfixturevalue("postgres_server")
            yield postgres_rig(stack, server, request.getfixturevalue("postgres_dsn"))
