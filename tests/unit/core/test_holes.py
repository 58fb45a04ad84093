"""What nobody reads, step by step; over random trees it is in tests/property/test_lineage.py."""

from __future__ import annotations

from replicator.core.holes import AUDIT_SECONDS, HASH_KEY_END, Audit, Hole, HoleCause, find
from replicator.core.lineage import Discovered, DurableEnd, Ended, Lineage, Started
from replicator.model import SHARD_END, Shard

HALF = HASH_KEY_END // 2
ALL = (0, HASH_KEY_END)
LOWER, UPPER = (0, HALF), (HALF, HASH_KEY_END)


def shard(
    name: str, *parents: str, born: int, keys: tuple[int, int] | None = ALL, is_open: bool = True
) -> Shard:
    return Shard(name, parents, is_open, str(born), hash_range=keys)


def holes_of(*shards: Shard, finished: tuple[str, ...] = ()) -> tuple[Hole, ...]:
    lineage = Lineage()
    lineage.step(Discovered(shards, dict.fromkeys(finished, SHARD_END)))
    return find(lineage.nodes())


PARENT = shard("a", born=1, is_open=False)


def test_shards_that_are_read_or_wait_for_such_cover_everything() -> None:
    left, right = shard("b", "a", born=2, keys=LOWER), shard("c", "a", born=3, keys=UPPER)
    assert holes_of(PARENT, left, right) == ()
    assert holes_of(PARENT, left, right, finished=("a",)) == ()


def test_a_half_that_no_list_shows_is_named_with_who_had_it() -> None:
    left = shard("b", "a", born=2, keys=LOWER)
    (hole,) = holes_of(PARENT, left, finished=("a",))
    assert hole == Hole(HoleCause.UNKNOWN, ("a",), (UPPER,))
    fields = hole.as_fields()
    assert fields["hash_keys"] == [[str(HALF), str(HASH_KEY_END - 1)]]
    assert fields["hash_keys_percent"] == 50


def test_the_newest_who_had_it_is_named() -> None:
    older, newer = shard("a", born=1, is_open=False), shard("b", "a", born=2, is_open=False)
    (hole,) = holes_of(older, newer, finished=("a", "b"))
    assert hole.shards == ("b",)


def test_hash_keys_that_nobody_ever_had_are_a_hole() -> None:
    assert holes_of(shard("a", born=1, keys=LOWER)) == (Hole(HoleCause.UNKNOWN, (), (UPPER,)),)


def test_a_lost_parent_leaves_out_what_it_and_its_descendants_should_have() -> None:
    lineage = Lineage()
    a, b = shard("a", born=1, keys=LOWER), shard("b", born=2, keys=UPPER)
    child = shard("c", "a", "b", born=3)
    lineage.step(Discovered([a, b]))
    lineage.step(Discovered([b, child]))
    # The other half is still read by b.
    assert find(lineage.nodes()) == (Hole(HoleCause.LOST, ("a", "c"), (LOWER,)),)
    lineage.step(Started("b"))
    lineage.step(Ended("b", [child]))
    lineage.step(DurableEnd("b"))
    assert find(lineage.nodes()) == (Hole(HoleCause.LOST, ("a", "c"), (ALL,)),)


def test_a_child_that_only_its_parents_end_has_named_has_all_of_theirs() -> None:
    lineage = Lineage()
    lineage.step(Discovered([PARENT]))
    lineage.step(Started("a"))
    lineage.step(Ended("a", [Shard("b", ("a",)), Shard("c", ("a",))]))
    lineage.step(DurableEnd("a"))
    assert find(lineage.nodes()) == ()


def test_without_hash_ranges_only_the_graph_tells() -> None:
    assert holes_of(shard("a", born=1, keys=None, is_open=False), finished=("a",)) == ()
    circle = [shard("a", "b", born=1, keys=None), shard("b", "a", born=2, keys=None)]
    assert holes_of(*circle) == (Hole(HoleCause.CIRCLE, ("a", "b")),)


def test_what_ends_between_a_list_and_the_positions_is_told_to_nobody() -> None:
    """Another worker finishes each shard before its successor was listed here."""
    lineage, audit = Lineage(), Audit()
    shards: list[Shard] = []
    for number in range(6):
        parents = (f"s{number - 1}",) if number else ()
        shards.append(shard(f"s{number}", *parents, born=number))
        ended = {each.id: SHARD_END for each in shards}
        lineage.step(Discovered(tuple(shards), ended))
        found = find(lineage.nodes())
        assert [hole.shards for hole in found] == [(f"s{number}",)], "it looks like one"
        assert audit.step(found, 60.0 * number) == ()
        assert audit.holes == ()


def test_what_two_audits_find_is_told_once_and_again_when_it_comes_back() -> None:
    audit = Audit()
    hole = Hole(HoleCause.LOST, ("a",), (LOWER,))
    grown = Hole(HoleCause.LOST, ("a", "b"), (ALL,))
    assert audit.is_due(0.0)
    assert audit.step([hole], 0.0) == ()
    assert not audit.is_due(AUDIT_SECONDS - 1)
    assert audit.is_due(AUDIT_SECONDS)
    assert audit.step([grown], 60.0) == (grown,)
    assert audit.step([grown], 120.0) == ()
    assert list(audit.holes) == [grown]
    assert audit.step([], 180.0) == ()
    assert list(audit.holes) == []
    assert audit.step([hole], 240.0) == ()
    assert audit.step([hole], 300.0) == (hole,)
