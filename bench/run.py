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
from typing import Any

from bench import records
from bench.page import Page
from replicator import _core

Report = dict[str, Any]
PARTS = ("core", "end-to-end")


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
    "end-to-end": _end_to_end_part,
}


if __name__ == "__main__":
    sys.exit(main())
