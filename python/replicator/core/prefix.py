"""Where an object lies: Firehose's prefix expressions, by the instant of a change's creation.

`!{timestamp:…}` takes a pattern of Java's DateTimeFormatter, in UTC; `!{firehose:random-string}`
and `!{firehose:error-output-type}` are Firehose's own; `{table}` is ours. A prefix without a
timestamp gets `yyyy/MM/dd/HH/` at its end, as Firehose does
(https://docs.aws.amazon.com/firehose/latest/dev/s3-prefixes.html).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

HOUR_US = 3_600_000_000
_DEFAULT = "!{timestamp:yyyy/MM/dd/HH}/"
EXPRESSION = re.compile(r"!\{([^:}]*):([^}]*)\}")
# Letters of a pattern, quoted text, or one other character.
PIECE = re.compile(r"'((?:[^']|'')*)'|([A-Za-z])\2*|[^A-Za-z']")
# Per letter: the allowed lengths, and how long a period of it lasts.
_LETTERS: Mapping[str, tuple[frozenset[int], int]] = {
    "y": (frozenset({1, 2, 4}), 24 * HOUR_US),
    "u": (frozenset({1, 2, 4}), 24 * HOUR_US),
    "M": (frozenset({1, 2}), 24 * HOUR_US),
    "d": (frozenset({1, 2}), 24 * HOUR_US),
    "D": (frozenset({1, 3}), 24 * HOUR_US),
    "H": (frozenset({1, 2}), HOUR_US),
    "m": (frozenset({1, 2}), 60_000_000),
}


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix, checked. `period_us`: all instants of one such period (of the epoch's count) lie
    in one place; `by_table`: each table has its own."""

    text: str
    period_us: int
    by_table: bool
    names_error: bool

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """Raises ValueError that names the expression and says what to write."""
        period_us: int | None = None
        names_error = False
        for namespace, value in EXPRESSION.findall(text):
            match namespace:
                case "timestamp":
                    period_us = min(period_us or 24 * HOUR_US, _period(value))
                case "firehose" if value in {"random-string", "error-output-type"}:
                    names_error = names_error or value == "error-output-type"
                case "firehose":
                    raise ValueError(
                        f"!{{firehose:{value}}} is unknown: write random-string or "
                        "error-output-type"
                    )
                case "partitionKeyFromQuery" | "partitionKeyFromLambda":
                    raise ValueError(
                        f"!{{{namespace}:{value}}}: objects are parted by time and table, not by "
                        "what a query or a function finds: write {table} or a timestamp"
                    )
                case _:
                    raise ValueError(
                        f"!{{{namespace}:{value}}} is unknown: write !{{timestamp:yyyy/MM/dd/HH}} "
                        "or {table}"
                    )
        if "!{" in EXPRESSION.sub("", text):
            raise ValueError(f"{text!r}: an expression is !{{namespace:value}}, closed by a brace")
        if text.startswith("/"):
            raise ValueError(f"{text!r}: a key begins with no slash")
        if period_us is None:
            text, period_us = text + _DEFAULT, HOUR_US
        return cls(text, period_us, "{table}" in text, names_error)

    @property
    def root(self) -> str:
        """What all keys begin with: up to the last slash before the first expression."""
        fixed = re.split(r"!\{|\{table\}", self.text, maxsplit=1)[0]
        return fixed[: fixed.rfind("/") + 1]

    def key(self, us: int, *, table: str | None = None, mark: str = "", error: str = "") -> str:
        """The prefix for an instant (UTC microseconds). `mark` stands for the random string,
        `error` for the type of a failure."""

        def value(found: re.Match[str]) -> str:
            if found[1] == "timestamp":
                return formatted(found[2], us)
            return mark if found[2] == "random-string" else error

        text = self.text.replace("{table}", _segment(table) if table else "_")
        return EXPRESSION.sub(value, text)


def formatted(pattern: str, us: int) -> str:
    """The instant (UTC microseconds) by a pattern that `Prefix.parse` takes."""
    days, rest = divmod(us, 24 * HOUR_US)
    year, month, day = civil(days)
    of_year = days - days_of(year, 1, 1) + 1
    values = {
        "y": year,
        "u": year,
        "M": month,
        "d": day,
        "D": of_year,
        "H": rest // HOUR_US,
        "m": rest % HOUR_US // 60_000_000,
    }

    def piece(found: re.Match[str]) -> str:
        if (letter := found[2]) is None:
            quoted = found[1]
            return found[0] if quoted is None else quoted.replace("''", "'") or "'"
        digits = len(found[0])
        if letter in "yu" and digits == 2:
            return f"{year % 100:02d}"
        return f"{values[letter]:0{digits}d}"

    return PIECE.sub(piece, pattern)


def civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a number of days since 1970-01-01, Gregorian
    (https://howardhinnant.github.io/date_algorithms.html)."""
    era, of_era = divmod(days + 719_468, 146_097)
    years = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * years + years // 4 - years // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    return years + era * 400 + (month <= 2), month, day


def days_of(year: int, month: int, day: int) -> int:
    """The days since 1970-01-01: what `civil` takes apart."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _period(pattern: str) -> int:
    if PIECE.sub("", pattern):
        raise ValueError(f"!{{timestamp:{pattern}}}: a quote is not closed")
    period_us = 24 * HOUR_US
    for found in PIECE.finditer(pattern):
        if (letter := found[2]) is None:
            continue
        if letter == "Y":
            raise ValueError(
                f"!{{timestamp:{pattern}}}: Y is the year of the week, another one in the last "
                "days of some Decembers: write y"
            )
        lengths, letter_us = _LETTERS.get(letter, (frozenset(), 0))
        if len(found[0]) not in lengths:
            raise ValueError(
                f"!{{timestamp:{pattern}}}: {found[0]} is not known here: write yyyy, yy, MM, dd, "
                "DDD, HH or mm, and text in single quotes"
            )
        period_us = min(period_us, letter_us)
    return period_us


def _segment(table: str) -> str:
    # A table's name has letters, digits and _.- only; another source's name may have a slash.
    return re.sub(r"[^A-Za-z0-9_.\-]", "_", table)
