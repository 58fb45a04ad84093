"""What a sink that keeps every change is to write of them: the same for all such sinks."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replicator._core import ChangeBatch, Pattern, Projection


def matched(
    changes: ChangeBatch,
    tables: Collection[str],
    pattern: Pattern | None,
    projection: Projection | None,
) -> tuple[ChangeBatch, int]:
    """The changes that the filter lets pass, with what the projection shows of their images; and
    how many of these tables it left out. (Other tables' are counted where they came in.)"""
    kept, left_out = changes, 0
    if pattern is not None:
        kept = changes.filter(pattern)
        if len(kept) < len(changes):
            # Rarely otherwise, for `tables` looks at every change.
            before, behind = changes.tables, kept.tables
            left_out = sum(before.get(name, 0) - behind.get(name, 0) for name in tables)
    return (kept if projection is None else kept.project(projection)), left_out
