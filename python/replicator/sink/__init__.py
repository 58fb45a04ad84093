"""Destinations. Each keeps its own positions; `service` knows them by these names."""

from replicator.sink.postgres import PostgresSink
from replicator.sink.postgres_schema import Finding, PostgresPlan
from replicator.sink.postgres_settings import PostgresSettings

__all__ = ["Finding", "PostgresPlan", "PostgresSettings", "PostgresSink"]
