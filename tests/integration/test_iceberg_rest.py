"""The Iceberg sink at a catalog over HTTP: what its answers mean to a commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyiceberg.catalog.sql import SqlCatalog

from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END, TRIM_HORIZON
from replicator.sink.clocks import Clocks
from replicator.sink.iceberg import IcebergSink
from tests.changes import STREAM, pending, put
from tests.lake import NOON_US, ORDERS, PRODUCTS, settings, times_each, write
from tests.rest_catalog import RestCatalog, rest_catalog

CHANGE = put("products", {"id": {"S": "apple"}}, NOON_US)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RestCatalog]:
    told = {name: each for name, each in settings(tmp_path).catalog.items() if name != "type"}
    catalog = SqlCatalog("default", **told)
    with rest_catalog(catalog) as served:
        yield served
    catalog.close()


async def _opened(place: Path, served: RestCatalog) -> IcebergSink:
    sink = IcebergSink(
        settings(place, catalog={"type": "rest", "uri": served.url}),
        clocks=Clocks(monotonic=lambda: 0.0),
    )
    await sink.open([PRODUCTS, ORDERS])
    return sink


async def test_a_conflict_is_tried_again_and_a_fence_is_seen(
    served: RestCatalog, tmp_path: Path
) -> None:
    sink, other = await _opened(tmp_path, served), await _opened(tmp_path, served)
    fence = await sink.fence(STREAM, "shard-1", "me")
    await other.fence(STREAM, "shard-2", "another")
    served.faults = [409]
    assert (await write(sink, pending(fence, [CHANGE], then=SHARD_END))).rows == 1
    assert set(times_each(tmp_path).values()) == {1}
    assert await other.positions(STREAM) == {"shard-1": SHARD_END}
    await sink.close()
    await other.close()


@pytest.mark.parametrize("fault", [500, 502, 503, 504, -500, -502, -504])
async def test_an_unknown_outcome_is_looked_at_behind_another_fence(
    fault: int, served: RestCatalog, tmp_path: Path
) -> None:
    sink = await _opened(tmp_path, served)
    fence = await sink.fence(STREAM, "shard-1", "me")
    served.faults = [fault]
    with pytest.raises(TransientError):
        await write(sink, pending(fence, [CHANGE], then=SHARD_END))
    again = await sink.fence(STREAM, "shard-1", "me")
    position = await sink.position(again)
    assert position == (None if fault > 0 else SHARD_END)
    if position is None:
        await write(sink, pending(again, [CHANGE], then=SHARD_END))
    assert set(times_each(tmp_path).values()) == {1}
    await sink.close()


async def test_an_answer_that_a_proxy_lost_and_repeated_is_no_conflict(
    served: RestCatalog, tmp_path: Path
) -> None:
    """The commit is there, and the answer is that it can't be."""
    sink = await _opened(tmp_path, served)
    await sink.begin(STREAM, {"shard-1": TRIM_HORIZON})
    fence = await sink.fence(STREAM, "shard-1", "me")
    served.faults = [-409]
    before = served.commits
    assert (await write(sink, pending(fence, [CHANGE], then=SHARD_END))).rows == 1
    assert served.commits == before + 1
    assert set(times_each(tmp_path).values()) == {1}
    await sink.close()


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_who_may_not_is_told(status: int, served: RestCatalog, tmp_path: Path) -> None:
    sink = await _opened(tmp_path, served)
    served.faults = [status] * 3  # some are tried again with other credentials
    with pytest.raises(FatalError) as raised:
        await sink.fence(STREAM, "shard-1", "me")
    assert raised.value.code == ("iceberg_refused" if status == 400 else "iceberg_denied")
    await sink.close()
