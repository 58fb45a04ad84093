"""The CrateDB sink without transactions: cut at every request, and a worker that wakes up after
its shard went to another, before every request. In the end the table equals a fold of the history,
and no position is ever ahead of what is stored."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import pytest

from replicator.errors import LeaseLost, TransientError
from replicator.model import TRIM_HORIZON, TableSchema
from replicator.sink.crate import CrateSink
from replicator.testing.crate_server import CrateServer, Fate
from tests.changes import STREAM, number, pending, put, remove
from tests.crate_database import CrateDatabase, crate_database, version_us
from tests.integration.test_order import HISTORIES, deliveries, is_circle, truth
from tests.shop import Shop

TABLE = TableSchema("products", (("id", "S"),))
T = 1_706_542_773_915_000


def _product(id_: str, us: int, **attributes: Any) -> bytes:
    return put("products", {"id": {"S": id_}}, us, **attributes)


def _n(value: int) -> dict[str, Any]:
    return {"N": str(value)}


_KEY = {"id": {"S": "tied"}}
HISTORY: Sequence[bytes] = [
    _product("a", T, n=_n(1)),
    b"broken",
    _product("b", T + 1_000, n=_n(2)),
    put("products", _KEY, T, None, n=_n(1)),
    remove("products", {"id": {"S": "b"}}, T + 2_000, {"id": {"S": "b"}, "n": _n(2)}),
    put("products", _KEY, T, {**_KEY, "n": _n(1)}, n=_n(2)),
    _product("refused", T, n={"M": {}}),
    _product("a", T + 3_000, n=_n(3)),
    _product("b", T + 1_000, n=_n(2)),  # redelivered, behind its own delete
]
ORACLE = {"a": (3, T + 3_000), "b": (None, T + 2_000), "tied": (2, T)}
# Where each of them stands once so many records are durable.
CUTS = (3, 6, 9)


@pytest.fixture
async def database() -> AsyncIterator[CrateDatabase]:
    async with crate_database() as database:
        yield database


@pytest.fixture
def server(database: CrateDatabase) -> CrateServer:
    if database.stand_in is None:
        pytest.skip("a real server shows no fault at will")
    return database.stand_in


async def _opened(database: CrateDatabase) -> CrateSink:
    sink = CrateSink(database.settings())
    await sink.open([TABLE])
    return sink


async def _write_on(sink: CrateSink, owner: str) -> None:
    """What a worker does that got the shard: from the stored position to the end."""
    fence = await sink.fence(STREAM, "shard-1", owner)
    position = await sink.position(fence)
    done = 0
    if position is not None and position.sequence_number is not None:
        done = int(position.sequence_number) - int(number(0))
    writer = sink.writer(fence)
    for cut in CUTS:
        if cut > done:
            one = pending(fence, HISTORY[done:cut], first=done + 1)
            if (await writer.write(writer.encode([one]))).lost:
                raise LeaseLost("fence_lost", "another worker's")
            done = cut


async def _stored(database: CrateDatabase) -> dict[str, tuple[int | None, int]]:
    found: dict[str, tuple[int | None, int]] = {}
    for row in await database.rows("products"):
        item = None if row["exact"] is None else json.loads(row["exact"])
        assert row["deleted"] == (item is None)
        assert (row["item"] is None) == (item is None)
        if item is not None:
            assert row["item"]["n"] == float(item["n"]), "both are of one change"
        found[row["id"]] = (None if item is None else item["n"], int(version_us(row["version"])))
    return found


async def _require_durable(database: CrateDatabase) -> None:
    """All that the stored position covers is stored."""
    rows = await database.rows("replicator_positions")
    numbers = [row["sequence_number"] for row in rows if row["sequence_number"] is not None]
    covered = max((int(text) - int(number(0)) for text in numbers), default=0)
    stored = await _stored(database)
    letters = {
        int(row["sequence_number"]) - int(number(0))
        for row in await database.rows("replicator_dead_letters")
    }
    newest: dict[str, int] = {}
    for place, payload in enumerate(HISTORY[:covered], 1):
        if place in {2, 7}:
            assert place in letters, f"record {place} is behind the position"
            continue
        change = json.loads(payload)["dynamodb"]
        key, us = change["Keys"]["id"]["S"], change["ApproximateCreationDateTime"]
        newest[key] = max(newest.get(key, 0), us)
    for key, us in newest.items():
        assert stored[key][1] >= us, f"{key} is behind the position"


async def _requests(database: CrateDatabase, server: CrateServer) -> int:
    """How many a whole run makes, after the tables were made."""
    sink = await _opened(database)
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
    before = len(server.statements)
    await _write_on(sink, "me")
    await sink.close()
    return len(server.statements) - before


async def _require_oracle(database: CrateDatabase) -> None:
    assert await _stored(database) == ORACLE
    letters = await database.rows("replicator_dead_letters")
    assert [(row["sequence_number"], row["code"]) for row in letters] == [
        (number(2), "malformed_json"),
        (number(7), "crate_type"),
    ]
    (position,) = await database.rows("replicator_positions")
    assert position["position"] == f"AFTER_SEQUENCE_NUMBER:{number(9)}"


async def test_undisturbed(database: CrateDatabase) -> None:
    sink = await _opened(database)
    await _write_on(sink, "me")
    await _require_oracle(database)
    await sink.close()


@pytest.mark.parametrize("fate", ["unavailable", "cut_before", "cut_after"])
async def test_cut_at_every_request(server: CrateServer, fate: Fate) -> None:
    async with crate_database() as whole:
        assert whole.stand_in is not None
        count = await _requests(whole, whole.stand_in)
    assert count > 15
    for at in range(count):
        async with crate_database() as database:
            await _crash(database, at, fate)


async def _crash(database: CrateDatabase, at: int, fate: Fate) -> None:
    server = database.stand_in
    assert server is not None
    first = await _opened(database)
    await first.begin(STREAM, {"shard-1": TRIM_HORIZON})
    cut_at = len(server.statements) + at + 1

    async def cut(request: int, _: str) -> Fate:
        return fate if request == cut_at else None

    server.on_request = cut
    try:
        await _write_on(first, "me")
    except TransientError:
        pass
    else:
        raise AssertionError(f"request {at} of {server.statements[cut_at - 1]} was not cut")
    await first.close()
    await _require_durable(database)
    second = await _opened(database)
    await _write_on(second, "me, again")
    await second.close()
    await _require_oracle(database)


async def test_a_zombie_that_wakes_before_every_request(server: CrateServer) -> None:
    async with crate_database() as whole:
        assert whole.stand_in is not None
        count = await _requests(whole, whole.stand_in)
    for at in range(count):
        async with crate_database() as database:
            await _pause(database, at)


async def _pause(database: CrateDatabase, at: int) -> None:
    """The first worker stands still before this request until another has written everything."""
    server = database.stand_in
    assert server is not None
    zombie, other = await _opened(database), await _opened(database)
    await zombie.begin(STREAM, {"shard-1": TRIM_HORIZON})
    pause_at = len(server.statements) + at + 1

    async def pause(request: int, _: str) -> Fate:
        if request == pause_at:
            await _write_on(other, "another")
            await _require_oracle(database)
        return None

    server.on_request = pause
    with contextlib.suppress(LeaseLost, TransientError):
        await _write_on(zombie, "zombie")
    await _require_oracle(database)
    await zombie.close()
    await other.close()


# ---- order


@pytest.mark.parametrize("name", HISTORIES)
async def test_every_order_and_every_split_of(database: CrateDatabase, name: str) -> None:
    """Law 3 across writes, as for Postgres."""
    changes = HISTORIES[name]
    by_key = deliveries(changes)
    if database.stand_in is None and len(by_key) > 500:
        pytest.skip("a real server takes minutes for it")
    table = TableSchema("t", (("id", "S"),))
    sink = CrateSink(database.settings())
    await sink.open([table])
    fence = await sink.fence(STREAM, "shard", "me")
    writer = sink.writer(fence)
    first, results = 1, []
    writes = [[p for writes in by_key.values() for p in writes[n]] for n in range(len(changes))]
    for payloads in [*writes, list(itertools.chain.from_iterable(writes))]:
        payload = writer.encode([pending(fence, payloads, first=first)])
        results.append(await writer.write(payload))
        first += len(payloads)
    await sink.close()
    found = {row["id"]: row for row in await database.rows("t")}
    assert set(found) == set(by_key)
    newest = max(change.version for change in changes)
    assert {version_us(row["version"]) for row in found.values()} == {Decimal(newest)}
    if is_circle(changes):
        assert sum(result.ambiguous for result in results[:-1]) > 0
    else:
        states = {key: _state(row) for key, row in found.items()}
        assert set(states.values()) == {truth(changes)}
    assert (results[-1].rows, results[-1].duplicates) == (0, len(by_key)), "known, all of it"


def _state(row: dict[str, Any]) -> int | None:
    """What is told of the state, by both columns alike."""
    if row["exact"] is None:
        assert row["item"] is None
        return None
    state = int(float(json.loads(row["exact"])["n"]))
    assert row["item"]["n"] == state
    return state


@pytest.mark.parametrize("late", [1, 2])
async def test_two_shards_settle_one_instant_at_once(server: CrateServer, late: int) -> None:
    """One stands still before it stores what it made of the instant, until another, of another
    shard, has written the last change of all."""
    changes = HISTORIES["a middle change"]
    early = 3 - late
    async with crate_database() as database:
        first, second = await _opened(database), await _opened(database)
        fences = [await first.fence(STREAM, "s-1", "me"), await second.fence(STREAM, "s-2", "it")]
        numbers = itertools.count(1)

        async def write(sink: CrateSink, place: int) -> None:
            fence = fences[sink is second]
            change = changes[place].payload().replace(b'"t"', b'"products"')
            writer = sink.writer(fence)
            one = pending(fence, [change], first=next(numbers))
            assert (await writer.write(writer.encode([one]))).dead_letters == ()

        await write(first, 0)
        is_paused = False

        async def pause(_: int, statement: str) -> Fate:
            nonlocal is_paused
            if statement.startswith("UPDATE") and "chain = ?" in statement and not is_paused:
                is_paused = True
                await write(second, late)
            return None

        assert database.stand_in is not None
        database.stand_in.on_request = pause
        await write(first, early)
        assert is_paused
        (row,) = await database.rows("products")
        assert _state(row) == truth(changes)
        await first.close()
        await second.close()


@pytest.mark.parametrize("seed", range(5))
async def test_disturbed_deliveries_end_like_the_table(database: CrateDatabase, seed: int) -> None:
    shop = Shop(seed=seed, keys=20)
    records = [payload for _, payload in shop.disturbed(400)]
    sink = CrateSink(database.settings())
    await sink.open([TABLE])
    fence = await sink.fence(STREAM, "shard-1", "me")
    writer = sink.writer(fence)
    total = 0
    for first in range(0, len(records), 37):
        payload = writer.encode([pending(fence, records[first : first + 37], first=first + 1)])
        total += (await writer.write(payload)).rows
    await sink.close()
    live = {
        row["id"]: json.loads(row["exact"])
        for row in await database.rows("products")
        if not row["deleted"]
    }
    assert live == shop.plain()
    assert 0 < total <= 400
