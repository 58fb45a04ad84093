"""One shard's ways into the lanes of all sinks, for as long as its fences hold.

Each sink is given what it doesn't hold yet. One that fails holds the others up only by its
memory: what it is owed stays in the budget, and once it answers again the shard's reading ends
and begins anew at the least position. There is no other way to recover.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from replicator.core.fanout import Owed, last_held, owed, rank
from replicator.errors import FatalError, LeaseLost, ReplicatorError, TransientError
from replicator.flow import Charge
from replicator.lane import Inlet, Lane
from replicator.model import SHARD_END, Fetch, Pending, Position
from replicator.outlets import Outlet, Stand
from replicator.protocols import Clock

if TYPE_CHECKING:
    from replicator._core import ChangeBatch

# A sink that failed: how long until it is asked again, in seconds.
Patience = Callable[[Outlet, ReplicatorError], float]


class Fan:
    """The inlets of one shard. `failure` fails when its reading must end for the sinks' sake."""

    def __init__(
        self,
        stands: Sequence[Stand],
        absent: Mapping[Outlet, ReplicatorError],
        lane: Callable[[Stand], Lane],
        clock: Clock,
        patience: Patience,
    ) -> None:
        """`absent` are the sinks that didn't answer as it began: they have no fence, and are
        given nothing."""
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_mended = False
        """True when `failure` is that of a sink which answers again: it was waited for."""
        self._clock = clock
        self._patience = patience
        self._menders: list[asyncio.Future[None]] = []
        self.inlets = tuple(
            lane(stand).open(stand.fence, stand.outlet, stand.position, self._failed)
            for stand in stands
        )
        self._absent = dict(absent)
        # What they are owed: it isn't kept, but the others must not run on for ever.
        self._debts: list[Charge] = []
        self._absent_from: float | None = None
        self._is_closed = False
        for outlet, error in absent.items():
            self._mend_later(outlet, error)

    @property
    def shard_id(self) -> str:
        """The shard."""
        return self.inlets[0].fence.shard_id

    @property
    def has_failed(self) -> bool:
        """Its reading ended for a sink's sake."""
        return self.failure.done() and not self.failure.cancelled()

    @property
    def durable(self) -> Position | None:
        """How far it is durable at every sink; None before the first write."""
        if all(inlet.durable is None for inlet in self.inlets):
            return None
        # Where reading began lies before all that was written since.
        known = [inlet.durable or inlet.held for inlet in self.inlets]
        if self._absent or any(position is None for position in known):
            return None
        return min((position for position in known if position is not None), key=rank)

    @property
    def waiting_from(self) -> float | None:
        """When the oldest fetch arrived that isn't durable everywhere yet; None when all are."""
        waiting = (self._absent_from, *(inlet.waiting_from for inlet in self.inlets))
        return min((since for since in waiting if since is not None), default=None)

    @property
    def waits_for(self) -> str:
        """The sinks that something of the shard waits for."""
        names = [i.outlet.name for i in self.inlets if i.waiting_from is not None]
        if self._absent_from is not None:
            names += [outlet.name for outlet in self._absent]
        return ", ".join(names)

    @property
    def is_holding(self) -> bool:
        """A sink waits for time to pass, which a fetch without records tells."""
        return any(inlet.is_holding and not inlet.is_over for inlet in self.inlets)

    def put(self, batch: ChangeBatch, fetch: Fetch, before: Position, charge: Charge) -> None:
        """Gives each sink what it is owed of the changes of a fetch, which was read from `before`
        on. Once closed, it gives nothing."""
        if self._is_closed:
            return
        if self._absent:
            self._debts.append(charge.hold())
            if self._absent_from is None:
                self._absent_from = fetch.received_at
        for inlet in self.inlets:
            match owed(inlet.held, before, fetch.next):
                case Owed.NOTHING:
                    continue
                case Owed.ALL:
                    part = batch
                case Owed.REST:
                    assert inlet.held is not None
                    # In the same memory.
                    part = batch.split(last_held(inlet.held))[1]
            pending = Pending(inlet.fence, part, fetch.next, fetch.behind_ms, fetch.received_at)
            inlet.put(pending, charge.hold())

    async def drain(self) -> None:
        """Returns when everything that was put is durable everywhere. Raises what failed a
        sink, once the others are done."""
        for inlet in self.inlets:
            inlet.flush()
        errors = list(self._absent.values())
        for inlet in self.inlets:
            try:
                await inlet.drain()
            except ReplicatorError as error:
                errors.append(error)
        if self.failure.done():
            self.failure.result()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """The shard's run is over: what is still queued is dropped."""
        self._is_closed = True
        for mender in self._menders:
            mender.cancel()
        for inlet in self.inlets:
            inlet.close()
        while self._debts:
            self._debts.pop().release()
        self.failure.cancel()

    # ---- a sink that fails

    def _failed(self, inlet: Inlet, error: ReplicatorError) -> None:
        goes_on = any(not each.is_over and each.held != SHARD_END for each in self.inlets)
        if isinstance(error, LeaseLost) or not goes_on:
            self._end(error)
            return
        self._mend_later(inlet.outlet, error)

    def _mend_later(self, outlet: Outlet, error: ReplicatorError) -> None:
        self._menders.append(asyncio.ensure_future(self._mend(outlet, error)))

    async def _mend(self, outlet: Outlet, error: ReplicatorError) -> None:
        """The others go on meanwhile, as far as the memory allows."""
        stream = self.inlets[0].fence.stream
        while True:
            await self._clock.sleep(self._patience(outlet, error))
            try:
                # No fence: this worker might no longer own the shard.
                await outlet.answers(stream, self.shard_id)
            except (TransientError, FatalError) as again:
                outlet.failed(self.shard_id, again)
                error = again
            except Exception as other:  # noqa: BLE001 - nobody else looks at this task
                # Unsaid, the sink would be asked no more.
                self._end(other)
                return
            else:
                self.is_mended = True
                self._end(error)
                return

    def _end(self, error: Exception) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)
            # The shard's run looks at it when it can; it may also be gone already.
            self.failure.exception()
