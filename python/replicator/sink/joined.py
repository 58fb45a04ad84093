"""What one write's fetches are together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from replicator._core import ChangeBatch
from replicator.model import Pending


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
