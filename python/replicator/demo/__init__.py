"""`replicator demo`: a whole replication on one machine, with nothing to install by hand.

The AWS emulator, Postgres, the shop and the bridge are processes of their own; the
replicator runs in this one, by the code of `run`. Start reading at `run.py`.
"""

from __future__ import annotations


def main(
    *,
    seconds: float,
    rate: int,
    shards: int,
    keep: bool,
    json_output: bool,
    source: str,
    sink: str,
) -> int:
    """Runs the demo and gives the exit code: 0 when both sides are equal at its end."""
    # The shop and the bridge are modules of this package too, and need none of it.
    from replicator.demo import run  # noqa: PLC0415

    return run.main(run.Options(seconds, rate, shards, keep, json_output, source, sink))
