from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.core.lease import (
    Create,
    Expire,
    ExpireReason,
    LeaseView,
    Release,
    Renew,
    Take,
    TakeReason,
)
from replicator.model import LeaseRow

S1 = LeaseRow("p", "s1", owner=None, counter=0)
S2 = LeaseRow("p", "s2", owner=None, counter=0)


def owned(row: LeaseRow, owner: str, counter: int = 1) -> LeaseRow:
    return replace(row, owner=owner, counter=counter)


def view(**options: int) -> LeaseView:
    return LeaseView("me", duration_seconds=9.0, **options)


def holding(at: float = 0.0) -> LeaseView:
    leases = view()
    leases.taken(owned(S1, "me"), at)
    return leases


def test_a_wanted_shard_without_a_row_gets_one() -> None:
    assert view().step([], {"s2", "s1"}, 0.0) == [Create(("s1", "s2"))]


def test_free_rows_are_taken_at_once_and_only_wanted_ones() -> None:
    assert view().step([S1, S2], {"s2"}, 0.0) == [Take(S2, TakeReason.FREE)]


def test_an_owned_row_is_taken_when_its_counter_stood_still_for_a_duration() -> None:
    leases, row = view(), owned(S1, "other")
    assert leases.step([row], {"s1"}, 100.0) == []
    assert leases.step([row], {"s1"}, 109.0) == [], "not longer than the duration yet"
    assert leases.step([row], {"s1"}, 109.1) == [Take(row, TakeReason.EXPIRED)]


def test_a_renewal_starts_the_wait_again() -> None:
    leases = view()
    leases.step([owned(S1, "other", 1)], {"s1"}, 100.0)
    leases.step([owned(S1, "other", 2)], {"s1"}, 108.0)
    assert leases.step([owned(S1, "other", 2)], {"s1"}, 116.0) == []
    assert leases.step([owned(S1, "other", 2)], {"s1"}, 117.1) != []


def test_a_store_out_of_reach_ages_nothing_wrongly() -> None:
    leases, row = view(), owned(S1, "other")
    leases.step([row], {"s1"}, 100.0)
    assert leases.step(None, {"s1"}, 105.0) == []
    assert leases.step([replace(row, counter=2)], {"s1"}, 200.0) == []


def test_a_held_lease_is_renewed_every_third() -> None:
    leases, row = holding(), owned(S1, "me")
    assert leases.step([row], {"s1"}, 2.9) == []
    assert leases.until_next(2.0) == pytest.approx(1.0)
    assert leases.step([row], {"s1"}, 3.0) == [Renew(row)]
    leases.renewed(replace(row, counter=2), 3.0)
    assert leases.until_next(3.0) == pytest.approx(3.0)
    assert leases.step([replace(row, counter=2)], {"s1"}, 5.9) == []
    assert leases.holds("s1", 11.9)


def test_renewal_goes_on_without_the_rows() -> None:
    assert holding().step(None, {"s1"}, 3.0) == [Renew(owned(S1, "me"))]


def test_a_lease_not_renewed_for_a_duration_stops_and_is_never_renewed() -> None:
    leases, row = holding(), owned(S1, "me")
    assert leases.holds("s1", 8.9)
    assert not leases.holds("s1", 9.0)
    assert leases.step(None, {"s1"}, 9.0) == [Expire(row, ExpireReason.NOT_RENEWED)]
    assert leases.step([row], {"s1"}, 9.1) == [], "its reader hasn't stopped yet"
    leases.stopped("s1")
    assert leases.step([row], {"s1"}, 9.2) == [Take(row, TakeReason.OURS)]


def test_a_lease_that_was_taken_stops() -> None:
    leases = holding()
    row = owned(S1, "other", 2)
    assert leases.step([row], {"s1"}, 1.0) == [Expire(owned(S1, "me"), ExpireReason.TAKEN)]
    assert not leases.holds("s1", 1.0)


def test_a_row_that_is_missing_stops_and_is_made_again() -> None:
    leases = holding()
    assert leases.step([], {"s1"}, 1.0) == [Expire(owned(S1, "me"), ExpireReason.ROW_MISSING)]
    leases.stopped("s1")
    assert leases.step([], {"s1"}, 1.1) == [Create(("s1",))]


