"""Small batches: from payload bytes to committed rows, against a prepared `unnest` alone.

`rows` is our whole way but for what belongs to a shard (fence and position): decode, order, fold,
encode, begin, merge, commit. `write` is the writer's own `write`, fences, positions and all.
`unnest` is given the finished values as Python lists, which asyncpg encodes: the same statement
over the same columns, begin and commit around it. `copy` is `rows` by way of the staging table.
Each turn brings newer changes of the same keys.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
import uvloop

from bench import records
from bench.postgres import STREAM, TABLE, Result, opened
from replicator import _core
from replicator.model import TRIM_HORIZON, Fence, Pending, after
from replicator.sink.postgres_merge import DocumentMerge
from replicator.sink.postgres_payload import TablePayload
from replicator.sink.postgres_writer import PostgresWriter
from replicator.sink.statements import fill, statements
from replicator.testing.servers import PostgresServer, start_postgres

if TYPE_CHECKING:
    from replicator.sink.postgres_layout import DocumentTable
    from replicator.sink.postgres_session import Connection

SIZES = (10, 30, 100, 300, 1000)
VARIANTS = ("unnest", "rows", "copy", "write")
_TYPES = ("text", "jsonb", "numeric", "boolean", "bytea")


def measure(*, is_quick: bool) -> Iterator[tuple[int, Result]]:
    """Every size, on one Postgres of its own."""
    with start_postgres() as server:
        for size in SIZES:
            yield size, uvloop.run(_measure(server, size, is_quick=is_quick))


async def _measure(server: PostgresServer, size: int, *, is_quick: bool) -> Result:
    async with opened(server) as (sink, connection):
        planned = await sink.plan([TABLE])
        [table] = planned.tables
        await sink.begin(STREAM, {"shard": TRIM_HORIZON})
        fence = await sink.fence(STREAM, "shard", "bench")
        turns = _Turns(connection, table, sink.writer(fence), fence, size)
        await turns.prepare()
        seconds = await _interleaved(turns, 20 if is_quick else 120)
    rates: dict[str, float] = {}
    spreads: dict[str, float] = {}
    for name, took in seconds.items():
        middle = statistics.median(took)
        rates[name] = round(size / middle)
        spreads[name] = statistics.quantiles(took, n=10)[-1] / middle - 1
    return Result(rates, spreads)


class _Turns:
    """The ways to the same rows."""

    def __init__(
        self,
        connection: Connection,
        table: DocumentTable,
        writer: PostgresWriter,
        fence: Fence,
        size: int,
    ) -> None:
        self._connection = connection
        self._table = table
        self._writer = writer
        self._fence = fence
        self._merge = DocumentMerge(table, generation=0, has_lz4=False)
        self._sql = statements("session")
        self._templates = _templates(size)
        self._event_us = 1_706_542_773_915_000
        unnest = ", ".join(f"${n}::{type_}[]" for n, type_ in enumerate(_TYPES, 2))
        names = '"id", item, version, deleted, chain'
        identifiers = table.identifiers()
        self._unnest = fill(
            statements("document")["merge"],
            {**identifiers, "rows": f"(SELECT * FROM unnest({unnest}) AS sent ({names}))"},
        )

    async def prepare(self) -> None:
        await self._connection.execute(self._merge.create_staging)

    def payloads(self) -> list[bytes]:
        """The same keys, a second later."""
        self._event_us += 1_000_000
        return [
            template.replace(b"1706542773915835", b"%d" % self._event_us)
            for template in self._templates
        ]

    def lists(self, payloads: Sequence[bytes]) -> list[list[Any]]:
        """The values of the rows, ready-made."""
        rows = _rows(payloads)
        changes = [orjson.loads(line) for line in rows.batch.json_lines().splitlines()]
        return [
            [change["key"]["id"] for change in changes],
            [orjson.dumps(change["item"]).decode() for change in changes],
            [Decimal(change["version"]) for change in changes],
            [False] * len(changes),
            [bytes(17)] * len(changes),
        ]

    async def unnest(self, lists: list[list[Any]]) -> None:
        await self._connection.execute(self._sql["begin"])
        await self._connection.execute(self._unnest, 0, *lists)
        await self._connection.execute(self._sql["commit"])

    async def rows(self, payloads: list[bytes]) -> None:
        await self._commit(TablePayload.of(self._table, _rows(payloads).rows))

    async def copy(self, payloads: list[bytes]) -> None:
        rows = _rows(payloads).rows
        await self._commit(TablePayload(self._table, rows, rows.copy(), ()))

    async def write(self, payloads: list[bytes]) -> None:
        pending = Pending(self._fence, _rows(payloads).batch, after("1"), 0, 0.0)
        result = await self._writer.write(self._writer.encode([pending]))
        assert result.rows == len(payloads)

    async def _commit(self, part: TablePayload) -> None:
        await self._connection.execute(self._sql["begin"])
        merged = await self._merge.merge(self._connection, part)
        await self._connection.execute(self._sql["commit"])
        assert merged.rows == len(part.rows)


@dataclass(frozen=True, slots=True)
class _Rows:
    batch: _core.ChangeBatch
    rows: _core.Rows


def _rows(payloads: Sequence[bytes]) -> _Rows:
    batch = _core.decode(_core.Records.pack(payloads))
    return _Rows(batch, batch.newest(TABLE.name, TABLE.keys))


def _templates(size: int) -> list[bytes]:
    """Changes of different keys that write an item, all at one instant."""
    found: dict[str, bytes] = {}
    for payload in records.payloads("small", 4 * size + 100):
        change = orjson.loads(payload)
        if change["eventName"] == "REMOVE":
            continue
        change["dynamodb"]["ApproximateCreationDateTime"] = 1_706_542_773_915_835
        found.setdefault(change["dynamodb"]["Keys"]["id"]["S"], orjson.dumps(change))
    return list(found.values())[:size]


async def _interleaved(turns: _Turns, rounds: int) -> dict[str, list[float]]:
    names = list(VARIANTS)
    run: dict[str, Callable[[Any], Awaitable[None]]] = {
        name: getattr(turns, name) for name in names
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.disable()
    try:
        for turn in range(-5, rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                payloads: Any = turns.payloads()
                given = turns.lists(payloads) if name == "unnest" else payloads
                began = time.perf_counter()
                await run[name](given)
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - began)
    finally:
        gc.enable()
    return seconds
