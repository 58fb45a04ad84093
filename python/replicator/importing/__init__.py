"""Other tools' configurations as ours: `replicator config import`.

An adapter for each format, all pure: what it recognises, and drafts of pipelines made of it.
`draft.py` keeps the account of options, so that none is lost in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from replicator.errors import FatalError
from replicator.importing import (
    dynamodb_connector,
    event_source_mapping,
    firehose,
    kcl,
    kinesis_connector,
    trustpilot,
)
from replicator.importing.draft import Draft, Imported, Kind, Note, assembled
from replicator.importing.reading import read

__all__ = ["ADAPTERS", "Adapter", "Imported", "Kind", "Note", "imported"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """One format."""

    title: str
    recognises: Callable[[Any], bool]
    drafts: Callable[[Any], list[Draft]]


ADAPTERS: Final = {
    "confluent-kinesis": Adapter(
        "Confluent's Kinesis source connector",
        kinesis_connector.recognises,
        kinesis_connector.drafts,
    ),
    "confluent-dynamodb": Adapter(
        "Confluent's DynamoDB CDC source connector",
        dynamodb_connector.recognises,
        dynamodb_connector.drafts,
    ),
    "trustpilot": Adapter(
        "trustpilot's kafka-connect-dynamodb", trustpilot.recognises, trustpilot.drafts
    ),
    "kcl": Adapter("a KCL application's properties", kcl.recognises, kcl.drafts),
    "firehose": Adapter("a Firehose delivery stream", firehose.recognises, firehose.drafts),
    "lambda": Adapter(
        "Lambda's event source mappings",
        event_source_mapping.recognises,
        event_source_mapping.drafts,
    ),
}


def imported(content: str, where: str, format_name: str | None = None) -> Imported:
    """The configuration that does what that of another tool does. `where` names its file in
    messages, `format_name` (a key of `ADAPTERS`) forces how it is understood.

    Raises FatalError: `config_import_unreadable` for broken JSON, `config_import_format` when no
    adapter knows it, and what the adapters say.
    """
    options = read(content, where)
    if format_name is None:
        known = (name for name, each in ADAPTERS.items() if each.recognises(options))
        format_name = next(known, None)
    if format_name not in ADAPTERS:
        titles = ", ".join(f"{each.title} ({name})" for name, each in ADAPTERS.items())
        what = f"{where} isn't recognised" if not format_name else f"no format {format_name!r}"
        raise FatalError(
            "config_import_format",
            f"{what}. What can be imported, and its name for --from: {titles}",
        )
    return assembled(format_name, ADAPTERS[format_name].drafts(options))
