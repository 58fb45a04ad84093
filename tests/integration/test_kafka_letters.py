"""Dead letters of the Kafka sink, seen and ended by an operator (law 11)."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from replicator import config as configuration
from replicator._core import Records, decode
from replicator.errors import FatalError, LeaseLost
from replicator.model import SHARD_END, Fence, Pending, StoredLetter, TableSchema, after
from replicator.sink.kafka import KafkaSink
from replicator.testing.kafka_server import KafkaServer
from replicator.testing.kinesis_server import KinesisServer
from replicator.testing.stream import ScriptedStream
from tests.changes import STREAM, number, pending, put, remove
from tests.engine import TABLES
from tests.integration.test_check import replicator
from tests.kafka_rig import BASE_US, Rig, configured, fenced, kafka_rig, write
from tests.kafka_stack import kafka_config
from tests.shop import TABLE
from tests.stack import run_worker, until

LARGE = {"max.message.bytes": "100000"}
SMALL: dict[str, Any] = {"topic_settings": {"max.message.bytes": "2000"}}


@pytest.fixture
async def rig(kafka_server: KafkaServer) -> AsyncIterator[Rig]:
    async with kafka_rig(kafka_server) as made:
        yield made


def change(key: str, second: int, size: int = 1) -> bytes:
    time_us = BASE_US + second * 1_000_000
    return put("products", {"id": {"S": key}}, time_us, n={"S": "x" * size})


CHANGES = [
    change("a", 1),
    change("a", 2, 3_000),
    change("b", 3),
    remove("products", {"id": {"S": "a"}}, BASE_US + 4_000_000),
    b"broken",
    change("c", 5, 3_000),
    change("a", 6),
]


async def describe() -> list[TableSchema]:
    raise AssertionError("a topic is known by its table's name")


async def quarantining(rig: Rig, **more: Any) -> KafkaSink:
    """A worker with two keys that are quarantined, and a record that nobody can read."""
    sink = await rig.worker(compression="none", **SMALL, **more)
    result = await write(sink, pending(await fenced(sink), CHANGES))
    codes = {"record_too_large": 2, "key_quarantined": 2, "malformed_json": 1}
    assert dict(result.rejected_by_code) == codes
    return sink


async def ended(sink: KafkaSink, ids: list[str], *, redrive: bool) -> list[StoredLetter]:
    return [each async for each in sink.end_letters(ids, "operator", redrive=redrive)]


async def of_key(rig: Rig, key: str) -> list[int]:
    """The seconds of its changes, as a careful reader sees them."""
    return [
        (int(record.headers["version"]) - BASE_US) // 1_000_000
        for record in await rig.records()
        if json.loads(record.key)["id"] == key and record.value is not None
    ]


async def test_what_waits_is_listed_with_its_key_and_why(rig: Rig) -> None:
    await quarantining(rig)
    operator = await rig.worker(tables=())
    found = await operator.letters()
    found = sorted(found, key=lambda one: one.position)
    assert [(one.code, one.key, one.is_held) for one in found] == [
        ("record_too_large", '{"id":{"S":"a"}}', True),
        ("key_quarantined", '{"id":{"S":"a"}}', True),
        ("malformed_json", None, False),
        ("record_too_large", '{"id":{"S":"c"}}', True),
        ("key_quarantined", '{"id":{"S":"a"}}', True),
    ]
    assert [one.raw for one in found] == [CHANGES[n] for n in (1, 3, 4, 5, 6)]
    assert found[0].id == f"shard-1/{number(2)}/0"
    assert await (await rig.worker("other", tables=())).letters() == []


async def test_a_key_is_written_again_in_order_and_goes_on(rig: Rig) -> None:
    worker = await quarantining(rig)
    operator = await rig.worker(tables=(), compression="none")
    last = (await operator.letters())[-1]
    with pytest.raises(FatalError, match="larger than topic .* takes"):
        await ended(operator, [last.id], redrive=True)
    assert len(await operator.letters()) == 5, "nothing was ended"
    await configured(rig, f"{rig.prefix}.products", LARGE)
    found = await ended(operator, [last.id], redrive=True)
    assert [one.raw for one in found] == [CHANGES[n] for n in (1, 3, 6)]
    assert await of_key(rig, "a") == [1, 2, 4, 6]
    assert [one.code for one in await operator.letters()] == ["malformed_json", "record_too_large"]
    codes = {"record_too_large": 1, "malformed_json": 1}
    assert dict((await operator.report()).dead_letters) == codes
    # Who wrote the shard finds out, and the next goes on with the key in its topic.
    late = pending(next(iter(worker._writers)), [change("b", 7)], first=8)
    assert (await write(worker, late)).lost == {"shard-1"}
    other = await rig.worker(compression="none", **SMALL)
    fence = await other.fence(STREAM, "shard-1", "other")
    await other.position(fence)
    again = pending(fence, [*CHANGES, change("a", 8), change("c", 9)])
    assert dict((await write(other, again)).rejected_by_code) == {"key_quarantined": 1}
    assert await of_key(rig, "a") == [1, 2, 4, 6, 8]


async def test_a_late_change_that_is_written_again_is_still_marked(rig: Rig) -> None:
    sink = await rig.worker(compression="none", **SMALL)
    fence = await fenced(sink)
    await write(sink, pending(fence, [change("a", 10)]))
    rest = [change("a", 5, 3_000), change("a", 11), change("a", 6)]
    result = await write(sink, pending(fence, rest, first=2))
    assert dict(result.rejected_by_code) == {"record_too_large": 1, "key_quarantined": 2}
    await configured(rig, f"{rig.prefix}.products", LARGE)
    operator = await rig.worker(tables=(), compression="none")
    assert len(await ended(operator, [], redrive=True)) == 3
    marks = {}
    for record in await rig.records():
        second = (int(record.headers["version"]) - BASE_US) // 1_000_000
        marks[second] = json.loads(record.value or b"{}").get("late")
    assert marks == {10: None, 5: True, 6: True, 11: None}


@pytest.mark.parametrize("named", [0, 1])
async def test_a_key_that_waits_in_a_child_too_is_written_again_in_order(
    rig: Rig, named: int
) -> None:
    """Regression: the child's letters went before its parent's, and its key stayed quarantined."""
    sink = await rig.worker(compression="none", **SMALL)

    async def begun(sink: KafkaSink, shard: str, *parents: str) -> Fence:
        fence = await sink.fence(STREAM, shard, "me")
        sink.inherit(fence, parents)
        await sink.position(fence)
        return fence

    parent = await begun(sink, "shard-1")
    large = [change("a", 1, 3_000), change("c", 1, 3_000)]
    await write(sink, pending(parent, large, then=SHARD_END))
    child = await begun(sink, "shard-2", "shard-1")
    await write(sink, pending(child, [change("a", 2)], then=SHARD_END))
    await begun(sink, "shard-3", "shard-2")
    await configured(rig, f"{rig.prefix}.products", LARGE)
    operator = await rig.worker(tables=())
    waiting = [one for one in await operator.letters() if '"a"' in str(one.key)]
    one = sorted(waiting, key=lambda one: one.shard)[named]
    found = await ended(operator, [one.id], redrive=True)
    assert [letter.shard for letter in found] == ["shard-1", "shard-2"]
    assert [letter.shard for letter in await operator.letters()] == ["shard-1"], "another key's"
    grandchild = await begun(sink, "shard-3", "shard-2")
    result = await write(sink, pending(grandchild, [change("a", 3), change("c", 3)]))
    assert dict(result.rejected_by_code) == {"key_quarantined": 1}
    records = [r for r in await rig.records() if json.loads(r.key)["id"] == "a"]
    seconds = [(int(r.headers["version"]) - BASE_US) // 1_000_000 for r in records]
    assert seconds == [1, 2, 3]


async def test_what_ended_before_an_error_is_told(rig: Rig) -> None:
    """Regression: who ended letters of several shards heard of none when one of them failed."""
    sink = await rig.worker(compression="none", **SMALL)
    for shard, size in (("shard-1", 3_000), ("shard-2", 200_000)):
        fence = await fenced(sink, shard)
        await write(sink, pending(fence, [change(shard, 1, size)]))
    await configured(rig, f"{rig.prefix}.products", LARGE)
    operator = await rig.worker(tables=(), compression="none")
    ending = operator.redrive_letters([], "me", describe)
    first = await anext(ending)
    assert (first.letter.shard, first.outcome) == ("shard-1", "written")
    with pytest.raises(FatalError, match="larger than topic .* takes"):
        await anext(ending)
    assert [one.shard for one in await operator.letters()] == ["shard-2"]


async def test_a_record_that_names_no_table_is_written_again_too(rig: Rig) -> None:
    """Regression: a letter of DynamoDB Streams, whose records name no table, had no key and could
    only be dropped."""
    sink = await rig.worker(compression="none", **SMALL)
    fence = await fenced(sink)
    record = json.loads(change("a", 1, 3_000))
    del record["tableName"]
    batch = decode(Records.pack([json.dumps(record).encode()], [number(1)]), table="products")
    await write(sink, Pending(fence, batch, after(number(1)), None, 0.0))
    await configured(rig, f"{rig.prefix}.products", LARGE)
    operator = await rig.worker(tables=())
    (letter,) = await operator.letters()
    assert (letter.table, letter.key, letter.is_held) == ("products", '{"id":{"S":"a"}}', True)
    await ended(operator, [letter.id], redrive=True)
    assert await of_key(rig, "a") == [1]


async def test_what_is_dropped_is_over_and_its_key_goes_on(rig: Rig) -> None:
    await quarantining(rig)
    operator = await rig.worker(tables=())
    broken = next(one for one in await operator.letters() if not one.is_held)
    with pytest.raises(FatalError, match="can't be written again"):
        await ended(operator, [broken.id], redrive=True)
    with pytest.raises(FatalError, match="no dead letter"):
        await ended(operator, ["shard-1/7/0"], redrive=False)
    assert await ended(operator, [broken.id], redrive=False) == [broken]
    assert len(await operator.letters()) == 4
    assert len(await ended(operator, [], redrive=False)) == 4
    assert await operator.letters() == []
    assert (await operator.report()).dead_letters == {}
    other = await rig.worker(compression="none", **SMALL)
    fence = await fenced(other, owner="other")
    result = await write(other, pending(fence, [*CHANGES, change("a", 8)]))
    assert result.dead_letters == ()
    assert await of_key(rig, "a") == [1, 8]


async def test_all_that_can_be_is_written_again_and_the_rest_stays(rig: Rig) -> None:
    await quarantining(rig)
    operator = await rig.worker(tables=())
    await configured(rig, f"{rig.prefix}.products", LARGE)
    outcomes = [each.outcome async for each in operator.redrive_letters([], "me", describe)]
    assert outcomes == ["refused", "written", "written", "written", "written"]
    (left,) = await operator.letters()
    for ids in ([], [left.id]):
        (ended,) = [each async for each in operator.redrive_letters(ids, "me", describe)]
        assert (ended.letter, ended.outcome) == (left, "refused")
        assert ended.reason == f"malformed_json: {left.message}"
    assert [each.outcome async for each in operator.drop_letters([], "me")] == ["dropped"]
    with pytest.raises(FatalError, match="no dead letter"):
        await anext(operator.redrive_letters([left.id], "me", describe))


@pytest.mark.parametrize("times", [1, 9])
async def test_who_takes_the_shard_meanwhile_is_not_written_over(rig: Rig, times: int) -> None:
    await quarantining(rig)
    operator, other = await rig.worker(tables=()), await rig.worker(**SMALL)
    waiting = operator._dead.waiting
    taken: list[Fence] = []

    async def waiting_then_fenced() -> Any:
        found = await waiting()
        if operator._shards and len(taken) < times:  # it holds the fence
            taken.append(await fenced(other, owner="other"))
        return found

    operator._dead.waiting = waiting_then_fenced  # type: ignore[method-assign]
    await configured(rig, f"{rig.prefix}.products", LARGE)
    if times == 1:
        assert len(await ended(operator, [], redrive=True)) == 4
        assert await of_key(rig, "a") == [1, 2, 4, 6]
    else:
        with pytest.raises(LeaseLost):
            await ended(operator, [], redrive=True)
        assert len(await (await rig.worker(tables=())).letters()) == 5
        assert await of_key(rig, "a") == [1]


async def test_the_command_lists_shows_redrives_and_drops(rig: Rig, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:1"  # nothing of AWS is asked
    beside = [{"name": "w", "kind": "postgres", "dsn": "postgresql://127.0.0.1:1/absent"}]
    config = kafka_config(tmp_path, nowhere, rig.server, rig.prefix, beside)
    loaded = configuration.load(config)
    (pipeline,) = loaded.pipelines
    await quarantining(rig, pipeline=loaded.sink_name(pipeline, pipeline.sink("bus")))

    async def said(*words: str, code: int = 0) -> Any:
        given = ("dead-letters", *words, "--config", config, "--output", "json")
        found, out, err = await replicator(*given)
        assert found == code, (out, err)
        return json.loads(out) if out else err

    listed = await said("list", code=1)
    (problem,) = listed["problems"]
    assert problem.startswith("p/w: ")
    assert {row["sink"] for row in listed["dead_letters"]} == {"bus"}
    ids = {row["code"]: row["id"] for row in listed["dead_letters"]}
    at = ("--sink", "bus")
    shown = await said("show", ids["malformed_json"], *at)
    assert (shown["raw"], shown["shard"]) == ("broken", "shard-1")
    assert "Say --yes" in await said("drop", ids["malformed_json"], *at, code=2)
    assert len((await said("drop", ids["malformed_json"], "--yes", *at))["dead_letters"]) == 1
    await configured(rig, f"{rig.prefix}.products", LARGE)
    redriven = await said("redrive", "--all", "--yes", *at)
    assert redriven["done"] == "redriven"
    assert [row["outcome"] for row in redriven["dead_letters"]] == ["written"] * 4
    assert (await said("list", *at))["dead_letters"] == []
    assert await of_key(rig, "a") == [1, 2, 4, 6]


async def test_a_worker_that_runs_meanwhile_goes_on_behind_what_is_written_again(
    rig: Rig, tmp_path: Path
) -> None:
    stream = ScriptedStream(1)
    (shard,) = stream.shards()
    later = time.time_ns() // 1_000 - BASE_US

    def add(*made: tuple[int, int]) -> None:
        seconds = ((later // 1_000_000 + second, size) for second, size in made)
        stream.append(shard.id, [change("a", second, size) for second, size in seconds])

    served = KinesisServer(stream, name=TABLE, tables=TABLES, heartbeat_seconds=0.2)
    async with served as server:
        config = kafka_config(
            tmp_path, server.url, rig.server, rig.prefix, compression="none", **SMALL
        )
        loaded = configuration.load(config)
        (pipeline,) = loaded.pipelines
        name = loaded.sink_name(pipeline, pipeline.sink("bus"))
        operator = await rig.worker(name, tables=(), compression="none")
        async with run_worker(config, tmp_path / "log") as worker:

            async def listed() -> bool:
                return len(await operator.letters()) >= 2  # the last one comes a second later

            async def redriven() -> bool:
                try:
                    await ended(operator, [], redrive=True)
                except LeaseLost:
                    return False  # the worker's leases are short: it was quicker
                return True

            async def seen() -> bool:
                return len(await of_key(rig, "a")) >= 5

            add((1, 1), (2, 3_000), (3, 1), (4, 1))
            await until(listed, seconds=60)
            await configured(rig, f"{rig.prefix}.products", LARGE)
            await until(redriven, seconds=60)
            add((5, 1), (6, 1))
            await until(seen, seconds=60)
            assert await worker.stop() == 0
        found = await of_key(rig, "a")
        assert found == sorted(found)
        assert [second - later // 1_000_000 for second in found][:5] == [1, 2, 3, 4, 5]
