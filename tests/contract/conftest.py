from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.sink_rig import Rig, memory_rig, postgres_rig


@pytest.fixture(params=["memory", "postgres"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield memory_rig(stack)
        else:
            server = request.getfixturevalue("postgres_server")
            yield postgres_rig(stack, server, request.getfixturevalue("postgres_dsn"))
