"""`make bench`: what the product does, beside what it is measured by, in one run.

    python -m bench.run [PART ...] [--output text|markdown|json] [--quick]

Rates are higher-is-better. With `--output json` the last line of stdout is one JSON object, and the
tables go to stderr; with `--output markdown` stdout is a page for `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bench import environment, records
from bench.page import Page
from replicator import _core

Report = dict[str, Any]
PARTS = ("core", "scale", "end-to-end")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 when the extension is a debug build."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="what to run (all)")
    parser.add_argument("--output", choices=("text", "markdown", "json"), default="text")
    parser.add_argument("--quick", action="store_true", help="a fifth of the work: a look only")
    options = parser.parse_args(arguments)
    if _core.BUILD_PROFILE != "release":
        print("this is a debug build of the core: make build, then again", file=sys.stderr)
        return 2
    page = Page(
        sys.stderr if options.output == "json" else sys.stdout,
        "markdown" if options.output == "markdown" else "text",
    )
    if options.output == "markdown":
        for line in environment.lines(sys.argv[1:] if arguments is None else arguments):
            page.note(f"- {line}")
    report: Report = {}
    for part in options.part or PARTS:
        page.part(part)
        report[part] = _RUN[part](options.quick, page)
    if options.output == "json":
        print(json.dumps(report))
    return 0


def _core_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - a table calls it
    from bench import core  # noqa: PLC0415 - each part has imports of its own
    from bench.peers.known import PEERS  # noqa: PLC0415 - see above

    results = {shape: core.measure(shape, is_quick=is_quick) for shape in records.SHAPES}
    peers = [peer.name for peer in PEERS]
    page.head("core, MB/s of input", *results)
    for name in (core.OURS, *peers):
        rates = [result.rates.get(name) for result in results.values()]
        page.row(name, *(_NOT_INSTALLED if rate is None else f"{rate:.0f}" for rate in rates))
    page.head("ours, times faster than", *results)
    for name in peers:
        page.row(
            name,
            *(
                core.verdict(name, shape, result.ratios[name])
                if name in result.ratios
                else _NOT_INSTALLED
                for shape, result in results.items()
            ),
        )
    return {
        shape: {
            "unit": "MB/s",
            **result.rates,
            "ratios": {name: ratio.report() for name, ratio in result.ratios.items()},
            "targets": core.targets(shape),
        }
        for shape, result in results.items()
    }


def _scale_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - a table calls it
    from bench import scale  # noqa: PLC0415 - see above

    report: Report = {}
    for what, costs, per in (
        ("bytes a record", scale.by_record_bytes(is_quick=is_quick), "ns per further byte"),
        ("keys in 2,500 records", scale.by_keys(is_quick=is_quick), ""),
        ("records a batch", scale.by_batch(is_quick=is_quick), "us per further record"),
    ):
        page.head(what, "us/record", *([per] if per else []))
        for cost in costs:
            marginal = "" if cost.marginal is None else f"{cost.marginal:.2f}"
            cells = [f"{cost.us:.2f} (+{cost.spread:.0%})", *([marginal] if per else [])]
            page.row(f"{cost.size:.0f}", *cells)
        report[what] = [asdict(cost) for cost in costs]
    report["threads"] = {}
    page.head("times the work of one", *scale.THREADS)
    for shape in records.SHAPES:
        ratios = scale.threads(shape, is_quick=is_quick)
        page.row(shape, *(scale.verdict(name, ratio) for name, ratio in ratios.items()))
        report["threads"][shape] = {name: ratio.report() for name, ratio in ratios.items()}
    report["memory"] = {}
    page.head("MB of payloads in flight", "MB grown", "times what is in flight")
    for shape in records.SHAPES:
        peaks = list(scale.memory(shape, is_quick=is_quick))
        for nbytes, grown in peaks:
            page.row(f"{shape} {nbytes / 1e6:.0f}", f"{grown / 1e6:.0f}", f"{grown / nbytes:.1f}")
        report["memory"][shape] = [{"in_flight_bytes": n, "grown_bytes": g} for n, g in peaks]
    return report


def _end_to_end_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - a table calls it
    from bench import end_to_end  # noqa: PLC0415 - see above

    report = {}
    page.head("end to end, records/s", *_END_TO_END, "share")
    for shape, result in end_to_end.measure(is_quick=is_quick):
        share = result.rates["ours"] / result.rates["ready-made"]
        cells = [f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%})" for name in _END_TO_END]
        page.row(shape, *cells, f"{share:.0%}")
        report[shape] = {"unit": "records/s", **result.rates}
    return report


_NOT_INSTALLED = "not installed"
_END_TO_END = ("ours", "ready-made")
_RUN: dict[str, Callable[[bool, Page], Report]] = {
    "core": _core_part,
    "scale": _scale_part,
    "end-to-end": _end_to_end_part,
}


if __name__ == "__main__":
    sys.exit(main())
