"""`replicator config`: the schema, what is in force, and what is made of another tool's."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Annotated

import orjson
import typer
import yaml

from replicator import config as configuration
from replicator.cli_options import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    VersionOption,
    print_result,
)
from replicator.errors import FatalError
from replicator.importing import ADAPTERS, Imported, Kind, Note, imported

config_app = typer.Typer(
    no_args_is_help=True,
    help="The configuration: its schema, what is in force, and what another tool's makes.",
)


class Form(StrEnum):
    """How `import` writes the configuration."""

    YAML = "yaml"
    JSON = "json"


_HEADINGS = {
    Kind.FILL_IN: "to fill in, or to decide",
    Kind.SECRET: "secrets, left out",
    Kind.UNKNOWN: "unknown, left out",
    Kind.DIFFERS: "carried over, but not quite the same",
    Kind.NO_EQUAL: "no equal here",
}


@config_app.command("schema")
def config_schema(*, output: OutputOption = Output.JSON, version: VersionOption = False) -> None:
    """The JSON Schema of the configuration file."""
    typer.echo(orjson.dumps(configuration.schema(), option=orjson.OPT_INDENT_2))


@config_app.command("show")
def config_show(
    *,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """The configuration in force: file, environment and defaults, secrets masked."""
    shown = configuration.load(config).model_dump(mode="json", by_alias=True)
    print_result(output, shown, yaml.safe_dump(shown, sort_keys=False).rstrip())


@config_app.command("import")
def config_import(
    file: Annotated[str, typer.Argument(help="A file, or - for standard input.")],
    *,
    source: Annotated[
        str | None,
        typer.Option("--from", help=f"Which tool's it is, else recognised: {', '.join(ADAPTERS)}."),
    ] = None,
    output: Annotated[
        Form, typer.Option("--output", "-o", help="YAML alone, notes on stderr; or JSON of both.")
    ] = Form.YAML,
    version: VersionOption = False,
) -> None:
    """Our configuration of another tool's: Confluent's Kinesis and DynamoDB connectors,
    trustpilot's, KCL properties, a Firehose delivery stream, Lambda's event source mappings.

    Says what must be filled in, what has no equal, and what isn't known. Secrets stay out.
    """
    result = imported(_content(file), file, source)
    notes = [*_problems(result), *result.notes]
    if output is Form.JSON:
        shown = {
            "format": result.format,
            "config": result.config,
            "mapped": dict(result.mapped),
            "notes": [asdict(note) for note in notes],
        }
        typer.echo(orjson.dumps(shown).decode())
        return
    typer.echo(
        yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True, width=100).rstrip()
    )
    typer.echo(f"{file}: {ADAPTERS[result.format].title}", err=True)
    for line in _lines(notes):
        typer.echo(line, err=True)


def _content(file: str) -> str:
    try:
        # A closed standard input is an empty one.
        raw = sys.stdin.buffer.read() if file == "-" and sys.stdin else Path(file).read_bytes()
    except OSError as error:
        raise FatalError("usage_input", f"can't read {file}: {error.strerror}") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        # What Java writes by default:
        # https://docs.oracle.com/en/java/javase/21/docs/api/java.base/java/util/Properties.html
        return raw.decode("latin-1")


def _problems(result: Imported) -> Iterator[Note]:
    """Why it wouldn't load as it is."""
    try:
        configuration.checked(result.config, "this configuration")
    except FatalError as error:
        yield Note(Kind.FILL_IN, f"it doesn't load yet: {error.message}")


def _lines(notes: Sequence[Note]) -> Iterator[str]:
    """By kind; options that share a reason share a line."""
    for kind, of_kind in groupby(notes, key=lambda note: note.kind):
        yield f"{_HEADINGS[kind]}:"
        options: dict[str, list[str]] = {}
        for note in of_kind:
            options.setdefault(note.text, []).append(note.option)
        for why, names in options.items():
            told = ", ".join(filter(None, names))
            yield f"  {told}: {why}" if told else f"  {why}"
