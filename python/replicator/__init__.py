"""Copies every change of a DynamoDB table, in order and exactly once in effect.

The command line is the interface; what is public from Python are the errors.
"""

from replicator.errors import (
    FatalError,
    LeaseLost,
    PositionLost,
    RejectedError,
    ReplicatorError,
    TransientError,
)

__all__ = [
    "FatalError",
    "LeaseLost",
    "PositionLost",
    "RejectedError",
    "ReplicatorError",
    "TransientError",
]
