"""The configuration: what is refused, how it says so, and what the environment can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator import config
from replicator.errors import FatalError
from replicator.model import LATEST, TRIM_HORIZON, Ago, Position, PositionKind, at_timestamp
from replicator.settings import parse_start
from replicator.sink.postgres_settings import PostgresConfig

MINIMAL = """
name: shop
pipelines:
  - name: products
    tables: [products]
    source: {kind: kinesis, stream: products}
    sinks: [{name: warehouse, kind: postgres, dsn: "postgresql://u:hush@host/db"}]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(MINIMAL)
    return file


def warehouse(loaded: config.Config) -> PostgresConfig:
    (sink,) = loaded.pipelines[0].sinks
    assert isinstance(sink, PostgresConfig)
    return sink


def refused(path: Path, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(FatalError) as caught:
        config.load(path, environment or {})
    assert caught.value.code.startswith("config_")
    return str(caught.value)


def test_defaults_are_those_of_the_documentation(path: Path) -> None:
    loaded = config.load(path, {})
    assert loaded.limits.memory_bytes_max == 268_435_456
    assert loaded.drain_timeout_seconds == 25
    assert loaded.pipelines[0].source.start == "TRIM_HORIZON"
    assert warehouse(loaded).create is True


@pytest.mark.parametrize(
    ("line", "place", "hint"),
    [
        ("limts: {}", "top level", "'limits'"),
        ("limits: {batch_row_max: 3}", "limits", "'batch_rows_max'"),
        ("leases: {knd: sqlite}", "leases", "'kind'"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_valid_one(
    path: Path, line: str, place: str, hint: str
) -> None:
    path.write_text(MINIMAL + line + "\n")
    message = refused(path)
    assert place in message
    assert f"did you mean {hint}" in message


def test_one_wrong_item_is_one_problem(path: Path) -> None:
    message = refused(path, {"REPLICATOR_PIPELINES__0__SOURCE__START": "yesterday"})
    assert "pipelines.0.source.start" in message
    assert len(message.splitlines()) == 2


def test_no_secret_is_printed(path: Path) -> None:
    assert "hush" not in repr(config.load(path, {}))
    assert "hush" not in str(config.load(path, {}).model_dump(mode="json"))
    assert "hush" not in refused(path, {"REPLICATOR_PIPELINES__0__SINKS__0__CREATE": "hush"})


def test_the_environment_overrides_by_index_and_by_name(path: Path) -> None:
    loaded = config.load(
        path,
        {
            "REPLICATOR_LIMITS__BATCH_ROWS_MAX": "77",
            "REPLICATOR_PIPELINES__products__SINKS__warehouse__TABLE": "raw.{table}",
            "REPLICATOR_PIPELINES__0__SOURCE__START": "LATEST",
            "REPLICATOR_CONFIG": "elsewhere.yaml",
            "UNRELATED": "1",
        },
    )
    assert loaded.limits.batch_rows_max == 77
    assert warehouse(loaded).table == "raw.{table}"
    assert loaded.pipelines[0].source.start == "LATEST"


def test_the_environment_alone_is_enough_for_a_list(path: Path) -> None:
    path.write_text("name: shop\n")
    loaded = config.load(
        path,
        {
            "REPLICATOR_PIPELINES__0__NAME": "p",
            "REPLICATOR_PIPELINES__0__TABLES": "[a, b]",
            "REPLICATOR_PIPELINES__0__SOURCE__STREAM": "s",
            "REPLICATOR_PIPELINES__0__SINKS__0__NAME": "w",
        },
    )
    assert loaded.pipelines[0].table_names == ("a", "b")


def test_an_unknown_key_in_the_environment_is_refused(path: Path) -> None:
    assert "'drain_timeout_seconds'" in refused(path, {"REPLICATOR_DRAIN_TIMEOUT_SECOND": "1"})


def test_a_secret_comes_from_a_file(path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "dsn"
    secret.write_text("postgresql://other/db\n")
    loaded = config.load(path, {"REPLICATOR_PIPELINES__0__SINKS__0__DSN_FILE": str(secret)})
    assert warehouse(loaded).dsn.get_secret_value() == "postgresql://other/db"


DSN = "REPLICATOR_PIPELINES__0__SINKS__0__DSN"


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ('dsn: "postgresql://u:hush@host', 31),
        ("dsn: postgresql://u: hush", 20),
        ("dsn: *hush", 6),
        ("dsn: !hush x", 6),
        ("dsn: !hush!x y", 6),
        ("dsn: %hush", 6),
        ("dsn: [hush", 11),
    ],
)
def test_broken_yaml_is_placed_and_not_quoted(path: Path, line: str, column: int) -> None:
    # The driver's message shows the line in which the error is: a password as a rule.
    path.write_text(line)
    message = refused(path)
    assert "hush" not in message
    assert f"(line 1, column {column})" in message


@pytest.mark.parametrize(
    "line", ["dsn: 2026-02-30", "dsn: !!bool hush", "dsn: a\0hush", "[" * 5_000]
)
def test_what_the_yaml_driver_chokes_on_is_refused(path: Path, line: str) -> None:
    path.write_text(line)
    message = refused(path)
    assert "is no YAML" in message
    assert "hush" not in message


@pytest.mark.parametrize("text", ["{hush", "[hush", "{a: *hush}", "[!hush x]", '["hush]'])
def test_a_broken_list_in_the_environment_names_its_variable(path: Path, text: str) -> None:
    message = refused(path, {"REPLICATOR_PIPELINES__0__TABLES": text})
    assert "REPLICATOR_PIPELINES__0__TABLES is no YAML" in message
    assert "hush" not in message


@pytest.mark.parametrize(
    "text",
    ["*x", '"x', "'x", "0123", "1e3", "yes", "null", "2026-01-31", "a: b", "a #b", "!x", "%"],
)
def test_text_in_the_environment_is_no_yaml(path: Path, text: str) -> None:
    # `0123` was the octal 83, `yes` was true, `*x` ended in a traceback.
    loaded = config.load(path, {"REPLICATOR_AWS__EXTERNAL_ID": text, DSN: f"{text}\n"})
    assert loaded.aws.external_id == text
    assert warehouse(loaded).dsn.get_secret_value() == text


def test_text_in_the_environment_fits_every_kind_of_field(path: Path) -> None:
    loaded = config.load(
        path,
        {
            "REPLICATOR_LIMITS__BATCH_ROWS_MAX": "77",
            "REPLICATOR_DRAIN_TIMEOUT_SECONDS": "2.5",
            "REPLICATOR_PIPELINES__0__SINKS__0__CREATE": "false",
            "REPLICATOR_STATE_DIRECTORY": "0123",
            "REPLICATOR_PIPELINES__0__SOURCE__START": "1769860800.5",
            "REPLICATOR_LEASES": "{duration_seconds: 3}",
        },
    )
    assert loaded.limits.batch_rows_max == 77
    assert loaded.drain_timeout_seconds == 2.5
    assert warehouse(loaded).create is False
    assert loaded.state_directory == Path("0123")
    assert loaded.pipelines[0].source.start == "1769860800.5"
    assert loaded.leases.duration_seconds == 3


def test_an_unreadable_secret_names_its_variable_alone(path: Path, tmp_path: Path) -> None:
    # The value of a *_FILE may be the secret itself, by mistake.
    message = refused(path, {f"{DSN}_FILE": "postgresql://u:hush@host"})
    assert f"{DSN}_FILE" in message
    assert "hush" not in message
    binary = tmp_path / "dsn"
    binary.write_bytes(b"\xff")
    assert "UTF-8" in refused(path, {f"{DSN}_FILE": str(binary)})


def test_a_missing_file_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="--config") as caught:
        config.load(tmp_path / "none.yaml", {})
    assert caught.value.code == "config_missing"


@pytest.mark.parametrize("text", ["- a", "a: [", "\t"])
def test_what_is_no_mapping_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    refused(path)


def test_two_of_one_name_are_refused(path: Path) -> None:
    path.write_text(MINIMAL.replace("[products]", "[products, 'arn:aws:x:table/products']"))
    assert "'products' is named twice" in refused(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TRIM_HORIZON", TRIM_HORIZON),
        ("LATEST", LATEST),
        ("2026-01-31T12:00:00Z", at_timestamp(1_769_860_800_000_000)),
        ("2026-01-31T13:00:00.000001+01:00", at_timestamp(1_769_860_800_000_001)),
        ("1769860800", at_timestamp(1_769_860_800_000_000)),
        ("1769860800.5", at_timestamp(1_769_860_800_500_000)),
        ("1769860800123", at_timestamp(1_769_860_800_123_000)),
    ],
)
def test_starts(text: str, expected: object) -> None:
    assert parse_start(text) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h ago", 7_200),
        ("90s ago", 90),
        ("90 seconds ago", 90),
        ("30 minutes ago", 1_800),
        ("1 minute ago", 60),
        ("5m ago", 300),
        ("1 day ago", 86_400),
        ("3d  ago", 259_200),
    ],
)
def test_a_start_may_be_a_time_before_now(text: str, seconds: int) -> None:
    start = parse_start(text)
    assert start == Ago(seconds * 1_000_000)
    assert parse_start(str(start)) == start


