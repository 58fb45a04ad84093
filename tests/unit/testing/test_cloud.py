"""The fault cloud without a reader: what decides, what is made, and the way in for tests."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import aiohttp
import pytest

from replicator import _core
from replicator.demo.compare import plain_item
from replicator.model import TableSchema
from replicator.testing.cloud import (
    KINDS,
    SCRIPTS,
    CloudClock,
    Fault,
    FaultCloud,
    StreamsCloud,
    parse_script,
)
from replicator.testing.cloud.faults import Mischief, Place
from replicator.testing.cloud.history import History
from replicator.testing.cloud.journal import Journal
from replicator.testing.cloud.workload import Workload
from replicator.testing.items import with_bytes
from replicator.testing.sink import MemorySink
from replicator.testing.stream import ScriptedStream
from tests.changes import STREAM, pending

TABLE = TableSchema("products", (("id", "S"),))


def struck(mischief: Mischief, chances: int, **where: str) -> list[int]:
    return [n for n in range(1, chances + 1) if mischief.strikes(Place.CALL, 0.0, **where)]


# --- when a fault strikes ---


def test_by_the_number_of_the_call() -> None:
    mischief = Mischief(0, [Fault(kind="drop", operation="ListShards", calls=(2, 5))])
    assert struck(mischief, 3, operation="GetRecords") == []
    assert struck(mischief, 9, operation="ListShards") == [2, 5]


def test_without_a_when_it_strikes_once() -> None:
    assert struck(Mischief(0, [Fault(kind="drop")]), 5) == [1]


def test_by_a_share_that_the_seed_draws() -> None:
    fault = Fault(kind="drop", share=0.1)
    drawn = struck(Mischief(1, [fault]), 2_000)
    assert 150 < len(drawn) < 250
    assert drawn == struck(Mischief(1, [fault]), 2_000)
    assert drawn != struck(Mischief(2, [fault]), 2_000)


def test_what_one_shard_draws_changes_nothing_for_another() -> None:
    fault = Fault(kind="drop", share=0.3)
    alone = struck(Mischief(1, [fault]), 50, shard="a")
    mischief, together = Mischief(1, [fault]), []
    for n in range(1, 51):
        if mischief.strikes(Place.CALL, 0.0, shard="a"):
            together.append(n)
        mischief.strikes(Place.CALL, 0.0, shard="b")
    assert together == alone


def test_by_time() -> None:
    script = [
        Fault(kind="split", at_seconds=(3, 5)),
        Fault(kind="merge", every_seconds=4.0, until_seconds=9.0),
    ]
    mischief = Mischief(0, script)
    happened = {
        now: [fault.kind for fault in mischief.strikes(Place.TICK, float(now))] for now in range(14)
    }
    assert {now: kinds for now, kinds in happened.items() if kinds} == {
        3: ["split"],
        4: ["merge"],
        5: ["split"],
        8: ["merge"],
    }


def test_a_script_is_json_and_says_what_is_wrong() -> None:
    (fault,) = parse_script('[{"kind": "cut", "share": 0.5}]')
    assert fault == Fault(kind="cut", share=0.5)
    for wrong in ('[{"kind": "cutt"}]', '[{"kind": "cut", "chance": 1}]', "{", '{"kind": "cut"}'):
        with pytest.raises(ValueError, match=r"no fault|chance|JSON|Expecting|tuple"):
            parse_script(wrong)


def test_the_full_script_knows_every_kind_but_those_that_lose_data() -> None:
    kinds = {fault.kind for name in ("full", "streams") for fault in SCRIPTS[name]}
    losing = {"trim", "delete_stream", "recreate_stream"}
    assert KINDS.keys() - kinds == losing


def test_a_service_refuses_faults_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="bad_crc, merge"):
        StreamsCloud(script=[Fault(kind="merge"), Fault(kind="bad_crc")])
    with pytest.raises(ValueError, match="rotate"):
        FaultCloud(script=[Fault(kind="rotate")])


# --- the workload and its oracle ---


def made(seed: int, script: tuple[Fault, ...], count: int) -> tuple[Workload, ScriptedStream]:
    stream = ScriptedStream(2, now_ms=lambda: 0)
    journal = Journal(lambda: 0.0)
    workload = Workload(stream, History(seed, TABLE.name, keys=40), Mischief(seed, script), journal)
    for place in range(0, count, 50):
        workload.make(50, 0.0)
        if place == count // 100 * 50:
            stream.split(stream.shards()[0].id)
    workload.flush()
    return workload, stream


def payloads(stream: ScriptedStream) -> list[bytes]:
    return [
        record.payload
        for shard in stream.shards()
        for record in stream.records(shard.id, 0, stream.count(shard.id))
    ]


def test_the_same_seed_makes_the_same_records() -> None:
    first, second = (payloads(made(3, SCRIPTS["trouble"], 400)[1]) for _ in range(2))
    assert first == second
    assert first != payloads(made(4, SCRIPTS["trouble"], 400)[1])


def test_no_instant_ends_where_it_began() -> None:
    """Else only the arrival would tell what is last."""
    history = History(1, TABLE.name, keys=5)
    instants: dict[tuple[str, int], list[Any]] = {}
    for number in range(3_000):
        if number % 5 == 0:
            history.later()
        change = json.loads(history.change(history.pick()))["dynamodb"]
        at = (change["Keys"]["id"]["S"], change["ApproximateCreationDateTime"] // 1_000)
        images = change.get("OldImage"), change.get("NewImage")
        instants.setdefault(at, [images[0], None])[1] = images[1]
    assert len(instants) < 2_000, "changes do share instants"
    assert all(first != last for first, last in instants.values())


@pytest.mark.parametrize("seed", range(8))
async def test_the_oracle_is_what_comes_of_the_records(seed: int) -> None:
    """Shard by shard in pieces of any size, parents first, as a reader stores them."""
    hard = (
        Fault(kind="equal_instant", share=0.3, count=4),
        Fault(kind="milliseconds", share=0.4),
        Fault(kind="reorder", share=0.3, count=30),
        Fault(kind="duplicate", share=0.3, count=60),
        Fault(kind="redeliver", share=0.2, count=60),
        Fault(kind="ttl", share=0.2),
    )
    workload, stream = made(seed, hard, 1_000)
    sink = MemorySink()
    await sink.open([TABLE])
    for shard in stream.shards():
        fence = await sink.fence(STREAM, shard.id, "w")
        await sink.position(fence)
        writer = sink.writer(fence)
        data = [r.payload for r in stream.records(shard.id, 0, stream.count(shard.id))]
        for place in range(0, len(data), 7 + seed):
            piece = data[place : place + 7 + seed]
            await writer.write(writer.encode([pending(fence, piece, first=place + 1)]))
    stored = {key[0]: row.item for key, row in sink.items(TABLE.name).items() if row.item}
    assert stored == truth(workload.history.items)


def test_all_that_the_workload_can_do_is_a_change_but_the_poison() -> None:
    workload, stream = made(1, SCRIPTS["trouble"], 2_000)
    data = payloads(stream)
    batch = _core.decode(
        _core.Records.pack(data, [str(n) for n in range(len(data))], [0] * len(data))
    )
    events = Counter(json.loads(each).get("eventName") for each in data if each[-2:] == b'"}')
    assert set(events) >= {"INSERT", "MODIFY", "REMOVE"}
    assert len(batch.rejections) == workload._journal.counts["poison"] > 0
    assert any(b"principalId" in each for each in data)
    assert any(b"MILLISECOND" in each for each in data)


def truth(items: dict[str, Any]) -> dict[str, Any]:
    return {
        key: plain_item({name: with_bytes(value) for name, value in item.items()})
        for key, item in items.items()
    }


# --- the way in ---


async def test_the_control_api() -> None:
    async with (
        FaultCloud(seed=1, clock=CloudClock(stopped=True), retention_seconds=100) as cloud,
        aiohttp.ClientSession(f"{cloud.url}") as http,
    ):

        async def ask(method: str, path: str, body: Any = None) -> Any:
            async with http.request(method, f"/_control/{path}", json=body) as answer:
                assert answer.status == 200, await answer.text()
                return await answer.json()

        assert (await ask("GET", "state"))["seconds"] == 0
        await ask("POST", "workload", {"changes": 30})
        state = await ask("POST", "faults", {"kind": "split", "at_seconds": [5]})
        assert state == [{"kind": "split", "at_seconds": [5.0]}]
        state = await ask("POST", "advance", {"seconds": 6})
        assert state["faults"] == {"split": 1}
        assert [shard["is_open"] for shard in state["shards"]].count(True) == 3
        assert state["changes"] == state["records"] == 30
        await ask("POST", "workload", {"rate": 10})
        assert (await ask("POST", "advance", {"seconds": 2}))["changes"] == 50
        assert (await ask("POST", "workload", {"rate": 0}))["rate"] == 0
        oracle = await ask("GET", "oracle")
        assert oracle == {"changes": 50, "items": cloud.workload.history.items}
        async with http.get("/_control/log") as answer:
            (line,) = (await answer.text()).splitlines()
        assert json.loads(line) | {"shard": "", "children": []} == {
            "n": 1,
            "seconds": 6.0,
            "kind": "split",
            "shard": "",
            "children": [],
        }
        assert await ask("PUT", "script", [{"kind": "cut"}]) == [{"kind": "cut"}]
        async with http.post("/_control/faults", json={"kind": "cutt"}) as answer:
            assert answer.status == 400
            assert "is no fault" in (await answer.json())["error"]
        state = await ask("POST", "advance", {"seconds": 200})
        assert state["faults"]["shard_expired"] == 1
        assert len(state["shards"]) == 3
