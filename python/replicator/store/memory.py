"""A lease store that lives as long as the process: for tests and trials.

It keeps the same promises as the others and passes the same contract suite.
Stores that share one `MemoryLeases` are the workers of one fleet.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from replicator.errors import LeaseLost
from replicator.model import LeaseRow, Position


@dataclass(slots=True)
class MemoryLeases:
    """What the stores of one fleet share: its rows, and its name."""

    store_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    rows: dict[tuple[str, str], LeaseRow] = field(default_factory=dict)


class MemoryLeaseStore:
    """`protocols.LeaseStore` over a dict. Nothing in it waits, so every call is atomic."""

    def __init__(self, leases: MemoryLeases | None = None) -> None:
        self._leases = MemoryLeases() if leases is None else leases

    @property
    def store_id(self) -> str:
        """The shared rows' identity."""
        return self._leases.store_id

    async def open(self) -> None:
        """Nothing to open."""

    async def rows(self, pipeline: str) -> Sequence[LeaseRow]:
        """All rows of a pipeline, by shard id."""
        rows = (row for row in self._leases.rows.values() if row.pipeline == pipeline)
        return sorted(rows, key=lambda row: row.shard_id)

    async def create(self, pipeline: str, shard_ids: Sequence[str]) -> None:
        for shard_id in shard_ids:
            row = LeaseRow(pipeline, shard_id, owner=None, counter=0)
            self._leases.rows.setdefault((pipeline, shard_id), row)

    async def take(self, seen: LeaseRow, owner: str) -> LeaseRow | None:
        row = self._leases.rows.get((seen.pipeline, seen.shard_id))
        if row is None or row.counter != seen.counter:
            return None
        return self._put(replace(row, owner=owner, counter=row.counter + 1))

    async def renew(self, held: LeaseRow) -> LeaseRow:
        row = self._still(held)
        if row is None:
            raise LeaseLost("lease_lost", f"the lease of {held.shard_id} is no longer ours")
        return self._put(replace(row, counter=row.counter + 1))

    async def take_all(self, seen: Sequence[LeaseRow], owner: str) -> Sequence[LeaseRow]:
        answers = [await self.take(row, owner) for row in seen]
        return [row for row in answers if row is not None]

    async def renew_all(self, held: Sequence[LeaseRow]) -> Sequence[LeaseRow]:
        renewed = []
        for row in held:
            with suppress(LeaseLost):
                renewed.append(await self.renew(row))
        return renewed

    async def release(self, held: LeaseRow) -> None:
        row = self._still(held)
        if row is not None:
            self._put(replace(row, owner=None, counter=row.counter + 1))

    async def checkpoint(self, pipeline: str, shard_id: str, position: Position) -> None:
        row = self._leases.rows.get((pipeline, shard_id))
        if row is not None:
            self._put(replace(row, checkpoint=str(position)))

    async def checkpoint_all(self, pipeline: str, positions: Mapping[str, Position]) -> None:
        for shard_id, position in positions.items():
            await self.checkpoint(pipeline, shard_id, position)

    async def delete(self, pipeline: str, shard_ids: Sequence[str]) -> None:
        for shard_id in shard_ids:
            self._leases.rows.pop((pipeline, shard_id), None)

    async def close(self) -> None:
        """Nothing to close; the rows stay with whoever holds the `MemoryLeases`."""

    def _still(self, held: LeaseRow) -> LeaseRow | None:
        row = self._leases.rows.get((held.pipeline, held.shard_id))
        is_held = row is not None and (row.owner, row.counter) == (held.owner, held.counter)
        return row if is_held else None

    def _put(self, row: LeaseRow) -> LeaseRow:
        self._leases.rows[row.pipeline, row.shard_id] = row
        return row
