"""Law 8: a stalled sink stops the reading, not the leases, and memory stays within bounds."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from replicator.testing.servers import PostgresServer
from tests.fault import memory_run
from tests.shop import TABLE

pytestmark = pytest.mark.timeout(400)


async def test_a_gigabyte_behind_a_stalled_postgres(
    postgres_server: PostgresServer, postgres_dsn: str, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fault.memory_run",
        postgres_dsn,
        str(tmp_path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def heard() -> str:
        assert process.stdout is not None
        async with asyncio.timeout(120):
            return (await process.stdout.readline()).decode().strip()

    try:
        assert await heard() == "reading"
        with postgres_server.stalled():
            process.stdin.write(b"go\n")
            assert await heard() == "full"
        process.stdin.write(b"resume\n")
        figures = json.loads(await heard())
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert figures["total_bytes"] >= 1_000_000_000
    assert figures["peak_bytes"] <= figures["idle_bytes"] + 2 * figures["limit_bytes"], figures
    assert figures["renewals_while_full"] >= memory_run.SHARDS, figures
    assert figures["retries"] == 0, figures
    newest = postgres_server.execute(
        f"SELECT count(*), min((item->>'made')::int) FROM {TABLE}_live", postgres_dsn
    )
    assert newest == f"{memory_run.SHARDS * 16}|{memory_run.RECORDS - 16}"
