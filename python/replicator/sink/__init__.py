"""Destinations. Each keeps its own positions; `sinks` knows which there are."""
