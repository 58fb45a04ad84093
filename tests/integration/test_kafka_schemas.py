"""Values by schemas of a registry, read back by other people's libraries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import fastavro
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from replicator.core.schemas import columns_of, text_of, written
from replicator.errors import FatalError, TransientError
from replicator.model import TableSchema, after
from replicator.testing.kafka_server import KafkaServer
from replicator.testing.registry_server import RegistryServer
from tests.changes import STREAM, number, pending, put, remove
from tests.kafka_records import Record
from tests.kafka_rig import BASE_US, PRODUCTS, Rig, fenced, kafka_rig, write
from tests.registered import (
    avro_document,
    avro_value,
    document,
    json_document,
    json_value,
    number_of,
)

KEY = {"id": {"S": "k"}}
DIGITS = "1234567890123456789.0123456789012345678"
Item = dict[str, Any]
HARD: Item = {
    "n": {"N": DIGITS},
    "small": {"N": "1E-130"},
    "great": {"N": "-9.9999999999999999999999999999999999999E125"},
    "empty": {"S": ""},
    "quoted": {"S": 'a "b" \\ \n ä \u2028'},
    "nul": {"S": "a\0b"},
    "flag": {"BOOL": False},
    "nothing": {"NULL": True},
    "blob": {"B": "AAECAw=="},
    "no bytes": {"B": ""},
    "names": {"SS": ["b", "a", ""]},
    "numbers": {"NS": ["10", "9", DIGITS]},
    "blobs": {"BS": ["AA==", "/w=="]},
    "map": {"M": {"deep": {"L": [{"N": DIGITS}, {"NULL": True}, {"M": {}}]}}},
    "list": {"L": []},
    "a b": {"S": "a name that Avro doesn't allow"},
    "a-b": {"N": "1"},
    "1st": {"N": "2"},
    "naïve": {"S": "ï"},
    "extra": {"S": "has the name of the rest"},
}


@pytest.fixture
async def rig(kafka_server: KafkaServer) -> AsyncIterator[Rig]:
    async with kafka_rig(kafka_server) as made:
        yield made


@pytest.fixture
async def registry() -> AsyncIterator[RegistryServer]:
    async with RegistryServer(user="writer", password="a:secret", compatibility="FULL") as server:
        yield server


def told(server: RegistryServer, /, **more: Any) -> dict[str, Any]:
    """The sink's settings."""
    return {
        "format": "avro",
        "tables": [PRODUCTS],
        **more,
        "registry": {
            "url": server.url,
            "username": "writer",
            "password": "a:secret",
            **more.get("registry", {}),
        },
    }


def change(n: int, key: dict[str, Any] = KEY, old: Any = None, /, **attributes: Any) -> bytes:
    return put("products", key, BASE_US + n * 1_000_000, old, **attributes)


def newest(registry: RegistryServer, subject: str) -> Any:
    return json.loads(registry.versions[subject][-1].schema)


def read(registry: RegistryServer, record: Record) -> Any:
    """A record's value by the schema that it names, and its documents."""
    assert record.value is not None
    schema = registry.schema(number_of(record.value))
    if "$schema" in schema:
        value = json_value(record.value, schema)
        undone = json_document
    else:
        value = avro_value(record.value, fastavro.parse_schema(schema))

        def undone(item: Any) -> Any:
            return avro_document(item, schema)

    if "version" not in value:
        return undone(value)
    return value | {"item": undone(value["item"]), "old": undone(value["old"])}


