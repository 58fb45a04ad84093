"""The samples of other tools' configurations, and what every import of one must keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replicator.importing import Imported, Kind, imported
from replicator.importing.reading import flat, read

SAMPLES = Path(__file__).parent / "samples"


def sample(name: str) -> Imported:
    """The import of one of the samples."""
    path = SAMPLES / name
    return imported(path.read_text("utf-8"), path.name)


def of(content: Mapping[str, Any], format_name: str | None = None) -> Imported:
    """The import of these options, as JSON."""
    return imported(json.dumps(content), "test.json", format_name)


def pipeline(result: Imported) -> dict[str, Any]:
    """Its only pipeline."""
    (only,) = result.config["pipelines"]
    assert isinstance(only, dict)
    return only


def kinds(result: Imported, option: str) -> set[Kind]:
    """Why the option is named in the notes."""
    return {note.kind for note in result.notes if note.option == option}


def said(result: Imported, option: str = "") -> str:
    """What the notes say of it, or of the whole."""
    return "\n".join(note.text for note in result.notes if note.option == option)


def unknown(result: Imported) -> set[str]:
    """The options that the notes call unknown."""
    return {note.option for note in result.notes if note.kind is Kind.UNKNOWN}


def leaves(name: str) -> dict[str, Any]:
    """Every option of a sample that says something; lists are opened, too."""
    content = read((SAMPLES / name).read_text("utf-8"), name)
    return {
        place: value for place, value in flat(_opened(content)).items() if value not in ("", [])
    }


def _opened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _opened(inner) for name, inner in value.items()}
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return {str(index): _opened(each) for index, each in enumerate(value)}
    return value
