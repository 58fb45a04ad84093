"""Postgres' and asyncpg's errors, mapped once to the errors the engine knows.

The classes are those of https://www.postgresql.org/docs/current/errcodes-appendix.html.
No driver type leaves the sink: whatever talks to the server does so inside `mapped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from replicator.errors import FatalError, ReplicatorError, TransientError

# The longest prefix of the SQLSTATE decides. None: it may work when tried again; else what
# the operator should do about it.
_ACTIONS: Final[dict[str, str | None]] = {
    "08": None,  # connection
    "25006": None,  # read-only: we met a standby in a failover
    "25P03": None,  # ended while idle in transaction
    "25P04": None,  # ended by transaction_timeout
    "28": "check user, password and pg_hba.conf",
    "3D000": "create the database, or correct its name",
    "3F000": "create the schema, or let the sink do it with `create: true`",
    "40": None,  # serialization failure, deadlock
    "42501": "grant the missing right; `replicator check` names them all",
    "42P01": "restart to have the table made again, or restore it",
    "42703": "restore the column, or point the sink at another table",
    "42P10": "restore the table's primary key",
    "42": "`replicator check` compares the tables with what the sink needs",
    "53": None,  # out of disk, memory, connections
    "55006": None,  # object in use
    "55P03": None,  # lock not available in time
    "57014": None,  # statement timeout
    "57P": None,  # shutting down, crashed, starting up
    "57P04": "the database was dropped: create it, or correct its name",
    "58": None,  # I/O of the server's own files
    "XX000": None,  # internal
    "XX": "the server reports damaged data: have its log looked at",
}
_UNKNOWN = "this isn't expected here: look the SQLSTATE up, then restart"

REFUSAL_CODES: Final[dict[str, str]] = {
    "postgres_text": "A string that Postgres can't store, such as one with a NUL character.",
    "postgres_too_large": "A value over a limit of Postgres, such as a key too long to index.",
    "postgres_constraint": "The table has a constraint that the row breaks.",
    "postgres_trigger": "A trigger or function of the table's owner raised an error.",
    "postgres_value": "A value that doesn't fit its column.",
}
"""Codes of dead letters that Postgres itself refused; a code never changes."""

_REFUSALS: Final[dict[str, str]] = {
    "22021": "postgres_text",
    "22P05": "postgres_text",
    "22": "postgres_value",
    "23": "postgres_constraint",
    "44": "postgres_constraint",
    "54": "postgres_too_large",
    "P0": "postgres_trigger",
}


def refusal_code(error: BaseException) -> str | None:
    """The dead letter's code when the server blames the data; None for other errors."""
    if not isinstance(error, asyncpg.PostgresError):
        return None
    return _longest(_REFUSALS, _state(error))


def refusal_message(error: asyncpg.PostgresError) -> str:
    """What the server said about one row, cut to a length that is good to read."""
    said = ": ".join(filter(None, (error.message or str(error), getattr(error, "detail", None))))
    return f"Postgres refused the row: {said[:500]} (SQLSTATE {_state(error)})"


@contextmanager
def mapped(doing: str) -> Iterator[None]:
    """Raises TransientError or FatalError in place of any driver's error inside;
    `doing` begins the message: what was tried, on what."""
    try:
        yield
    except ReplicatorError:
        raise
    except asyncpg.InvalidCachedStatementError as error:
        # The table changed under a prepared statement; a fresh connection prepares anew.
        raise TransientError("postgres_unavailable", f"{doing}: {error}") from error
    except asyncpg.PostgresError as error:
        raise _translated(error, doing) from error
    except (asyncpg.ClientConfigurationError, asyncpg.UnsupportedServerFeatureError) as error:
        raise FatalError(
            "postgres_settings", f"{doing}: {error}; correct the sink's DSN or PG* variables"
        ) from error
    except TimeoutError as error:
        raise TransientError("postgres_timeout", f"{doing}: no answer in time") from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise TransientError("postgres_unavailable", f"{doing}: {error}") from error


def _translated(error: asyncpg.PostgresError, doing: str) -> ReplicatorError:
    state = _state(error)
    message = f"{doing}: {error.message or error} (SQLSTATE {state or 'none'})"
    action = _longest(_ACTIONS, state, _UNKNOWN)
    if action is None:
        return TransientError("postgres_unavailable", message)
    return FatalError("postgres_refused", f"{message}; {action}")


def _state(error: asyncpg.PostgresError) -> str:
    return str(error.sqlstate or "")


def _longest(
    table: dict[str, str] | dict[str, str | None], state: str, default: str | None = None
) -> str | None:
    for length in range(len(state), 0, -1):
        if state[:length] in table:
            return table[state[:length]]
    return default
