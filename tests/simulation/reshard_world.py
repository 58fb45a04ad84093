"""A fixed plot for the engine: three shards, of which one splits and two merge, are read to
their end; then the finished ones leave the listing and everything stops."""

from __future__ import annotations

import asyncio

from replicator.model import SHARD_END, Position
from tests.simulation.engine_world import LEASE_SECONDS, Worker, World

SEED = 16
# Two looks at the listing: the first sees that shards are gone, and forgets them.
FORGET_SECONDS = 11.0


class ReshardWorld(World):
    """One worker, no chance but in how long a call takes: what differs between two runs
    is what their plans let fail."""

    def __init__(
        self, *, start: Position | None = None, may_keep_leases: bool = False, sinks: int = 1
    ) -> None:
        super().__init__(
            SEED,
            start=start,
            may_keep_leases=may_keep_leases,
            first_shards=(3,),
            sinks=sinks,
        )
        self._group: asyncio.TaskGroup | None = None

    def stand_still(self) -> None:
        """The worker stops as by SIGSTOP until long after another has taken over."""
        assert self._group is not None
        self.pause_worker(self.workers[0], 4 * LEASE_SECONDS)
        self.workers.append(Worker(self, "w1"))
        self.workers[1].start(self._group)

    async def happen(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        first, second, third = dict.fromkeys(self.slots)
        self.feed(40)
        # Else a start at the newest record would find all of it there.
        await self.until(lambda: self.ledger.position(first) is not None)
        self.feed(20)
        self.split_shard(first)
        self.feed(20)
        self.merge_shards(second, third)
        self.feed(20)

    async def after_the_end(self) -> None:
        for ledger in self.ledgers:
            for shard in self.stream.shards():
                assert ledger.position(shard.id) == SHARD_END
            ledger.complete()
        for shard in self.stream.shards():
            if not shard.parents:
                self.stream.remove_shard(shard.id)
        await asyncio.sleep(FORGET_SECONDS)
