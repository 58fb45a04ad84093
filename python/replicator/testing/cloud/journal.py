"""What the cloud did, in order and counted: lines of JSON."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KEPT_MAX = 100_000


class Journal:
    """The newest lines in memory, all of them in a file if one is given."""

    def __init__(self, now: Callable[[], float], path: Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._now = now
        self._lines: deque[tuple[int, str]] = deque(maxlen=KEPT_MAX)
        self._file = None if path is None else path.open("a", buffering=1, encoding="utf-8")

    def add(self, kind: str, **details: Any) -> None:
        """One thing that was done."""
        self.counts[kind] += 1
        number = self.counts.total()
        line = json.dumps({"n": number, "seconds": round(self._now(), 3), "kind": kind, **details})
        self._lines.append((number, line))
        if self._file is not None:
            self._file.write(line + "\n")

    def lines(self, first: int = 1) -> Iterator[str]:
        """The lines that are still kept, from this number on."""
        return (line for number, line in self._lines if number >= first)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
