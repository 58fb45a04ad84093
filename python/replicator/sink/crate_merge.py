"""Brings one table's rows into CrateDB: newer versions over older ones.

One bulk request writes them. What it didn't write is looked at: a row is stored already, came
before what is stored, is of the same instant, or is refused for what is in it. There is no
transaction: each step may be repeated, by anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson

from replicator._core import ChangeBatch, Rejection, Rows, crate_item
from replicator.errors import FatalError, TransientError
from replicator.sink.crate_errors import CONFLICT, CrateError
from replicator.sink.crate_layout import INSTANT_LENGTH, CrateTable
from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.joined import newest_rows

_ROUNDS_MAX: Final = 20
"""How often rows are written anew because somebody else changed what was read of them."""
_REASONS_GIVEN: Final = 10
"""Of so many failed rows of a request each has its reason, whatever shard it is in."""

_Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TablePayload:
    """The newest change per key of one table, and the same as the request's bytes."""

    table: CrateTable
    rows: Rows
    bulk_args: bytes

    @classmethod
    def of(cls, table: CrateTable, rows: Rows) -> TablePayload:
        return cls(table, rows, encoded(table, rows, 0, len(rows)))


def table_payloads(
    settings: CrateSettings, batch: ChangeBatch, tables: Sequence[CrateTable]
) -> tuple[tuple[TablePayload, ...], tuple[Rejection, ...]]:
    """The batch's changes by table, and what of it was refused before the server saw it."""
    sources = [table.source for table in tables]
    found, rejections = newest_rows(batch, sources, settings.pattern, settings.projection)
    there = [table for table in tables if table.source.name in found]
    return tuple(TablePayload.of(table, found[table.source.name]) for table in there), rejections


def encoded(table: CrateTable, rows: Rows, lo: int, hi: int) -> bytes:
    """Rows lo..hi as the arguments of `upsert`."""
    settings = table.settings
    return rows.crate_args(lo, hi, generation=settings.generation, dynamic=settings.dynamic)


@dataclass(slots=True)
class Merged:
    """What became of one table's rows; see `WriteResult`."""

    rows: int = 0
    duplicates: int = 0
    superseded: int = 0
    ambiguous: int = 0
    rejections: list[Rejection] = field(default_factory=list)


class CrateMerge:
    """The statements of one table, filled in."""

    def __init__(self, table: CrateTable, *, came_first: bool = False) -> None:
        """`came_first`: what is written arrived before all that is stored, as dead letters did."""
        self._table = table
        self._came_first = came_first
        self._sql = table.statements()

    async def merge(self, session: CrateSession, part: TablePayload) -> Merged:
        """Writes the rows that are newer than what is stored; rows that the server refuses become
        rejections. In place of a refused change comes the key's next newest one, which may be
        refused as well. Raises CrateError and the driver's errors."""
        merged = Merged()
        counted: set[_Key] = set()
        rows = part.rows
        bulk_args = part.bulk_args
        while len(rows):
            run = _Run(
                self._table,
                self._sql,
                session,
                rows,
                counted,
                merged,
                came_first=self._came_first,
            )
            await run.write(bulk_args)
            if not run.refused:
                break
            merged.rejections += [
                rows.record(row, error.refusal_code, error.refusal_message)
                for row, error in sorted(run.refused.items())
            ]
            # All rows again: those that are stored by now are known.
            rows = await asyncio.to_thread(rows.without, sorted(run.refused))
            bulk_args = await asyncio.to_thread(encoded, self._table, rows, 0, len(rows))
        return merged


