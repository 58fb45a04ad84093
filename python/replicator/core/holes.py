"""Holes: shards that nothing will ever make readable, and hash keys that nobody reads.

The lineage says which shards may be read; this is the check on it, after each listing. Rules of
the file:
1. A shard *moves* when it can be read, is being read, or waits only for shards that move (or for
   the list that names its parents). Whoever is neither finished nor moves is stuck: it is lost or
   stands at a gap, waits for one that does, or waits in a circle.
2. The shards that move cover all hash keys together, since each shard's children take over
   exactly what it had. What they leave out and no stuck shard explains was taken over by a shard
   that was never seen, from the newest finished one that had it.
3. A child that only its parents' end has named has all of their hash keys until a list says more.
   Where no shard has a hash range (DynamoDB Streams), only the first rule holds.
4. A list and the positions read after it are no snapshot: what begins and ends in between may
   look like a hole. Two audits in a row that find the same one had a list between them which began
   after it was there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from replicator.core.lineage import Known, ShardState

HASH_KEY_END = 2**128
AUDIT_SECONDS = 60.0
# Lists for people; their lengths are said.
NAMED = 20

Ranges = tuple[tuple[int, int], ...]


class HoleCause(StrEnum):
    """Why nobody reads it."""

    LOST = "lost"  # a shard vanished unfinished
    GAPPED = "gapped"  # a shard stands at a gap
    CIRCLE = "circle"  # shards wait for each other
    UNKNOWN = "unknown"  # no list shows the shard that should have it


_ROOTS = {ShardState.LOST: HoleCause.LOST, ShardState.GAPPED: HoleCause.GAPPED}


@dataclass(frozen=True, slots=True)
class Hole:
    """What nobody reads. `shards`: the one that is the cause, then those that wait for it; for an
    unknown one the finished shard that had the hash keys before, if any. `ranges` are half-open
    ranges of hash keys; empty where the service has none, or where others still read them."""

    cause: HoleCause
    shards: tuple[str, ...]
    ranges: Ranges = ()

    @property
    def key(self) -> tuple[object, ...]:
        """What makes it the same hole in another audit, though more may wait for it."""
        return (self.cause, *(self.shards[:1] or self.ranges))

    def as_fields(self) -> dict[str, object]:
        """What the log and `/status` say of it."""
        return {
            "cause": self.cause.value,
            "shards": list(self.shards[:NAMED]),
            "shards_count": len(self.shards),
            "hash_keys": [[str(first), str(end - 1)] for first, end in self.ranges[:NAMED]],
            "hash_keys_percent": round(100 * _size(self.ranges) / HASH_KEY_END, 3),
            "action": _ACTIONS[self.cause],
        }


_ACTIONS = {
    HoleCause.LOST: "mend its gap: the line `gap`, or `stopped` in the status, says how",
    HoleCause.GAPPED: "mend its gap: the line `gap`, or `stopped` in the status, says how",
    HoleCause.CIRCLE: "the service names parents in a circle: the shards are listed again at once; "
    "if this stays, start the worker again, and ask AWS about the stream",
    HoleCause.UNKNOWN: "no listing shows who has these hash keys: the shards are listed again at "
    "once; if this stays, compare with ListShards, and start the worker again before the "
    "retention ends",
}


def find(nodes: Iterable[Known]) -> tuple[Hole, ...]:
    """The holes of a graph that has just taken a complete list in; empty when all is well."""
    graph = {node.shard.id: node for node in nodes}
    children: dict[str, list[str]] = defaultdict(list)
    for node in graph.values():
        for parent_id in node.shard.parents:
            children[parent_id].append(node.shard.id)
    moving = _moving(graph, children)
    stuck = {
        shard_id
        for shard_id, node in graph.items()
        if node.state is not ShardState.FINISHED and shard_id not in moving
    }
    free = _uncovered(graph, moving)
    holes = []
    explained: set[str] = set()
    for shard_id in sorted(stuck):
        if (cause := _ROOTS.get(graph[shard_id].state)) is not None:
            held_up = _below(shard_id, children, stuck)
            explained |= held_up
            shards = (shard_id, *sorted(held_up - {shard_id}))
            holes.append(Hole(cause, shards, _and(free, _ranges(graph, shards))))
    if circle := tuple(sorted(stuck - explained)):
        holes.append(Hole(HoleCause.CIRCLE, circle, _and(free, _ranges(graph, circle))))
    holes += _unknown(graph, _minus(free, _ranges(graph, stuck)))
    return tuple(holes)


class Audit:
    """Tells what two audits in a row have found (rule 4)."""

    def __init__(self, seconds: float = AUDIT_SECONDS) -> None:
        self._seconds = seconds
        self._at: float | None = None
        self._before: frozenset[tuple[object, ...]] = frozenset()
        self.holes: tuple[Hole, ...] = ()
        """Those that are there now."""

    def is_due(self, now: float) -> bool:
        """True when the graph is to be looked at after this listing; seconds of any clock."""
        return self._at is None or now - self._at >= self._seconds

    def step(self, found: Sequence[Hole], now: float) -> tuple[Hole, ...]:
        """Takes in what `find` found, and gives the holes to tell: each once while it lasts."""
        told = {hole.key for hole in self.holes}
        self.holes = tuple(hole for hole in found if hole.key in self._before)
        self._before = frozenset(hole.key for hole in found)
        self._at = now
        return tuple(hole for hole in self.holes if hole.key not in told)


# ---- the graph

_MOVE = frozenset({ShardState.READABLE, ShardState.READING, ShardState.ENDED})


def _moving(graph: Mapping[str, Known], children: Mapping[str, Sequence[str]]) -> set[str]:
    waits = {
        shard_id: sum(
            parent_id in graph and graph[parent_id].state is not ShardState.FINISHED
            for parent_id in node.shard.parents
        )
        for shard_id, node in graph.items()
        if node.state is ShardState.WAITING
    }
    frontier = [shard_id for shard_id, node in graph.items() if node.state in _MOVE]
    frontier += [shard_id for shard_id, count in waits.items() if not count]
    moving = set(frontier)
    while frontier:
        for child_id in children.get(frontier.pop(), ()):
            if child_id in waits and child_id not in moving:
                waits[child_id] -= 1
                if not waits[child_id]:
                    moving.add(child_id)
                    frontier.append(child_id)
    return moving


def _below(shard_id: str, children: Mapping[str, Sequence[str]], stuck: set[str]) -> set[str]:
    found, frontier = {shard_id}, [shard_id]
    while frontier:
        for child_id in children.get(frontier.pop(), ()):
            if child_id in stuck and child_id not in found:
                found.add(child_id)
                frontier.append(child_id)
    return found


# ---- the hash keys


def _uncovered(graph: Mapping[str, Known], moving: set[str]) -> Ranges:
    if all(node.shard.hash_range is None for node in graph.values()):
        return ()
    of = {shard_id: _range(graph, shard_id) for shard_id in moving}
    if not all(of.values()):
        return ()  # nobody can tell before the next list
    return _minus(((0, HASH_KEY_END),), [r for ranges in of.values() for r in ranges])


def _range(graph: Mapping[str, Known], shard_id: str) -> Ranges:
    shard = graph[shard_id].shard
    if shard.hash_range is not None:
        return (shard.hash_range,)
    parents = [graph[each].shard.hash_range for each in shard.parents if each in graph]
    return tuple(each for each in parents if each is not None)


def _ranges(graph: Mapping[str, Known], shard_ids: Iterable[str]) -> list[tuple[int, int]]:
    return [each for shard_id in shard_ids for each in _range(graph, shard_id)]


def _unknown(graph: Mapping[str, Known], rest: Ranges) -> list[Hole]:
    """Rule 2: the newest finished shard that had it comes first."""
    holes = []
    finished = [node.shard for node in graph.values() if node.state is ShardState.FINISHED]
    finished.sort(key=lambda shard: int(shard.starting_sequence_number or 0), reverse=True)
    for shard in finished:
        if not rest:
            break
        if shard.hash_range and (had := _and(rest, [shard.hash_range])):
            holes.append(Hole(HoleCause.UNKNOWN, (shard.id,), had))
            rest = _minus(rest, had)
    return [*holes, Hole(HoleCause.UNKNOWN, (), rest)] if rest else holes


def _minus(whole: Ranges, parts: Iterable[tuple[int, int]]) -> Ranges:
    left = []
    ordered = sorted(parts)
    for first, end in whole:
        at = first
        for part_first, part_end in ordered:
            if part_first >= end:
                break
            if part_first > at:
                left.append((at, part_first))
            at = max(at, part_end)
        if at < end:
            left.append((at, end))
    return tuple(left)


def _and(ranges: Ranges, parts: Iterable[tuple[int, int]]) -> Ranges:
    return _minus(ranges, _minus(ranges, parts))


def _size(ranges: Ranges) -> int:
    return sum(end - first for first, end in ranges)
