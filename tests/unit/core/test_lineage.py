from __future__ import annotations

import pytest

from replicator.core.holes import Hole, HoleCause, find
from replicator.core.lineage import (
    Discovered,
    DurableEnd,
    Ended,
    Forgotten,
    GapFound,
    IllegalStep,
    Lineage,
    ListAgain,
    Mended,
    ParentVanished,
    Readable,
    ShardState,
    Started,
    Stopped,
    Stored,
)
from replicator.core.start import first_starts, position_to_read
from replicator.errors import FatalError
from replicator.model import (
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    Position,
    PositionKind,
    Shard,
    after,
    at_timestamp,
)


def shard(shard_id: str, *parents: str, first: int | None = None, last: int | None = None) -> Shard:
    return Shard(
        shard_id,
        parents,
        is_open=last is None,
        starting_sequence_number=None if first is None else str(first),
        ending_sequence_number=None if last is None else str(last),
    )


def at(number: int) -> Position:
    return Position(PositionKind.AT_SEQUENCE_NUMBER, sequence_number=str(number))


def test_a_shard_without_parents_is_readable_at_once() -> None:
    lineage = Lineage()
    assert lineage.step(Discovered([shard("a"), shard("b")])) == [Readable("a"), Readable("b")]
    assert lineage.readable() == ("a", "b")
    assert lineage.step(Discovered([shard("a"), shard("b")])) == []


def test_a_child_waits_until_its_parent_is_durable() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a")]))
    lineage.step(Started("a"))
    assert lineage.step(Ended("a", [shard("b", "a"), shard("c", "a")])) == []
    assert lineage.state("b") is ShardState.WAITING
    assert lineage.wanted() == ("a",)
    assert lineage.step(DurableEnd("a")) == [Readable("b"), Readable("c")]
    assert lineage.finished() == ("a",)


def test_a_merge_waits_for_both_parents() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a"), shard("b"), shard("c", "a", "b")]))
    for parent in ("a", "b"):
        assert lineage.state("c") is ShardState.WAITING
        lineage.step(Started(parent))
        lineage.step(Ended(parent))
        actions = lineage.step(DurableEnd(parent))
    assert actions == [Readable("c")]


def test_the_other_parent_of_a_merge_may_not_be_listed_yet() -> None:
    """An end answer can name a parent that is younger than the newest list."""
    lineage = Lineage()
    lineage.step(Discovered([shard("a")]))
    lineage.step(Started("a"))
    assert lineage.step(Ended("a", [shard("c", "a", "b")])) == [ListAgain("a")]
    lineage.step(DurableEnd("a"))
    assert lineage.state("c") is ShardState.WAITING
    # A list that was asked for before the shard existed settles nothing.
    assert lineage.step(Discovered([shard("a")])) == []
    assert lineage.state("c") is ShardState.WAITING
    assert find(lineage.nodes()) == (), "the next list settles it"
    actions = lineage.step(Discovered([shard("a"), shard("b"), shard("c", "a", "b")]))
    assert actions == [Readable("b")]
    assert lineage.state("c") is ShardState.WAITING


def test_a_parent_nobody_ever_saw_holds_nobody_up() -> None:
    lineage = Lineage()
    assert lineage.step(Discovered([shard("b", "a")])) == [Readable("b")]


def test_a_stored_end_counts_as_finished() -> None:
    lineage = Lineage({"a": SHARD_END})
    assert lineage.step(Discovered([shard("a"), shard("b", "a")])) == [Readable("b")]


def test_another_workers_end_counts_too() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a"), shard("b", "a")]))
    actions = lineage.step(Discovered([shard("a"), shard("b", "a")], {"a": SHARD_END}))
    assert actions == [Readable("b")]
    # An older answer takes nothing back.
    assert lineage.step(Discovered([shard("a"), shard("b", "a")], {"a": after("1")})) == []
    assert lineage.state("a") is ShardState.FINISHED


