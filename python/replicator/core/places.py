"""What a key tells of the changes in its object, by the prefix that it was made with. Pure.

A folder tells too: what lies in a year's folder was made in that year, however the key goes on,
and each folder behind it tells more, never something else. So who looks for a time passes over
whole folders (`sink/s3_archive.py`). Nothing is told that isn't certain: where digits run into
each other, or into text that may hold digits as well, nobody knows which are the time's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from replicator.core.prefix import EXPRESSION, HOUR_US, PIECE, Prefix, civil, days_of, formatted

_DAY_US = 24 * HOUR_US
_MINUTE_US = 60_000_000
_TABLE = "table"
_Period: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Told:
    """The table, and the period [`from_us`, `to_us`), UTC microseconds, in which all changes were
    made; None for what isn't told."""

    table: str | None = None
    from_us: int | None = None
    to_us: int | None = None


@dataclass(frozen=True, slots=True)
class _Token:
    """A piece of a folder's name. `letter`: digits of a timestamp, one to four where `is_short`;
    `is_open`: anything but a slash."""

    pattern: str
    letter: str | None = None
    is_short: bool = False
    is_open: bool = False
    is_table: bool = False


@dataclass(frozen=True, slots=True)
class _Segment:
    """A folder's name, or what an object's own name begins with."""

    pattern: re.Pattern[str]
    names: Sequence[str]
    """What the pattern's groups are."""
    is_random: bool


@dataclass(frozen=True, slots=True)
class Places:
    """All places of a prefix."""

    prefix: Prefix
    _segments: tuple[_Segment, ...] = field(init=False, repr=False, compare=False)
    _deepest: int = field(init=False, repr=False, compare=False)
    """The last folder that tells of time, counted from 0 on; -1 for none. Those behind a random
    one don't count: there each object has a folder of its own."""

    def __post_init__(self) -> None:
        tokens = _tokens(self.prefix.text)
        *folders, name = tokens
        segments = (*map(_folder, folders), _segment(name, is_folder=False))
        deepest, has_year = -1, False
        for n, segment in enumerate(segments[:-1]):
            if segment.is_random:
                break
            times = {*segment.names} - {_TABLE}
            has_year = has_year or "y" in times
            deepest = n if has_year and times else deepest
        object.__setattr__(self, "_segments", segments)
        object.__setattr__(self, "_deepest", deepest)

    @property
    def tells_time(self) -> bool:
        """True when who looks for a time can pass over folders."""
        return self._deepest >= 0

    def told(self, place: str) -> Told:
        """What a key tells, or a folder (with the slash behind it)."""
        table, period, count = self._read(place)
        # Any folder's name could be a table's: a part of the prefix isn't enough for it.
        is_whole = count == len(self._segments)
        return Told(table if is_whole else None, *(period or (None, None)))

    def leads_on(self, folder: str) -> bool:
        """True when folders in this one may tell more of time than it does."""
        depth = folder.count("/")
        return depth <= self._deepest and self._read(folder)[2] == depth

    def _read(self, place: str) -> tuple[str | None, _Period | None, int]:
        """Table and period, and how many segments of the prefix the place has."""
        table: str | None = None
        period: _Period | None = None
        times: dict[str, int] = {}
        parts = place.split("/", len(self._segments) - 1)
        for n, (segment, part) in enumerate(zip(self._segments, parts, strict=False)):
            if n < len(parts) - 1:
                found = segment.pattern.fullmatch(part)
            elif n == len(self._segments) - 1:
                found = segment.pattern.match(part)
            else:
                found = None
            if found is None:
                return table, period, n
            for name, text in zip(segment.names, found.groups(), strict=True):
                if name == _TABLE:
                    table = text
                elif times.setdefault(name, _value(name, text)) != _value(name, text):
                    return table, period, n  # somebody else's name, and so below
            try:
                period = _period(times)
            except ValueError:
                return table, period, n
        return table, period, min(len(self._segments), len(parts))


