"""`replicator dead-letters`: parses and asks; `dead_letters` does it."""

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
from replicator.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

letters_app = typer.Typer(
    no_args_is_help=True,
    help="Records that a sink couldn't take: shown, written again, or dropped.",
)

IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="As `list` names them.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All of the sink, in the place of ids.")]


@letters_app.command("list")
def list_(
    *,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """Each that waits: place, time, reason, key, and whether its key's later changes wait with it.

    Exit code 1 when a sink couldn't be read: the rest is shown.
    """
    from replicator import dead_letters  # noqa: PLC0415

    configure_logging("error", output)
    listed = asyncio.run(dead_letters.listed(configuration.load(config), pipeline, sink))
    print_result(output, listed.as_dict(), listed.as_text())
    raise typer.Exit(1 if listed.problems else 0)


@letters_app.command("show")
def show(
    letter: Annotated[str, typer.Argument(metavar="ID", help="As `list` names it.")],
    *,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """One of them, with the record's own bytes."""
    from replicator import dead_letters  # noqa: PLC0415

    configure_logging("error", output)
    row = asyncio.run(dead_letters.shown(configuration.load(config), pipeline, sink, letter))
    print_result(output, row, "\n".join(f"{name}: {value}" for name, value in row.items()))


@letters_app.command("redrive")
def redrive(
    ids: IdsArgument = None,
    *,
    all_: AllOption = False,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    yes: YesOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """Write them where they belong. In a table one that isn't newer than what is stored changes
    nothing and says so. In a topic all that waits behind it follows in order, then its key goes its
    usual way again, and a worker that reads the shard begins it anew. What is refused again stays
    (exit code 1)."""
    _end(_which(ids, all_=all_), pipeline, sink, config, output, yes=yes, redrive=True)


@letters_app.command("drop")
def drop(
    ids: IdsArgument = None,
    *,
    all_: AllOption = False,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    yes: YesOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """Give them up, with all that waits behind them; then their keys go their usual way again."""
    _end(_which(ids, all_=all_), pipeline, sink, config, output, yes=yes, redrive=False)


def _end(
    ids: Sequence[str],
    pipeline: str | None,
    sink: str | None,
    config: Path,
    output: Output,
    *,
    yes: bool,
    redrive: bool,
) -> None:
    from replicator import dead_letters  # noqa: PLC0415

    configure_logging("warning", output)
    settings = configuration.load(config)

    def confirm(what: str) -> bool:
        return confirmed(what, "Go on?", yes=yes)

    ending = dead_letters.end(settings, pipeline, sink, ids, confirm, redrive=redrive)
    if (done := asyncio.run(ending)) is None:
        typer.echo("nothing was changed", err=True)
        raise typer.Exit(1)
    print_result(output, done.as_dict(), done.as_text())
    raise typer.Exit(1 if done.left else 0)


def _which(ids: Sequence[str] | None, *, all_: bool) -> Sequence[str]:
    if bool(ids) == all_:
        raise FatalError("usage_letter", "say which: the ids that `list` has, or --all")
    return ids or ()
