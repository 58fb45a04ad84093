"""The process of `test_memory`: 64 shards and 1 GB of changes, its own memory measured.

Talks by lines: says `reading`, waits for `go`; says `full`, waits for `resume`; says its
figures as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from functools import partial
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # the embedded server's own helper

from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_settings import PostgresSettings
from replicator.store.sqlite import SQLiteLeaseStore
from replicator.telemetry import logging
from replicator.testing.clock import LoopClock
from replicator.testing.source import ScriptedSource
from replicator.testing.stream import ScriptedStream
from tests.engine import Engine
from tests.shop import payload
from tests.stack import until

SHARDS = 64
RECORDS = 320
ITEM_BYTES = 25_000
LEASE_SECONDS = 3.0


def record(shard: int, index: int) -> bytes:
    """One change of 50 KB: 16 items a shard, each changed many times."""
    key = f"{shard}-{index % 16}"
    text = f"{shard:04d}{index:06d}" * (ITEM_BYTES // 10)
    image = {"id": {"S": key}, "made": {"N": str(index)}, "text": {"S": text}}
    return payload(
        "MODIFY",
        {
            "ApproximateCreationDateTime": 1_700_000_000_000_000 + index,
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
            "Keys": {"id": {"S": key}},
            "NewImage": image,
            "OldImage": image,
        },
        event_id=f"{shard}-{index}",
    )


class Peak(threading.Thread):
    """Watches the process's resident memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._over = threading.Event()
        self.bytes = 0

    def now(self) -> int:
        return int(self._process.memory_info().rss)

    def run(self) -> None:
        while not self._over.wait(0.01):
            self.bytes = max(self.bytes, self.now())

    def stop(self) -> None:
        self._over.set()
        self.join()


async def heard(word: str) -> None:
    line = await asyncio.to_thread(sys.stdin.readline)
    assert line.strip() == word, line


async def main(dsn: str, folder: Path) -> None:
    stream = ScriptedStream(SHARDS)
    clock = LoopClock()
    source = ScriptedSource(clock, stream, fetch_bytes=262_144, heartbeat_seconds=1.0)
    # It stalls for longer than a sink would wait, and who tries again makes room meanwhile.
    settings = PostgresSettings(
        name="w",
        pipeline="test/p",
        dsn=dsn,
        connections=2,
        connect_timeout_seconds=300.0,
        command_timeout_seconds=300.0,
    )
    sink = PostgresSink(settings)
    store = SQLiteLeaseStore(folder / "leases.sqlite")
    engine = Engine(source, sink, store, lease_seconds=LEASE_SECONDS)

    async def counters() -> int:
        return sum(row.counter for row in await store.rows("test/p"))

    async def all_reading() -> bool:
        return list(engine.states().values()) == ["reading"] * SHARDS

    async def all_written() -> bool:
        return engine.stats.records == SHARDS * RECORDS

    async with engine.running():
        await until(all_reading)
        print("reading", flush=True)
        await heard("go")
        peak = Peak()
        idle = peak.now()
        peak.start()
        for number, shard in enumerate(stream.shards()):
            stream.generate(shard.id, RECORDS, partial(record, number))

        renewals = 0

        async def quiet() -> bool:
            # Each shard still makes the one fetch that then waits at the gate, and what the lanes
            # encode meanwhile may make room for some again. It has an end, however busy the
            # machine: then nothing is fetched for as long as a lease lives twice.
            nonlocal renewals
            fetched, renewed = source.calls["fetch"], await counters()
            await asyncio.sleep(2 * LEASE_SECONDS)
            renewals = await counters() - renewed
            is_held = all(view.waits_for_sink for view in engine.coordinator.views())
            return engine.gate.is_full and is_held and source.calls["fetch"] == fetched

        await until(quiet, 110)
        print("full", flush=True)
        await heard("resume")
        await until(all_written, 120)
        peak.stop()
    print(
        json.dumps(
            {
                "total_bytes": SHARDS * RECORDS * len(record(0, 0)),
                "idle_bytes": idle,
                "peak_bytes": peak.bytes,
                "budget_peak_bytes": engine.budget.peak,
                "limit_bytes": engine.budget.limit,
                "renewals_while_full": renewals,
                "retries": sum(engine.stats.retries.values()),
            }
        ),
        flush=True,
    )
    await sink.close()
    await store.close()


if __name__ == "__main__":
    logging.configure(level="warning")
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
