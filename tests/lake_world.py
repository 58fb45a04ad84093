"""Two shards' records, and workers that read them into one table of Iceberg."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from replicator.errors import LeaseLost, TransientError
from replicator.model import SHARD_END, Fence, Pending, Position, after
from replicator.sink.clocks import Clocks
from replicator.sink.iceberg import IcebergSink
from tests.changes import STREAM, number, pending, put
from tests.lake import DAY_US, LETTERS, NOON_US, PRODUCTS, rows, settings, times_each, write
from tests.lake_gates import IMPLEMENTATIONS

SHARDS = ("shard-1", "shard-2")


def history(seed: int) -> list[bytes]:
    """Around midnight, out of order within a second, with copies and a bad record."""
    chance = random.Random(seed)
    records: list[bytes] = []
    us = NOON_US + DAY_US // 2 - 3_000_000
    for n in range(16):
        us += chance.randrange(700_000)
        key = {"id": {"S": f"item-{n % 7}"}}
        records.append(put("products", key, us - chance.randrange(900_000), n={"N": str(n)}))
        if chance.random() < 0.2:
            records.append(chance.choice(records[-4:]))
    records.insert(chance.randrange(len(records)), b"broken")
    return records


class World:
    """One table, the records of its shards, and workers."""

    def __init__(self, place: Path, records: Sequence[Sequence[bytes]], **changes: Any) -> None:
        self._place = place
        self._changes = changes
        self._records = dict(zip(SHARDS, records, strict=True))

    def sink(self, gate: str = "") -> IcebergSink:
        base = settings(self._place)
        more = {**IMPLEMENTATIONS, "gate": gate}
        catalog = {name: value for name, value in base.catalog.items() if name != "type"}
        return IcebergSink(
            settings(
                self._place, catalog={**catalog, **more}, tables=("products",), **self._changes
            ),
            clocks=Clocks(monotonic=lambda: 0.0),
        )

    def fetches(self, fence: Fence, position: Position | None, size: int) -> list[Pending]:
        """What a source gives from there on, `size` records at a time."""
        records, begin = self._records[fence.shard_id], 0
        if position is not None and position.sequence_number is not None:
            begin = int(position.sequence_number) - int(number(0))
        made = []
        for first in range(begin, len(records), size):
            some = records[first : first + size]
            last = first + len(some)
            then = SHARD_END if last == len(records) else after(number(last))
            lag = None if then == SHARD_END else 1_000
            made.append(pending(fence, some, first=first + 1, then=then, behind_ms=lag))
            if then != SHARD_END and last % 2:  # nothing more is there for a while
                idle = pending(fence, [], first=last + 1, then=then)
                made.append(replace(idle, received_at=2.0))
        return made

    async def work(self, size: int, *, writes: int = 1_000, gate: str = "") -> None:
        """Reads to the end with fetches of `size` records, one of each shard a write."""
        sink = self.sink(gate)
        try:
            await sink.open([PRODUCTS])
            queues: list[list[Pending]] = []
            for shard_id in SHARDS:
                fence = await sink.fence(STREAM, shard_id, "worker")
                position = await sink.position(fence)
                if position != SHARD_END:
                    queues.append(self.fetches(fence, position, size))
            for _ in range(writes):
                queues = [queue for queue in queues if queue]
                if not queues:
                    return
                result = await write(sink, *(queue.pop(0) for queue in queues))
                queues = [q for q in queues if q and q[0].fence.shard_id not in result.lost]
        finally:
            await sink.close()

    async def finish(self, size: int) -> None:
        """As the engine does: what may pass begins anew with a fence."""
        while True:
            with suppress(TransientError, LeaseLost):
                await self.work(size)
                return

    def check(self) -> None:
        """Each change once; the bad records at least once, and counted once."""
        everything = [record for each in self._records.values() for record in each]
        good = [json.loads(record) for record in everything if record != b"broken"]
        if self._changes.get("mode") == "state":
            self._check_items(good)
        else:
            times = times_each(self._place)
            assert set(times) == {one["eventID"] for one in good}
            assert set(times.values()) == {1}
        letters = {(each["shard"], each["code"]) for each in rows(self._place, LETTERS).to_pylist()}
        assert letters == {(shard, "malformed_json") for shard in SHARDS}

    def _check_items(self, changes: Sequence[dict[str, Any]]) -> None:
        """Each key once, with its newest item, whichever shard it came by."""
        newest: dict[str, tuple[int, str]] = {}
        for one in changes:
            image = one["dynamodb"]["NewImage"]
            at = (one["dynamodb"]["ApproximateCreationDateTime"], image["n"]["N"])
            newest[image["id"]["S"]] = max(newest.get(image["id"]["S"], (0, "")), at)
        name = self._changes["table"].replace("{table}", "products").split(".")
        found = [
            (row["id"], json.loads(row["item"])["n"])
            for row in rows(self._place, tuple(name)).to_pylist()
        ]
        assert sorted(found) == sorted((key, int(n)) for key, (_, n) in newest.items())
