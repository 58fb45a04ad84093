"""Where changes come from: one file per kind of source."""

from __future__ import annotations

from replicator.source.kinesis import KinesisOptions, KinesisSource
from replicator.source.kinesis_polling import KinesisPollingSource
from replicator.source.streams import StreamsOptions, StreamsSource

__all__ = [
    "KinesisOptions",
    "KinesisPollingSource",
    "KinesisSource",
    "StreamsOptions",
    "StreamsSource",
]
