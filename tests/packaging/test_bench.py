"""`make bench` for machines: its last line is one JSON object. Figures themselves never gate."""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bench import compress, environment, kafka, records
from bench.page import Page
from bench.peers.child import started
from bench.peers.known import PEERS
from replicator import _core

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(_core.BUILD_PROFILE != "release", reason="a debug build is refused"),
]


def run(part: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.run", part, "--quick", "--output", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "small" in done.stderr, "the tables go to stderr then"
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == {part}
    found: dict[str, Any] = report[part]
    return found


def test_the_core_is_measured_by_every_peer_that_is_installed() -> None:
    report = run("core")
    assert set(report) == set(records.SHAPES)
    installed = {peer.name for peer in PEERS if peer.is_installed}
    assert installed >= {"orjson.loads", "orjson+TypeDeserializer"}, "they need no set-up"
    for of_shape in report.values():
        ratios, targets = of_shape.pop("ratios"), of_shape.pop("targets")
        assert of_shape.pop("unit") == "MB/s"
        assert set(of_shape) == {"ours", *installed}
        assert all(rate > 0 for rate in of_shape.values())
        assert set(ratios) == installed
        assert all(0 < ratio["low"] <= ratio["high"] for ratio in ratios.values())
        assert set(targets) <= {peer.name for peer in PEERS}


def test_cost_is_measured_as_it_grows() -> None:
    report = run("scale")
    for what in ("bytes a record", "keys in 2,500 records", "records a batch"):
        sizes = [cost["size"] for cost in report[what]]
        assert len(sizes) >= 5
        assert sizes == sorted(set(sizes))
        assert all(cost["us"] > 0 for cost in report[what])
    assert set(report["threads"]) == set(report["memory"]) == set(records.SHAPES)
    for ratios in report["threads"].values():
        assert set(ratios) == {"two threads", "two processes", "two threads that hash"}
    for peaks in report["memory"].values():
        assert all(peak["grown_bytes"] > peak["in_flight_bytes"] for peak in peaks)


def test_a_page_of_results_says_how_it_was_made() -> None:
    page = "\n".join(environment.lines(["core", "--quick"]))
    for fact in ("core --quick", _core.COMMIT, "cores", f"orjson {metadata.version('orjson')}"):
        assert fact in page
    assert platform.node() not in page


def test_a_table_is_markdown_on_request() -> None:
    out = io.StringIO()
    page = Page(out, "markdown")
    page.part("core")
    page.row("shape", "MB/s")
    page.row("small", "1|2")
    assert out.getvalue().split("\n")[1:] == [
        "## `core`",
        "",
        "| shape | MB/s |",
        "|---|---:|",
        "| small | 1\\|2 |",
        "",
    ]


def test_sized_records_have_their_size_and_decode() -> None:
    for nbytes in (512, 4_000, 64_000):
        payloads = records.sized(nbytes, 6, keys=3)
        assert all(abs(len(payload) - nbytes) < 60 for payload in payloads)
        batch = _core.decode(_core.Records.pack(payloads))
        assert not batch.rejections
        assert len(batch.newest(records.TABLE, [("id", "S")])) == 3


@pytest.mark.parametrize(
    ("part", "unit", "variants"),
    [
        ("ingest", "records/s", {"stock+orjson", "ours to COPY"}),
        ("end-to-end", "records/s", {"ours", "ready-made"}),
        ("parquet", "MB/s", {"document", "orjson rows", "json rows", "arrow"}),
        ("dynamodb", "items/s", {"ours", "botocore"}),
        ("cratedb", "items/s", {"ours", "python"}),
    ],
)
def test_a_part_measures_every_shape(part: str, unit: str, variants: set[str]) -> None:
    report = run(part)
    assert {name.split()[0] for name in report} == set(records.SHAPES)
    for rates in report.values():
        assert rates.pop("unit") == unit
        assert set(rates) >= variants
        assert all(rate > 0 for rate in rates.values())


def test_a_peer_that_finds_something_else_is_no_result(tmp_path: Path) -> None:
    peer = next(peer for peer in PEERS if peer.name == "orjson.loads")
    payloads = records.payloads("small", 20)
    file = tmp_path / "payloads"
    records.write(file, payloads)
    with started(peer, file, payloads) as run_a_round:
        assert run_a_round() > 0
    half_blind = replace(peer, images=("NewImage",))
    with pytest.raises(AssertionError, match="found"), started(half_blind, file, payloads):
        pass


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
