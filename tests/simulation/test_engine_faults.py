"""Every operation of every seam fails at its n-th call, for all n, before or after it took
effect: the engine gets over it, and everything arrives.

A failing test names the call; `ENGINE_CALL=7` replays that one alone.
"""

from __future__ import annotations

import os
from functools import cache

import pytest

from replicator.errors import FatalError, LeaseLost, ReplicatorError, TransientError
from tests.simulation.engine_world import World, simulate

SEED = 16
STEPS = 12

OPERATIONS = (
    *("source.open", "source.shards"),
    *("sink.open", "sink.is_known", "sink.begin", "sink.positions"),
    *("sink.fence", "sink.position", "sink.write"),
    *("store.open", "store.rows", "store.create", "store.take", "store.renew"),
    *("store.release", "store.checkpoint"),
)
AFTER = tuple(f"{operation} (after)" for operation in OPERATIONS)
# Who doesn't know that it owns a row can't give it up: the next owner waits the lease out.
FORGOTTEN = ("store.release", "store.take (after)", "store.renew (after)")
TRANSIENT = TransientError("scripted", "failed, as ordered")
FATAL = FatalError("scripted", "failed, as ordered")
LOST = LeaseLost("scripted", "somebody else has it, as ordered")


@cache
def calls() -> dict[str, int]:
    """How often everything happens when nothing fails."""
    return dict(simulate(lambda: World(SEED, steps=STEPS)).faults.moments)


def test_the_undisturbed_run_tries_every_operation() -> None:
    assert {*OPERATIONS, *AFTER, "source.fetch"} <= calls().keys()


@pytest.mark.parametrize("moment", [*OPERATIONS, *AFTER, "source.fetch"])
def test_what_may_pass_is_tried_again(moment: str) -> None:
    fail_each(moment, TRANSIENT)


@pytest.mark.parametrize("moment", [*OPERATIONS, "source.fetch"])
def test_what_an_operator_must_mend_stops_nothing_else(moment: str) -> None:
    fail_each(moment, FATAL)


@pytest.mark.parametrize("moment", ["store.renew", "sink.position", "source.fetch"])
def test_a_lost_lease_is_won_again(moment: str) -> None:
    fail_each(moment, LOST)


def fail_each(moment: str, error: ReplicatorError) -> None:
    only = int(os.environ.get("ENGINE_CALL", "0"))
    for call in (only,) if only else range(1, calls()[moment] + 1):

        def world() -> World:
            made = World(SEED, steps=STEPS, may_keep_leases=moment in FORGOTTEN)
            made.faults.plan[moment, call] = error  # noqa: B023
            return made

        try:
            assert simulate(world).faults.plan == {}, "the call was reached"
        except BaseException as failure:
            failure.add_note(f"call {call} of {moment}: replay with ENGINE_CALL={call}")
            raise