@pytest.mark.parametrize("format_", ["avro", "json_schema"])
@pytest.mark.parametrize("value", ["change", "item"])
async def test_every_value_comes_as_it_is(
    rig: Rig, registry: RegistryServer, format_: str, value: str
) -> None:
    registry.compatibility[""] = "FULL" if format_ == "avro" else "BACKWARD"
    sink = await rig.worker(**told(registry, format=format_, value=value))
    fence = await fenced(sink)
    first: Item = {**KEY, **HARD}
    second: Item = {
        **KEY,
        "n": {"S": "no number now"},
        "empty": {"NULL": True},
        "later": {"N": "1"},
    }
    payloads = [
        change(1, **HARD),
        put("products", KEY, BASE_US + 2_000_000, first, **second),
        remove("products", KEY, BASE_US + 3_000_000, second),
    ]
    result = await write(sink, pending(fence, payloads))
    assert (result.rows, result.dead_letters) == (3, ())
    found = await rig.records()
    assert {record.key for record in found} == {b'{"id":"k"}'}, "keys are text, as with plain"
    assert [record.headers["event"] for record in found[:2]] == [b"INSERT", b"MODIFY"]
    assert found[-1].value is None, "a tombstone has no value, not even a framed one"
    values = [read(registry, record) for record in found[:-1]]
    if value == "item":
        assert values == [document(first), document(second)]
        return
    assert [each["event"] for each in values] == ["INSERT", "MODIFY", "REMOVE"]
    assert [each["item"] for each in values] == [document(first), document(second), None]
    assert [each["old"] for each in values] == [None, document(first), document(second)]
    assert {each["table"] for each in values} == {"products"}
    keys = [json.loads(v["key"]) if format_ == "avro" else v["key"] for v in values]
    assert keys == [{"id": "k"}] * 3
    assert [each["version"] for each in values] == [str(BASE_US + n * 1_000_000) for n in (1, 2, 3)]


@pytest.mark.parametrize("format_", ["avro", "json_schema"])
async def test_a_late_change_says_so(rig: Rig, registry: RegistryServer, format_: str) -> None:
    registry.compatibility[""] = "BACKWARD"
    sink = await rig.worker(**told(registry, format=format_))
    fence = await fenced(sink)
    for n, us in enumerate((5, 1), 1):
        await write(sink, pending(fence, [change(us, n={"N": str(us)})], first=n))
    values = [read(registry, record) for record in await rig.records()]
    assert [(each["item"]["n"], each.get("late", False)) for each in values] == [
        (5, False),
        (1, True),
    ]


@pytest.mark.parametrize("format_", ["avro", "json_schema"])
async def test_a_schema_grows_in_mid_stream_and_old_records_stay_readable(
    rig: Rig, registry: RegistryServer, format_: str
) -> None:
    registry.compatibility[""] = "FULL_TRANSITIVE" if format_ == "avro" else "BACKWARD_TRANSITIVE"
    sink = await rig.worker(**told(registry, format=format_))
    fence = await fenced(sink)
    subject = f"{rig.prefix}.products-value"
    grown: list[Item] = [
        {"a": {"N": "1"}},
        {"a": {"N": "2"}, "b": {"SS": ["x"]}},
        {"c": {"B": "AA=="}},
        {},
    ]
    with capture_logs() as told_log:
        for n, attributes in enumerate(grown, 1):
            await write(sink, pending(fence, [change(n, **attributes)], first=n))
    assert [(each["event"], each["id"], each["attributes"]) for each in told_log] == [
        ("schema_registered", 1, 2),
        ("schema_registered", 2, 3),
        ("schema_registered", 3, 4),
    ]
    asked = [name for name, _ in registry.calls]
    assert len(registry.versions[subject]) == 3
    await write(sink, pending(fence, [change(9, a={"S": "another type"})], first=9))
    assert [name for name, _ in registry.calls] == asked, "nothing new: nobody is asked"
    found = await rig.records()
    images = [{**KEY, **attributes} for attributes in (*grown, {"a": {"S": "another type"}})]
    assert [read(registry, record)["item"] for record in found] == list(map(document, images))
    numbers = [number_of(record.value or b"") for record in found]
    assert numbers == [1, 2, 3, 3, 3]
    last = newest(registry, subject)
    for record in found:
        assert record.value is not None
        if format_ == "avro":
            # A reader that knows only the newest schema, and one that knows only the first.
            written = fastavro.parse_schema(registry.schema(number_of(record.value)))
            for reader in (last, registry.schema(1)):
                assert avro_value(record.value, written, fastavro.parse_schema(reader))["item"]
        else:
            json_value(record.value, last)


