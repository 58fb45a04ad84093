from __future__ import annotations

import asyncpg
import pytest

from replicator.errors import FatalError, LeaseLost, ReplicatorError, TransientError
from replicator.sink.postgres_errors import REFUSAL_CODES, mapped, refusal_code, refusal_message


def raised(error: BaseException) -> ReplicatorError:
    with pytest.raises(ReplicatorError) as caught, mapped("doing this"):
        raise error
    assert caught.value.message.startswith("doing this: ") or isinstance(error, ReplicatorError)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.AdminShutdownError("stopping"),
        asyncpg.CannotConnectNowError("starting"),
        asyncpg.SerializationError("again"),
        asyncpg.DeadlockDetectedError("again"),
        asyncpg.LockNotAvailableError("later"),
        asyncpg.DiskFullError("full"),
        asyncpg.TooManyConnectionsError("full"),
        asyncpg.QueryCanceledError("statement timeout"),
        asyncpg.ReadOnlySQLTransactionError("a standby"),
        asyncpg.InvalidCachedStatementError("changed"),
        asyncpg.InterfaceError("connection is closed"),
        ConnectionResetError("reset"),
        FileNotFoundError("no socket"),
        TimeoutError(),
    ],
)
def test_what_may_pass_is_transient(error: BaseException) -> None:
    assert isinstance(raised(error), TransientError)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (asyncpg.InvalidPasswordError("no"), "password"),
        (asyncpg.InvalidCatalogNameError("no"), "create the database"),
        (asyncpg.InsufficientPrivilegeError("no"), "grant"),
        (asyncpg.UndefinedTableError("no"), "table"),
        (asyncpg.UndefinedColumnError("no"), "column"),
        (asyncpg.DatatypeMismatchError("no"), "check"),
        (asyncpg.DataCorruptedError("no"), "damaged"),
        (asyncpg.FeatureNotSupportedError("no"), "SQLSTATE"),
        (asyncpg.ClientConfigurationError("no"), "DSN"),
    ],
)
def test_what_an_operator_must_mend_is_fatal_and_says_how(
    error: BaseException, advice: str
) -> None:
    fatal = raised(error)
    assert isinstance(fatal, FatalError)
    assert advice in fatal.message


def test_our_own_errors_pass_unchanged() -> None:
    lost = LeaseLost("fence_lost", "gone")
    assert raised(lost) is lost


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (asyncpg.UntranslatableCharacterError("nul"), "postgres_text"),
        (asyncpg.CharacterNotInRepertoireError("nul"), "postgres_text"),
        (asyncpg.NumericValueOutOfRangeError("big"), "postgres_value"),
        (asyncpg.ProgramLimitExceededError("long"), "postgres_too_large"),
        (asyncpg.CheckViolationError("rule"), "postgres_constraint"),
        (asyncpg.RaiseError("trigger"), "postgres_trigger"),
        (asyncpg.DiskFullError("full"), None),
        (asyncpg.UndefinedTableError("gone"), None),
        (ConnectionError("gone"), None),
    ],
)
def test_only_errors_about_the_data_make_dead_letters(
    error: BaseException, code: str | None
) -> None:
    assert refusal_code(error) == code
    assert code is None or code in REFUSAL_CODES


def test_a_refusal_says_what_the_server_said() -> None:
    error = asyncpg.UntranslatableCharacterError("unsupported Unicode escape sequence")
    said = refusal_message(error)
    assert said == "Postgres refused the row: unsupported Unicode escape sequence (SQLSTATE 22P05)"
