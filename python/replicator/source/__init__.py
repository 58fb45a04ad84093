"""Where changes come from: one file per kind of source."""

from __future__ import annotations

from replicator.source.kinesis import KinesisOptions, KinesisSource

__all__ = ["KinesisOptions", "KinesisSource"]
