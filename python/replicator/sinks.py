"""Each kind of sink: what makes it from its settings. A kind is registered here, and with its
settings in `config.SINK_CONFIGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from replicator.protocols import ShownSink
from replicator.settings import SinkConfig
from replicator.sink.crate import CrateSink
from replicator.sink.iceberg import IcebergSink
from replicator.sink.kafka import KafkaSink
from replicator.sink.place import SinkPlace
from replicator.sink.postgres import PostgresSink
from replicator.sink.s3 import S3Sink

# From the settings of that kind, and where the sink stands.
SINKS: Mapping[str, Callable[[Any, SinkPlace], ShownSink[Any]]] = {
    "cratedb": lambda config, place: CrateSink(config.settings(place)),
    "iceberg": lambda config, place: IcebergSink(config.settings(place), windows=place.windows),
    "kafka": KafkaSink,
    "postgres": lambda config, place: PostgresSink(config.settings(place)),
    "s3": lambda config, place: S3Sink(config.settings(place), windows=place.windows),
}


def make_sink(config: SinkConfig, place: SinkPlace) -> ShownSink[Any]:
    """The sink, not opened."""
    return SINKS[config.kind](config, place)
