"""Random reshard trees, read in random order, by workers that stop, restart and race."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.core.holes import Hole, HoleCause, find
from replicator.core.lineage import (
    Discovered,
    DurableEnd,
    Ended,
    IllegalStep,
    Lineage,
    ShardState,
    Started,
    Stopped,
)
from replicator.model import SHARD_END, Position, Shard
from tests.property.lineage_world import SHARE, ServiceShard, World


@pytest.mark.parametrize("workers", [1, 3])
def test_a_thousand_trees_leave_no_hole(workers: int) -> None:
    for seed in range(500):
        try:
            world = World(random.Random(seed), workers=workers)
            for _ in range(80):
                world.step()
            world.finish()
        except AssertionError as error:
            error.add_note(f"seed {seed}, {workers} workers")
            raise


@pytest.mark.timeout(330)  # shrinking may take minutes
@given(st.randoms(use_true_random=False), st.integers(1, 2))
@settings(max_examples=100)
def test_drawn_trees_leave_no_hole(rng: random.Random, workers: int) -> None:
    """The same, in a form that shrinks."""
    world = World(rng, workers=workers)
    for _ in range(30):
        world.step()
    world.finish()


def test_every_shard_that_is_trimmed_unfinished_is_named() -> None:
    """A worker that was away too long: each lost shard with a stored position is a gap."""
    named = 0
    for seed in range(300):
        world = World(random.Random(seed))
        for _ in range(60):
            world.step()
        before = {s.id for s in world.service.shards.values() if s.is_trimmed}
        for _ in range(world.rng.randint(1, 4)):
            world.trim(unfinished=True)
        unread = {
            shard.id
            for shard in world.service.shards.values()
            if shard.is_trimmed and shard.id not in before
            if world.sink.positions.get(shard.id) != SHARD_END
        }
        known = {
            shard_id
            for shard_id, position in world.sink.positions.items()
            if position != SHARD_END and world.service.shards[shard_id].is_trimmed
        }
        # Restarted: what it knows is what it stored.
        worker = type(world.workers[0])(world.service, world.sink)
        for _ in range(3):
            worker.ask_for_list()
            worker.take_list()
        lost = {action.shard_id for action in worker.vanished}
        assert known <= lost, f"seed {seed}"
        assert bool(unread) == bool(lost), f"seed {seed}: silent"
        assert len(lost) == len(worker.vanished), "once each"
        for shard_id in lost:
            assert world.service.shards[shard_id].is_trimmed
            assert world.sink.positions.get(shard_id) != SHARD_END
            for child in world.service.children(shard_id):
                if child.id not in world.sink.positions:
                    assert worker.lineage.state(child.id) is not ShardState.READABLE
        nodes = worker.lineage.nodes()
        assert {n.shard.id for n in nodes if n.state is ShardState.LOST} == lost
        holes = find(nodes)
        assert lost == {hole.shards[0] for hole in holes if hole.cause is HoleCause.LOST}
        named += len(lost)
    assert named > 100, "the trees do lose shards"


def test_every_shard_that_no_list_shows_is_a_hole() -> None:
    """The service hides a shard, some time before or after it was seen: its hash keys are told,
    with the shard that is the cause, though the rest is read on."""
    told = 0
    for seed in range(300):
        world = World(random.Random(seed))
        for _ in range(world.rng.randint(0, 40)):
            world.step()
        (worker,) = world.workers
        shards = world.service.open_shards()
        known = world.rng.choice([True, False])
        if known:
            victim = world.rng.choice(shards)
        else:
            before = set(world.service.shards)
            world.service.reshard()
            newcomers = [s for s in world.service.open_shards() if s.id not in before]
            if not newcomers:
                continue
            victim = world.rng.choice(newcomers)
        if victim.id in worker.readings:
            worker.stop(victim.id)
        world.service.hidden.add(victim.id)
        for _ in range(4 * len(world.service.shards)):
            worker.ask_for_list()
            worker.take_list()
            for shard_id in worker.startable(set(worker.readings)):
                if shard_id != victim.id:
                    worker.start(shard_id)
            for shard_id in sorted(worker.readings):
                while not worker.readings[shard_id].is_ended:
                    at = worker.readings[shard_id].at
                    worker.read(shard_id)
                    if worker.readings[shard_id].at == at:
                        break
                worker.flush(shard_id)
        holes = worker.audit.holes
        found = sum(overlap(hole, victim) for hole in holes)
        assert found == len(victim.keys) * SHARE, f"seed {seed}: {holes}"
        assert len({hole.key for hole in worker.told}) == len(worker.told), "once each"
        for hole in holes:
            assert not any(overlap(hole, s) for s in world.service.open_shards() if s is not victim)
        told += len(holes)
    assert told > 200


def overlap(hole: Hole, shard: ServiceShard) -> int:
    """How many hash keys of the shard are in the hole."""
    first, end = shard.keys.start * SHARE, shard.keys.stop * SHARE
    return sum(max(0, min(end, upper) - max(first, lower)) for lower, upper in hole.ranges)


EVENTS = st.sampled_from(["start", "stop", "end", "durable"])


@given(st.lists(st.tuples(EVENTS, st.sampled_from(["a", "b", "c", "x"])), max_size=40))
def test_an_illegal_step_changes_nothing(events: list[tuple[str, str]]) -> None:
    lineage = Lineage()
    lineage.step(Discovered([Shard("a"), Shard("b", ("a",)), Shard("c", ("a", "b"))]))
    for kind, shard_id in events:
        before = lineage.nodes()
        try:
            match kind:
                case "start":
                    lineage.step(Started(shard_id))
                case "stop":
                    lineage.step(Stopped(shard_id))
                case "end":
                    lineage.step(Ended(shard_id))
                case _:
                    lineage.step(DurableEnd(shard_id))
        except IllegalStep:
            assert lineage.nodes() == before
        for child, parents in {"b": ["a"], "c": ["a", "b"]}.items():
            done = all(lineage.state(parent) is ShardState.FINISHED for parent in parents)
            assert done == (lineage.state(child) is not ShardState.WAITING)


@given(st.permutations(["a", "b", "c", "d", "e"]))
def test_the_order_of_a_list_does_not_matter(order: list[str]) -> None:
    parents: dict[str, tuple[str, ...]] = {"c": ("a", "b"), "d": ("c",), "e": ("c",)}
    lineage = Lineage()
    lineage.step(Discovered([Shard(shard_id, parents.get(shard_id, ())) for shard_id in order]))
    assert lineage.readable() == ("a", "b")
    positions: dict[str, Position] = dict.fromkeys(["a", "b", "c"], SHARD_END)
    resumed = Lineage(positions)
    resumed.step(Discovered([Shard(shard_id, parents.get(shard_id, ())) for shard_id in order]))
    assert resumed.readable() == ("d", "e")
