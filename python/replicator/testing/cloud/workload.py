"""Puts a history's changes into a stream, as disorderly as the script wants."""

from __future__ import annotations

import heapq
import json
from collections import defaultdict

from replicator.testing.cloud.faults import Fault, Mischief, Place
from replicator.testing.cloud.history import History
from replicator.testing.cloud.journal import Journal
from replicator.testing.stream import ScriptedStream

DISORDER_MAX = 20
FILLER = 100_000


class Workload:
    """Makes changes by the count; each goes to the shard that its key has at that moment,
    so a record that comes late or again may come in a child of the shard."""

    def __init__(
        self, stream: ScriptedStream, history: History, mischief: Mischief, journal: Journal
    ) -> None:
        self.history = history
        self.records = 0
        self._stream = stream
        self._mischief = mischief
        self._journal = journal
        # Records that come late or again, by the number of the change to come after.
        self._held: list[tuple[int, int, str, bytes]] = []
        self._held_made = 0
        self._out: defaultdict[str, list[bytes]] = defaultdict(list)

    def make(self, count: int, now: float) -> None:
        """So many changes more; `now` is the script's time in seconds."""
        for _ in range(count):
            self.history.later()
            self._change(now)
            while self._held and self._held[0][0] <= self.history.made:
                self._release()
        self._send()

    def flush(self) -> None:
        """Lets everything come that was held back."""
        while self._held:
            self._release()
        self._send()

    def _change(self, now: float) -> None:
        struck = {fault.kind: fault for fault in self._mischief.strikes(Place.RECORD, now)}
        key = self.history.pick()
        if "poison" in struck:
            self._put(key, self.history.poison())
            self._journal.add("poison", key=key)
        is_exact = "milliseconds" not in struck
        filler = _count(struck.get("large"), FILLER) if "large" in struck else 0
        times = 1 + (_count(struck["equal_instant"], 1) if "equal_instant" in struck else 0)
        for kind in ("milliseconds", "large", "equal_instant"):
            if kind in struck:
                self._journal.add(kind, key=key, change=self.history.made + 1)
        for _ in range(times):
            existed = key in self.history.items
            data = self.history.change(
                key, is_exact=is_exact, expires="ttl" in struck, filler=filler
            )
            if "ttl" in struck and existed and key not in self.history.items:
                self._journal.add("ttl", key=key, change=self.history.made)
            self._deliver(key, data, struck)

    def _deliver(self, key: str, data: bytes, struck: dict[str, Fault]) -> None:
        if "reorder" in struck:
            self._hold("reorder", struck["reorder"], key, data)
        else:
            self._put(key, data)
        if "duplicate" in struck:
            self._hold("duplicate", struck["duplicate"], key, data)
        # At milliseconds two changes may look alike, so nobody could tell.
        if "redeliver" in struck and "milliseconds" not in struck:
            other = json.loads(data) | {"eventID": f"redelivered-{self.history.made}"}
            again = json.dumps(other, separators=(",", ":"), ensure_ascii=False).encode()
            self._hold("redeliver", struck["redeliver"], key, again)

    def _hold(self, kind: str, fault: Fault, key: str, data: bytes) -> None:
        number = self.history.made
        later = 1 + self._mischief.draw(kind, number, below=_count(fault, DISORDER_MAX))
        self._held_made += 1
        heapq.heappush(self._held, (number + later, self._held_made, key, data))
        self._journal.add(kind, key=key, change=number, later=later)

    def _release(self) -> None:
        _, _, key, data = heapq.heappop(self._held)
        self._put(key, data)

    def _put(self, key: str, data: bytes) -> None:
        self.records += 1
        self._out[self._stream.shard_of(key)].append(data)

    def _send(self) -> None:
        for shard_id, payloads in self._out.items():
            self._stream.append(shard_id, payloads)
        self._out.clear()


def _count(fault: Fault | None, usual: int) -> int:
    return usual if fault is None or fault.count is None else max(1, fault.count)
