"""The plan of a cut: which objects one piece of a shard becomes, decided once (law 7). Pure.

1. A shard's plans are numbered without a gap, and a plan's number is its name. A plan is created
   only if its name is free, so of two workers that go on from one plan one decides.
2. A plan names every object it needs, its first and last record, and what was stored of the shard
   before and after. Whoever finds it can read exactly its range again and make exactly its objects.
3. An object is created only if its name is free too: who comes second finds it done.
4. The next plan comes only when all objects of this one are there. So all plans but the newest
   are complete, and the newest one says where the shard stands: behind it when it is complete, else
   before it. Nothing is ever removed.

Names sort the newest first, since a bucket is listed in one direction only: the first name of
a listing is the newest plan, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from replicator.core.schemas import Columns

ORDINAL_MAX = 10**12 - 1
VERSION = 1
TOGETHER = ""
"""Stands for a table's name where tables don't lie apart."""

Format: TypeAlias = Literal["change", "plain", "raw", "parquet"]
Compression: TypeAlias = Literal["gzip", "zstd", "none"]
LOSSLESS: frozenset[Format] = frozenset({"change"})
_SUFFIXES: Mapping[str, str] = {"gzip": ".gz", "zstd": ".zst", "none": ""}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How changes become an object's bytes: the same plan gives the same bytes. `columns` are the
    typed ones of Parquet that are told, (attribute, type)."""

    format: Format = "change"
    compression: Compression = "gzip"
    columns: Columns = ()

    @property
    def suffix(self) -> str:
        """The end of an object's name."""
        if self.format == "parquet":
            return ".parquet"
        return (".json" if self.format == "raw" else ".jsonl") + _SUFFIXES[self.compression]

    @property
    def is_lossless(self) -> bool:
        """True when a replay can read every change of it again, whole."""
        return self.format in LOSSLESS


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """One object: its key, how many changes (or refused records) it holds, and which: those of the
    period that begins at `start_us`, of `table` where tables lie apart."""

    key: str
    count: int
    start_us: int
    table: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One cut of one shard. `before` and `after` are the shard's stored positions as JSON text,
    `by` is the fence that it was made under, `letters` the object of the records that were
    refused. A plan without objects moves the position alone; with `is_moved` an operator did."""

    shard_id: str
    ordinal: int
    before: str
    after: str
    by: str
    encoding: Encoding = field(default_factory=Encoding)
    period_us: int = 3_600_000_000
    by_table: bool = False
    first: str | None = None
    last: str | None = None
    objects: tuple[PlannedObject, ...] = ()
    letters: PlannedObject | None = None
    is_moved: bool = False
    late: int = 0
    """Changes in all objects that came late: some may be copies of what was forgotten by then."""
    known: int = 0
    """Copies that were left out."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What made it be cut here, for who reads it, and by what its worker chose and sorted: who
    completes it must do so alike."""
    remembered: str | None = None
    """With the shard's end: the object that its children begin with."""
    columns: Mapping[str, Columns] = field(default_factory=dict)
    """By table the typed columns of its objects, where they follow the items."""

    def columns_of(self, each: PlannedObject) -> Columns | None:
        """The typed columns of one of its objects, which may be none; None where it has no place
        for any."""
        if (followed := self.columns.get(each.table or TOGETHER)) is not None:
            return followed
        return self.encoding.columns or None

    @property
    def keys(self) -> tuple[str, ...]:
        """Every object that has to be there, those without changes first."""
        letters = None if self.letters is None else self.letters.key
        others = (each for each in (self.remembered, letters) if each is not None)
        return (*others, *(each.key for each in self.objects))

    @property
    def count(self) -> int:
        """Changes in all objects."""
        return sum(each.count for each in self.objects)

    def missing(self, existing: Iterable[str]) -> tuple[str, ...]:
        """What is still to be created, in order."""
        there = frozenset(existing)
        return tuple(key for key in self.keys if key not in there)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON can say it."""
        return {"plan": VERSION, **asdict(self)}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Plan:
        """What `as_dict` gave. Raises ValueError for another version's plan, or none."""
        if data.get("plan") != VERSION:
            raise ValueError(f"version {data.get('plan')!r} of plans is not known here")
        try:
            # (Plans of before lack some.)
            told = {"late": 0, "known": 0, "remembered": None, "columns": {}, **data}
            made = {name: told[name] for name in cls.__slots__}
            encoding = dict(made["encoding"])
            encoding["columns"] = _columns(encoding["columns"])
            made["encoding"] = Encoding(**encoding)
            made["columns"] = {name: _columns(each) for name, each in made["columns"].items()}
            made["objects"] = tuple(PlannedObject(**each) for each in made["objects"])
            letters = made["letters"]
            made["letters"] = None if letters is None else PlannedObject(**letters)
            return cls(**made)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"a member of the plan can't be read: {error}") from None


def _columns(told: Iterable[Sequence[str]]) -> Columns:
    return tuple((name, kind) for name, kind in told)


def numbered(ordinal: int) -> str:
    """The part of a name that sorts the newest first: ordinals from 1 on."""
    assert 0 < ordinal <= ORDINAL_MAX, ordinal
    return f"{ORDINAL_MAX - ordinal:012d}"


def ordinal_of(name: str) -> int:
    """The ordinal of a name (a key) that ends in what `numbered` gave, `.json` behind it.
    Raises ValueError for another name."""
    digits = name.rsplit("/", 1)[-1].removesuffix(".json")
    if len(digits) != 12 or not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{name!r} has no number at its end")
    return ORDINAL_MAX - int(digits)


def differences(plan: Plan, made: Sequence[PlannedObject]) -> list[str]:
    """What of the plan's objects isn't what was made again from its range, for a message."""
    wanted = {each.key: each.count for each in plan.objects}
    found = {each.key: each.count for each in made}
    return [
        f"{key}: {found.get(key, 0)} changes instead of {wanted.get(key, 0)}"
        for key in sorted(wanted.keys() | found.keys())
        if found.get(key, 0) != wanted.get(key, 0)
    ]


def are_copies(plan: Plan, made: Sequence[PlannedObject]) -> bool:
    """True when copies alone can make the difference. A memory that is filled again, by other
    fetches and without the time that passed, may know some that the plan's worker had forgotten,
    and forget some that it knew. Either way the change itself was written before its copy."""
    wanted = {(each.key, each.start_us): each.count for each in plan.objects}
    found = {(each.key, each.start_us): each.count for each in made}
    more = [found.get(key, 0) - wanted.get(key, 0) for key in wanted.keys() | found.keys()]
    missing, spare = -sum(min(0, each) for each in more), sum(max(0, each) for each in more)
    return missing <= plan.late and spare <= plan.known
