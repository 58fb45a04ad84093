"""What every sink says of its fences in the same way."""

from __future__ import annotations

import secrets

from replicator.errors import LeaseLost
from replicator.model import Fence


def marked(owner: str) -> str:
    """The owner with a mark of this one raise: see `Fence`."""
    return f"{owner}/{secrets.token_hex(4)}"


def fence_lost(fence: Fence) -> LeaseLost:
    """What is raised under a fence that isn't the newest."""
    return LeaseLost("fence_lost", f"shard {fence.shard_id} was fenced by another worker")
