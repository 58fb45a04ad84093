"""The default lease store: one SQLite file, shared by the processes of one machine.

Nothing in it is needed to go on: positions are the sink's. So its writes aren't
synced to disk one by one, and a file that can't be read may be deleted.

One thread per store owns the connection. It isn't the event loop's pool, whose
threads may all be busy encoding: a lease is renewed whatever the flow does.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final, TypeVar

from replicator.errors import FatalError, LeaseLost, ReplicatorError, TransientError
from replicator.model import LeaseRow, Position

T = TypeVar("T")

# In the file's header (https://www.sqlite.org/fileformat.html#application_id): "dsrl".
APPLICATION_ID: Final = 0x6473726C
FORMAT_VERSION: Final = 1
BUSY_SECONDS: Final = 5.0

_UNREADABLE = (
    "it is damaged, or not a lease store of this version. Delete it: losing it costs nothing"
)
_UNWRITABLE = (
    "it can't be opened for writing. Give `state_directory` a folder this user may write to"
)

# https://www.sqlite.org/rescode.html: primary result codes.
_FATAL: Final[Mapping[int, tuple[str, str]]] = {
    sqlite3.SQLITE_ERROR: ("lease_store_unreadable", _UNREADABLE),
    sqlite3.SQLITE_CORRUPT: ("lease_store_unreadable", _UNREADABLE),
    sqlite3.SQLITE_NOTADB: ("lease_store_unreadable", _UNREADABLE),
    sqlite3.SQLITE_PERM: ("lease_store_unwritable", _UNWRITABLE),
    sqlite3.SQLITE_READONLY: ("lease_store_unwritable", _UNWRITABLE),
    sqlite3.SQLITE_CANTOPEN: ("lease_store_unwritable", _UNWRITABLE),
}


class SQLiteLeaseStore:
    """`protocols.LeaseStore` in a file; every call ends within `BUSY_SECONDS` or raises
    TransientError (another process holds the file, the disk is full) or FatalError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._store_id = ""

    @property
    def store_id(self) -> str:
        """The file's own name for itself, made with the file. Known once opened."""
        assert self._store_id, "open() first"
        return self._store_id

    async def open(self) -> None:
        """Makes or opens the file, and its folder. May be called twice."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="lease-store")
        await self._run(self._open)

    async def rows(self, pipeline: str) -> Sequence[LeaseRow]:
        def read(connection: sqlite3.Connection) -> list[LeaseRow]:
            found = connection.execute(_sql()["rows"], {"pipeline": pipeline})
            return [LeaseRow(*columns) for columns in found]

        return await self._run(lambda: read(self._opened()))

    async def create(self, pipeline: str, shard_ids: Sequence[str]) -> None:
        await self._write_many("create", [LeaseRow(pipeline, each, None, 0) for each in shard_ids])

    async def take(self, seen: LeaseRow, owner: str) -> LeaseRow | None:
        if not await self._change("take", replace(seen, owner=owner)):
            return None
        return replace(seen, owner=owner, counter=seen.counter + 1)

    async def renew(self, held: LeaseRow) -> LeaseRow:
        if not await self._change("renew", held):
            raise LeaseLost("lease_lost", f"the lease of {held.shard_id} is no longer ours")
        return replace(held, counter=held.counter + 1)

    async def take_all(self, seen: Sequence[LeaseRow], owner: str) -> Sequence[LeaseRow]:
        return await self._change_all("take", [replace(row, owner=owner) for row in seen])

    async def renew_all(self, held: Sequence[LeaseRow]) -> Sequence[LeaseRow]:
        return await self._change_all("renew", held)

    async def release(self, held: LeaseRow) -> None:
        await self._change("release", held)

    async def checkpoint(self, pipeline: str, shard_id: str, position: Position) -> None:
        await self.checkpoint_all(pipeline, {shard_id: position})

    async def checkpoint_all(self, pipeline: str, positions: Mapping[str, Position]) -> None:
        rows = [
            LeaseRow(pipeline, shard_id, None, 0, checkpoint=str(position))
            for shard_id, position in positions.items()
        ]
        await self._write_many("checkpoint", rows)

    async def delete(self, pipeline: str, shard_ids: Sequence[str]) -> None:
        await self._write_many("delete", [LeaseRow(pipeline, each, None, 0) for each in shard_ids])

    async def close(self) -> None:
        """Closes the file. May be called twice, and after a failed open."""
        thread, self._thread = self._thread, None
        if thread is not None:
            # Behind whatever a cancelled caller left in the queue.
            await asyncio.get_running_loop().run_in_executor(thread, self._close)
            thread.shutdown(wait=False)

    # ---- in the store's thread from here on

    def _open(self) -> None:
        if self._connection is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._fatal("lease_store_unwritable", f"{_UNWRITABLE} ({error})") from error
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=True
        )
        try:
            self._store_id = self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection) -> str:
        # The write lock first: of several processes that make the file, one does.
        connection.execute("BEGIN IMMEDIATE")
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if objects == 0:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        elif (application_id, version) != (APPLICATION_ID, FORMAT_VERSION):
            raise self._fatal("lease_store_unreadable", _UNREADABLE)
        connection.execute(_sql()["create_meta"])
        connection.execute(_sql()["create_lease"])
        connection.execute(_sql()["keep_store_id"], {"store_id": str(uuid.uuid4())})
        (store_id,) = connection.execute(_sql()["store_id"]).fetchone()
        connection.execute("COMMIT")
        # After the commit: the mode can't change inside a transaction.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return str(store_id)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> sqlite3.Connection:
        assert self._connection is not None, "open() first"
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._opened()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # A full disk has ended it already (https://www.sqlite.org/lang_transaction.html).
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    # ---- between the two

    async def _change(self, statement: str, row: LeaseRow) -> bool:
        """True when the statement found its row."""
        return await self._run(
            lambda: self._opened().execute(_sql()[statement], _parameters(row)).rowcount == 1
        )

    async def _change_all(self, statement: str, rows: Sequence[LeaseRow]) -> Sequence[LeaseRow]:
        """Those rows that the statement found, counted up, in one transaction: one for each
        would leave no time for anything else where there are thousands."""
        if not rows:
            return []

        def change() -> list[LeaseRow]:
            with self._transaction() as connection:
                execute, sql = connection.execute, _sql()[statement]
                found = [row for row in rows if execute(sql, _parameters(row)).rowcount == 1]
            return [replace(row, counter=row.counter + 1) for row in found]

        return await self._run(change)

    async def _write_many(self, statement: str, rows: Sequence[LeaseRow]) -> None:
        def write() -> None:
            with self._transaction() as connection:
                connection.executemany(_sql()[statement], [_parameters(row) for row in rows])

        if rows:
            await self._run(write)

    async def _run(self, work: Callable[[], T]) -> T:
        assert self._thread is not None, "open() first"

        def mapped() -> T:
            with self._mapped():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, mapped)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """No driver error crosses this."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _translate(self, error: sqlite3.Error) -> ReplicatorError:
        # The low byte is the primary code; without one the driver itself refused.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in _FATAL:
            slug, advice = _FATAL[code]
            return self._fatal(slug, f"{advice} ({error})")
        return TransientError("lease_store_busy", f"lease store {self.path}: {error}")

    def _fatal(self, code: str, advice: str) -> FatalError:
        return FatalError(code, f"lease store {self.path}: {advice}")


def _parameters(row: LeaseRow) -> dict[str, object]:
    return {
        "pipeline": row.pipeline,
        "shard_id": row.shard_id,
        "owner": row.owner,
        "counter": row.counter,
        "checkpoint": row.checkpoint,
    }


@cache
def _sql() -> Mapping[str, str]:
    """The named statements of `sql/leases.sql`."""
    text = files("replicator.store").joinpath("sql/leases.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
