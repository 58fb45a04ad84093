"""`replicator setup` and `tail`: commands about a source, without a running worker."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from replicator import config as configuration
from replicator.cli_options import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    VersionOption,
    configure_logging,
    confirmed,
    print_result,
)
from replicator.errors import FatalError

if TYPE_CHECKING:
    from replicator.setup import Report


class Piece(StrEnum):
    """What `setup` makes."""

    STREAM = "stream"
    DESTINATION = "destination"
    CONSUMER = "consumer"
    VIEW = "view"


def setup(
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Do it.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Undo it instead.")] = False,
    only: Annotated[
        list[Piece] | None,
        typer.Option(
            "--only",
            help="Only this kind; removed even if setup didn't make it, and a view type "
            "that doesn't do is changed.",
        ),
    ] = None,
    writes: Annotated[float | None, typer.Option(help="Writes a second.", min=0)] = None,
    nbytes: Annotated[
        float, typer.Option("--bytes", help="Average item size in bytes.", min=0)
    ] = 1_024,
    updates: Annotated[
        float, typer.Option(help="Percentage of writes that are updates.", min=0, max=100)
    ] = 100,
    from_metrics: Annotated[
        bool, typer.Option("--from-metrics", help="Take the load from CloudWatch.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before removing.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """What the source lacks in AWS: stream, the table's destination, consumer, view type.

    Prints it, and with --apply does it. Exit code 1 when something is left to do.
    """
    from replicator import setup as preparation  # noqa: PLC0415
    from replicator import shards as formula  # noqa: PLC0415

    configure_logging("info" if apply or yes else "error", output)
    if from_metrics and writes is not None:
        raise FatalError("usage_load", "say --writes or --from-metrics, not both")
    count = None
    if writes is not None:
        estimate = formula.estimate(
            writes_per_second=writes, nbytes=nbytes, updates_percent=updates
        )
        count = estimate.shards

    def confirm(report: Report) -> bool:
        return confirmed(report.as_text(), "Remove?", yes=yes or not remove, undone="removed")

    report = asyncio.run(
        preparation.setup(
            configuration.load(config),
            apply=apply or remove,
            remove=remove,
            only=[piece.value for piece in only or ()],
            shards=count,
            from_metrics=from_metrics,
            confirm=confirm,
        )
    )
    print_result(output, report.as_dict(), report.as_text())
    raise typer.Exit(0 if report.is_complete else 1)


def tables(
    *,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """The tables of each pipeline: as they are listed, or as its tags find them now.

    Exit code 1 when some couldn't be looked for: the rest is shown.
    """
    from replicator import tables as finding  # noqa: PLC0415

    configure_logging("error", output)
    found = asyncio.run(finding.look(configuration.load(config)))
    print_result(output, found.as_dict(), found.as_text())
    raise typer.Exit(1 if found.problems else 0)


class Form(StrEnum):
    """How `tail` writes a change: see the core's json_lines."""

    PLAIN = "plain"
    DYNAMODB = "dynamodb"
    DEBEZIUM = "debezium"
    CHANGE = "change"


def tail(
    pipeline: Annotated[str | None, typer.Argument(help="A pipeline of the configuration.")] = None,
    *,
    stream: Annotated[str | None, typer.Option(help="Any stream, by name or ARN.")] = None,
    start: Annotated[
        str, typer.Option("--from", help="As `start`: LATEST, TRIM_HORIZON, a time, 2h ago …")
    ] = "LATEST",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Only what matches this event pattern, or one of several."),
    ] = None,
    form: Annotated[Form, typer.Option(help="Form of the lines.")] = Form.PLAIN,
    limit: Annotated[int | None, typer.Option(help="Stop after so many.", min=1)] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.JSON,
    version: VersionOption = False,
) -> None:
    """Print a stream's changes as JSON lines, until stopped. Needs no sink and no lease.

    Refused records go to stderr; exit code 1 when there was one.
    """
    from replicator import tail as reader  # noqa: PLC0415

    configure_logging("warning", output)
    if pipeline is not None and stream is not None:
        raise FatalError("usage_tail", "name a pipeline or --stream, not both")
    settings = None if stream is not None and not config.exists() else configuration.load(config)
    try:
        wanted = reader.wanted(start, form.value, filters or (), limit)
    except ValueError as error:
        raise FatalError("usage_tail", str(error)) from None
    source = asyncio.run(reader.source_of(settings, pipeline, stream))
    raise typer.Exit(reader.main(source, wanted, sys.stdout.buffer, sys.stderr.buffer))
