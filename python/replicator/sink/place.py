"""Where a sink stands, beside its own settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from replicator.aws import AWSSettings
from replicator.core.windows import Windows

# For who only looks: nothing is held then.
_NO_LIMIT = 2**63


@dataclass(frozen=True, slots=True)
class SinkPlace:
    """The name that its positions are kept under (the pipeline's full name and the sink's own:
    two sinks of a pipeline may share a place), who this process is, its lease store, and how AWS
    is reached (by the sink's own `aws:` where it has one). `store_id` is empty for a command that
    only looks, `tables` (the source's, by name) where they aren't known yet. `windows` is the
    memory for what a log sink remembers."""

    pipeline: str
    owner: str
    store_id: str
    aws: AWSSettings
    tables: tuple[str, ...] = ()
    windows: Windows = field(default_factory=lambda: Windows(_NO_LIMIT))
