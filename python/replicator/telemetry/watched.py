"""What of a running pipeline the metrics and the admin server look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from replicator.api_calls import APICalls
from replicator.core.budget import Budget
from replicator.core.gap import Gap
from replicator.core.holes import Hole
from replicator.core.liveness import ShardView
from replicator.core.trouble import Trouble
from replicator.errors import ReplicatorError
from replicator.telemetry.stats import Stats


@dataclass(frozen=True, slots=True)
class WatchedSink:
    """One sink of a pipeline."""

    name: str
    stats: Stats
    errors: Callable[[], Mapping[str, int]] = dict
    """What it answered instead of what it was asked, by code."""
    trouble: Callable[[], Trouble | None] = lambda: None
    """What is wrong with it now."""


@dataclass(frozen=True, slots=True)
class Watched:
    """One pipeline. Nothing is copied: each value is asked for when somebody looks."""

    pipeline: str
    sinks: Sequence[WatchedSink]
    own: Stats
    """What is counted of the reading."""
    budget: Budget
    shards: Callable[[], Sequence[ShardView]]
    """Every shard of this worker, by name."""
    unready: Callable[[], str]
    """Why it can't work now; empty when it can."""
    source_counters: Callable[[], Mapping[str, int]]
    """See `protocols.Measured.counters`; empty where the source counts nothing."""
    gaps: Callable[[], Sequence[Gap]] = tuple
    """The gaps that stop shards now."""
    holes: Callable[[], Sequence[Hole]] = tuple
    """What nobody can read now."""
    api: APICalls = field(default_factory=APICalls)
    """What its calls of AWS met."""
    failure: Callable[[], ReplicatorError | None] = lambda: None
    """What ended its last run, until it has begun again."""

    @property
    def stats(self) -> Stats:
        """All of it together."""
        return Stats.of_pipeline(self.own, [sink.stats for sink in self.sinks])
