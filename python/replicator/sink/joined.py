"""What one write's fetches are together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from replicator._core import ChangeBatch, Pattern, Projection, Rejection, Rows
from replicator.model import Pending, TableSchema


@dataclass(frozen=True, slots=True)
class Joined:
    """The changes of several fetches as one batch. `duplicates` (of the tables given) are
    changes that came again in another fetch; `ambiguous` is how many more only their arrival
    orders than the fetches counted by themselves."""

    batch: ChangeBatch
    duplicates: int
    ambiguous: int

    @classmethod
    def of(cls, pending: Sequence[Pending], tables: Iterable[str]) -> Joined:
        """The fetches' batches as one; rejections' `part` is the index in `pending`."""
        batch = ChangeBatch.concat([one.batch for one in pending])
        duplicates = batch.duplicates - sum(one.batch.duplicates for one in pending)
        if duplicates:
            # Rarely, for `tables` looks at every change.
            apart = sum((Counter(one.batch.tables) for one in pending), Counter[str | None]())
            together = batch.tables
            duplicates = sum(apart[table] - together.get(table, 0) for table in set(tables))
        # Another fetch may also bring what decides the order that one left open.
        ambiguous = batch.ambiguous - sum(one.batch.ambiguous for one in pending)
        return cls(batch, duplicates, max(ambiguous, 0))


def newest_rows(
    batch: ChangeBatch,
    tables: Sequence[TableSchema],
    pattern: Pattern | None,
    projection: Projection | None,
) -> tuple[dict[str, Rows], tuple[Rejection, ...]]:
    """The newest change per key of each of these tables that the batch has changes of, by its name;
    and what of the batch is refused before a server sees it."""
    present = batch.tables
    found = {
        table.name: batch.newest(table.name, table.keys, pattern, projection)
        for table in tables
        if table.name in present
    }
    return found, (*batch.rejections, *(one for rows in found.values() for one in rows.rejections))
