"""A shard that stands at a gap is seen wherever somebody looks, with what it holds up, until its
position is moved; /healthz stays green, for no restart mends it."""

from __future__ import annotations

import asyncio
import time

from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from replicator.admin import Admin
from replicator.core.liveness import Phase
from replicator.errors import PositionLost
from replicator.model import SHARD_END, Reached, Shard
from replicator.status import LiveStatus
from replicator.telemetry.metrics import Metrics
from replicator.telemetry.stats import Stats
from replicator.telemetry.watched import Watched, WatchedSink
from tests.engine import Engine
from tests.pausable_loop import run_virtually
from tests.simulation.test_watchdog import DEADLINE, FIRST, SECOND, Rig, until


def watched(engine: Engine) -> Watched:
    """As the service makes it."""
    coordinator = engine.coordinator
    return Watched(
        pipeline="p",
        sinks=[WatchedSink("w", engine.stats)],
        own=Stats(),
        budget=engine.budget,
        shards=coordinator.views,
        unready=coordinator.unready,
        source_counters=dict,
        gaps=coordinator.gaps,
        holes=coordinator.holes,
    )


def by_cause(engine: Engine, name: str) -> dict[str, float]:
    """The values of a metric, by cause where it has one."""
    text = Metrics([watched(engine)]).text().decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {s.labels.get("cause", ""): s.value for s in samples if s.name == name}


def stopped_by_cause(engine: Engine) -> dict[str, float]:
    found = by_cause(engine, "replicator_shards_stopped")
    held_up = by_cause(engine, "replicator_shards_held_up")[""]
    return {cause: value for cause, value in found.items() if value} | {"held_up": held_up}


def test_a_parent_that_vanished_is_shown_with_its_whole_subtree_until_it_is_mended() -> None:
    async def main() -> None:
        rig = Rig()
        engine, source, _ = rig.worker("one")
        rig.add(FIRST)
        async with engine.running():
            await until(lambda: rig.is_read(FIRST) and rig.is_read(SECOND))
        left, right = rig.stream.split(FIRST)
        child = rig.stream.merge(left, right)
        rig.stream.remove_shard(FIRST)
        engine, _, sink = rig.worker("two")
        admin = Admin("shop", "me", [watched(engine)])
        async with engine.running():
            await until(lambda: len(engine.coordinator.gaps()) == 1)
            await asyncio.sleep(2 * DEADLINE)
            (found,) = engine.coordinator.gaps()
            assert (found.shard_id, found.held_up) == (FIRST, (left, right, child))
            phases = {view.shard: view.phase for view in engine.coordinator.views()}
            assert phases == {FIRST: Phase.GAP, SECOND: Phase.READING}
            health = admin.health()
            assert health["healthy"], "no restart mends it"
            (said,) = health["stopped"]
            assert (said["shard"], said["held_up_count"]) == (FIRST, 3)
            assert "no longer listed" in said["why"]
            (stopped,) = admin.status()["pipelines"][0]["stopped"]
            assert stopped["phase"] == "gap"
            assert stopped["held_up"] == [left, right, child]
            assert "positions reset --pipeline p" in stopped["action"]
            text = LiveStatus("http://x", admin.status()).as_text()
            assert f"GAP {FIRST}" in text
            assert f"holds up {left}, {right}, {child}" in text
            assert stopped_by_cause(engine) == {"vanished": 1, "held_up": 3}
            # What `positions reset` does with a shard that is no longer listed.
            key = (sink.pipeline, source.identity, FIRST)
            sink.store.positions[key] = SHARD_END
            sink.store.reached[key] = Reached(tip_us=time.time_ns() // 1_000)
            await until(lambda: engine.coordinator.gaps() == ())
            assert stopped_by_cause(engine) == {"held_up": 0}
            assert admin.health()["stopped_count"] == 0

    with capture_logs():
        run_virtually(main())


def test_a_readers_gap_is_no_late_shard() -> None:
    async def main() -> None:
        rig = Rig()
        engine, source, _ = rig.worker("one")
        source.fail("fetch", 1, PositionLost("position_trimmed", "trimmed"), shard_id=FIRST)
        rig.add(FIRST)
        admin = Admin("shop", "me", [watched(engine)])
        async with engine.running():
            await until(lambda: bool(engine.coordinator.gaps()))
            await asyncio.sleep(3 * DEADLINE)
            assert admin.health()["healthy"]
            assert [each["shard"] for each in admin.health()["stopped"]] == [FIRST]
            assert stopped_by_cause(engine) == {"refused": 1, "held_up": 0}

    run_virtually(main())


def test_a_shard_that_no_list_shows_is_said_once_and_listed_for_at_once() -> None:
    async def main() -> None:
        rig = Rig()
        engine, source, _ = rig.worker("one")
        engine.discovery_seconds = 50.0
        engine.__post_init__()
        admin = Admin("shop", "me", [watched(engine)])
        _, right = rig.stream.split(FIRST)
        hidden = {right}
        listings: list[float] = []
        listed, ends = rig.stream.shards, rig.stream.children

        def shards() -> list[Shard]:
            listings.append(asyncio.get_running_loop().time())
            return [shard for shard in listed() if shard.id not in hidden]

        def children(shard_id: str) -> tuple[Shard, ...]:
            return tuple(shard for shard in ends(shard_id) if shard.id not in hidden)

        rig.stream.shards, rig.stream.children = shards, children  # type: ignore[method-assign]
        with capture_logs() as logs:
            async with engine.running():
                await until(lambda: bool(engine.coordinator.holes()))
                await asyncio.sleep(1)
                told = len(listings)
                assert listings[-1] - listings[-2] < 1, "at once"
                (hole,) = admin.status()["pipelines"][0]["holes"]
                assert (hole["cause"], hole["shards"]) == ("unknown", [FIRST])
                assert hole["hash_keys"] == [[str(2**126), str(2**127 - 1)]]
                assert hole["hash_keys_percent"] == 25
                text = LiveStatus("http://x", admin.status()).as_text()
                assert f"HOLE unknown  {FIRST}  25 % of the hash keys" in text
                assert by_cause(engine, "replicator_holes")["unknown"] == 1
                await asyncio.sleep(600)
                assert len(listings) < told + 20, "and not again and again"
                hidden.clear()
                await until(lambda: not engine.coordinator.holes())
                assert source.readers[right] == 1
                assert by_cause(engine, "replicator_holes_found_total")["unknown"] == 1
        assert [log["cause"] for log in logs if log["event"] == "hole"] == ["unknown"]

    run_virtually(main())
