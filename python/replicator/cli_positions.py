"""`replicator positions`: parses and asks; `positions` does it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from replicator import config as configuration
from replicator.cli_options import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    PipelineOption,
    SinkOption,
    VersionOption,
    YesOption,
    configure_logging,
    confirmed,
    print_result,
)

if TYPE_CHECKING:
    from replicator.positions import Confirm, Move

positions_app = typer.Typer(
    no_args_is_help=True, help="Where each shard stands: shown, and moved by hand."
)


@positions_app.command("show")
def show(
    *,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """Each shard's position at each sink, how old its last record is, its lag and its epoch.

    Exit code 1 when a sink couldn't be read: the rest is shown.
    """
    from replicator import positions  # noqa: PLC0415

    configure_logging("error", output)
    shown = asyncio.run(positions.show(configuration.load(config), pipeline, sink))
    print_result(output, shown.as_dict(), shown.as_text())
    raise typer.Exit(1 if shown.problems else 0)


@positions_app.command("set")
def set_(
    shard: Annotated[str, typer.Argument(help="The shard's id.")],
    position: Annotated[
        str, typer.Argument(help="As `start`: TRIM_HORIZON, a time, 2h ago, a sequence number …")
    ],
    *,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    yes: YesOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """Move one shard to a position at one sink. Refused while a worker reads it."""
    from replicator import positions  # noqa: PLC0415

    configure_logging("warning", output)
    settings, confirm = configuration.load(config), _confirm(yes=yes)
    moving = positions.set_position(settings, pipeline, shard, position, confirm, sink=sink)
    _done(output, asyncio.run(moving))


@positions_app.command("reset")
def reset(
    *,
    shard: Annotated[str | None, typer.Option("--shard", help="This one; else all.")] = None,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    yes: YesOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """Read a shard, or all of them, again into one sink, from the oldest record that is kept.

    After a gap this accepts what is lost. Refused while a worker reads the shard.
    """
    from replicator import positions  # noqa: PLC0415

    configure_logging("warning", output)
    settings, confirm = configuration.load(config), _confirm(yes=yes)
    _done(output, asyncio.run(positions.reset(settings, pipeline, shard, confirm, sink=sink)))


def _confirm(*, yes: bool) -> Confirm:
    return lambda move: confirmed(move.as_text(), "Move?", yes=yes)


def _done(output: Output, move: Move | None) -> None:
    if move is None:
        typer.echo("nothing was changed", err=True)
        raise typer.Exit(1)
    print_result(output, move.as_dict(), move.as_text())