async def test_a_restart_goes_on_with_the_same_schema(rig: Rig, registry: RegistryServer) -> None:
    settings = told(registry)
    first = await rig.worker(**settings)
    await write(first, pending(await fenced(first), [change(1, b={"S": "x"}, a={"N": "1"})]))
    await first.close()
    registry.calls.clear()
    second = await rig.worker(**settings)
    fence = await fenced(second)
    await write(second, pending(fence, [change(2, a={"N": "2"})], first=2))
    await write(second, pending(fence, [change(3, a={"N": "3"}, b={"S": "y"})], first=3))
    subject = f"{rig.prefix}.products-value"
    assert [name for name, _ in registry.calls] == [f"GET /subjects/{subject}/versions/latest"]
    assert [number_of(record.value or b"") for record in await rig.records()] == [1, 1, 1]


@pytest.mark.parametrize("format_", ["avro", "json_schema"])
@pytest.mark.parametrize("names", [("x", "y"), ("a-b", "a_b")])
async def test_workers_that_grow_it_at_once_come_to_one_schema(
    rig: Rig, registry: RegistryServer, format_: Any, names: tuple[str, str]
) -> None:
    """Both look before either registers, and the second registers when the first is done: its
    schema lacks the first's column, and of a JSON Schema a registry doesn't take that."""
    registry.compatibility[""] = "FULL" if format_ == "avro" else "BACKWARD"
    subject = f"{rig.prefix}.products-value"
    values = [{"N": "1"}, {"S": "s"}]
    looked, posted, both, first_done = 0, 0, asyncio.Event(), asyncio.Event()

    async def together(name: str) -> web.Response | None:
        nonlocal looked, posted
        if name.startswith("GET"):
            looked += 1
            if looked == 2:
                both.set()
            return None
        posted += 1
        is_second = posted > 1
        async with asyncio.timeout(60):
            await both.wait()
            if is_second:
                await first_done.wait()
        return None

    registry.before = together
    sinks = [await rig.worker(**told(registry, format=format_)) for _ in names]
    fences = [await fenced(sink, f"shard-{n}") for n, sink in enumerate(sinks)]

    async def grow(n: int, name: str) -> None:
        payload = change(n, {"id": {"S": name}}, **{name: values[n]})
        await write(sinks[n], pending(fences[n], [payload]))
        first_done.set()

    await asyncio.gather(*(grow(n, name) for n, name in enumerate(names)))
    columns = dict(columns_of(format_, "change", newest(registry, subject)))
    assert columns == {"id": "text", names[0]: "numeric", names[1]: "text"}
    items = [read(registry, record)["item"] for record in await rig.records()]
    assert sorted(items, key=str) == [
        {"id": names[0], names[0]: 1},
        {"id": names[1], names[1]: "s"},
    ]


async def test_a_subject_that_never_rests_is_left_for_later(
    rig: Rig, registry: RegistryServer
) -> None:
    subject = f"{rig.prefix}.products-value"

    async def meddle(name: str) -> web.Response | None:
        if name.startswith("GET") and subject in registry.versions:
            # Another's version each time, which lacks what was just added.
            columns = ((f"x{len(registry.versions[subject])}", "text"),)
            schema = written("avro", "change", columns, "replicator.products")
            registry.register(subject, text_of(schema))
        return None

    registry.before = meddle
    sink = await rig.worker(**told(registry))
    with pytest.raises(TransientError) as contended:
        await write(sink, pending(await fenced(sink), [change(1)]))
    assert contended.value.code == "registry_contended"
    registry.before = None
    await write(sink, pending(await fenced(sink), [change(1)]))
    assert len(await rig.records()) == 1


async def test_a_refused_schema_stops_the_shard_and_names_what_the_registry_said(
    rig: Rig, registry: RegistryServer
) -> None:
    subject = f"{rig.prefix}.products-value"
    theirs = {"type": "record", "name": "Theirs", "fields": [{"name": "a", "type": "int"}]}
    registry.register(subject, json.dumps(theirs))
    sink = await rig.worker(**told(registry))
    with pytest.raises(FatalError) as refused:
        await write(sink, pending(await fenced(sink), [change(1)]))
    assert refused.value.code == "schema_incompatible"
    assert subject in refused.value.message
    assert "Theirs" in refused.value.message
    assert "secret" not in refused.value.message
    assert await rig.records() == []
    assert await sink.positions(STREAM) == {}


