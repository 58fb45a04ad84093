from __future__ import annotations

import pytest

from replicator.core import gap
from replicator.errors import FatalError, PositionLost
from replicator.model import TRIM_HORIZON, Horizon, Position, Reached, after, at_timestamp

HOUR = 3_600_000_000
NOW = 1_700_000_000_000_000
HORIZON = Horizon(NOW, 24 * HOUR)
NUMBER = after("123")


def ago(hours: float) -> int:
    return NOW - round(hours * HOUR)


def is_gap(stored: Position | None, own: Reached | None, *parents: Reached) -> bool:
    return gap.aged("shard-1", stored, own, parents, HORIZON) is not None


def test_a_position_is_as_old_as_the_newest_thing_known_of_it() -> None:
    assert is_gap(NUMBER, Reached(ago(25), ago(24.1)))
    assert not is_gap(NUMBER, Reached(ago(25), ago(23)))
    assert not is_gap(NUMBER, Reached(ago(23), ago(25)))
    assert not is_gap(NUMBER, Reached(None, ago(23)))


def test_the_margin_is_on_the_safe_side() -> None:
    assert is_gap(NUMBER, Reached(ago(24) + gap.MARGIN_US))
    assert not is_gap(NUMBER, Reached(ago(24) + gap.MARGIN_US + 1))


def test_a_start_by_time_is_as_old_as_its_time() -> None:
    assert is_gap(at_timestamp(ago(25)), Reached(tip_us=ago(25)))
    assert is_gap(at_timestamp(ago(25)), None)
    assert not is_gap(at_timestamp(ago(23)), Reached(tip_us=ago(30)))


def test_a_start_by_time_stays_while_nothing_comes_and_grows_no_older() -> None:
    """Regression: a shard that was polled and quiet for as long as the retention had a gap."""
    assert not is_gap(at_timestamp(ago(25)), Reached(tip_us=ago(1)))


def test_a_start_at_the_oldest_record_owes_what_came_since_it_was_stored() -> None:
    assert not is_gap(TRIM_HORIZON, Reached(tip_us=ago(1)))
    assert is_gap(TRIM_HORIZON, Reached(tip_us=ago(25)))
    assert not is_gap(TRIM_HORIZON, None), "nothing is known"


def test_a_shard_without_a_position_began_where_its_parents_ended() -> None:
    assert is_gap(None, None, Reached(ago(30), ago(25)))
    assert not is_gap(None, None, Reached(ago(30), ago(25)), Reached(ago(2), None))
    assert not is_gap(None, None)
    assert not is_gap(at_timestamp(ago(25)), None, Reached(ago(3))), "it is younger than its start"


def test_the_margin_grows_with_the_time_since_the_begin() -> None:
    """Regression: who began at the oldest record of a busy stream was within the margin, and a
    restart in the first minutes was told as a gap."""

    def margin(minutes: float) -> int:
        return gap.margin_us_of(Reached(begun_us=ago(minutes / 60)), HORIZON)

    assert [margin(minutes) for minutes in (-1, 0, 10, 20, 600)] == [
        0,
        0,
        60_000_000,
        gap.MARGIN_US,
        gap.MARGIN_US,
    ]
    assert gap.margin_us_of(None, HORIZON) == gap.margin_us_of(Reached(), HORIZON) == gap.MARGIN_US


def test_a_service_that_names_what_it_trims_is_believed_where_a_number_was_asked_for() -> None:
    horizon = Horizon(NOW, 24 * HOUR, is_named=True)

    def is_gap(stored: Position | None, own: Reached | None, made: int | None = None) -> bool:
        parents = [Reached(ago(30))]
        return gap.aged("shard-1", stored, own, parents, horizon, made_us=made) is not None

    assert not is_gap(NUMBER, Reached(ago(30), ago(30))), "an idle shard"
    assert gap.behind_ms_max(horizon) is None
    # The oldest record is asked for, whatever it is by then.
    begun = Reached(tip_us=ago(30))
    for position in (TRIM_HORIZON, at_timestamp(ago(30)), None):
        assert is_gap(position, begun)
        assert is_gap(position, begun, ago(25))
        assert not is_gap(position, begun, ago(23)), "nothing in it is that old"
        assert not is_gap(position, begun, ago(-30)), "whatever the id says, it is there"


def test_it_says_what_happened_and_what_to_do() -> None:
    lost = gap.aged("shard-1", NUMBER, Reached(ago(30.5)), (), HORIZON)
    assert isinstance(lost, PositionLost)
    assert "30 h 30 min" in lost.message
    assert "24 h" in lost.message
    found = gap.of("shard-1", NUMBER, lost, ["shard-2"])
    assert (found.cause, found.code, found.held_up) == ("age", "position_aged", ("shard-2",))
    fields = found.as_fields("shop/products")
    assert "replicator positions reset --pipeline products --shard shard-1" in str(fields["action"])
    assert "shop/products" in str(fields["alarm"])
    tagged = found.as_fields("shop/tagged/products")["action"]
    assert "--pipeline tagged/products --shard" in str(tagged), "as the command knows it"
    refused = gap.of("shard-1", None, PositionLost("position_trimmed", "trimmed"))
    assert refused.cause == "refused"
    assert refused.as_fields("p")["position"] is None


def test_a_start_before_the_horizon_is_refused() -> None:
    gap.require_kept(TRIM_HORIZON, HORIZON)
    gap.require_kept(at_timestamp(ago(23)), HORIZON)
    with pytest.raises(FatalError, match="TRIM_HORIZON") as caught:
        gap.require_kept(at_timestamp(ago(26)), HORIZON)
    assert caught.value.code == "start_before_horizon"
    assert "26 h back" in caught.value.message


@pytest.mark.parametrize("policy", ["snapshot", "repair"])
def test_a_policy_that_needs_snapshots_is_refused(policy: str) -> None:
    gap.require_policy("stop")
    with pytest.raises(FatalError, match="don't exist yet") as caught:
        gap.require_policy(policy)
    assert caught.value.code == "config_on_gap"
