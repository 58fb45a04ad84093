"""What a script sees: exit codes, JSON, and never a secret."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from replicator import cli, service

SECRET = "ge-heim"
COMMANDS = (
    "run",
    "check",
    "status",
    "inspect",
    "shards",
    "demo",
    "config schema",
    "config show",
    "config import",
)
SHARDS = ("shards", "--writes", "40", "--bytes", "1285", "--updates", "25")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line: its exit code, standard output and standard error."""

    def invoke(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["replicator", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code
        shown = capsys.readouterr()
        assert isinstance(code, int | None)
        return code or 0, shown.out, shown.err

    for name in ("REPLICATOR_CONFIG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return invoke


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that loads; its Postgres doesn't run, its password is a secret."""
    path = tmp_path / "config.yaml"
    dsn = f"postgresql://me:{SECRET}@/db?host={tmp_path}"
    path.write_text(f"""
name: shop
pipelines:
  - name: products
    tables: [products]
    source: {{stream: products}}
    sinks: [{{name: warehouse, kind: postgres, dsn: "{dsn}"}}]
admin: {{port: 0}}
state_directory: {tmp_path / "state"}
""")
    return path


# ---- exit codes


def test_done_is_zero(run: Run, config: Path) -> None:
    assert run("config", "show", "--config", config)[0] == 0
    assert run("config", "schema")[0] == 0
    assert run(*SHARDS)[0] == 0
    assert service.EXIT_DRAINED == 0


def test_failed_is_one(run: Run, config: Path) -> None:
    (config.parent / "state").write_text("a file where the folder should be")
    code, out, err = run("run", "--config", config, "--output", "json")
    assert (code, out) == (1, "")
    (line,) = (json.loads(text) for text in err.splitlines() if '"error"' in text)
    assert line["code"] == "lease_store_unwritable"
    assert cli.EXIT_FAILED == service.EXIT_FAILED == 1


def test_a_record_that_was_refused_is_one(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_text("not a change\n")
    assert run("inspect", path)[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("run", "--fast"),
        ("shards", "--writes", "many", "--bytes", "1", "--updates", "1"),
        ("shards", "--writes", "1", "--bytes", "1", "--updates", "101"),
        ("check", "--output", "xml"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_two(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err


@pytest.mark.parametrize("command", ["run", "check", "status", "config show"])
def test_a_configuration_that_makes_no_sense_is_two(
    run: Run, config: Path, command: str, tmp_path: Path
) -> None:
    code, out, err = run(*command.split(), "--config", tmp_path / "none.yaml")
    assert (code, out) == (2, "")
    assert "[config_missing]" in err
    config.write_text(config.read_text().replace("tables:", "table:"))
    code, out, err = run(*command.split(), "--config", config)
    assert (code, out) == (2, "")
    assert "did you mean 'tables'?" in err
    assert err.startswith("replicator: ")


def test_an_unknown_log_level_is_two_and_names_the_known_ones(run: Run, config: Path) -> None:
    code, _, err = run("run", "--config", config, "--log-level", "loud")
    assert code == 2
    assert "debug, info, warning or error [usage_log_level]" in err


def test_a_drain_that_timed_out_is_three() -> None:
    assert cli.EXIT_DRAIN_TIMEOUT == service.EXIT_DRAIN_TIMEOUT == 3


# ---- what every command knows


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_tells_its_version(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--version")
    assert code == 0
    assert re.fullmatch(r"replicator \d+\.\d+\.\d+\S* \(commit \S+, (release|debug) build\)\n", out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "-h")
    assert code == 0
    assert "--output" in out
    assert "--version" in out


def test_no_command_is_a_question(run: Run) -> None:
    code, out, err = run()
    assert code in {0, 2}
    assert all(command.split()[0] in out + err for command in COMMANDS)


# ---- another tool's configuration


@pytest.fixture
def connector(tmp_path: Path) -> Path:
    """A connector of Kafka Connect with a secret and an option that nobody knows."""
    path = tmp_path / "connector.json"
    config = {
        "connector.class": "io.confluent.connect.kinesis.KinesisSourceConnector",
        "kinesis.stream": "products",
        "aws.secret.key.id": SECRET,
        "kinesis.colour": "green",
    }
    path.write_text(json.dumps({"name": "shop", "config": config}))
    return path


def test_an_import_writes_yaml_alone_and_says_the_rest_on_stderr(run: Run, connector: Path) -> None:
    code, out, err = run("config", "import", connector)
    assert code == 0
    assert yaml.safe_load(out)["pipelines"][0]["source"]["stream"] == "products"
    assert f"{connector}: Confluent's Kinesis source connector" in err
    headings = [line for line in err.splitlines() if not line.startswith(" ")][1:]
    assert [heading.split(",")[0] for heading in headings] == [
        "to fill in",
        "secrets",
        "unknown",
        "carried over",
        "no equal here:",
    ]
    assert "  kinesis.colour: no such option" in err
    assert SECRET not in out + err


def test_an_import_as_json(run: Run, connector: Path) -> None:
    code, out, err = run("config", "import", connector, "--output", "json")
    shown = json.loads(out)
    assert (code, err) == (0, "")
    assert shown["format"] == "confluent-kinesis"
    assert shown["mapped"]["kinesis.stream"] == "source.stream"
    assert {"kind": "unknown", "option": "kinesis.colour"}.items() <= next(
        note for note in shown["notes"] if note["kind"] == "unknown"
    ).items()
    assert SECRET not in out


def test_an_import_of_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "applicationName = shop\nstreamName = caf\xe9".encode("latin-1")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    code, out, _ = run("config", "import", "-", "--from", "kcl")
    assert code == 0
    assert yaml.safe_load(out)["pipelines"][0]["source"]["stream"] == "café"


def test_what_cant_be_imported_is_two(run: Run, connector: Path, tmp_path: Path) -> None:
    for arguments, reason in (
        ((tmp_path / "none.json",), "can't read"),
        ((connector, "--from", "debezium"), "no format 'debezium'"),
        ((tmp_path / "empty",), "isn't recognised"),
    ):
        (tmp_path / "empty").write_text("")
        code, out, err = run("config", "import", *arguments)
        assert (code, out) == (2, "")
        assert reason in err


def test_what_an_import_lacks_to_be_loaded_is_said(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "app.properties"
    path.write_text(
        "applicationName = shop\nstreamName = s\ninitialPositionInStreamExtended = soon"
    )
    _, _, err = run("config", "import", path)
    assert "doesn't load yet" in err
    assert "pipelines.0.source.start" in err


# ---- JSON


def test_the_configuration_as_json(run: Run, config: Path) -> None:
    _, out, _ = run("config", "show", "--config", config, "--output", "json")
    assert json.loads(out)["pipelines"][0]["tables"] == ["products"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_schema_is_json_always(run: Run, form: str) -> None:
    _, out, _ = run("config", "schema", "--output", form)
    assert json.loads(out)["properties"]["pipelines"]


def test_the_number_of_shards_as_json(run: Run) -> None:
    _, out, _ = run(*SHARDS, "--output", "json")
    assert json.loads(out)["shards"] == 1


def test_the_status_as_json(run: Run, config: Path) -> None:
    code, out, _ = run("status", "--config", config, "--output", "json")
    assert code == 1
    assert json.loads(out)["pipelines"][0]["name"] == "products"


def test_inspect_prints_json_lines_whatever_is_asked(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_text("not a change\n")
    _, out, err = run("inspect", path, "--output", "json")
    assert out == ""
    assert json.loads(err)["line"] == 1


# ---- secrets


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("command", ["config show", "status", "run"])
def test_a_secret_is_printed_by_no_command(run: Run, config: Path, command: str, form: str) -> None:
    (config.parent / "state").write_text("so that run fails at once")
    _, out, err = run(*command.split(), "--config", config, "--output", form)
    assert out or err
    assert SECRET not in out + err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: postgres", "kind: oracle"),
        ("tables:", "table:"),
        ("name: warehouse", "name: 7"),
        ("dsn:", "dns:"),
        ("sinks: [", "sinks: [["),
        ("postgresql://me", "'postgresql://me"),
    ],
)
def test_a_mistake_beside_a_secret_does_not_print_it(
    run: Run, config: Path, old: str, new: str
) -> None:
    config.write_text(config.read_text().replace(old, new))
    code, out, err = run("config", "show", "--config", config)
    if code:
        assert (code, out) == (2, "")
    assert SECRET not in out + err


def test_a_secret_from_the_environment_is_masked_too(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICATOR_PIPELINES__products__SINKS__0__DSN", f"postgresql://{SECRET}")
    _, out, _ = run("config", "show", "--config", config)
    assert SECRET not in out
    assert "**********" in out
