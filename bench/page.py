"""What a run prints: tables, as text for a terminal or as Markdown for `results/`."""

from __future__ import annotations

from typing import Literal, TextIO

Form = Literal["text", "markdown"]


class Page:
    """Tables one after the other. The first row of each is its head."""

    def __init__(self, out: TextIO, form: Form) -> None:
        self._out = out
        self._form = form
        self._is_in_table = False

    def part(self, name: str) -> None:
        """What follows belongs to this part of the run."""
        self._is_in_table = False
        if self._form == "markdown":
            self._print(f"\n## `{name}`")

    def note(self, text: str) -> None:
        """A line of text. It ends the table before it."""
        self._is_in_table = False
        self._print(text)

    def head(self, first: str, *cells: str) -> None:
        """A new table."""
        self._is_in_table = False
        self.row(first, *cells)

    def row(self, first: str, *cells: str) -> None:
        """The next row, which is the head when no table has begun."""
        if self._form == "text":
            self._print(f"{first:<26}" + "".join(f"{cell:>26}" for cell in cells))
        elif self._is_in_table:
            self._print(_markdown(first, *cells))
        else:
            self._print("\n" + _markdown(first, *cells))
            self._print("|" + "---|" + "---:|" * len(cells))
        self._is_in_table = True

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def _markdown(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
