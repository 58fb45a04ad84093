"""`make bench`: what the product does, beside what it is measured by, in one run.

    python -m bench.run [core] [end-to-end] [kafka] [compress] [parquet] [dynamodb]
        [--output text|json] [--quick]

Rates are higher-is-better. With `--output json` the last line of stdout is one JSON object, and the
tables go to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any, TextIO

from bench import records
from replicator import _core

Report = dict[str, Any]
PARTS = ("core", "end-to-end", "kafka", "compress", "parquet", "dynamodb")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 when the extension is a debug build."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="what to run (all)")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.add_argument("--quick", action="store_true", help="a fifth of the work: a look only")
    options = parser.parse_args(arguments)
    if _core.BUILD_PROFILE != "release":
        print("this is a debug build of the core: make build, then again", file=sys.stderr)
        return 2
    out = sys.stdout if options.output == "text" else sys.stderr
    report: Report = {}
    for part in options.part or PARTS:
        report[part] = _RUN[part](options.quick, out)
    if options.output == "json":
        print(json.dumps(report))
    return 0


def _core_part(is_quick: bool, out: TextIO) -> Report:  # noqa: FBT001 - a table calls it
    from bench import core  # noqa: PLC0415 - each part has imports of its own

    report = {}
    _line(out, "core, MB/s of input", *_CORE, "x orjson.loads")
    for shape in records.SHAPES:
        result = core.measure(shape, is_quick=is_quick)
        ratio = result.rates["ours"] / result.rates["orjson.loads"]
        cells = [f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%})" for name in _CORE]
        _line(out, shape, *cells, f"{ratio:.2f}")
        report[shape] = {"unit": "MB/s", **result.rates}
    return report


def _end_to_end_part(is_quick: bool, out: TextIO) -> Report:  # noqa: FBT001 - a table calls it
    from bench import end_to_end  # noqa: PLC0415 - see above

    report = {}
    _line(out, "end to end, records/s", *_END_TO_END, "share")
    for shape, result in end_to_end.measure(is_quick=is_quick):
        share = result.rates["ours"] / result.rates["ready-made"]
        cells = [f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%})" for name in _END_TO_END]
        _line(out, shape, *cells, f"{share:.0%}")
        report[shape] = {"unit": "records/s", **result.rates}
    return report


def _kafka_part(is_quick: bool, out: TextIO) -> Report:  # noqa: FBT001 - see above
    from bench import kafka  # noqa: PLC0415 - see above
    from replicator.errors import FatalError  # noqa: PLC0415 - see above
    from replicator.testing.kafka_server import start_kafka  # noqa: PLC0415 - see above

    report: Report = {}
    _line(out, "kafka, us a record", *_KAFKA, "share")

    def say(name: str, result: kafka.Result) -> None:
        cells = [f"{result.us[peer]:.2f} (+{result.spreads[peer]:.0%})" for peer in _KAFKA]
        _line(out, name, *cells, f"{result.share:.2f}")
        report[name] = {"unit": "us", **result.us}

    for shape, codec, headers in kafka.CASES:
        result = kafka.measure(shape, codec, headers=headers, is_quick=is_quick)
        say(f"{shape} {codec}" + ("" if headers else " bare"), result)
    try:
        with start_kafka() as broker:
            for shape, codec, headers in kafka.SENT:
                result = kafka.measure_sending(
                    broker, shape, codec, headers=headers, is_quick=is_quick
                )
                say(f"{shape} {codec} sent", result)
    except FatalError as error:
        if error.code != "kafka_missing":
            raise
        _line(out, f"not sent: {error}")
    return report


def _compress_part(is_quick: bool, out: TextIO) -> Report:  # noqa: FBT001 - see above
    from bench import compress  # noqa: PLC0415 - see above

    report: Report = {}
    _line(out, "compress, MB/s, size", *compress.CODECS)
    for shape in compress.SIZES:
        result = compress.measure(shape, is_quick=is_quick)
        cells = [
            f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%}) {result.sizes[name]:.3f}"
            for name in compress.CODECS
        ]
        _line(out, shape, *cells)
        gzip, zstd = (
            f"{result.rates[ours] / result.rates[peer]:.2f} x,"
            f" size {result.sizes[ours] / result.sizes[peer]:.2f} x"
            for ours, peer in (("gzip", "stdlib gzip 6"), ("zstd", "bare zstd 3"))
        )
        _line(out, "", gzip, "", zstd)
        report[shape] = {"unit": "MB/s", **result.rates, "sizes": result.sizes}
    return report


def _parquet_part(is_quick: bool, out: TextIO) -> Report:  # noqa: FBT001 - a table calls it
    from bench import parquet  # noqa: PLC0415 - see above

    report = {}
    _line(out, "parquet, MB/s of lines", "ours", *_PARQUET["document"], "x the first")
    _line(out, "", "ours", *_PARQUET["columns"], "x the first")
    for shape in records.SHAPES:
        result = parquet.measure(shape, is_quick=is_quick)
        for ours, peers in _PARQUET.items():
            if ours in result.rates:
                ratio = result.rates[ours] / result.rates[peers[0]]
                cells = [
                    f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%})"
                    for name in (ours, *peers)
                ]
                _line(out, f"{shape}, {ours}", *cells, f"{ratio:.1f}")
        report[shape] = {"unit": "MB/s", **result.rates}
    return report


def _dynamodb_part(is_quick: bool, out: TextIO) -> Report:  # noqa: FBT001 - a table calls it
    from bench import dynamodb  # noqa: PLC0415 - see above

    report = {}
    _line(out, "PutItem bodies/s", *_DYNAMODB, "x botocore")
    for shape in records.SHAPES:
        result = dynamodb.measure(shape, is_quick=is_quick)
        ratio = result.rates["ours"] / result.rates["botocore"]
        cells = [f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%})" for name in _DYNAMODB]
        _line(out, shape, *cells, f"{ratio:.0f}")
        report[shape] = {"unit": "items/s", **result.rates}
    return report


_CORE = ("ours", "orjson.loads", "orjson+TypeDeserializer")
_END_TO_END = ("ours", "ready-made")
# Ours, and what it is measured by.
_PARQUET = {
    "document": ("orjson rows", "json rows", "arrow"),
    "columns": ("read_json", "column rows"),
}
_DYNAMODB = ("ours", "botocore")
_KAFKA = ("ours", "aiokafka")
_RUN: dict[str, Callable[[bool, TextIO], Report]] = {
    "core": _core_part,
    "end-to-end": _end_to_end_part,
    "kafka": _kafka_part,
    "compress": _compress_part,
    "parquet": _parquet_part,
    "dynamodb": _dynamodb_part,
}


def _line(out: TextIO, first: str, *cells: str) -> None:
    print(f"{first:<22}" + "".join(f"{cell:>26}" for cell in cells), file=out, flush=True)


if __name__ == "__main__":
    sys.exit(main())