def _tokens(text: str) -> list[list[_Token]]:
    """The pieces of each folder's name, and of what is behind the last slash."""
    segments: list[list[_Token]] = [[]]

    def add(literal: str) -> None:
        first, *others = literal.split("/")
        segments[-1] += [_Token(re.escape(each)) for each in first]
        segments.extend([_Token(re.escape(each)) for each in other] for other in others)

    for piece in re.split(r"(!\{[^}]*\}|\{table\})", text):
        if piece == "{table}":
            segments[-1].append(_Token("[^/]+?", is_open=True, is_table=True))
        elif (expression := EXPRESSION.fullmatch(piece)) is None:
            add(piece)
        elif expression[1] != "timestamp":
            segments[-1].append(_Token("[^/]*?", is_open=True))
        else:
            for found in PIECE.finditer(expression[2]):
                if (letter := found[2]) is None:
                    add(formatted(found[0], 0))
                    continue
                length = len(found[0])
                digits = f"[0-9]{{{length}}}" if length > 1 else "[0-9]{1,4}"
                segments[-1].append(_Token(digits, letter.replace("u", "y"), length == 1))
    return segments


def _folder(tokens: Sequence[_Token]) -> _Segment:
    return _segment(tokens, is_folder=True)


def _segment(tokens: Sequence[_Token], *, is_folder: bool) -> _Segment:
    opens = [n for n, token in enumerate(tokens) if token.is_open]
    # Where it shares the name with expressions, or with the object's, who knows a table's end?
    is_apart = is_folder and len(opens) == 1 and not any(each.letter for each in tokens)
    # Digits are found from one end of the name, if nothing open is between.
    first_open = opens[0] if opens else len(tokens)
    last_open = opens[-1] if opens and is_folder else len(tokens)
    is_certain = all(
        _is_text(tokens, n - 1, is_folder=is_folder)
        and _is_text(tokens, n + 1, is_folder=is_folder)
        for n, each in enumerate(tokens)
        if each.is_short
    )
    pattern, names = "", []
    for n, token in enumerate(tokens):
        name = _TABLE if token.is_table and is_apart else None
        if is_certain and (n < first_open or n > last_open):
            name = name or token.letter
        pattern += token.pattern if name is None else f"({token.pattern})"
        names += [] if name is None else [name]
    return _Segment(re.compile(pattern), names, any(tokens[n].is_table is False for n in opens))


def _is_text(tokens: Sequence[_Token], n: int, *, is_folder: bool) -> bool:
    """True where no digit of another meaning can be."""
    if n < 0 or n == len(tokens):
        return n < 0 or is_folder
    return not (tokens[n].is_open or tokens[n].letter or tokens[n].pattern.isdigit())


def _value(name: str, text: str) -> int:
    return int(text) + (2_000 if name == "y" and len(text) == 2 else 0)


def _period(times: Mapping[str, int]) -> _Period | None:
    """The period of these members, which is within that of some of them. Raises ValueError when
    there is none such."""
    if (year := times.get("y")) is None:
        return None
    month, day, of_year = (times.get(letter) for letter in "MdD")
    if not year or month not in {None, *range(1, 13)}:
        raise ValueError(times)
    if of_year is not None:
        days = days_of(year, 1, 1) + of_year - 1
    elif month is None:
        return days_of(year, 1, 1) * _DAY_US, days_of(year + 1, 1, 1) * _DAY_US
    elif day is None:
        begin, end = days_of(year, month, 1), days_of(year + month // 12, month % 12 + 1, 1)
        return begin * _DAY_US, end * _DAY_US
    else:
        days = days_of(year, month, day)
    told = civil(days)
    if told[0] != year or month not in {None, told[1]} or day not in {None, told[2]}:
        raise ValueError(times)
    begin_us = days * _DAY_US
    hour, minute = times.get("H"), times.get("m")
    if hour is None:
        return begin_us, begin_us + _DAY_US
    if hour > 23 or minute not in {None, *range(60)}:
        raise ValueError(times)
    begin_us += hour * HOUR_US
    if minute is None:
        return begin_us, begin_us + HOUR_US
    begin_us += minute * _MINUTE_US
    return begin_us, begin_us + _MINUTE_US
