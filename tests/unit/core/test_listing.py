"""Shards from pages that no snapshot holds together."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from replicator.core.listing import Listing
from replicator.model import Shard


def shards(*names: str, is_open: bool = True) -> list[Shard]:
    return [Shard(name, is_open=is_open) for name in names]


def ids(listing: Listing) -> set[str]:
    return {shard.id for shard in listing.shards()}


def listed(listing: Listing, *names: str) -> None:
    assert listing.page(shards(*names), None)


def test_pages_follow_the_last_shard_of_the_one_before() -> None:
    listing = Listing()
    assert not listing.page(shards("a", "b"), "b")
    assert listing.after == "b"
    assert listing.page(shards("c"), None)
    assert ids(listing) == {"a", "b", "c"}


def test_there_is_something_to_give_after_the_first_complete_listing() -> None:
    listing = Listing()
    seen = [listing.is_usable]
    for last in ("a", None, "b"):
        listing.page(shards("a"), last)
        seen.append(listing.is_usable)
    assert seen == [False, False, True, True]


def test_an_empty_page_in_the_middle_is_no_end() -> None:
    listing = Listing()
    assert not listing.page(shards("a"), "a")
    assert not listing.page([], "b")
    assert listing.page(shards("c"), None)
    assert ids(listing) == {"a", "c"}


def test_a_page_that_ends_where_it_began_ends_the_listing() -> None:
    listing = Listing()
    assert not listing.page(shards("a"), "a")
    assert listing.page(shards("b"), "a")
    assert ids(listing) == {"a", "b"}


def test_a_listing_under_way_takes_nothing_back() -> None:
    listing = Listing()
    listed(listing, "a", "b")
    assert not listing.page(shards("c"), "c")
    assert ids(listing) == {"a", "b", "c"}


def test_a_shard_is_gone_when_two_listings_lack_it() -> None:
    listing = Listing()
    listed(listing, "a", "b")
    listed(listing, "b")
    assert ids(listing) == {"a", "b"}
    listed(listing, "b")
    assert ids(listing) == {"b"}


def test_one_that_was_missed_once_is_as_good_as_new() -> None:
    listing = Listing()
    listed(listing, "a", "b")
    listed(listing, "b")
    listed(listing, "a", "b")
    listed(listing, "b")
    assert ids(listing) == {"a", "b"}


def test_a_missing_parent_is_looked_for_once() -> None:
    listing = Listing()
    child = Shard("child", parents=("parent",))
    assert not listing.page([child], None), "listed once more"
    assert listing.after is None
    assert listing.page([child, Shard("parent", is_open=False)], None)
    assert ids(listing) == {"child", "parent"}


def test_a_parent_that_stays_missing_is_trimmed_and_costs_no_further_listing() -> None:
    listing = Listing()
    child = Shard("child", parents=("parent",))
    assert not listing.page([child], None)
    assert listing.page([child], None)
    assert listing.page([child], None)
    assert ids(listing) == {"child"}


def test_what_has_ended_stays_so() -> None:
    listing = Listing()
    assert listing.page(shards("a", is_open=False), None)
    assert listing.page(shards("a"), None)
    assert [shard.is_open for shard in listing.shards()] == [False]


def test_a_restart_keeps_what_was_shown() -> None:
    listing = Listing()
    assert not listing.page(shards("a"), "a")
    listing.restart()
    assert listing.after is None
    assert listing.page(shards("b"), None)
    assert ids(listing) == {"a", "b"}


@given(st.lists(st.sets(st.sampled_from("abcdefgh")), min_size=1), st.integers(1, 4))
def test_the_shards_are_those_of_the_last_two_listings(
    listings: Sequence[set[str]], size: int
) -> None:
    listing = Listing()
    for names in listings:
        ordered = sorted(names)
        pages = [ordered[start : start + size] for start in range(0, len(ordered), size)] or [[]]
        for page in pages[:-1]:
            before = ids(listing)
            assert not listing.page(shards(*page), page[-1])
            assert ids(listing) == before | set(page)
        assert listing.page(shards(*pages[-1]), None)
    assert ids(listing) == set().union(*listings[-2:])