def test_a_reader_that_outlived_its_shard_may_report() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a")]))
    lineage.step(Started("a"))
    assert lineage.step(Stored("a", SHARD_END)) == [ListAgain("a")], "its children aren't known"
    assert lineage.step(Ended("a", [shard("b", "a")])) == [Readable("b")]
    lineage.step(DurableEnd("a"))
    lineage.step(Stopped("a"))
    assert lineage.state("a") is ShardState.FINISHED


def test_a_stopped_reader_makes_the_shard_readable_again() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a")]))
    lineage.step(Started("a"))
    assert lineage.step(Stopped("a")) == [Readable("a")]
    lineage.step(Started("a"))
    lineage.step(Ended("a", [shard("b", "a")]))
    # Read to the end, but not durable: it is read again.
    assert lineage.step(Stopped("a")) == [Readable("a")]
    assert lineage.state("b") is ShardState.WAITING


def test_an_end_without_children_asks_for_a_list() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a")]))
    lineage.step(Started("a"))
    assert lineage.step(Ended("a")) == [ListAgain("a")]
    assert lineage.step(Ended("a")) == []


def test_a_parent_that_vanished_unfinished_is_a_gap_named_once() -> None:
    lineage = Lineage({"a": after("7")})
    listed = [shard("b", "a")]
    assert lineage.step(Discovered(listed)) == [ParentVanished("a", after("7"), ("b",))]
    assert lineage.step(Discovered(listed)) == []
    assert lineage.readable() == ()
    assert lineage.state("a") is ShardState.LOST
    assert find(lineage.nodes()) == (Hole(HoleCause.LOST, ("a", "b")),)


def test_a_known_shard_that_vanished_unread_is_a_gap() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a"), shard("b", "a")]))
    assert lineage.step(Discovered([shard("b", "a")])) == [ParentVanished("a", None, ("b",))]


def test_a_shard_that_came_and_went_unseen_is_a_gap() -> None:
    """The pipeline finished a, was away, and now b, a's child, is trimmed."""
    lineage = Lineage({"a": SHARD_END})
    assert lineage.step(Discovered([shard("c", "b")])) == [ParentVanished("b", None, ("c",))]
    assert lineage.readable() == ()


def test_a_shard_that_is_being_read_is_judged_when_its_reader_stopped() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a")]))
    lineage.step(Started("a"))
    assert lineage.step(Discovered([])) == []
    assert lineage.step(Stopped("a")) == [Readable("a")]
    assert lineage.step(Discovered([])) == [ParentVanished("a", None, ())]


def test_a_shard_finished_and_trimmed_between_list_and_positions_is_no_gap() -> None:
    lineage = Lineage({"a": after("7")})
    lineage.step(Discovered([shard("a"), shard("b", "a")]))
    actions = lineage.step(Discovered([shard("b", "a")], {"a": SHARD_END}))
    assert actions == [Readable("b")]


def test_a_position_of_a_shard_younger_than_the_list_is_no_gap() -> None:
    """Another worker found the shard after our list had been answered."""
    lineage = Lineage({"a": after("7")})
    assert lineage.step(Discovered([shard("a")], {"a": after("7"), "b": after("9")})) == [
        Readable("a")
    ]
    assert lineage.step(Discovered([shard("a"), shard("b", "a")])) == []
    assert lineage.state("b") is ShardState.WAITING
    lineage = Lineage({"a": after("7")})
    lineage.step(Discovered([shard("a")], {"b": after("9")}))
    # Not in the list that was asked for afterwards: then it is one.
    assert lineage.step(Discovered([shard("a")])) == [ParentVanished("b", after("9"), ())]


def test_a_lost_shard_comes_back_with_the_list() -> None:
    lineage = Lineage()
    both = [shard("a"), shard("b", "a")]
    lineage.step(Discovered(both))
    lineage.step(Discovered([shard("b", "a")]))
    assert lineage.step(Discovered(both)) == [Readable("a")]
    assert find(lineage.nodes()) == ()