def test_a_start_may_be_a_sequence_number() -> None:
    start = parse_start("49590338271490256608559692538361571095921575989136588898")
    assert isinstance(start, Position)
    assert start.kind is PositionKind.AT_SEQUENCE_NUMBER


@pytest.mark.parametrize(
    "text", ["yesterday", "", "2026-01-31T12:00:00", "12345", "latest", "2h", "2ms ago", "-1h ago"]
)
def test_what_is_no_start_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="start|time zone"):
        parse_start(text)


def test_yaml_may_write_a_start_unquoted(path: Path) -> None:
    path.write_text(MINIMAL.replace("stream: products}", "stream: s, start: 2026-01-31T12:00:00Z}"))
    loaded = config.load(path, {})
    assert parse_start(loaded.pipelines[0].source.start) == at_timestamp(1_769_860_800_000_000)


def test_the_schema_knows_every_section() -> None:
    properties = config.schema()["properties"]
    assert {"pipelines", "limits", "leases", "aws", "state_directory"} <= set(properties)


# ---- filter and attributes


def with_sink(path: Path, yaml: str) -> Path:
    """The configuration with more in its sink: one line, in YAML's flow style."""
    path.write_text(MINIMAL.replace("}]\n", ", " + yaml + "}]\n"))
    return path


