"""What an adapter puts together: one or more pipelines, and notes on what needs its reader.

Invariant: an option of the input is carried over, or explained, or called unknown. `Draft`
keeps the account; an adapter can't drop one. Notes and messages name options and never show
their values: one of them may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

REPLACE_ME = "REPLACE-ME"
"""Stands where we need what the input doesn't say; `check` stumbles over it."""


class Kind(StrEnum):
    """Why a note is there, in the order in which a reader cares."""

    FILL_IN = "fill_in"
    SECRET = "secret"  # noqa: S105 - the kind of a note
    UNKNOWN = "unknown"
    DIFFERS = "differs"
    NO_EQUAL = "no_equal"


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to know; `option` is the other tool's name, empty where it is about the whole."""

    kind: Kind
    text: str
    option: str = ""


@dataclass(frozen=True, slots=True)
class Imported:
    """Our configuration as plain values, which options became which keys of it, and notes."""

    format: str
    config: dict[str, Any]
    mapped: Mapping[str, str]
    notes: tuple[Note, ...]


# ---- values


def text(value: object) -> str:
    """An option's value as text: a .properties file has nothing else."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip()


def listed(value: object) -> list[str]:
    """A list, or the text of one with commas."""
    parts = value if isinstance(value, list) else text(value).split(",")
    return [part for part in map(text, parts) if part]


def named(value: str) -> str:
    """A name as the configuration wants it: letters, digits, `_`, `.` and `-`."""
    return re.sub(r"^[^A-Za-z0-9]+", "", re.sub(r"[^A-Za-z0-9_.-]+", "-", value)) or REPLACE_ME


def number(value: object, least: float, most: float, divisor: int = 1) -> float | int:
    """The number divided, within what we allow. Raises ValueError when it is none."""
    try:
        found = float(text(value)) / divisor
    except ValueError:
        raise ValueError("a number is wanted") from None
    kept = min(max(found, least), most)
    return int(kept) if kept == int(kept) else kept


# ---- what a table says of an option


@dataclass(frozen=True, slots=True)
class To:
    """Becomes this key. `convert` may raise ValueError, with what was wrong, without the value."""

    place: str
    convert: Callable[[Any], object] = text
    differs: str = ""


@dataclass(frozen=True, slots=True)
class NoEqual:
    """Nothing of ours is like it; why, or what does its work here."""

    why: str


@dataclass(frozen=True, slots=True)
class Secret:
    """Is never written out; where it belongs instead."""

    instead: str


Rule: TypeAlias = To | NoEqual | Secret
Table: TypeAlias = Mapping[str, Rule]
"""Options by name. A name that ends in `*` stands for all that begin so."""


# ---- what is put together


@dataclass(slots=True)
class Draft:
    """A pipeline in the making. Places: `source.…`, `sink.…`, or a key of the top level."""

    options: dict[str, Any]
    name: str = REPLACE_ME
    tables: list[str] | dict[str, Any] = field(default_factory=lambda: [REPLACE_ME])
    source: dict[str, Any] = field(default_factory=dict)
    sink: dict[str, Any] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    mapped: dict[str, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)

    def get(self, option: str) -> str:
        """What it says, as text; empty when it says nothing. The account stays as it is."""
        return text(self.options.get(option))

    def take(self, option: str, place: str) -> str:
        """The same, and it counts as carried over to this place (if it says something)."""
        self.settled.add(option)
        if value := self.get(option):
            self.mapped[option] = place
        return value

    def note(self, kind: Kind, why: str, option: str = "") -> None:
        """Says it; an option that is named is explained by that, and isn't carried over when it
        has to be filled in."""
        self.notes.append(Note(kind, why, option))
        self.settled.add(option)
        if kind is Kind.FILL_IN:
            self.mapped.pop(option, None)

    def put(self, place: str, value: object) -> None:
        """Sets a key of the configuration."""
        room, _, rest = place.partition(".")
        rooms = {"source": self.source, "sink": self.sink}
        at, keys = (rooms[room], rest.split(".")) if room in rooms else (self.top, place.split("."))
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = value

    def settle_these(self, table: Table) -> None:
        """Goes by the table through the options that it knows."""
        for option, value in self.options.items():
            rule = _rule(table, option)
            if option not in self.settled and rule is not None:
                self._settle(option, value, rule)

    def settle(self, *tables: Table) -> None:
        """Goes by the tables through all options that aren't settled yet; what none of them
        knows is unknown."""
        for option, value in self.options.items():
            if option in self.settled:
                continue
            rule = next((found for table in tables if (found := _rule(table, option))), None)
            if rule is None:
                self.note(Kind.UNKNOWN, "no such option is known here: look what it did", option)
            else:
                self._settle(option, value, rule)

    def _settle(self, option: str, value: object, rule: Rule) -> None:
        if value is not None and value not in ("", []):
            self._obey(rule, option, value)
        self.settled.add(option)

    def _obey(self, rule: Rule, option: str, value: object) -> None:
        if isinstance(rule, NoEqual):
            self.note(Kind.NO_EQUAL, rule.why, option)
        elif isinstance(rule, Secret):
            self.note(Kind.SECRET, rule.instead, option)
        else:
            try:
                converted = rule.convert(value)
            except ValueError as error:
                self.note(Kind.FILL_IN, f"{rule.place} can't be made of it: {error}", option)
                return
            self.put(rule.place, converted)
            self.mapped[option] = rule.place
            if rule.differs:
                self.note(Kind.DIFFERS, rule.differs, option)

    def pipelines(self) -> list[dict[str, Any]]:
        """As the configuration has them: a table's own stream makes a pipeline of its own."""
        if self.source.get("kind") != "streams" or not isinstance(self.tables, list):
            return [self._pipeline(self.name, self.tables)]
        if len(self.tables) == 1:
            return [self._pipeline(self.name, self.tables)]
        return [self._pipeline(f"{self.name}-{named(table)}", [table]) for table in self.tables]

    def _pipeline(self, name: str, tables: list[str] | dict[str, Any]) -> dict[str, Any]:
        made = {"name": name, "tables": tables, "source": self.source, "sinks": [self.sink]}
        return deepcopy(made)


