"""`make bench`: what the product does, beside what it is measured by, in one run.

    python -m bench.run [PART ...] [--output text|markdown|json] [--quick]

Rates are higher-is-better. With `--output json` the last line of stdout is one JSON object, and the
tables go to stderr; with `--output markdown` stdout is a page for `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

from bench import environment, records
from bench.page import Page
from bench.timing import Rates
from replicator import _core

Report = dict[str, Any]
PARTS = (
    "core",
    "scale",
    "ingest",
    "end-to-end",
    "small-batches",
    "kafka",
    "kafka-send",
    "compress",
    "patterns",
    "parquet",
    "dynamodb",
    "cratedb",
)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 when the extension is a debug build."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="what to run (all)")
    parser.add_argument("--output", choices=("text", "markdown", "json"), default="text")
    parser.add_argument("--quick", action="store_true", help="a fifth of the work: a look only")
    parser.add_argument(
        "--only",
        default="",
        metavar="WORDS",
        help="of kafka-send the rows that have all of them: 'small none transactions'",
    )
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
    run = _RUN | {"kafka-send": partial(_kafka_send_part, only=options.only.split())}
    for part in options.part or PARTS:
        page.part(part)
        report[part] = run[part](options.quick, page)
    if options.output == "json":
        print(json.dumps(report))
    return 0


def _core_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - a table calls it
    from bench import core  # noqa: PLC0415 - each part has imports of its own

    return core.report(page, is_quick=is_quick)


def _scale_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - see above
    from bench import scale  # noqa: PLC0415 - see above

    return scale.report(page, is_quick=is_quick)


def _ingest_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - see above
    from bench import ingest  # noqa: PLC0415 - see above

    report: Report = {}
    for place, measure, names in (
        ("in memory", ingest.measure_in_memory, _INGEST_MEMORY),
        ("over HTTP", ingest.measure_over_http, _INGEST_HTTP),
    ):
        page.head(f"ingest {place}, records/s", *names, "x stock+orjson", "x floor's time")
        for shape in records.SHAPES:
            for way, result in measure(shape, is_quick=is_quick):
                rates = result.rates
                cells = [f"{rates[name]:.0f} (+{result.spreads[name]:.0%})" for name in names]
                ratio = rates["ours to COPY"] / rates["stock+orjson"]
                above = rates["floor"] / rates["ours to COPY"] if "floor" in rates else None
                page.row(f"{shape} {way}", *cells, f"{ratio:.2f}", f"{above:.2f}" if above else "")
                report[f"{shape} {way} {place}"] = {"unit": "records/s", **rates}
    return report


def _patterns_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - a table calls it
    from bench import patterns  # noqa: PLC0415 - see above

    report = {}
    for shape in records.SHAPES:
        result = patterns.measure(shape, is_quick=is_quick)
        page.head(f"patterns, {shape}", "MB/s of input", "time / decoding's")
        for name, rate in result.rates.items():
            share = result.rates["decode"] / rate
            page.row(f"  {name}", f"{rate:.0f} (+{result.spreads[name]:.0%})", f"{share:.2f}")
        report[shape] = {"unit": "MB/s", **result.rates}
    return report


def _kafka_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - see above
    from bench import kafka  # noqa: PLC0415 - see above
    from replicator.errors import FatalError  # noqa: PLC0415 - see above
    from replicator.testing.kafka_server import start_kafka  # noqa: PLC0415 - see above

    report: Report = {}
    page.head("kafka, us a record", *_KAFKA, "share")

    def say(name: str, result: kafka.Result) -> None:
        cells = [f"{result.us[peer]:.2f} (+{result.spreads[peer]:.0%})" for peer in _KAFKA]
        page.row(name, *cells, f"{result.share:.2f}")
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
        page.note(f"not sent: {error}")
    return report


def _kafka_send_part(
    is_quick: bool,  # noqa: FBT001 - see above
    page: Page,
    only: Sequence[str] = (),
) -> Report:
    from bench import kafka_send  # noqa: PLC0415 - see above
    from replicator.errors import FatalError  # noqa: PLC0415 - see above
    from replicator.testing.kafka_server import start_kafka  # noqa: PLC0415 - see above

    report: Report = {}
    others = kafka_send.PEERS[1:]
    if not kafka_send.has_librdkafka():
        page.note("librdkafka: not installed")
    try:
        with start_kafka() as broker:
            for transactions in (False, True):
                way = "transactions" if transactions else "idempotent"
                cases = [
                    (shape, codec)
                    for shape, codec in product(kafka_send.SIZES, kafka_send.CODECS)
                    if {shape, codec, way}.issuperset(only)
                ]
                if cases:
                    page.head(f"sent, {way}", "records/s", *(f"x {peer}, CPU" for peer in others))
                for shape, codec in cases:
                    result = kafka_send.measure(
                        broker, shape, codec, transactions=transactions, is_quick=is_quick
                    )
                    page.row(
                        f"{shape} {codec}",
                        f"{result.rates['ours']:.0f}",
                        *(
                            f"{result.speed[peer]}, {result.cpu_share[peer]:.2f}"
                            if peer in result.speed
                            else "-"
                            for peer in others
                        ),
                    )
                    report[f"{shape} {codec} {way}"] = {
                        "unit": "records/s",
                        **result.rates,
                        "cpu_us": result.cpu_us,
                        "cpu_share": result.cpu_share,
                        "speed": {peer: r.report() for peer, r in result.speed.items()},
                    }
    except FatalError as error:
        if error.code != "kafka_missing":
            raise
        page.note(f"not sent: {error}")
    return report


def _compress_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - see above
    from bench import compress  # noqa: PLC0415 - see above

    report: Report = {}
    page.head("compress, MB/s, size", *compress.CODECS)
    for shape in compress.SIZES:
        result = compress.measure(shape, is_quick=is_quick)
        cells = [
            f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%}) {result.sizes[name]:.3f}"
            for name in compress.CODECS
        ]
        page.row(shape, *cells)
        gzip, zstd = (
            f"{result.rates[ours] / result.rates[peer]:.2f} x,"
            f" size {result.sizes[ours] / result.sizes[peer]:.2f} x"
            for ours, peer in (("gzip", "stdlib gzip 6"), ("zstd", "bare zstd 3"))
        )
        page.row("", gzip, "", zstd)
        report[shape] = {"unit": "MB/s", **result.rates, "sizes": result.sizes}
    page.head("objects, encode + compress", "MB/s of lines", "x compress alone")
    for shape in compress.SIZES:
        for codec in compress.OBJECT_CODECS:
            rate, alone = compress.measure_objects(shape, codec, is_quick=is_quick)
            page.row(f"{shape} {codec}", f"{rate:.0f}", str(alone))
            report[f"{shape} object {codec}"] = {"unit": "MB/s", "ours": rate, **alone.report()}
    return report


def _small_batches_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - see above
    from bench import small_batches  # noqa: PLC0415 - see above

    report = {}
    names = small_batches.VARIANTS
    page.head("small batches, rows/s", *names, "rows / unnest", "write / unnest")
    for size, result in small_batches.measure(is_quick=is_quick):
        cells = [f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%})" for name in names]
        # How many times as long.
        times = [result.rates["unnest"] / result.rates[name] for name in ("rows", "write")]
        page.row(f"{size} rows", *cells, *(f"{ratio:.2f}" for ratio in times))
        report[str(size)] = {"unit": "rows/s", **result.rates}
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


def _parquet_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - a table calls it
    from bench import parquet  # noqa: PLC0415 - see above

    report = {}
    page.head("parquet, MB/s of lines", "ours", *_PARQUET["document"], "x the first")
    page.row("", "ours", *_PARQUET["columns"], "x the first")
    for shape in records.SHAPES:
        result = parquet.measure(shape, is_quick=is_quick)
        for ours, peers in _PARQUET.items():
            if ours in result.rates:
                ratio = result.rates[ours] / result.rates[peers[0]]
                cells = [
                    f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%})"
                    for name in (ours, *peers)
                ]
                page.row(f"{shape}, {ours}", *cells, f"{ratio:.1f}")
        report[shape] = {"unit": "MB/s", **result.rates}
    return report


def _dynamodb_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - a table calls it
    from bench import dynamodb  # noqa: PLC0415 - see above

    page.head("PutItem bodies/s", *_DYNAMODB, "x botocore")
    return _beside(page, _DYNAMODB, lambda shape: dynamodb.measure(shape, is_quick=is_quick))


def _cratedb_part(is_quick: bool, page: Page) -> Report:  # noqa: FBT001 - a table calls it
    from bench import cratedb  # noqa: PLC0415 - see above

    page.head("bulk_args rows/s", *_CRATEDB, "x python")
    return _beside(page, _CRATEDB, lambda shape: cratedb.measure(shape, is_quick=is_quick))


def _beside(page: Page, names: tuple[str, str], measure: Callable[[str], Rates]) -> Report:
    """A line a shape: ours, another, and how many times faster ours is."""
    report: Report = {}
    for shape in records.SHAPES:
        result = measure(shape)
        ratio = result.rates[names[0]] / result.rates[names[1]]
        cells = [f"{result.rates[name]:.0f} (+{result.spreads[name]:.0%})" for name in names]
        page.row(shape, *cells, f"{ratio:.0f}")
        report[shape] = {"unit": "items/s", **result.rates}
    return report


_INGEST_MEMORY = ("stock", "stock+orjson", "ours to payloads", "ours to COPY")
_INGEST_HTTP = ("stock+orjson", "floor", "ours to COPY")
# Ours, and what it is measured by.
_PARQUET = {
    "document": ("orjson rows", "json rows", "arrow"),
    "columns": ("read_json", "column rows"),
}
_DYNAMODB = ("ours", "botocore")
_CRATEDB = ("ours", "python")
_KAFKA = ("ours", "aiokafka")
_END_TO_END = ("ours", "ready-made")
_RUN: dict[str, Callable[[bool, Page], Report]] = {
    "core": _core_part,
    "scale": _scale_part,
    "ingest": _ingest_part,
    "end-to-end": _end_to_end_part,
    "kafka": _kafka_part,
    "kafka-send": _kafka_send_part,
    "compress": _compress_part,
    "small-batches": _small_batches_part,
    "patterns": _patterns_part,
    "parquet": _parquet_part,
    "dynamodb": _dynamodb_part,
    "cratedb": _cratedb_part,
}


if __name__ == "__main__":
    sys.exit(main())