def test_a_parent_that_turns_up_later_makes_an_unread_child_wait() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("b", "a")]))
    lineage.step(Discovered([shard("a"), shard("b", "a")]))
    assert lineage.readable() == ("a",)
    assert lineage.state("b") is ShardState.WAITING


def test_a_circle_of_parents_is_a_hole() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a", "b"), shard("b", "a"), shard("c", "b"), shard("d")]))
    assert lineage.readable() == ("d",)
    assert find(lineage.nodes()) == (Hole(HoleCause.CIRCLE, ("a", "b", "c")),)


def test_older_shards_come_first() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a", first=100), shard("b", first=20), shard("c")]))
    assert lineage.readable() == ("b", "a", "c")


def test_a_row_is_kept_until_everything_beyond_it_is_safe() -> None:
    chain = [shard("a"), shard("b", "a"), shard("c", "b")]
    lineage = Lineage({"a": SHARD_END, "b": SHARD_END})
    assert lineage.forgettable() == ()
    lineage.step(Discovered(chain))
    assert lineage.forgettable() == (), "a listed shard without a row would be read again"
    lineage.step(Discovered(chain[1:]))
    assert lineage.forgettable() == ("a",)
    lineage.step(Discovered(chain[2:]))
    assert lineage.forgettable() == ("a",), "c, b's child, has no position yet"
    lineage.step(Stored("c", after("1")))
    assert lineage.forgettable() == ("a", "b")
    lineage.step(Forgotten(("a", "b")))
    assert [node.shard.id for node in lineage.nodes()] == ["c"]
    assert lineage.step(Discovered(chain[2:], {"c": after("1")})) == []
    assert lineage.readable() == ("c",)


def test_a_row_whose_parent_is_listed_is_kept() -> None:
    lineage = Lineage({"a": SHARD_END, "b": SHARD_END, "c": after("1")})
    lineage.step(Discovered([shard("a"), shard("b", "a"), shard("c", "b")]))
    lineage.step(Discovered([shard("a"), shard("c", "b")]))
    assert lineage.forgettable() == ()


@pytest.mark.parametrize("event", [Started, Ended, Stopped, DurableEnd])
def test_steps_of_unknown_shards_are_illegal(event: type[Started]) -> None:
    with pytest.raises(IllegalStep, match="s9 is unknown"):
        Lineage().step(event("s9"))


def test_steps_out_of_turn_are_illegal() -> None:
    lineage = Lineage()
    lineage.step(Discovered([shard("a"), shard("b", "a")]))
    for event in (Started("b"), Ended("a"), Stopped("a"), DurableEnd("a")):
        with pytest.raises(IllegalStep):
            lineage.step(event)
    lineage.step(Started("a"))
    for event in (Started("a"), DurableEnd("a")):
        with pytest.raises(IllegalStep):
            lineage.step(event)
    with pytest.raises(IllegalStep):
        lineage.step(Forgotten(("a",)))


def test_ten_thousand_shards() -> None:
    shards = [shard(f"s{n:05}", *([f"s{n - 1000:05}"] if n >= 1000 else [])) for n in range(10_000)]
    lineage = Lineage()
    assert len(lineage.step(Discovered(shards))) == 1000
    assert len(lineage.readable()) == 1000
    assert find(lineage.nodes()) == ()


# ---- where reading starts


def test_later_shards_start_at_the_horizon() -> None:
    assert position_to_read(None) == TRIM_HORIZON
    assert position_to_read(after("7")) == after("7")
    assert position_to_read(at_timestamp(5)) == at_timestamp(5)
    with pytest.raises(AssertionError):
        position_to_read(LATEST)


@pytest.mark.parametrize("start", [TRIM_HORIZON, at_timestamp(1_700_000_000_000_000)])
def test_every_listed_shard_starts_alike(start: Position) -> None:
    shards = [shard("a", last=1), shard("b", "a"), shard("c", "a")]
    assert first_starts(shards, start) == dict.fromkeys(["a", "b", "c"], start)