def test_a_lost_renewal_gives_the_action() -> None:
    leases = holding()
    assert leases.lost("s1") == Expire(owned(S1, "me"), ExpireReason.TAKEN)
    assert not leases.holds("s1", 0.1)
    assert leases.step(None, {"s1"}, 9.0) == []


def test_a_lost_reply_is_recognised() -> None:
    leases = holding()
    assert leases.step([owned(S1, "me", 2)], {"s1"}, 3.0) == [Renew(owned(S1, "me", 2))]
    assert not leases.holds("s1", 9.0), "it counts from the renewal that it knows of"
    fresh = view()
    assert fresh.step([owned(S1, "me", 5)], {"s1"}, 0.0) == [
        Take(owned(S1, "me", 5), TakeReason.OURS)
    ]


def test_a_reply_that_comes_after_its_row_was_seen_counts() -> None:
    leases = holding()
    leases.step([owned(S1, "me", 2)], {"s1"}, 3.5)
    leases.renewed(owned(S1, "me", 2), 3.0)
    assert leases.holds("s1", 11.9)
    assert not leases.holds("s1", 12.0)


def test_rows_older_than_what_we_hold_say_nothing() -> None:
    assert holding().step([S1], {"s1"}, 1.0) == []


def test_a_shard_that_is_not_wanted_is_released_once() -> None:
    leases = holding()
    assert leases.step([owned(S1, "me")], set(), 1.0) == [Release(owned(S1, "me"))]
    assert leases.step([owned(S1, "me")], set(), 1.1) == []
    leases.stopped("s1")
    assert leases.held() == ()


def test_shards_max_limits_what_is_taken() -> None:
    leases = view(shards_max=1)
    assert leases.step([S1, S2], {"s1", "s2"}, 0.0) == [Take(S1, TakeReason.FREE)]
    leases.taken(owned(S1, "me"), 0.0)
    assert leases.step([owned(S1, "me"), S2], {"s1", "s2"}, 0.1) == []


def rows_of(loads: dict[str, int]) -> list[LeaseRow]:
    owners = [owner for owner, load in loads.items() for _ in range(load)]
    return [LeaseRow("p", f"s{n}", owner, 1) for n, owner in enumerate(owners)]


@pytest.mark.parametrize(
    ("loads", "victim"),
    [({"a": 1}, None), ({"a": 2}, "a"), ({"a": 1, "b": 3}, "b"), ({"a": 1, "b": 1}, None)],
)
def test_one_shard_a_step_comes_from_the_owner_with_most(
    loads: dict[str, int], victim: str | None
) -> None:
    rows = rows_of(loads)
    actions = view().step(rows, {row.shard_id for row in rows}, 0.0)
    expected = [Take(row, TakeReason.BALANCE) for row in rows if row.owner == victim][:1]
    assert actions == expected


def test_expired_beats_balance() -> None:
    leases = view()
    rows = rows_of({"a": 3, "b": 1})
    wanted = {row.shard_id for row in rows}
    leases.step(rows, wanted, 0.0)
    rows = [replace(row, counter=2) if row.owner == "a" else row for row in rows]
    assert leases.step(rows, wanted, 9.1) == [Take(rows[3], TakeReason.EXPIRED)]


def test_a_shard_is_taken_once() -> None:
    with pytest.raises(AssertionError):
        holding().taken(owned(S1, "me", 2), 1.0)


def test_what_is_avoided_is_taken_when_free_and_from_no_owner() -> None:
    leases = view()
    rows = rows_of({"a": 3})
    wanted = {row.shard_id for row in rows}
    assert leases.step(rows, wanted, 0.0, wanted) == []
    (take,) = leases.step(rows, wanted, 0.1, {"s0"})
    assert take == Take(rows[1], TakeReason.BALANCE)
    free = [LeaseRow("p", "s0", None, 2), *rows[1:]]
    assert leases.step(free, wanted, 0.2, wanted) == [Take(free[0], TakeReason.FREE)]
