"""What a script sees: exit codes, JSON, and never a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator import cli, service

SECRET = "ge-heim"
COMMANDS = ("run", "check", "status", "inspect", "shards", "demo", "config schema", "config show")
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
