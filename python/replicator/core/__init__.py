"""Decisions without I/O: time and randomness come in as arguments.

Nothing here imports asyncio, time, random, logging or a driver; the shells
(`pipeline`, `coordinator`) perform what these machines say and feed the
results back.
"""
