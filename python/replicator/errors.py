"""The errors that cross a seam, and the stable codes that name them.

The engine branches on the five children of `ReplicatorError` and on nothing
else. A driver's exception is mapped to one of them once, at the edge of the
file that calls the driver; no driver type crosses that edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ReplicatorError(Exception):
    """Base of every error this package raises on purpose.

    `code` is a stable slug (a metric label, a search term); the message says
    what happened, to what, and what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class TransientError(ReplicatorError):
    """It may work when tried again: throttled, disconnected, timed out."""

    def __init__(
        self, code: str, message: str, *, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.retry_after_seconds = retry_after_seconds


class RejectedError(ReplicatorError):
    """One record will never be accepted: it belongs in the dead letters."""


class FatalError(ReplicatorError):
    """The operator must act: configuration, permission, schema."""


class LeaseLost(ReplicatorError):
    """Another worker owns the shard now: stop reading it, quietly."""


class PositionLost(ReplicatorError):
    """What should be read next is no longer kept by the service: a gap."""


@contextmanager
def one_cause() -> Iterator[None]:
    """Raises the first error of an exception group alone: one cause is enough to act
    on, and the others are mostly its echoes. A bug is never an echo: it comes first."""
    try:
        yield
    except BaseExceptionGroup as group:
        causes = list(_leaves(group))
        bugs = (cause for cause in causes if not isinstance(cause, ReplicatorError))
        raise next(bugs, causes[0]) from group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
