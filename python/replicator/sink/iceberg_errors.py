"""What PyIceberg, its catalogs and its file systems raise, and what that means: one table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Final, TypeAlias

from botocore.exceptions import BotoCoreError, ClientError
from pyiceberg import exceptions as driver

from replicator.aws import aws_errors
from replicator.errors import FatalError, ReplicatorError, TransientError

_Error: TypeAlias = type[BaseException]

_CREDENTIALS: Final = "check the catalog's credentials and what they may do"
_SETTINGS: Final = "check the sink's catalog, and that the extras of its kind are installed"
# The first that fits decides, so children stand before parents.
_FATAL: Final[tuple[tuple[_Error, str, str], ...]] = (
    (driver.UnauthorizedError, "iceberg_denied", _CREDENTIALS),
    (driver.ForbiddenError, "iceberg_denied", _CREDENTIALS),
    (driver.OAuthError, "iceberg_denied", _CREDENTIALS),
    (driver.SignError, "iceberg_denied", _CREDENTIALS),
    (PermissionError, "iceberg_denied", "check who may read and write the warehouse"),
    (driver.NoSuchTableError, "iceberg_table_missing", "make it again, or start anew"),
    (driver.NoSuchNamespaceError, "iceberg_namespace_missing", "make it, or correct table"),
    (driver.NotInstalledError, "iceberg_settings", _SETTINGS),
    (driver.BadRequestError, "iceberg_refused", _SETTINGS),
    (driver.ValidationError, "iceberg_refused", "look at what the table's schema allows"),
    (driver.ValidationException, "iceberg_refused", "look at what else changes the table"),
    (ModuleNotFoundError, "iceberg_settings", _SETTINGS),
    (FileNotFoundError, "iceberg_file_missing", "look for what removes files of the table"),
    (ValueError, "iceberg_refused", _SETTINGS),
)
_TRANSIENT: Final[tuple[_Error, ...]] = (
    driver.CommitStateUnknownException,
    driver.ServiceUnavailableError,
    driver.ServerError,
    driver.TooManyRequestsError,
    driver.AuthorizationExpiredError,
    driver.WaitingForLockException,
    driver.RESTError,
    OSError,  # the file systems' and requests' own
)


def _of(module: str, name: str) -> tuple[_Error, ...]:
    """An exception of a package that may not be there."""
    try:
        return (getattr(import_module(module), name),)
    except ModuleNotFoundError:
        return ()


# What a catalog in a database raises of its own.
DATABASE: Final[tuple[_Error, ...]] = _of("sqlalchemy.exc", "SQLAlchemyError")
_METASTORE: Final[tuple[_Error, ...]] = _of("thrift.Thrift", "TException")
_CAUGHT: Final = (*(kind for kind, _, _ in _FATAL), *_TRANSIENT, *DATABASE, *_METASTORE)


@contextmanager
def mapped(doing: str) -> Iterator[None]:
    """Turns the driver's exceptions of the block into `replicator.errors`; a commit that was
    certainly refused (`CommitFailedException`) passes."""
    try:
        with aws_errors("the catalog's call", doing):
            yield
    except (ReplicatorError, driver.CommitFailedException, ClientError, BotoCoreError):
        raise
    except _CAUGHT as error:
        raise _meaning(error, doing) from error


def _meaning(error: BaseException, doing: str) -> ReplicatorError:
    # Without a user and password; the first line says it, a server's trace may follow.
    text = re.sub(r"//[^/@\s]+@", "//", str(error)).strip().partition("\n")[0].rstrip(".")
    said = f"{doing}: {type(error).__name__}: {text}"
    if any(sign in text for sign in ("ACCESS_DENIED", "AccessDenied", "InvalidAccessKeyId")):
        return FatalError("iceberg_denied", f"{said}. What to do: {_CREDENTIALS}.")
    if any(sign in text for sign in ("NO_SUCH_BUCKET", "NoSuchBucket")):
        advice = "make the bucket, or correct the catalog's warehouse"
        return FatalError("iceberg_warehouse_missing", f"{said}. What to do: {advice}.")
    for kind, code, advice in _FATAL:
        if isinstance(error, kind):
            return FatalError(code, f"{said}. What to do: {advice}.")
    # Databases name what is wrong with a statement or an address so.
    if isinstance(error, DATABASE) and type(error).__name__ in {
        "ProgrammingError",
        "ArgumentError",
    }:
        return FatalError("iceberg_refused", f"{said}. What to do: {_SETTINGS}.")
    return TransientError("iceberg_unavailable", f"{said}. It is tried again.")
