"""Structured logs on standard error: console for a terminal, JSON lines otherwise."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from replicator.errors import ReplicatorError, TransientError


def configure(*, level: str = "info", json: bool | None = None) -> None:
    """Sets the process's log form once. `json` None means: JSON unless stderr is a terminal."""
    # It says of each failed try what reaches us as an error, and is mapped and said once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    as_json = not sys.stderr.isatty() if json is None else json
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def say(
    log: structlog.typing.FilteringBoundLogger, error: ReplicatorError, event: str, **where: Any
) -> None:
    """One line for an error, by what may follow: a warning when it may pass by itself."""
    level = log.warning if isinstance(error, TransientError) else log.error
    level(event, code=error.code, reason=error.message, **where)
