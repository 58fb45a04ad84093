"""Which tables of a pipeline run: those that its tags find, with patience for what goes away.

The tags' index is eventually consistent: an answer may lack a table that is tagged all the
time. So a table is stopped only when two answers in a row lack it; one that is new is started
at once. An answer that failed is no answer, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

MISSES_MAX = 2


def selected(names: Iterable[str], include: Collection[str], exclude: Collection[str]) -> set[str]:
    """The table names that match a pattern of `include` and none of `exclude` (`*`, `?`, `[…]`;
    upper and lower case differ, as in table names)."""
    return {
        name
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }


@dataclass(frozen=True, slots=True)
class Change:
    """What an answer asks for: start `added`, stop `removed`. Both sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """True when everything stays as it is."""
        return not self.added and not self.removed


class Tables:
    """The tables that should run now, answer after answer."""

    def __init__(self) -> None:
        self.answers = 0
        self._misses: dict[str, int] = {}

    @property
    def running(self) -> tuple[str, ...]:
        """All that was started and not stopped."""
        return tuple(sorted(self._misses))

    def step(self, found: Collection[str]) -> Change:
        """What follows from one complete answer."""
        self.answers += 1
        added = sorted(set(found) - self._misses.keys())
        for name in self._misses:
            self._misses[name] = 0 if name in found else self._misses[name] + 1
        removed = sorted(name for name, misses in self._misses.items() if misses >= MISSES_MAX)
        for name in removed:
            del self._misses[name]
        self._misses.update(dict.fromkeys(added, 0))
        return Change(tuple(added), tuple(removed))
