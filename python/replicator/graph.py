"""The shard graph of the stream that one pipeline reads: what happens is told here, and who
waits for the news is woken."""

from __future__ import annotations

import asyncio

from replicator.core import lineage
from replicator.gaps import Gaps


class Graph:
    """The lineage, and what its actions set off."""

    def __init__(self, gaps: Gaps) -> None:
        self.gaps = gaps
        self.lineage = lineage.Lineage()
        # Who lists, and who takes leases, sleeps on these.
        self.list_now = asyncio.Event()
        self.lease_now = asyncio.Event()

    def apply(self, event: lineage.Event) -> None:
        """Something happened to a shard."""
        for action in self.lineage.step(event):
            match action:
                case lineage.Readable():
                    self.lease_now.set()
                case lineage.ListAgain():
                    self.list_now.set()
                case lineage.ParentVanished(shard_id, position):
                    held_up = self.lineage.held_up(shard_id)
                    self.gaps.vanished(shard_id, position, held_up)

    def unread(self, shard_id: str) -> None:
        """A reader ended, whatever ended it."""
        if self.lineage.state(shard_id) in {lineage.ShardState.READING, lineage.ShardState.ENDED}:
            self.apply(lineage.Stopped(shard_id))
