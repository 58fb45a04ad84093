"""`status` when a side can't be read: it says so, and shows the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from replicator import cli, config, status


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A configuration whose Postgres doesn't run: the folder of its socket is empty."""
    file = tmp_path / "config.yaml"
    file.write_text(f"""
name: shop
pipelines:
  - name: products
    tables: [products]
    source: {{stream: products}}
    sinks: [{{name: warehouse, kind: postgres, dsn: "postgresql:///db?host={tmp_path}"}}]
admin: null
state_directory: {tmp_path / "state"}
""")
    return file


def damage_leases(path: Path) -> None:
    folder = path.parent / "state"
    folder.mkdir()
    (folder / "leases.sqlite").write_bytes(b"no database" * 100)


def test_a_sink_that_cannot_be_reached_is_a_problem(path: Path) -> None:
    # An unreachable server is a TransientError: it left `status` as a bare failure.
    report = status.status(config.load(path, {}))
    assert isinstance(report, status.StatusReport)
    (pipeline,) = report.pipelines
    assert "[postgres_unavailable]" in pipeline.problem
    assert report.problem == ""
    assert not report.is_complete
    assert report.as_text().splitlines()[1].startswith("products: reading sink warehouse: ")
    assert "0 shards" not in report.as_text()


def test_a_lease_store_that_cannot_be_read_hides_no_sink(path: Path) -> None:
    damage_leases(path)
    report = status.status(config.load(path, {}))
    assert isinstance(report, status.StatusReport)
    assert "[lease_store_unreadable]" in report.problem
    assert [pipeline.name for pipeline in report.pipelines] == ["products"]
    assert not report.is_complete
    assert report.as_text().splitlines()[1].startswith("leases: lease store ")


def test_an_owner_is_unknown_without_the_leases() -> None:
    shard = {
        "shard": "shardId-0",
        "position": "",
        "last_arrival_at": None,
        "updated_at": None,
        "lease_owner": None,
    }
    pipelines = [status.PipelineStatus("products", shards=[shard])]
    assert "owner none" in status.StatusReport(pipelines).as_text()
    assert "owner unknown" in status.StatusReport(pipelines, problem="why").as_text()
    assert status.StatusReport(pipelines).is_complete


def test_the_command_prints_the_problem_and_fails(path: Path) -> None:
    damage_leases(path)
    arguments = ["status", "--config", str(path), "--output", "json"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert "lease_store_unreadable" in shown["problem"]
    assert "postgres_unavailable" in shown["pipelines"][0]["problem"]
