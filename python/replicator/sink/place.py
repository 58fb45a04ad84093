"""Where a sink stands, beside its own settings."""

from __future__ import annotations

from dataclasses import dataclass

from replicator.aws import AWSSettings


@dataclass(frozen=True, slots=True)
class SinkPlace:
    """The name that its positions are kept under (the pipeline's full name and the sink's own:
    two sinks of a pipeline may share a place), who this process is, its lease store, and how AWS
    is reached (by the sink's own `aws:` where it has one). `store_id` is empty for a command that
    only looks, `tables` (the source's, by name) where they aren't known yet."""

    pipeline: str
    owner: str
    store_id: str
    aws: AWSSettings
    tables: tuple[str, ...] = ()