async def test_a_registry_that_is_away_costs_nothing(rig: Rig, registry: RegistryServer) -> None:
    sink = await rig.worker(**told(registry))
    # The driver itself asks once more when a connection is cut.
    for faults in ([None, None], [web.Response(status=503)]):
        registry.faults.extend(faults)
        with pytest.raises(TransientError):
            await write(sink, pending(await fenced(sink), [change(1, a={"N": "1"})]))
        assert await sink.positions(STREAM) == {}
        registry.faults.clear()
    await write(sink, pending(await fenced(sink), [change(1, a={"N": "1"})]))
    assert await sink.positions(STREAM) == {"shard-1": after(number(1))}
    assert len(await rig.records()) == 1


async def test_an_operators_schema_is_written_by(rig: Rig, registry: RegistryServer) -> None:
    settings = told(registry, value="item", registry={"auto_register": False})
    subject = f"{rig.prefix}.products-value"
    sink = await rig.worker(**settings)
    with pytest.raises(FatalError) as missing:
        await write(sink, pending(await fenced(sink), [change(1)]))
    assert missing.value.code == "schema_missing"
    foreign = {"type": "record", "name": "P", "fields": [{"name": "id", "type": "string"}]}
    registry.compatibility[subject] = "NONE"
    registry.register(subject, json.dumps(foreign))
    with pytest.raises(FatalError, match="another shape") as other:
        await write(sink, pending(await fenced(sink), [change(1)]))
    assert other.value.code == "schema_foreign"
    by_hand = {
        "type": "record",
        "name": "com.shop.Product",
        "fields": [
            {"name": "id", "type": ["null", "string"]},
            {
                "name": "price",
                "type": [
                    "null",
                    {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2},
                ],
                "doc": "in kronor",
            },
            {"name": "extra", "type": "string"},
        ],
    }
    mine = registry.register(subject, json.dumps(by_hand))
    values = {"price": {"N": "12.50"}, "stock": {"N": "3"}}
    await write(sink, pending(await fenced(sink), [change(1, **values)]))
    await write(sink, pending(await fenced(sink), [change(2, price={"N": "0.001"})], first=2))
    found = await rig.records()
    assert [number_of(record.value or b"") for record in found] == [mine, mine]
    schema = fastavro.parse_schema(by_hand)
    read_back = [avro_value(record.value or b"", schema) for record in found]
    assert [(str(each["price"]), each["extra"]) for each in read_back] == [
        ("12.50", '{"stock":3}'),
        ("None", '{"price":0.001}'),
    ]
    assert len(registry.versions[subject]) == 2, "nothing was registered"


async def test_a_record_that_is_too_large_goes_to_the_dead_letters(
    rig: Rig, registry: RegistryServer
) -> None:
    more = {"topic_settings": {"max.message.bytes": "2000"}, "compression": "none"}
    sink = await rig.worker(**told(registry, **more))
    large, small = {"id": {"S": "large"}}, {"id": {"S": "small"}}
    payloads = [
        change(1, large, text={"S": "x" * 3_000}),
        change(2, small, text={"S": "x"}),
        change(3, large, text={"S": "x"}),
    ]
    result = await write(sink, pending(await fenced(sink), payloads))
    assert result.rejected_by_code == {"record_too_large": 1, "key_quarantined": 1}
    (record,) = await rig.records()
    assert read(registry, record)["item"] == {"id": "small", "text": "x"}
    assert {letter.value for letter in await rig.letters()} == {payloads[0], payloads[2]}


async def test_attributes_that_a_sink_may_not_see_are_in_no_schema(
    rig: Rig, registry: RegistryServer
) -> None:
    sink = await rig.worker(**told(registry, attributes={"exclude": ["secret"]}))
    await write(sink, pending(await fenced(sink), [change(1, secret={"S": "s"}, a={"N": "1"})]))
    assert "secret" not in registry.versions[f"{rig.prefix}.products-value"][-1].schema


