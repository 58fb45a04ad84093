"""What the dead letters' commands say, without a sink that answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from replicator import config as configuration
from replicator import dead_letters
from replicator.errors import FatalError


@pytest.mark.parametrize("redrive", [True, False])
@pytest.mark.parametrize(
    ("sink", "action"),
    [
        ({"kind": "s3", "bucket": "lake"}, "remove its object under error_output_prefix"),
        (
            {"kind": "iceberg", "catalog": {"type": "glue"}, "table": "shop.{table}"},
            "delete the row from its dead letters' table",
        ),
    ],
)
async def test_a_sink_that_ends_none_says_what_to_do(
    tmp_path: Path, sink: dict[str, object], action: str, redrive: bool
) -> None:
    path = tmp_path / "config.yaml"
    source = {"kind": "kinesis", "stream": "products"}
    pipeline = {"name": "p", "tables": ["products"], "source": source}
    aws = {"region": "eu-north-1"}
    sinks = [{"name": "lake", **sink}]
    path.write_text(yaml.safe_dump({"aws": aws, "pipelines": [{**pipeline, "sinks": sinks}]}))
    with pytest.raises(FatalError, match=f"sink p/lake .* ends none.*{action}") as caught:
        await dead_letters.end(
            configuration.load(path), None, None, (), lambda _: True, redrive=redrive
        )
    assert caught.value.code == "usage_sink"


def test_what_became_of_them_is_said_in_a_line_each() -> None:
    row = {
        "pipeline": "p",
        "sink": "w",
        "id": "shard-1/7/0",
        "at": "2026-11-21",
        "code": "postgres_constraint",
        "table": "products",
        "key": None,
        "is_held": False,
    }
    rows = (
        row | {"outcome": "superseded", "reason": "a newer change"},
        row | {"outcome": "refused", "reason": "postgres_value: no"},
        row | {"outcome": "written", "reason": ""},
    )
    ended = dead_letters.Ended("redriven", rows)
    line = "p/w  shard-1/7/0  2026-11-21  postgres_constraint  products  no key"
    assert ended.as_text().splitlines() == [
        "redriven: 2; 1 stay",
        f"{line}  superseded: a newer change",
        f"{line}  refused: postgres_value: no",
        f"{line}  written",
    ]
    assert dead_letters.Ended("dropped", ()).as_text() == "dropped: 0"
    assert dead_letters.Listed().as_text() == "no dead letters"