def _rule(table: Table, option: str) -> Rule | None:
    if option in table:
        return table[option]
    patterns = (name for name in table if name.endswith("*") and option.startswith(name[:-1]))
    longest = max(patterns, key=len, default=None)
    return None if longest is None else table[longest]


def assembled(format_name: str, drafts: Sequence[Draft]) -> Imported:
    """The whole configuration of one or several pipelines, whose names are made distinct.
    Notes are sorted by how much they matter, and said once."""
    config: dict[str, Any] = {}
    regions = [draft.top.pop("aws", None) for draft in drafts]
    if all(region == regions[0] for region in regions):
        if regions[0]:
            config["aws"] = regions[0]
    else:
        for draft, region in zip(drafts, regions, strict=True):
            if region:
                draft.source["aws"] = region | draft.source.get("aws", {})
    config["pipelines"] = pipelines = [each for draft in drafts for each in draft.pipelines()]
    seen: dict[str, int] = {}
    for pipeline in pipelines:
        count = seen[pipeline["name"]] = seen.get(pipeline["name"], 0) + 1
        if count > 1:
            pipeline["name"] += f"-{count}"
    for draft in drafts:
        for key, value in draft.top.items():
            if config.setdefault(key, value) != value:
                draft.note(Kind.DIFFERS, f"{key} is one for all pipelines: the first one's stays")
    kinds = list(Kind)
    notes = dict.fromkeys(note for draft in drafts for note in draft.notes)
    return Imported(
        format_name,
        config,
        {option: place for draft in drafts for option, place in draft.mapped.items()},
        tuple(sorted(notes, key=lambda note: kinds.index(note.kind))),
    )
