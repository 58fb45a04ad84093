"""What every lease store promises, over the real one and the shipped fake."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from replicator.errors import FatalError, LeaseLost, TransientError
from replicator.model import SHARD_END, TRIM_HORIZON, LeaseRow, after
from replicator.protocols import LeaseStore
from replicator.store.memory import MemoryLeases, MemoryLeaseStore
from replicator.store.sqlite import SQLiteLeaseStore


class NamedLeaseStore(LeaseStore, Protocol):
    @property
    def store_id(self) -> str: ...


Worker = Callable[[], Awaitable[NamedLeaseStore]]


@pytest.fixture(params=["memory", "sqlite"])
async def worker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Worker]:
    """Gives one more opened store of the same fleet each time it is called."""
    leases = MemoryLeases()
    async with AsyncExitStack() as stack:

        async def opened() -> NamedLeaseStore:
            store: NamedLeaseStore
            if request.param == "memory":
                store = MemoryLeaseStore(leases)
            else:
                store = SQLiteLeaseStore(tmp_path / "state" / "leases.db")
            stack.push_async_callback(store.close)
            await store.open()
            return store

        yield opened


@pytest.fixture
async def store(worker: Worker) -> NamedLeaseStore:
    return await worker()


async def row_of(store: LeaseStore, shard_id: str = "s1", pipeline: str = "p") -> LeaseRow:
    return next(row for row in await store.rows(pipeline) if row.shard_id == shard_id)


async def taken(store: LeaseStore, owner: str = "a", shard_id: str = "s1") -> LeaseRow:
    await store.create("p", [shard_id])
    held = await store.take(await row_of(store, shard_id), owner)
    assert held is not None
    return held


async def test_a_new_row_is_unowned(store: NamedLeaseStore) -> None:
    assert list(await store.rows("p")) == []
    await store.create("p", ["s2", "s1"])
    assert list(await store.rows("p")) == [
        LeaseRow("p", "s1", owner=None, counter=0),
        LeaseRow("p", "s2", owner=None, counter=0),
    ]


async def test_create_leaves_existing_rows_alone(store: NamedLeaseStore) -> None:
    held = await taken(store)
    await store.create("p", ["s1", "s2", "s2"])
    await store.create("p", [])
    assert await row_of(store) == held
    assert len(await store.rows("p")) == 2


async def test_pipelines_do_not_see_each_other(store: NamedLeaseStore) -> None:
    held = await taken(store)
    await store.create("q", ["s1"])
    await store.delete("q", ["s1"])
    await store.checkpoint("q", "s1", SHARD_END)
    assert list(await store.rows("q")) == []
    assert await row_of(store) == held


async def test_take_makes_the_owner_and_counts(store: NamedLeaseStore) -> None:
    held = await taken(store)
    assert (held.owner, held.counter) == ("a", 1)
    assert await row_of(store) == held


async def test_take_of_a_row_that_moved_gives_none(store: NamedLeaseStore) -> None:
    await store.create("p", ["s1"])
    seen = await row_of(store)
    assert await store.take(seen, "a") is not None
    assert await store.take(seen, "b") is None
    assert (await row_of(store)).owner == "a"


async def test_take_of_a_missing_row_gives_none(store: NamedLeaseStore) -> None:
    assert await store.take(LeaseRow("p", "s9", owner=None, counter=0), "a") is None


async def test_an_owned_row_can_be_taken_over(store: NamedLeaseStore) -> None:
    """The store never judges: that a counter stood still is for `core.lease` to say."""
    held = await taken(store)
    stolen = await store.take(held, "b")
    assert stolen is not None
    assert (stolen.owner, stolen.counter) == ("b", 2)
    with pytest.raises(LeaseLost):
        await store.renew(held)


async def test_renew_counts(store: NamedLeaseStore) -> None:
    held = await taken(store)
    for counter in (2, 3, 4):
        held = await store.renew(held)
        assert (held.owner, held.counter) == ("a", counter)
    assert await row_of(store) == held


async def test_renew_with_an_old_counter_is_lost(store: NamedLeaseStore) -> None:
    held = await taken(store)
    renewed = await store.renew(held)
    with pytest.raises(LeaseLost) as caught:
        await store.renew(held)
    assert caught.value.code == "lease_lost"
    assert await row_of(store) == renewed


async def test_renew_of_a_deleted_row_is_lost(store: NamedLeaseStore) -> None:
    held = await taken(store)
    await store.delete("p", ["s1"])
    with pytest.raises(LeaseLost):
        await store.renew(held)
    assert list(await store.rows("p")) == []


async def test_release_lets_go_and_counts(store: NamedLeaseStore) -> None:
    held = await taken(store)
    await store.release(held)
    row = await row_of(store)
    assert row.owner is None
    assert row.counter > held.counter, "whoever saw it owned must look again"
    with pytest.raises(LeaseLost):
        await store.renew(held)


async def test_release_of_a_lost_row_does_nothing(store: NamedLeaseStore) -> None:
    held = await taken(store)
    stolen = await store.take(held, "b")
    await store.release(held)
    assert await row_of(store) == stolen
    await store.delete("p", ["s1"])
    await store.release(held)


async def test_many_are_taken_in_one_step_but_what_moved(store: NamedLeaseStore) -> None:
    await store.create("p", ["s1", "s2", "s3"])
    seen = await store.rows("p")
    await store.take(seen[1], "b")
    taken_now = await store.take_all([*seen, LeaseRow("p", "s9", None, 0)], "a")
    assert [(row.shard_id, row.owner, row.counter) for row in taken_now] == [
        ("s1", "a", 1),
        ("s3", "a", 1),
    ]
    assert [row.owner for row in await store.rows("p")] == ["a", "b", "a"]
    assert list(await store.take_all([], "a")) == []


async def test_many_are_renewed_in_one_step_but_what_is_lost(store: NamedLeaseStore) -> None:
    held = [await taken(store, "a", shard_id) for shard_id in ("s1", "s2", "s3")]
    stolen = await store.take(held[1], "b")
    await store.delete("p", ["s3"])
    assert [(row.shard_id, row.counter) for row in await store.renew_all(held)] == [("s1", 2)]
    assert (await row_of(store, "s1")).counter == 2
    assert await row_of(store, "s2") == stolen
    assert list(await store.renew_all([])) == []


async def test_many_checkpoints_are_copied_in_one_step(store: NamedLeaseStore) -> None:
    await store.create("p", ["s1", "s2"])
    await store.checkpoint_all("p", {"s1": SHARD_END, "s2": TRIM_HORIZON, "s9": SHARD_END})
    assert [row.checkpoint for row in await store.rows("p")] == [str(SHARD_END), str(TRIM_HORIZON)]


async def test_checkpoint_is_shown_and_moves_no_counter(store: NamedLeaseStore) -> None:
    held = await taken(store)
    for position in (
        TRIM_HORIZON,
        after("49590338271490256608559692538361571095921575989136588898"),
    ):
        await store.checkpoint("p", "s1", position)
        assert (await row_of(store)).checkpoint == str(position)
    renewed = await store.renew(held)
    assert renewed.counter == held.counter + 1
    # It follows the sink's position, backwards too.
    await store.checkpoint("p", "s1", SHARD_END)
    await store.checkpoint("p", "s1", TRIM_HORIZON)
    assert (await row_of(store)).checkpoint == str(TRIM_HORIZON)


async def test_checkpoint_of_a_missing_row_makes_none(store: NamedLeaseStore) -> None:
    await store.checkpoint("p", "s9", TRIM_HORIZON)
    assert list(await store.rows("p")) == []


async def test_delete_removes_what_is_named(store: NamedLeaseStore) -> None:
    await store.create("p", ["s1", "s2", "s3"])
    await store.delete("p", ["s1", "s3", "s9"])
    await store.delete("p", [])
    assert [row.shard_id for row in await store.rows("p")] == ["s2"]


async def test_workers_share_the_rows_and_the_name(worker: Worker) -> None:
    one, two = await worker(), await worker()
    held = await taken(one)
    assert await row_of(two) == held
    assert one.store_id == two.store_id


async def test_open_and_close_may_be_called_twice(worker: Worker) -> None:
    store = await worker()
    held = await taken(store)
    name = store.store_id
    await store.open()
    assert await row_of(store) == held
    await store.close()
    await store.close()
    await store.open()
    assert store.store_id == name
    assert await row_of(store) == held


async def test_of_many_takers_exactly_one_wins(worker: Worker) -> None:
    stores = [await worker() for _ in range(4)]
    shard_ids = [f"s{number:02}" for number in range(20)]
    await stores[0].create("p", shard_ids)
    seen = await stores[0].rows("p")

    async def attempt(number: int) -> dict[str, LeaseRow]:
        order = random.Random(number).sample(list(seen), len(seen))
        found = {row.shard_id: await stores[number].take(row, f"w{number}") for row in order}
        return {shard_id: row for shard_id, row in found.items() if row is not None}

    won = await asyncio.gather(*(attempt(number) for number in range(len(stores))))
    assert sorted(shard_id for rows in won for shard_id in rows) == shard_ids
    for number, rows in enumerate(won):
        for shard_id, row in rows.items():
            assert await row_of(stores[0], shard_id) == row
            assert row.owner == f"w{number}"


async def test_a_renewal_and_a_take_over_exclude_each_other(worker: Worker) -> None:
    one, two = await worker(), await worker()
    for number in range(20):
        held = await taken(one, shard_id=f"s{number}")
        renewal, take = await asyncio.gather(
            one.renew(held), two.take(held, "b"), return_exceptions=True
        )
        assert isinstance(renewal, LeaseLost) != (take is None)
        owner = (await row_of(one, f"s{number}")).owner
        assert owner == ("b" if isinstance(renewal, LeaseLost) else "a")


# ---- the file


async def test_a_lost_file_is_a_new_store(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    store = SQLiteLeaseStore(path)
    await store.open()
    await taken(store)
    name = store.store_id
    await store.close()
    path.unlink()
    await store.open()
    assert list(await store.rows("p")) == []
    assert store.store_id != name
    await store.close()


def damaged(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * (path.stat().st_size - 100))


def not_a_database(path: Path) -> None:
    path.write_bytes(b"leases, once upon a time\n" * 100)


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE lease (shard_id TEXT)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE lease (shard_id TEXT)")
        connection.execute(f"PRAGMA application_id = {0x6473726C}")
        connection.execute("PRAGMA user_version = 2")


@pytest.mark.parametrize("spoil", [damaged, not_a_database, foreign, newer])
async def test_a_file_of_another_kind_is_refused_untouched(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "leases.db"
    spoil(path)
    before = path.read_bytes()
    store = SQLiteLeaseStore(path)
    with pytest.raises(FatalError) as caught:
        await store.open()
    await store.close()
    assert caught.value.code == "lease_store_unreadable"
    assert str(path) in caught.value.message
    assert "Delete it: losing it costs nothing" in caught.value.message
    assert path.read_bytes() == before


async def test_a_folder_that_can_not_be_made_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = SQLiteLeaseStore(tmp_path / "file" / "leases.db")
    with pytest.raises(FatalError) as caught:
        await store.open()
    await store.close()
    assert caught.value.code == "lease_store_unwritable"


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user whom permissions bind; root is nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("exists", [False, True])
async def test_a_read_only_folder_is_fatal(exists: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "leases.db"
        store = SQLiteLeaseStore(path)
        if exists:
            await store.open()
            await store.close()
            path.chmod(0o444)
        Path(name).chmod(0o555)
        with unprivileged(), pytest.raises(FatalError) as caught:
            await store.open()
        await store.close()
        Path(name).chmod(0o755)
    assert caught.value.code == "lease_store_unwritable"
    assert "state_directory" in caught.value.message


async def test_a_file_held_by_another_process_is_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.store.sqlite.BUSY_SECONDS", 0.05)
    store = SQLiteLeaseStore(tmp_path / "leases.db")
    await store.open()
    held = await taken(store)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransientError) as caught:
            await store.renew(held)
        assert caught.value.code == "lease_store_busy"
        # Readers aren't held up by a writer.
        assert await row_of(store) == held
        other.execute("ROLLBACK")
    assert (await store.renew(held)).counter == 2
    await store.close()


async def test_a_full_disk_is_transient_and_passes(tmp_path: Path) -> None:
    """Regression: SQLite had ended the transaction itself, and the operator was told to delete a
    damaged file."""
    store = SQLiteLeaseStore(tmp_path / "leases.sqlite")
    await store.open()
    many = [f"shard-{number:06}" for number in range(5_000)]

    async def allow(pages: int) -> None:
        limit = f"PRAGMA max_page_count = {pages}"
        await store._run(lambda: store._opened().execute(limit).fetchall())

    await allow(6)
    for _ in range(2):
        with pytest.raises(TransientError, match="full"):
            await store.create("p", many)
    await allow(1_000_000)
    await store.create("p", many)
    assert len(await store.rows("p")) == len(many)
    await store.close()


async def test_a_cancelled_call_leaves_the_store_usable(tmp_path: Path) -> None:
    store = SQLiteLeaseStore(tmp_path / "leases.db")
    await store.open()
    held = await taken(store)
    calls = [asyncio.ensure_future(store.renew(held)) for _ in range(20)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    row = await row_of(store)
    assert row.counter in {1, 2}
    await store.renew(row)
    await store.close()


RACE = """
import asyncio, sys
from pathlib import Path
from replicator.store.sqlite import SQLiteLeaseStore

async def main(path, owner):
    store = SQLiteLeaseStore(Path(path))
    await store.open()
    await store.create("p", [f"s{n:03}" for n in range(50)])
    won = []
    for row in await store.rows("p"):
        if row.owner is None and await store.take(row, owner):
            won.append(row.shard_id)
    print(store.store_id, *won)
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def test_processes_that_make_the_file_together_share_it(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RACE, str(path), f"w{number}"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(4)
    ]
    told = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0, 0]
    assert len({name for name, *_ in told}) == 1, "one file, one name"
    won = sorted(shard_id for _, *shard_ids in told for shard_id in shard_ids)
    assert won == [f"s{number:03}" for number in range(50)], "each shard once"
