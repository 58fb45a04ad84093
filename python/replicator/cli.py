"""The command line: parses, calls one function, prints, turns errors into exit codes.

0 done or drained · 1 failed, or a check found something · 2 usage or configuration ·
3 the drain timed out.
"""

from __future__ import annotations

import io
import sys
from enum import StrEnum
from typing import Annotated

import typer

from replicator import cli_source
from replicator import config as configuration
from replicator.cli_archive import archive_app
from replicator.cli_config import config_app
from replicator.cli_letters import letters_app
from replicator.cli_options import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    VersionOption,
    configure_logging,
    print_result,
)
from replicator.cli_positions import positions_app
from replicator.errors import FatalError, ReplicatorError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DRAIN_TIMEOUT = 3

app = typer.Typer(
    name="replicator",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config_app, name="config")
app.add_typer(positions_app, name="positions")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(archive_app, name="archive")
app.command("setup")(cli_source.setup)
app.command("tail")(cli_source.tail)
app.command("tables")(cli_source.tables)


class DemoSource(StrEnum):
    """What the demo's changes are read from."""

    KINESIS = "kinesis"
    POLLING = "polling"
    STREAMS = "streams"


class DemoSink(StrEnum):
    """Where the demo's table arrives."""

    POSTGRES = "postgres"
    KAFKA = "kafka"
    S3 = "s3"
    ICEBERG = "iceberg"
    CRATEDB = "cratedb"


@app.callback()
def _root(*, version: VersionOption = False) -> None:
    """Copies every change of a DynamoDB table, in order and exactly once in effect."""


@app.command()
def run(
    *,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    version: VersionOption = False,
) -> None:
    """Replicate until stopped. The first SIGTERM drains, the second aborts."""
    from replicator import service  # noqa: PLC0415 - the event loop's weight only where it runs

    configure_logging(log_level, output)
    raise typer.Exit(service.run(configuration.load(config)))


@app.command()
def check(
    *,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """Connect to both sides, verify permissions, keys and tables, and say what run would do."""
    from replicator import preflight  # noqa: PLC0415

    configure_logging("error", output)
    report = preflight.check(configuration.load(config))
    print_result(output, report.as_dict(), report.as_text())
    raise typer.Exit(0 if report.is_ok else EXIT_FAILED)


@app.command()
def status(
    *,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """What each shard does, asked of the running process; else positions, leases and dead letters
    as the sink and the lease store have them.

    Exit code 1 when one of them couldn't be read: the rest is shown.
    """
    from replicator import status as looking  # noqa: PLC0415

    configure_logging("error", output)
    report = looking.status(configuration.load(config))
    print_result(output, report.as_dict(), report.as_text())
    raise typer.Exit(0 if report.is_complete else EXIT_FAILED)


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A file, or - for standard input.")],
    *,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", help="Show only what matches this event pattern (JSON), or one of several."
        ),
    ] = None,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """Decode records of a file: one JSON line a change; refused records go to stderr.

    Takes Kinesis payload lines, Firehose's objects, a DynamoDB Streams answer or a Lambda
    event; gzip is recognised. Exit code 1 when a record was refused.
    """
    from replicator import inspect as inspector  # noqa: PLC0415

    # A closed standard input is an empty one.
    stdin = io.BytesIO() if sys.stdin is None else sys.stdin.buffer
    out, err = sys.stdout.buffer, sys.stderr.buffer
    raise typer.Exit(inspector.main(file, stdin, out, err, filters or ()))


@app.command()
def shards(
    *,
    writes: Annotated[float, typer.Option(help="Writes a second.", min=0)],
    nbytes: Annotated[float, typer.Option("--bytes", help="Average item size in bytes.", min=0)],
    updates: Annotated[
        float, typer.Option(help="Percentage of writes that are updates.", min=0, max=100)
    ],
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """The number of shards a table's stream needs, with the arithmetic."""
    from replicator import shards as formula  # noqa: PLC0415

    result = formula.estimate(writes_per_second=writes, nbytes=nbytes, updates_percent=updates)
    print_result(output, result.as_dict(), result.as_text())


@app.command()
def demo(
    *,
    seconds: Annotated[float, typer.Option(help="How long the shop is open.", min=1)] = 15,
    rate: Annotated[int, typer.Option(help="Changes a second to aim at.", min=1)] = 1_000,
    source: Annotated[
        DemoSource, typer.Option(help="Kinesis by fan-out or polling, or the table's own.")
    ] = DemoSource.KINESIS,
    sink: Annotated[
        DemoSink,
        typer.Option(
            help="Rows in Postgres, records of a real Kafka, an archive in S3, a table of Iceberg, "
            "or rows in a stand-in for CrateDB."
        ),
    ] = DemoSink.POSTGRES,
    shard_count: Annotated[
        int, typer.Option("--shards", help="Shards of the Kinesis stream.", min=1)
    ] = 4,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers up at the end.")] = False,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """A whole replication on this machine: emulated AWS, a real Postgres or Kafka, a busy shop."""
    from replicator import demo as demonstration  # noqa: PLC0415

    configure_logging("warning", output)
    raise typer.Exit(
        demonstration.main(
            seconds=seconds,
            rate=rate,
            shards=shard_count,
            keep=keep,
            json_output=output is Output.JSON,
            source=source.value,
            sink=sink.value,
        )
    )


def main() -> None:
    """The console script: runs a command and exits with its code."""
    try:
        app()
    except ReplicatorError as error:
        typer.echo(f"replicator: {error}", err=True)
        usage = isinstance(error, FatalError) and error.code.startswith(("config_", "usage_"))
        sys.exit(EXIT_USAGE if usage else EXIT_FAILED)
