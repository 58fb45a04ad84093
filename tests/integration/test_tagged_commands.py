"""The commands about a pipeline whose tables are found by tag, each over the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from replicator import config as configuration
from replicator import positions, preflight, setup
from replicator import status as stored
from tests.integration.test_check import replicator
from tests.integration.test_pipelines import serving
from tests.integration.test_tagged_streams import SHARD, YES, Rig, rig

__all__ = ["rig"]
pytestmark = pytest.mark.usefixtures("credentials")


async def answer(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and JSON lines."""
    code, out, err = await replicator(*arguments)
    assert "Traceback" not in err
    return code, [json.loads(line) for line in out.splitlines()]


async def test_each_command_about_tables_of_which_one_lacks_its_stream(rig: Rig) -> None:
    """What one table lacks is told of that one; the others' commands go on."""
    rig.server.table_tags |= {"orders": YES, "users": YES}
    rig.server.table_destinations["users"] = {rig.server.arn: "DISABLED"}
    config = rig.config(("shop", {"tags": YES}), stream=None)
    async with serving(config):
        rig.put("orders", "a")
        await rig.until_there("orders", "a")
    await rig.stack.fetch("UPDATE replicator_positions SET updated_at = now() - interval '1 min'")
    loaded = configuration.load(config, {})

    report = await preflight.look(loaded)
    of: dict[str, set[str]] = {}
    for finding in report.findings:
        of.setdefault(finding.pipeline, set()).add(finding.code)
    assert of == {"shop": {""}, "shop/orders": {""}, "shop/users": {"destination_missing"}}
    report.findings = [each for each in report.findings if each.pipeline == "shop/orders"]
    assert {each.subject for each in report.findings} >= {"table", "source", "destination", "sink"}

    look = await stored.look(loaded)
    assert isinstance(look, stored.StatusReport)
    assert look.is_complete
    assert {each.name: len(each.shards) for each in look.pipelines} == {
        "shop/orders": 1,
        "shop/users": 0,
    }

    code, (shown,) = await answer("positions", "show", "-c", config, "--output", "json")
    assert (code, [row["pipeline"] for row in shown["positions"]]) == (0, ["shop/orders"])
    of_it = ("--pipeline", "shop/orders", "--yes", "-c", config, "--output", "json")
    code, (moved,) = await answer("positions", "reset", "--shard", SHARD, *of_it)
    assert (code, moved["shards"][0]["new"]) == (0, "TRIM_HORIZON")
    code, _, err = await replicator("positions", "reset", "--pipeline", "shop", "-c", config)
    assert (code, "shop/orders, shop/users" in err) == (2, True)

    code, lines = await answer(
        *("tail", "shop/orders", "--from", "TRIM_HORIZON", "--limit", "1", "-c", config)
    )
    assert (code, [line["key"] for line in lines]) == (0, [{"id": "a"}])
    code, _, err = await replicator("tail", "shop/users", "-c", config)
    assert (code, "destination_missing" in err) == (1, True)

    code, _, err = await replicator("setup", "-c", config)
    assert (code, "table users writes to no Kinesis stream" in err) == (1, True)
    steps = (await setup.setup(configuration.load(config, {}), apply=False, remove=True)).steps
    told = {step.pipeline: (step.subject, step.state) for step in steps}
    assert told.pop("shop/users") == ("source", "left"), "what it read isn't known any more"
    assert set(told) == {"shop/orders"}
    rig.server.table_destinations["users"] = {rig.server.arn: "ACTIVE"}
    steps = (await setup.setup(configuration.load(config, {}), apply=False)).steps
    assert {step.pipeline for step in steps} == {"shop/orders", "shop/users"}


async def test_a_shared_stream_is_one_pipeline_to_every_command(rig: Rig) -> None:
    rig.server.table_tags |= {"orders": YES, "users": YES}
    config = rig.config(("shop", {"tags": YES}))
    async with serving(config):
        rig.put("users", "a")
        await rig.until_there("users", "a")
    loaded = configuration.load(config, {})
    report = await preflight.look(loaded)
    assert report.is_ok, report.as_text()
    told = {each.message for each in report.findings if each.subject == "destination"}
    assert told == {f"table {name} writes to stream shared" for name in ("orders", "users")}
    look = await stored.look(loaded)
    assert isinstance(look, stored.StatusReport)
    assert [(each.name, len(each.shards)) for each in look.pipelines] == [("shop/shared", 1)]
    assert [row["pipeline"] for row in (await positions.show(loaded)).rows] == ["shop/shared"]
    steps = (await setup.setup(loaded, apply=False)).steps
    assert {step.pipeline for step in steps} == {"shop/shared"}
    assert len(steps) == 3, "the stream, and a destination for each table"