class _Run:
    """One pass over rows, until all of them are written, known or refused. Keys that are `counted`
    were so in a pass before: what is found of them counts no more."""

    def __init__(
        self,
        table: CrateTable,
        sql: Mapping[str, str],
        session: CrateSession,
        rows: Rows,
        counted: set[_Key],
        merged: Merged,
        *,
        came_first: bool,
    ) -> None:
        self.refused: dict[int, CrateError] = {}
        self._table = table
        self._sql = sql
        self._session = session
        self._rows = rows
        self._counted = counted
        self._merged = merged
        self._came_first = came_first

    async def write(self, bulk_args: bytes) -> None:
        failed = await self._upsert(0, len(self._rows), bulk_args)
        if not failed:
            self._merged.rows += len(self._rows)
            return
        # The slow path: redelivered, late and refused changes, and others of the same instant.
        args = await asyncio.to_thread(orjson.loads, bulk_args)
        keys: list[_Key] = [tuple(row[: len(self._table.keys)]) for row in args]
        self._count_written(keys, [row for row in range(len(keys)) if row not in failed])
        for attempt in range(_ROUNDS_MAX):
            failed = await self._look(failed, keys, args)
            if not failed:
                return
            failed = await self._again(failed, keys, args)
            if failed:
                await self._session.pause(attempt)
        raise TransientError(
            "crate_contended", f"{self._table.full_name}: others change the same rows all the time"
        )

    def _count_written(self, keys: Sequence[_Key], rows: Sequence[int]) -> None:
        new = {keys[row] for row in rows} - self._counted
        self._counted |= new
        self._merged.rows += len(new)

    async def _upsert(self, lo: int, hi: int, bulk_args: bytes) -> dict[int, CrateError]:
        """The rows of lo..hi that were not written. A value that its column can't be cast to has
        the whole request refused: it is found by halving."""
        try:
            results = await self._session.bulk(self._sql["upsert"], bulk_args)
        except CrateError as error:
            if hi - lo == 1 and error.code in CONFLICT:
                return {lo: error}
            if not error.refuses_row:
                raise
            refusal = error
        else:
            if len(results) != hi - lo:
                raise TransientError(
                    "crate_unavailable",
                    f"{self._table.full_name}: {len(results)} answers for {hi - lo} rows",
                )
            return {lo + at: error for at, error in enumerate(results) if error is not None}
        if hi - lo == len(self._rows):
            await self._require_statement()
        if hi - lo == 1:
            return {lo: refusal}
        middle = (lo + hi) // 2
        failed: dict[int, CrateError] = {}
        for start, end in ((lo, middle), (middle, hi)):
            half = await asyncio.to_thread(encoded, self._table, self._rows, start, end)
            failed |= await self._upsert(start, end, half)
        return failed

    async def _require_statement(self) -> None:
        """The server says the same of wrong data and of a wrong statement. Without rows it looks at
        the statement alone."""
        try:
            await self._session.bulk(self._sql["upsert"], [])
        except CrateError as error:
            if not error.blames_data:
                raise
            raise FatalError(
                "crate_refused",
                f"table {self._table.full_name} doesn't take rows any more: {error}; `replicator"
                " check` compares it with what the sink needs",
            ) from error

    async def _look(
        self,
        failed: Mapping[int, CrateError],
        keys: Sequence[_Key],
        args: Sequence[Sequence[Any]],
    ) -> dict[int, CrateError]:
        """Counts the rows that are known or late, settles those of a stored instant, and gives
        those that should have been written."""
        found = await self._session.look_up(
            self._sql["stored"], self._table.one_key, [keys[row] for row in failed]
        )
        width = len(self._table.keys)
        stored = {tuple(row[:width]): row[width:] for row in found}
        left: dict[int, CrateError] = {}
        tied: dict[int, CrateError] = {}
        for row, error in failed.items():
            version, _, chain = args[row][-3:]
            if (known := stored.get(keys[row])) is None:
                left[row] = error
            elif known == [version, chain]:
                self._count(keys[row], duplicates=1)
            elif known[0][:INSTANT_LENGTH] == version[:INSTANT_LENGTH]:
                tied[row] = error
            elif known[0] > version:
                self._count(keys[row], superseded=1)
            else:
                left[row] = error
        return left | await self._settle(tied, keys)

    async def _settle(
        self, tied: Mapping[int, CrateError], keys: Sequence[_Key]
    ) -> dict[int, CrateError]:
        """Law 3 across writes: changes of one instant, some of them stored already. Gives those
        whose stored row somebody changed meanwhile."""
        if not tied:
            return {}
        width = len(self._table.keys)
        rows = {keys[row]: row for row in tied}
        found = await self._session.look_up(self._sql["tied"], self._table.one_key, list(rows))
        seen = {rows[tuple(one[:width])]: one[width:] for one in found}
        changed = {row: error for row, error in tied.items() if row not in seen}
        settled = {}
        updates: dict[int, list[object]] = {}
        for row, (version, chain, exact, seq_no, primary_term) in seen.items():
            # One by one: should its row be changed meanwhile, nothing of it counts.
            settled[row] = self._rows.settle(
                [(row, exact, _us(version), bytes.fromhex(chain))], came_first=self._came_first
            )
            for item, us, links in zip(
                settled[row].items, settled[row].versions, settled[row].chains, strict=True
            ):
                fields = [self._item(item), item, self._version(int(us)), item is None, links.hex()]
                updates[row] = [*fields, *keys[row], seq_no, primary_term]
        results = await self._few("settle", list(updates.values()))
        for row, error in zip(updates, results, strict=True):
            if error is None:
                continue
            if error.code in CONFLICT:
                changed[row] = error
            elif error.refuses_row:
                error.message += " (it or a change of its instant that came before it)"
                self.refused[row] = error
            else:
                raise error
        for row, one in settled.items():
            if row not in changed and row not in self.refused:
                self._count(keys[row], one.later, one.duplicates, one.superseded, one.ambiguous)
        return changed

    async def _again(
        self,
        failed: Mapping[int, CrateError],
        keys: Sequence[_Key],
        args: Sequence[Sequence[Any]],
    ) -> dict[int, CrateError]:
        """Writes rows again that should have been written: few at once, so that each has its
        reason. What the server blames on the row is refused; gives what somebody else's write
        kept out."""
        kept_out: dict[int, CrateError] = {}
        rows = list(failed)
        for at in range(0, len(rows), _REASONS_GIVEN):
            some = rows[at : at + _REASONS_GIVEN]
            results = await self._few("upsert", [args[row] for row in some])
            for row, error in zip(some, results, strict=True):
                if error is None:
                    self._count_written(keys, [row])
                elif _is_not_newer(error) or error.code in CONFLICT:
                    kept_out[row] = error
                elif error.refuses_row:
                    self.refused[row] = error
                else:
                    raise error
        return kept_out

    async def _few(self, name: str, args: Sequence[Sequence[object]]) -> list[CrateError | None]:
        """Runs this statement for each row: one answer each, also where one of them has all of them
        refused."""
        if not args:
            return []
        try:
            return await self._session.bulk(self._sql[name], args)
        except CrateError as error:
            if not error.refuses_row:
                raise
        return [one for each in args for one in await self._few(name, [each])]

    def _count(
        self, key: _Key, rows: int = 0, duplicates: int = 0, superseded: int = 0, ambiguous: int = 0
    ) -> None:
        """What became of a row, once."""
        if key not in self._counted:
            self._counted.add(key)
            self._merged.rows += rows
            self._merged.duplicates += duplicates
            self._merged.superseded += superseded
            self._merged.ambiguous += ambiguous

    def _item(self, item: str | None) -> orjson.Fragment | None:
        """An item in plain JSON as the object beside it."""
        if item is None:
            return None
        return orjson.Fragment(crate_item(item, dynamic=self._table.settings.dynamic))

    def _version(self, us: int) -> str:
        """As the core writes it."""
        return f"{self._table.settings.generation:010}-{us // 1000:040}.{us % 1000:03}"


def _us(version: str) -> int:
    """The value of a version that is a creation time."""
    return int(version.partition("-")[2].replace(".", ""))


def _is_not_newer(error: CrateError) -> bool:
    """The row lost its version: see `upsert`."""
    return '"version" must not be null' in error.message