def test_a_number_starts_its_shard_and_finishes_what_came_before() -> None:
    shards = [
        shard("a", "gone", first=1, last=9),
        shard("b", "a", first=10, last=19),
        shard("c", "b", first=20, last=29),
        shard("x", first=30),
    ]
    assert first_starts(shards, at(10)) == {
        "a": SHARD_END,
        "b": at(10),
        "c": TRIM_HORIZON,
        "x": TRIM_HORIZON,
    }
    assert first_starts(shards, after("19"))["b"] == after("19")


def test_numbers_are_compared_as_numbers() -> None:
    shards = [shard("a", first=9, last=99), shard("b", "a", first=100)]
    assert first_starts(shards, at(10))["a"] == at(10)
    assert first_starts(shards, at(1000))["b"] == at(1000)


def test_a_number_of_no_shard_is_refused() -> None:
    with pytest.raises(FatalError, match="no listed shard contains sequence number 5") as caught:
        first_starts([shard("a", first=10), shard("b")], at(5))
    assert caught.value.code == "start_not_found"
    with pytest.raises(FatalError, match="shard b doesn't contain"):
        first_starts([shard("a", first=10), shard("b", first=20)], at(15), shard_id="b")


def test_a_number_of_several_shards_needs_the_shard() -> None:
    shards = [shard("a", first=10), shard("b", first=20)]
    with pytest.raises(FatalError, match="2 shards") as caught:
        first_starts(shards, at(25))
    assert caught.value.code == "start_ambiguous"
    assert first_starts(shards, at(25), shard_id="a") == {"a": at(25), "b": TRIM_HORIZON}


@pytest.mark.parametrize("start", [LATEST, SHARD_END])
def test_latest_must_have_been_resolved(start: Position) -> None:
    with pytest.raises(AssertionError):
        first_starts([shard("a")], start)


# ---- gaps


def gapped() -> Lineage:
    """A parent that was read up to 5, where a gap was found, and its child."""
    lineage = Lineage()
    lineage.step(Discovered([shard("a", first=1), shard("b", "a", first=9)]))
    lineage.step(Started("a"))
    lineage.step(Stopped("a"))
    lineage.step(GapFound("a"))
    return lineage


def test_a_gap_stops_its_shard_and_holds_its_children_up() -> None:
    lineage = gapped()
    lineage.step(Discovered([shard("c")]))
    assert lineage.state("a") is ShardState.GAPPED
    assert lineage.held_up("a") == ("b",)
    assert lineage.wanted() == ("c",)
    assert {hole.cause: hole.shards for hole in find(lineage.nodes())} == {
        HoleCause.GAPPED: ("a", "b"),
        HoleCause.LOST: ("b",),
    }


def test_a_gap_is_mended_when_its_position_was_moved() -> None:
    lineage = gapped()
    shards = [shard("a", first=1), shard("b", "a", first=9)]
    assert lineage.step(Discovered(shards, {"a": after("5")})) == []
    assert lineage.step(Mended("a")) == [Readable("a")]
    assert lineage.step(Mended("a")) == []
    assert lineage.state("b") is ShardState.WAITING


def test_a_gap_that_another_worker_read_over_is_none() -> None:
    lineage = gapped()
    assert lineage.step(Stored("a", SHARD_END)) == [Readable("b")]


def test_a_gapped_shard_that_is_no_longer_listed_is_told_once() -> None:
    lineage = gapped()
    assert lineage.step(Discovered([shard("b", "a", first=9)], {"a": after("5")})) == []
    assert lineage.state("a") is ShardState.GAPPED


def test_a_gap_changes_nothing_of_a_shard_that_waits_or_is_finished() -> None:
    lineage = Lineage({"a": SHARD_END})
    lineage.step(Discovered([shard("a"), shard("b", "a"), shard("c", "b")]))
    lineage.step(GapFound("a"))
    lineage.step(GapFound("c"))
    assert lineage.state("a") is ShardState.FINISHED
    assert lineage.state("c") is ShardState.WAITING
