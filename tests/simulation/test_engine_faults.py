"""Every call to the outside fails at its n-th use, for all n, before or after it took
effect, while three shards are read through a split and a merge to their end: the state
equals the oracle's, and the run ends.

A failing test names the call; `ENGINE_CALL=7` replays that one alone.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import cache

import pytest

from replicator.errors import FatalError, LeaseLost, ReplicatorError, TransientError
from replicator.model import LATEST, Position
from replicator.protocols import LeaseStore, Sink, Source, Writer
from tests.simulation.engine_seams import Planned
from tests.simulation.engine_world import simulate
from tests.simulation.reshard_world import ReshardWorld

OPERATIONS = (
    "describe",
    *("source.open", "source.shards", "source.horizon"),
    *("sink.open", "sink.is_known", "sink.begun", "sink.holds_data", "sink.begin"),
    *("sink.positions", "sink.fence", "sink.position", "sink.reached", "sink.write"),
    *("store.open", "store.rows", "store.create", "store.take", "store.renew"),
    *("store.release", "store.checkpoint", "store.delete"),
)
AFTER = tuple(f"{operation} (after)" for operation in OPERATIONS)
READING = ("source.read", "source.fetch")
# Who starts at the newest record asks for the time before anything is stored.
FROM_LATEST = {"source.horizon", "source.horizon (after)"}
# Who doesn't know that it owns a row can't give it up: the next owner waits the lease out.
FORGOTTEN = ("store.release", "store.take (after)", "store.renew (after)")
TRANSIENT = TransientError("scripted", "failed, as ordered")
FATAL = FatalError("scripted", "failed, as ordered")
LOST = LeaseLost("scripted", "somebody else has it, as ordered")


@cache
def calls(start: Position | None, sinks: int = 1) -> dict[str, int]:
    """How often everything happens when nothing fails."""
    return dict(simulate(lambda: ReshardWorld(start=start, sinks=sinks)).faults.moments)


def test_no_call_of_a_seam_is_left_out() -> None:
    # The service closes; `encode` and `writer` are no calls to the outside; the bare time and
    # `move` are for commands.
    inside = {"sink.writer", "writer.encode", "source.close", "sink.close", "store.close"}
    inside |= {"source.now_us", "sink.move"}
    # Its one worker begins the stream; those who come to it later are in `test_engine`.
    inside |= {"sink.add_tables"}
    # The world's store does them row by row, by those that fail here.
    inside |= {"store.take_all", "store.renew_all", "store.checkpoint_all"}
    seams = {"source": Source, "sink": Sink, "writer": Writer, "store": LeaseStore}
    named = {
        f"{seam}.{name}"
        for seam, protocol in seams.items()
        for name, _ in inspect.getmembers(protocol, inspect.isfunction)
        if not name.startswith("_")
    }
    ours = {name.replace("sink.write", "writer.write") for name in OPERATIONS} | {"source.read"}
    assert named - inside == ours - {"describe"}


def test_the_undisturbed_run_makes_every_call() -> None:
    for start in (None, LATEST):
        assert {*OPERATIONS, *AFTER, *READING} - {"sink.holds_data", "sink.holds_data (after)"} <= (
            calls(start).keys()
        )
    assert "sink.holds_data" in calls(None)


@pytest.mark.parametrize("moment", [*OPERATIONS, *AFTER, *READING])
def test_what_may_pass_is_tried_again(moment: str) -> None:
    fail_each(moment, TRANSIENT)


@pytest.mark.parametrize("moment", [*OPERATIONS, *READING])
def test_what_an_operator_must_mend_stops_nothing_else(moment: str) -> None:
    fail_each(moment, FATAL)


@pytest.mark.parametrize("moment", ["store.renew", "sink.position", *READING])
def test_a_lost_lease_is_won_again(moment: str) -> None:
    fail_each(moment, LOST)


@pytest.mark.parametrize("moment", [*OPERATIONS, *AFTER, *READING])
def test_who_stands_still_there_is_taken_over_and_undoes_nothing(moment: str) -> None:
    each(moment, lambda world: world.stand_still)


@pytest.mark.parametrize("moment", [each for each in (*OPERATIONS, *AFTER) if "sink." in each])
def test_one_of_two_sinks_fails_and_both_end_equal(moment: str) -> None:
    fail_each(moment, TRANSIENT, sinks=2)


@pytest.mark.parametrize("moment", ["sink.fence", "sink.position", "sink.write"])
def test_what_an_operator_must_mend_at_one_of_two_sinks(moment: str) -> None:
    fail_each(moment, FATAL, sinks=2)


@pytest.mark.parametrize("moment", ["sink.fence", "sink.write", "sink.write (after)"])
def test_who_stands_still_at_one_of_two_sinks_undoes_nothing(moment: str) -> None:
    each(moment, lambda world: world.stand_still, sinks=2)


def fail_each(moment: str, error: ReplicatorError, sinks: int = 1) -> None:
    each(moment, lambda _: error, sinks)


def each(moment: str, plan: Callable[[ReshardWorld], Planned], sinks: int = 1) -> None:
    """Runs the plot once for each call at which this moment comes, with what is planned there."""
    for start in (None, LATEST) if moment in FROM_LATEST else (None,):
        only = int(os.environ.get("ENGINE_CALL", "0"))
        for call in (only,) if only else range(1, calls(start, sinks)[moment] + 1):

            def world() -> ReshardWorld:
                made = ReshardWorld(
                    start=start,  # noqa: B023
                    may_keep_leases=moment in FORGOTTEN,
                    sinks=sinks,
                )
                made.faults.plan[moment, call] = plan(made)  # noqa: B023
                return made

            try:
                assert simulate(world).faults.plan == {}, "the call was reached"
            except BaseException as failure:
                failure.add_note(f"call {call} of {moment}: replay with ENGINE_CALL={call}")
                raise