@pytest.mark.parametrize(
    "yaml",
    [
        "filter: [{dynamodb: {NewImage: {price: {N: [{numeric: ['>', 10]}]}}}}]",
        """filter: ['{"dynamodb": {"NewImage": {"price": {"N": [{"numeric": [">", 10]}]}}}}']""",
    ],
)
def test_a_filter_is_a_mapping_or_its_json(path: Path, yaml: str) -> None:
    sink = warehouse(config.load(with_sink(path, yaml), {}))
    pattern = sink.pattern()
    assert pattern is not None
    assert pattern.names == ["dynamodb.NewImage"]
    assert "numeric" in str(sink.model_dump(mode="json")["filter"])


def test_without_filter_and_attributes_there_is_none(path: Path) -> None:
    sink = warehouse(config.load(path, {}))
    assert (sink.pattern(), sink.attributes) == (None, None)


@pytest.mark.parametrize(
    ("yaml", "place", "problem"),
    [
        (
            "filter: [{dynamodb: {NewImage: {price: [10]}}}]",
            "sinks.0.filter.0: dynamodb.NewImage.price.0",
            "the attribute's type",
        ),
        ("filter: [{eventname: [INSERT]}]", "filter.0: eventname", "no record has this"),
        ("filter: [{eventName: [INSERT]}]", "filter: filter 0, eventName", "which items belong"),
        ("filter: ['{']", "filter.0: the pattern is no JSON", ""),
        ("filter: [5]", "filter.0: an event pattern is wanted", ""),
        (
            "filter: [{dynamodb: {Keys: {a: {NULL: [true]}}}}]",
            "a: a name is read as None",
            "quotes",
        ),
        (
            "filter: [{tableName: [2026-01-01]}]",
            "tableName: YAML reads a value as a date",
            "quotes",
        ),
        ("attributes: {mask: [a], exclude: [a]}", "sinks.0.attributes: mask:", "named already"),
        ("attributes: {hash: [a]}", "sinks.0.attributes: hash:", "at least 16"),
        ("attributes: {hash_key: hush}", "hash_key", "nothing to hash"),
        ("attributes: {hashed: [a]}", "attributes", "did you mean 'hash'"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(
    path: Path, yaml: str, place: str, problem: str
) -> None:
    message = refused(with_sink(path, yaml))
    assert place in message
    assert problem in message
    assert "hush" not in message


def test_the_key_of_the_hashes_comes_from_a_file_and_is_never_shown(
    path: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "key"
    secret.write_text("correct horse battery\n")
    variable = "REPLICATOR_PIPELINES__products__SINKS__warehouse__ATTRIBUTES__HASH_KEY_FILE"
    loaded = config.load(with_sink(path, "attributes: {hash: [email]}"), {variable: str(secret)})
    attributes = warehouse(loaded).attributes
    assert attributes is not None
    attributes.projection().check(["id"])
    assert "horse" not in repr(loaded)
    assert "horse" not in str(loaded.model_dump(mode="json"))
    secret.write_text("horse")
    assert "horse" not in refused(path, {variable: str(secret)})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9464"),
        ("0.0.0.0", "http://127.0.0.1:9464"),
        ("::", "http://[::1]:9464"),
        ("admin.internal", "http://admin.internal:9464"),
    ],
)
def test_the_admin_address_is_reached_from_this_machine(host: str, url: str) -> None:
    assert config.AdminConfig(host=host).url == url


STREAMS = MINIMAL.replace("{kind: kinesis, stream: products}", "{kind: streams}")


def test_a_tables_own_stream_needs_no_name(path: Path) -> None:
    path.write_text(STREAMS)
    source = config.load(path, {}).pipelines[0].source
    assert isinstance(source, config.StreamsSourceConfig)
    assert source.stream is None
    assert source.start == "TRIM_HORIZON"


ARN = "arn:aws:dynamodb:eu-north-1:111122223333:table/{}/stream/2026-01-31T12:00:00.000"


@pytest.mark.parametrize(
    ("source", "place", "hint"),
    [
        ("{kind: streams, consumer: c}", "pipelines.0.source:", "unknown key 'consumer'"),
        ("{kind: streams, strem: c}", "pipelines.0.source:", "did you mean 'stream'"),
        ("{kind: streams, start: yesterday}", "pipelines.0.source.start:", "is no start"),
        ("{kind: streams, stream: products}", "pipelines.0.source.stream:", "pattern"),
        (f"{{kind: streams, stream: '{ARN.format('orders')}'}}", "pipelines.0:", "'products'"),
        ("{kind: kafka}", "pipelines.0.source:", "kinesis or streams"),
        ("{kind: kinesis}", "pipelines.0:", "source.stream is required"),
        ("streams", "pipelines.0.source:", "dictionary"),
    ],
)
def test_each_kind_of_source_has_its_own_keys(
    path: Path, source: str, place: str, hint: str
) -> None:
    path.write_text(MINIMAL.replace("{kind: kinesis, stream: products}", source))
    message = refused(path)
    assert place in message
    assert hint in message
    assert len(message.splitlines()) == 2


def test_a_streams_pipeline_has_one_table(path: Path) -> None:
    path.write_text(STREAMS.replace("[products]", "[products, orders]"))
    assert "about one table" in refused(path)
    path.write_text(
        STREAMS.replace("{kind: streams}", f"{{kind: streams, stream: '{ARN.format('products')}'}}")
    )
    assert config.load(path, {}).pipelines[0].source.kind == "streams"


TAGGED = STREAMS.replace("[products]", '{tags: {replicate: "yes", team: [a, b], owner: null}}')


def test_tables_may_be_found_by_tags(path: Path) -> None:
    path.write_text(TAGGED)
    pipeline = config.load(path, {}).pipelines[0]
    assert pipeline.tagged is not None
    assert pipeline.tagged.tags == {"replicate": ("yes",), "team": ("a", "b"), "owner": None}
    assert (pipeline.tagged.include, pipeline.tagged.exclude) == (("*",), ())
    found = pipeline.found(["orders"])
    assert (found.name, found.table_names) == (f"{pipeline.name}/orders", ("orders",))
    assert "start" not in pipeline.found(["orders"], is_later=True).source.model_fields_set


def test_what_is_found_later_begins_at_its_oldest_record(path: Path) -> None:
    path.write_text(TAGGED.replace("{kind: streams}", "{kind: streams, start: LATEST}"))
    pipeline = config.load(path, {}).pipelines[0]
    assert pipeline.found(["orders"]).source.start == "LATEST"
    assert pipeline.found(["orders"], is_later=True).source.start == "TRIM_HORIZON"


def test_a_shared_stream_is_one_run_with_one_consumer(path: Path) -> None:
    path.write_text(TAGGED.replace("{kind: streams}", "{kind: kinesis, stream: shared}"))
    loaded = config.load(path, {})
    pipeline = loaded.pipelines[0]
    found = pipeline.found(["orders", "users"])
    assert found.name == f"{pipeline.name}/shared"
    assert loaded.consumer_name(found) == loaded.consumer_name(pipeline)


@pytest.mark.parametrize(
    ("old", "new", "place", "hint"),
    [
        ('"yes"', "yes", "pipelines.0.tables.tags.replicate:", "put it into quotes"),
        ("[a, b]", "[]", "pipelines.0.tables.tags.team:", "null means any"),
        ("tags:", "tag:", "pipelines.0.tables:", "did you mean 'tags'"),
        (
            "{kind: streams}",
            f"{{kind: streams, stream: '{ARN.format('products')}'}}",
            "pipelines.0:",
            "leave it out",
        ),
    ],
)
def test_tags_that_cannot_be_are_refused(
    path: Path, old: str, new: str, place: str, hint: str
) -> None:
    path.write_text(TAGGED.replace(old, new))
    message = refused(path)
    assert place in message
    assert hint in message


def test_a_sink_of_no_known_kind_is_told_which_there_are(path: Path) -> None:
    path.write_text(MINIMAL.replace("kind: postgres", "kind: postgrse"))
    assert f"pipelines.0.sinks.0: kind is one of {', '.join(config.SINK_CONFIGS)}" in refused(path)


def test_a_sink_without_a_kind_is_postgres_and_what_is_wrong_in_it_has_its_place(
    path: Path,
) -> None:
    path.write_text(MINIMAL.replace("kind: postgres, ", ""))
    assert warehouse(config.load(path, {})).kind == "postgres"
    path.write_text(MINIMAL.replace("kind: postgres", "connections: 0"))
    assert "pipelines.0.sinks.0.connections: " in refused(path)
