"""Whether a sink's `attributes` leave the tables' keys as they are: the same for every sink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replicator.errors import FatalError
from replicator.model import TableSchema

if TYPE_CHECKING:
    from replicator._core import Projection


def require_keys(sink: str, projection: Projection | None, tables: Sequence[TableSchema]) -> None:
    """Raises FatalError when it would change an attribute of a table's key."""
    if projection is None:
        return
    for table in tables:
        try:
            projection.check([name for name, _ in table.keys])
        except ValueError as error:
            message = f"sink {sink}, attributes, table {table.name}: {error}"
            raise FatalError("projected_key", message) from None
