"""A key that attributes would change is refused before anything is made."""

from __future__ import annotations

import pytest

from replicator._core import Projection
from replicator.errors import FatalError
from replicator.model import TableSchema
from replicator.sink.projected import require_keys

TABLES = [TableSchema("a", (("id", "S"),)), TableSchema("b", (("id", "S"), ("at", "N")))]


def test_a_key_that_would_be_changed_is_named_with_its_sink_and_table() -> None:
    with pytest.raises(FatalError, match=r"^sink bus, attributes, table b: .*at") as e:
        require_keys("bus", Projection(mask=["at"]), TABLES)
    assert e.value.code == "projected_key"


@pytest.mark.parametrize("projection", [None, Projection(mask=["price"])])
def test_other_attributes_may_be_anything(projection: Projection | None) -> None:
    require_keys("bus", projection, TABLES)
