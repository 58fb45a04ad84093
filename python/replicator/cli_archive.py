"""`replicator archive`: parses and asks; `archive` does it."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
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
    configure_logging,
    print_result,
)

if TYPE_CHECKING:
    from replicator.archive import Asked

archive_app = typer.Typer(
    no_args_is_help=True, help="What an S3 sink has written: listed, printed, asked by SQL."
)

TableOption = Annotated[str | None, typer.Option("--table", help="Changes of this table only.")]
FromOption = Annotated[
    str | None, typer.Option("--from", help="Created at or after: a time, or 2h ago.")
]
ToOption = Annotated[str | None, typer.Option("--to", help="Created before.")]


@archive_app.command("ls")
def ls(
    *,
    table: TableOption = None,
    begin: FromOption = None,
    end: ToOption = None,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """The objects that may hold such changes: period, bytes, key."""
    from replicator import archive  # noqa: PLC0415

    configure_logging("warning", output)
    asked = _asked(pipeline, sink, table, begin, end)
    found = asyncio.run(archive.listed(configuration.load(config), asked))
    shown = [
        {"key": each.key, "bytes": each.nbytes, "from": _iso(each.start_us), "table": each.table}
        for each in found
    ]
    lines = [f"{_iso(each.start_us) or '-':25}  {each.nbytes:>12}  {each.key}" for each in found]
    total = sum(each.nbytes for each in found)
    print_result(output, shown, "\n".join([*lines, f"{len(found)} objects, {total} bytes"]))


@archive_app.command("cat")
def cat(
    *,
    table: TableOption = None,
    begin: FromOption = None,
    end: ToOption = None,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.JSON,
    version: VersionOption = False,
) -> None:
    """The changes, one JSON line each."""
    from replicator import archive  # noqa: PLC0415

    configure_logging("warning", output)
    settings, asked = configuration.load(config), _asked(pipeline, sink, table, begin, end)

    async def write() -> None:
        async for lines in archive.printed(settings, asked):
            sys.stdout.buffer.write(lines)

    asyncio.run(write())
    sys.stdout.buffer.flush()


@archive_app.command("query")
def query(
    sql: Annotated[
        str,
        typer.Argument(
            help="Over the view changes: table, event, key, version, time, item, old, event_id, "
            "position; key, item and old are JSON."
        ),
    ],
    *,
    table: TableOption = None,
    begin: FromOption = None,
    end: ToOption = None,
    pipeline: PipelineOption = None,
    sink: SinkOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TEXT,
    version: VersionOption = False,
) -> None:
    """Ask the archive by SQL (DuckDB); --from and --to spare what need not be fetched."""
    from replicator import archive  # noqa: PLC0415

    configure_logging("warning", output)
    asked = _asked(pipeline, sink, table, begin, end)
    answer = asyncio.run(archive.queried(configuration.load(config), asked, sql))
    print_result(output, answer.as_dict(), answer.as_text())


def _asked(
    pipeline: str | None, sink: str | None, table: str | None, begin: str | None, end: str | None
) -> Asked:
    from replicator.archive import Asked  # noqa: PLC0415

    return Asked(pipeline, sink, table, begin, end)


def _iso(us: int | None) -> str | None:
    return None if us is None else datetime.fromtimestamp(us / 1_000_000, UTC).isoformat()
