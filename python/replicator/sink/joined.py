"""What one write's fetches are together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replicator._core import ChangeBatch
from replicator.model import Pending


@dataclass(frozen=True, slots=True)
class Joined:
    """The changes of several fetches as one batch. `duplicates` and `ambiguous` count what
    none of the fetches showed by itself: a change that came again in another one."""

    batch: ChangeBatch
    duplicates: int
    ambiguous: int

    @classmethod
    def of(cls, pending: Sequence[Pending]) -> Joined:
        """The fetches' batches as one; rejections' `part` is the index in `pending`."""
        batch = ChangeBatch.concat([one.batch for one in pending])
        duplicates = batch.duplicates - sum(one.batch.duplicates for one in pending)
        # Another fetch may also bring what decides the order that one left open.
        ambiguous = batch.ambiguous - sum(one.batch.ambiguous for one in pending)
        return cls(batch, duplicates, max(ambiguous, 0))
