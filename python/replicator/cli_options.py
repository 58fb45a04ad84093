"""What every command of the command line shares: its options, and how it prints."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from replicator import _core
from replicator.errors import FatalError


class Output(StrEnum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


def version_text() -> str:
    """Version, commit and build profile, on one line."""
    return f"replicator {_core.__version__} (commit {_core.COMMIT}, {_core.BUILD_PROFILE} build)"


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer's callback form
    if value:
        typer.echo(version_text())
        raise typer.Exit


ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="REPLICATOR_CONFIG", help="The YAML configuration."),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Form of the result.")]
VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
]
PipelineOption = Annotated[
    str | None, typer.Option("--pipeline", "-p", help="Its name; needed where there are several.")
]
SinkOption = Annotated[
    str | None, typer.Option("--sink", help="A sink's name; needed where there are several.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
DEFAULT_CONFIG = Path("config.yaml")


def configure_logging(level: str, output: Output) -> None:
    """Logs at this level, as JSON when results are. Raises FatalError for an unknown level."""
    from replicator.telemetry import logging  # noqa: PLC0415

    if level.lower() not in {"debug", "info", "warning", "error"}:
        raise FatalError(
            "usage_log_level", f"{level!r} is no log level: debug, info, warning or error"
        )
    logging.configure(level=level, json=True if output is Output.JSON else None)


def print_result(output: Output, data: Any, text: str) -> None:
    """The result on standard output, in the form that was asked for."""
    typer.echo(orjson.dumps(data).decode() if output is Output.JSON else text)


def confirmed(shown: str, question: str, *, yes: bool, undone: str = "changed") -> bool:
    """True when somebody at a terminal, who is shown what will be done, says so, or `yes`
    already did. Raises FatalError where nobody can be asked; `undone` says what wasn't done."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise FatalError(
            "usage_confirm",
            f"nobody can be asked, so nothing was {undone}. Say --yes to do\n{shown}",
        )
    typer.echo(shown, err=True)
    return typer.confirm(question, err=True)
