"""A position that is taken for safe is: no record that it hasn't read was trimmed. And one
whose worker was away for less than the retention is never taken for lost."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from replicator.core.gap import MARGIN_US, aged
from replicator.model import TRIM_HORIZON, Horizon, Position, Reached, after, at_timestamp

SECOND = 1_000_000
RETENTION = 3_600 * SECOND
BEGUN = 1_700_000_000 * SECOND


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]], int, int]:
    """Arrival times; for each store its time and how many records it covers; the time of the
    next look; by how much the sink's clock is wrong."""
    gaps = draw(st.lists(st.integers(0, 2 * RETENTION), max_size=12))
    arrivals: list[int] = []
    for length in gaps:
        arrivals.append((arrivals[-1] if arrivals else BEGUN) + length)
    stores: list[tuple[int, int]] = []
    at, covered = BEGUN, 0
    for pause in draw(st.lists(st.integers(1, RETENTION // 2), max_size=5)):
        at += pause
        there = sum(arrival <= at for arrival in arrivals)
        covered = draw(st.integers(covered, max(covered, there)))
        stores.append((at, covered))
    look = at + draw(st.integers(0, 3 * RETENTION))
    return arrivals, stores, look, draw(st.integers(-MARGIN_US, MARGIN_US - 1))


def stored(
    start: Position, arrivals: Sequence[int], stores: Sequence[tuple[int, int]], skew: int
) -> tuple[Position, Reached]:
    """What a sink holds after these stores: see `sink.position.tip_age_seconds`."""
    position, reached = start, Reached(None, BEGUN + skew)
    for at, covered in stores:
        # The service's word: how far its tip is from the last record that was read.
        waits = [arrival for arrival in arrivals[covered:] if arrival <= at]
        behind = at - (arrivals[covered - 1] if covered else BEGUN) if waits else 0
        last = arrivals[covered - 1] if covered else None
        # A shard that is polled stays at its start while no record comes.
        position = after("1") if covered or start == TRIM_HORIZON else start
        reached = Reached(last, at - behind + skew)
    return position, reached


@given(histories(), st.sampled_from(["trim_horizon", "timestamp"]))
def test_what_is_taken_for_safe_is_kept(
    history: tuple[list[int], list[tuple[int, int]], int, int], kind: str
) -> None:
    arrivals, stores, look, skew = history
    start = TRIM_HORIZON if kind == "trim_horizon" else at_timestamp(BEGUN)
    position, reached = stored(start, arrivals, stores, skew)
    lost = aged("shard", position, reached, (), Horizon(look, RETENTION))
    covered = stores[-1][1] if stores else 0
    unread = [arrival for arrival in arrivals[covered:] if arrival <= look]
    if lost is None:
        assert all(arrival > look - RETENTION for arrival in unread)
    elif stores and covered == sum(arrival <= stores[-1][0] for arrival in arrivals):
        away = look - stores[-1][0]
        assert away >= RETENTION - 2 * MARGIN_US, "it was at the tip, and not away for long"


@given(histories(), st.integers(0, RETENTION))
def test_a_child_without_a_position_is_as_old_as_its_parents_end(
    history: tuple[list[int], list[tuple[int, int]], int, int], later: int
) -> None:
    """The end of the parent moves no time but that of its last record."""
    arrivals, stores, look, skew = history
    _, parent = stored(TRIM_HORIZON, arrivals, stores, skew)
    end = max([*arrivals, *(at for at, _ in stores), BEGUN])  # no child begins before
    parent = Reached(arrivals[-1] if arrivals else None, parent.tip_us)
    child_arrival = end + later
    lost = aged("child", None, None, [parent], Horizon(look + later, RETENTION))
    if lost is None and child_arrival <= look + later:
        assert child_arrival > look + later - RETENTION
