"""What is said of a sink that doesn't do what it is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps a sink from taking more: for how many seconds, and the newest reason. `shards`
    is how many of them failed there; 0 where the pipeline itself did, or it says nothing."""

    seconds: float
    why: str
    shards: int
