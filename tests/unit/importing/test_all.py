"""What holds for every format: it is recognised, nothing is lost in silence, no secret comes
out, and what comes out loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator import config
from replicator.errors import FatalError
from replicator.importing import ADAPTERS, Kind, imported
from replicator.importing.reading import read
from tests.imports import SAMPLES, leaves, of, sample, unknown

NAMES = sorted(path.name for path in SAMPLES.iterdir())
# Names that hold the options, and are none.
ENVELOPES = ("tasks.", "type")


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_recognised_by_one_adapter(name: str) -> None:
    text = (SAMPLES / name).read_text("utf-8")
    options = read(text, name)
    (only,) = (each for each, adapter in ADAPTERS.items() if adapter.recognises(options))
    assert name.startswith(only)
    assert sample(name).format == only
    assert imported(text, name, only) == sample(name)


def test_every_format_has_a_sample() -> None:
    assert {sample(name).format for name in NAMES} == set(ADAPTERS)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_carried_over_or_named(name: str) -> None:
    result = sample(name)
    told = {note.option.lower() for note in result.notes} | {o.lower() for o in result.mapped}
    for place in leaves(name):
        if place.startswith(ENVELOPES):
            continue
        parts = place.lower().split(".")
        # A path's end, or a part of it that is explained as a whole.
        parts_of = {
            ".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)
        }
        assert parts_of & told, place


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_comes_out(name: str) -> None:
    assert "geheim" not in repr(sample(name)).lower()


def test_the_samples_hold_secrets() -> None:
    holding = [name for name in NAMES if "geheim" in (SAMPLES / name).read_text("utf-8").lower()]
    assert {sample(name).format for name in holding} == {
        "confluent-kinesis",
        "confluent-dynamodb",
        "trustpilot",
        "kcl",
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_out_loads(name: str) -> None:
    result = sample(name)
    text = yaml.safe_dump(result.config, sort_keys=False)
    assert "&id" not in text, "each pipeline has values of its own, which can be changed alone"
    written = yaml.safe_load(text)
    assert written == result.config
    for pipeline in written["pipelines"]:
        if pipeline["sinks"][0]["kind"] not in config.SINK_CONFIGS:
            pipeline["sinks"] = [{"name": "stand-in", "kind": "postgres"}]
    loaded = config.checked(written, name)
    assert [each.name for each in loaded.pipelines] == [
        each["name"] for each in result.config["pipelines"]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_notes_are_sorted_and_said_once(name: str) -> None:
    notes = sample(name).notes
    order = list(Kind)
    assert [order.index(note.kind) for note in notes] == sorted(
        order.index(note.kind) for note in notes
    )
    assert len(set(notes)) == len(notes)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("confluent-kinesis.json", "kinesis.colour"),
        ("firehose-describe.json", "Sparkle"),
        ("lambda-kinesis.json", "Mood"),
    ],
)
def test_an_unknown_option_is_named_without_its_value(name: str, option: str) -> None:
    assert unknown(sample(name)) == {option}


def test_an_unknown_option_is_named_even_when_it_is_empty() -> None:
    content = {"applicationName": "a", "streamName": "s", "later": ""}
    assert unknown(of(content)) == {"later"}


# ---- what can't be imported


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "[1]",
        '{"Records": []}',
        "name: shop\npipelines: []",
        '{"name": "x", "config": {"connector.class": "FileStreamSource"}}',
    ],
)
def test_what_isnt_recognised_names_what_could_be(text: str) -> None:
    with pytest.raises(FatalError, match="isn't recognised") as caught:
        imported(text, "thing.json")
    assert caught.value.code == "config_import_format"
    for name in ADAPTERS:
        assert name in caught.value.message


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_format_can_be_forced_only_on_options(name: str) -> None:
    for text in ("[]", "[1, 2]", "{}"):
        with pytest.raises(FatalError) as caught:
            imported(text, "thing.json", name)
        assert caught.value.code == "config_import_format"


def test_a_connector_under_another_class_can_be_forced() -> None:
    content = {"connector.class": "com.shop.OurKinesis", "kinesis.stream": "products"}
    with pytest.raises(FatalError):
        of(content)
    assert of(content, "confluent-kinesis").config["pipelines"][0]["source"]["stream"] == "products"


def test_a_format_that_isnt_there() -> None:
    with pytest.raises(FatalError, match="no format 'debezium'"):
        imported("{}", "thing.json", "debezium")


@pytest.mark.parametrize("text", ['{"a": ', '{"password": geheim}', "[" * 100_000])
def test_broken_json_is_told_by_its_place_alone(text: str) -> None:
    with pytest.raises(FatalError, match="thing.json is no JSON") as caught:
        imported(text, "thing.json")
    assert caught.value.code == "config_import_unreadable"
    assert "geheim" not in caught.value.message


@pytest.mark.parametrize(
    "text", ['{"connector.class": "\\ud800"}', "applicationName=a\nstreamName=\\udc00"]
)
def test_half_a_character_is_told(text: str) -> None:
    with pytest.raises(FatalError, match="half a character"):
        imported(text, "thing.json")


@pytest.mark.parametrize("info", [None, "connector.class", 3])
def test_what_only_begins_like_a_connector_is_not_recognised(info: object) -> None:
    with pytest.raises(FatalError, match="isn't recognised"):
        of({"a": {"info": info}})


JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(name=st.sampled_from([name for name in NAMES if name.endswith(".json")]), data=st.data())
@settings(max_examples=200)
def test_no_value_of_an_option_breaks_an_adapter(name: str, data: st.DataObject) -> None:
    content = read((SAMPLES / name).read_text("utf-8"), name)
    node, key = data.draw(st.sampled_from(list(places(content))))
    node[key] = data.draw(JUNK)
    with suppress(FatalError):
        result = imported(json.dumps(content), name, sample(name).format)
        assert result.config["pipelines"]


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Where a value stands: the mapping or list, and its key."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield node, key
        if isinstance(value, dict | list):
            yield from places(value)


def test_a_byte_order_mark_is_no_option() -> None:
    result = imported("\ufeff" + json.dumps({"applicationName": "a", "streamName": "s"}), "x")
    assert unknown(result) == set()
