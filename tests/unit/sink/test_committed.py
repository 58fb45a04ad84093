from __future__ import annotations

from dataclasses import replace

from replicator.model import SHARD_END, Fence, after
from replicator.sink.committed import Committed
from tests.changes import STREAM

FENCE = Fence(STREAM, "shard-1", 1, "me/1")
NEWER = Fence(STREAM, "shard-1", 1, "me/2")
SHARD = (STREAM, "shard-1")


def known() -> Committed:
    committed = Committed()
    committed.read(FENCE, after("5"))
    return committed


def test_only_the_position_seen_last_agrees() -> None:
    committed = known()
    assert committed.agrees(FENCE, after("5"))
    for other in (None, after("4"), after("6"), SHARD_END):
        assert not committed.agrees(FENCE, other)
    committed.moved(FENCE, after("6"))
    assert committed.agrees(FENCE, after("6"))
    assert not committed.agrees(FENCE, after("5"))


def test_nothing_agrees_until_the_outcome_is_known() -> None:
    committed = known()
    committed.unsure(FENCE)
    assert not committed.agrees(FENCE, after("5"))
    committed.read(FENCE, after("5"))
    assert committed.agrees(FENCE, after("5"))


def test_an_older_fence_of_the_shard_says_nothing_any_more() -> None:
    committed = known()
    committed.read(NEWER, after("3"))
    committed.moved(FENCE, after("6"))
    committed.unsure(FENCE)
    committed.forget(FENCE)
    assert committed.agrees(NEWER, after("3"))
    assert not committed.agrees(FENCE, after("3"))


def test_of_a_finished_shard_only_its_end_is_left() -> None:
    committed = known()
    committed.moved(FENCE, SHARD_END)
    assert SHARD not in committed
    assert committed.agrees(FENCE, SHARD_END)
    assert not committed.agrees(FENCE, after("5"))


def test_fences_that_are_not_the_newest_are_forgotten() -> None:
    committed = known()
    kept = Fence(STREAM, "shard-2", 4, "me/3")
    elsewhere = replace(FENCE, stream=replace(STREAM, name="other"))
    committed.read(kept, None)
    committed.read(elsewhere, None)
    committed.keep(STREAM, {"shard-1": (1, "me/2"), "shard-2": (4, "me/3")})
    assert SHARD not in committed
    assert committed.agrees(kept, None)
    assert committed.agrees(elsewhere, None)
    committed.keep(STREAM, {})
    assert list(committed.fences(STREAM)) == []
