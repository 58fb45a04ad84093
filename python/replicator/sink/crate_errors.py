"""CrateDB's errors, mapped once to the errors the engine knows; those of requests with its words.

The codes are those of
https://cratedb.com/docs/crate/reference/en/latest/interfaces/http.html#error-codes. No driver type
leaves the sink: whatever talks to the server does so inside `mapped`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.sink import http_client

CONFLICT: Final = frozenset({4092, 40411})
"""The row isn't the one that was read: changed, or gone."""

EXISTS: Final = 4093
"""A relation of this name is there already."""

# None: it may work when tried again; else what the operator should do about it.
_ACTIONS: Final[Mapping[int, str | None]] = {
    4010: "check user and password, and the server's auth.host_based settings",
    4011: "grant the missing privilege; the message names it",
    4031: None,  # a node that is being drained
    4032: "open the table: ALTER TABLE … OPEN",
    4033: 'lift the block: ALTER TABLE … SET ("blocks.write" = false)',
    4034: 'lift the block: ALTER TABLE … SET ("blocks.read" = false)',
    4035: 'lift the block: ALTER TABLE … SET ("blocks.write" = false)',
    4036: 'lift the block: ALTER TABLE … SET ("blocks.write" = false, "blocks.read" = false)',
    4037: None,  # a disk over its flood stage; the block goes when there is room
    4041: "restart to have the table made again, or restore it",
    4043: "restore the column, or point the sink at another table",
    4045: "restart to have the tables made again, or correct the schema's name",
    4090: None,
    4091: None,
    4092: None,
    4290: None,
    40411: None,
}
_UNKNOWN: Final = "this isn't expected here: look the code up, then restart"

_WORDS: Final = http_client.Words(
    certificate=("crate_certificate", "name its authority in ca_file"),
    tls=(
        "crate_settings",
        "check that CrateDB speaks TLS there (else its url begins with http://), and ca_file",
    ),
    url=("crate_settings", "correct url"),
    timeout="crate_timeout",
    away="crate_unavailable",
    silent="; if it lasts: it may want https",
)

REFUSAL_CODES: Final[Mapping[str, str]] = {
    "crate_type": "An attribute's value doesn't fit the type that its column has in CrateDB.",
    "crate_name": "An attribute's name can't be a column's.",
    "crate_value": "CrateDB refused the row for another reason; the message tells it.",
}
"""Codes of dead letters that CrateDB itself refused; a code never changes."""

_DATA: Final = frozenset({4000, 4003, 4004, 4008, 40000})
"""What the server says of data that it can't take, but of a wrong statement too."""
_TYPE_WORDS: Final = ("Cannot cast", "already exists with type", "cannot be cast")
_VALUE_WORDS: Final = (
    *_TYPE_WORDS,
    "ClassCastException",
    "NumberFormatException",
    "ArithmeticException",
    "MapperParsingException",
    "immense term",
)
"""Of what the server has no code for (5000): what names a value. Circuit breakers, closed shards,
rejected executions and lost nodes come as the same code."""
_BLOCK_WORDS: Final = ("FORBIDDEN/5/", "FORBIDDEN/8/", "index read-only (api)", "index write (api)")
"""And what tells that an operator blocked the table. (Over its flood stage a disk has another
block, which goes by itself.)"""
_UNHANDLED: Final = 5000


@dataclass(eq=False, slots=True)
class CrateError(Exception):
    """An error answer of the server, of a request or of one row of a bulk request. Never leaves
    the sink."""

    code: int
    message: str
    status: int = 400

    @classmethod
    def of(cls, error: object, status: int = 400) -> Self:
        """From an answer's `error`. Of many failed rows only some have one: what is wrong with the
        others isn't known."""
        if not isinstance(error, Mapping):
            return cls(0, "no reason given", max(status, 500))
        told: Mapping[str, Any] = error
        return cls(int(told.get("code", 0)), str(told.get("message", "no reason given")), status)

    def __str__(self) -> str:
        return f"{self.message[:500]} (code {self.code or self.status})"

    @property
    def blames_data(self) -> bool:
        """The server may mean the data; a statement that is wrong says the same."""
        return self.code in _DATA

    @property
    def refuses_row(self) -> bool:
        """As an error of one row among others that were taken: what is wrong is in the row."""
        return self.blames_data or self._says(_VALUE_WORDS)

    @property
    def is_blocked(self) -> bool:
        """An operator has to lift a block, though the code doesn't tell."""
        return self._says(_BLOCK_WORDS)

    def _says(self, words: Sequence[str]) -> bool:
        return self.code == _UNHANDLED and any(word in self.message for word in words)

    @property
    def refusal_code(self) -> str:
        """The dead letter's code."""
        if self.code == 4008:
            return "crate_name"
        return "crate_type" if any(word in self.message for word in _TYPE_WORDS) else "crate_value"

    @property
    def refusal_message(self) -> str:
        """What is said of a row, cut to a length that is good to read."""
        return f"CrateDB refused the row: {self}"


@contextmanager
def mapped(doing: str) -> Iterator[None]:
    """Raises TransientError or FatalError in place of any driver's error inside;
    `doing` begins the message: what was tried, on what."""
    try:
        with http_client.mapped(doing, _WORDS):
            yield
    except CrateError as error:
        raise _translated(error, doing) from error


def _translated(error: CrateError, doing: str) -> ReplicatorError:
    message = f"{doing}: {error}"
    action = _ACTIONS.get(error.code, _UNKNOWN)
    if error.code == 0 and error.status in {401, 403}:
        action = _ACTIONS[4010]
    elif error.is_blocked:
        action = _ACTIONS[4033]
    elif error.code // 1000 == 5 or (error.code == 0 and error.status >= 429):
        action = None
    if action is None:
        return TransientError("crate_unavailable", message)
    return FatalError("crate_refused", f"{message}; {action}")