async def test_attributes_beyond_the_limit_are_in_the_rest(
    rig: Rig, registry: RegistryServer
) -> None:
    settings = told(registry, columns={"at": "timestamptz"}, registry={"columns_max": 2})
    sink = await rig.worker(**settings)
    values: dict[str, Any] = {"at": {"S": "2026-01-31T12:00:00Z"}, "b": {"N": "2"}}
    await write(sink, pending(await fenced(sink), [change(1, **values)]))
    (record,) = await rig.records()
    schema = registry.schema(1)
    value = avro_value(record.value or b"", fastavro.parse_schema(schema))["item"]
    assert list(value) == ["at", "id", "extra"]
    assert value["at"].isoformat() == "2026-01-31T12:00:00+00:00"
    assert value["extra"] == '{"b":2}'


async def test_two_tables_have_two_subjects(rig: Rig, registry: RegistryServer) -> None:
    tables = [PRODUCTS, TableSchema("orders", (("id", "S"),))]
    topic = f"{rig.prefix}.all"
    with pytest.raises(FatalError) as shared:
        await rig.worker(**told(registry, topic=topic, tables=tables))
    assert shared.value.code == "schema_subject_shared"
    names = {"subject_name_strategy": "topic_record_name", "namespace": "com.shop"}
    sink = await rig.worker(**told(registry, topic=topic, tables=tables, registry=names))
    payloads = [change(1), put("orders", KEY, BASE_US, total={"N": "1"})]
    await write(sink, pending(await fenced(sink), payloads))
    assert registry.versions.keys() == {
        f"{topic}-com.shop.products.Change",
        f"{topic}-com.shop.orders.Change",
    }


async def test_check_tells_what_the_registry_would_say(rig: Rig, registry: RegistryServer) -> None:
    subject = f"{rig.prefix}.products-value"
    sink = await rig.worker(**told(registry))

    async def found() -> tuple[str, str]:
        (finding,) = [
            each for each in (await sink.plan([PRODUCTS])).findings if each.subject == "schema"
        ]
        return finding.message, finding.code

    assert await found() == (f"subject {subject} has no version: run registers one", "")
    await write(sink, pending(await fenced(sink), [change(1)]))
    assert await found() == (f"subject {subject}: version 1, id 1, 1 attribute", "")
    registry.compatibility[subject] = "NONE"
    registry.register(subject, json.dumps({"type": "record", "name": "P", "fields": []}))
    registry.compatibility[subject] = "BACKWARD"
    message, code = await found()
    assert code == "schema_incompatible"
    assert "NAME_MISMATCH" in message
    assert "write to another topic" in message
    registry.faults.append(web.Response(status=401, text="no"))
    assert (await found())[1] == "registry_denied"
    assert registry.versions.keys() == {subject}


async def test_check_tells_of_each_table_and_of_the_registry_once(
    rig: Rig, registry: RegistryServer
) -> None:
    tables = [PRODUCTS, TableSchema("orders", (("id", "S"),))]
    sink = await rig.worker(**told(registry, tables=tables, registry={"auto_register": False}))

    async def codes() -> list[str]:
        findings = (await sink.plan(tables)).findings
        return [each.code for each in findings if each.subject == "schema"]

    assert await codes() == ["schema_missing", "schema_missing"]
    registry.faults.append(web.Response(status=401, text="no"))
    assert await codes() == ["registry_denied"]


@pytest.mark.parametrize(("compatibility", "code"), [("FULL", "schema_closed"), ("BACKWARD", "")])
async def test_check_tells_that_a_schema_may_not_grow(
    rig: Rig, registry: RegistryServer, compatibility: str, code: str
) -> None:
    registry.compatibility[""] = compatibility
    sink = await rig.worker(**told(registry, format="json_schema"))
    await write(sink, pending(await fenced(sink), [change(1)]))
    (found,) = [each for each in (await sink.plan([PRODUCTS])).findings if each.subject == "schema"]
    assert found.code == code
    assert found.is_warning == bool(code)
    versions = registry.versions[f"{rig.prefix}.products-value"]
    assert len(versions) == 1, "a check registers nothing"
