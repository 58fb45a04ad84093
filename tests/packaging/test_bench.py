"""`make bench` for machines: its last line is one JSON object. Figures themselves never gate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import compress, kafka, records
from replicator import _core

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(_core.BUILD_PROFILE != "release", reason="a debug build is refused"),
]


@pytest.mark.parametrize(
    ("part", "unit", "variants"),
    [
        ("core", "MB/s", {"ours", "orjson.loads", "orjson+TypeDeserializer"}),
        ("end-to-end", "records/s", {"ours", "ready-made"}),
        ("parquet", "MB/s", {"document", "orjson rows", "json rows", "arrow"}),
        ("dynamodb", "items/s", {"ours", "botocore"}),
    ],
)
def test_the_last_line_is_one_object(part: str, unit: str, variants: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.run", part, "--quick", "--output", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == {part}
    assert set(report[part]) == set(records.SHAPES)
    for rates in report[part].values():
        assert rates.pop("unit") == unit
        assert set(rates) >= variants
        assert all(rate > 0 for rate in rates.values())
    assert "small" in done.stderr, "the tables go to stderr then"


def test_small_parts_measure_both_sides() -> None:
    packed = kafka.measure("small", "zstd", is_quick=True)
    assert set(packed.us) == {"ours", "aiokafka"}
    assert packed.share > 0
    smaller = compress.measure("small", is_quick=True)
    assert set(smaller.rates) == set(smaller.sizes) == set(compress.CODECS)
    assert all(0 < size < 1 for size in smaller.sizes.values())


def test_the_records_are_the_same_on_every_run() -> None:
    first, second = (records.payloads("small", 300) for _ in range(2))
    assert first == second
    assert len(set(first)) < len(first), "some are redelivered"
