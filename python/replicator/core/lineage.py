"""The shard graph: which shards may be read now (parents before children).

Rules of the file:
1. A shard is readable only when every parent that the graph knows is FINISHED:
   read to the end on the service's word, and everything of it durable.
2. A parent that neither a list nor a stored position has ever shown was trimmed
   before this pipeline saw the stream, and holds nobody up.
3. A shard that the graph knew before a list was asked for, that is not in that
   list and isn't finished has vanished with unread records: LOST. So has an
   unknown parent of a shard which turned up on a stream that was read before
   (`Sink.begin` stores a position for every shard of the first list, and
   `forgettable` keeps a parent's row until all its children have positions).
   A LOST shard is reported once, holds its children up, and comes back if a
   later list shows it or another worker's finished position does.
4. Children become known from the end-of-shard answer, at once, and from lists.
   One that no list has shown yet may have a parent that no list has shown
   yet either (the other half of a merge): then it waits for the next list.
5. A reader that found a gap leaves its shard GAPPED: nobody wants it and its children
   wait, until somebody moved its position.
6. FINISHED is for ever. When a sink's positions went backwards (a failed-over
   replica), build a new `Lineage` from them.

The shell asks for one list at a time and reads the stored positions *after* the
list has come, so that a shard finished and trimmed meanwhile isn't taken for
lost. A step that the table doesn't know raises `IllegalStep` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto
from typing import Final, assert_never

from replicator.model import SHARD_END, Position, PositionKind, Shard


class IllegalStep(AssertionError):
    """An event that can't happen in this state: a bug of the shell."""


class ShardState(StrEnum):
    """What one shard waits for."""

    WAITING = "waiting"  # for a parent, or for the list that names its parents
    READABLE = "readable"  # for a reader: here, or at another worker
    READING = "reading"  # for the end of the shard
    ENDED = "ended"  # read to the end; for everything to be durable
    FINISHED = "finished"  # for nothing
    GAPPED = "gapped"  # unread records are gone; for an operator who moves its position
    LOST = "lost"  # no longer listed though unfinished; for the gap policy


# ---- events: what the shell saw


@dataclass(frozen=True, slots=True)
class Discovered:
    """The service's complete list, then the stored positions, read in this order.

    With several sinks a shard's position is the least of theirs."""

    shards: Sequence[Shard]
    positions: Mapping[str, Position] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """A shard's stored position as it was read at the sink (after fencing, say)."""

    shard_id: str
    position: Position


@dataclass(frozen=True, slots=True)
class Started:
    """A reader of this process began."""

    shard_id: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The reader ended before everything was durable: lease lost, error, drain."""

    shard_id: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The service's word that the shard ends here, read by our reader."""

    shard_id: str
    children: Sequence[Shard] = ()


@dataclass(frozen=True, slots=True)
class DurableEnd:
    """SHARD_END is the shard's durable position at every sink."""

    shard_id: str


@dataclass(frozen=True, slots=True)
class GapFound:
    """What comes after the shard's stored position is gone, or may be."""

    shard_id: str


@dataclass(frozen=True, slots=True)
class Mended:
    """An operator, or a worker that found no gap, moved the position of a gapped shard."""

    shard_id: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The rows of these shards (all of them `forgettable`) were deleted."""

    shard_ids: Sequence[str]


Event = Discovered | Stored | Started | Stopped | Ended | DurableEnd | GapFound | Mended | Forgotten


# ---- actions: what the shell is to do


@dataclass(frozen=True, slots=True)
class Readable:
    """The shard may be read from now on, from `position_to_read` of what is stored."""

    shard_id: str


@dataclass(frozen=True, slots=True)
class ParentVanished:
    """A gap: the shard is no longer listed though it isn't finished.

    `position` is its stored position (None: nothing of it was ever stored);
    `children` are the known shards that it holds up."""

    shard_id: str
    position: Position | None
    children: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListAgain:
    """List the shards now: the end of this one left a question open."""

    shard_id: str


Action = Readable | ParentVanished | ListAgain


# ---- the table


class _Step(Enum):
    UNBLOCK = auto()
    BLOCK = auto()
    START = auto()
    STOP = auto()
    END = auto()
    DURABLE = auto()
    STORED_END = auto()
    GAP = auto()
    MEND = auto()
    VANISH = auto()
    REAPPEAR = auto()


_S = ShardState
_TABLE: Final[Mapping[_Step, Mapping[ShardState, ShardState]]] = {
    _Step.UNBLOCK: {_S.WAITING: _S.READABLE, _S.READABLE: _S.READABLE},
    _Step.BLOCK: {_S.WAITING: _S.WAITING, _S.READABLE: _S.WAITING},
    _Step.START: {_S.READABLE: _S.READING},
    # A reader that outlived its shard (another worker finished it) may still report.
    _Step.STOP: {_S.READING: _S.READABLE, _S.ENDED: _S.READABLE, _S.FINISHED: _S.FINISHED},
    _Step.END: {_S.READING: _S.ENDED, _S.ENDED: _S.ENDED, _S.FINISHED: _S.FINISHED},
    _Step.DURABLE: {_S.ENDED: _S.FINISHED, _S.FINISHED: _S.FINISHED},
    # The sink's own position is the truth, whoever wrote it.
    _Step.STORED_END: dict.fromkeys(_S, _S.FINISHED),
    _Step.GAP: {
        _S.READABLE: _S.GAPPED,
        _S.WAITING: _S.WAITING,
        _S.LOST: _S.LOST,
        _S.FINISHED: _S.FINISHED,
    },
    _Step.MEND: {**{state: state for state in _S}, _S.GAPPED: _S.WAITING},
    _Step.VANISH: {_S.WAITING: _S.LOST, _S.READABLE: _S.LOST},
    _Step.REAPPEAR: {_S.LOST: _S.WAITING},
}


_READERS: Final = {Started: _Step.START, Stopped: _Step.STOP, GapFound: _Step.GAP}


@dataclass(frozen=True, slots=True)
class Known:
    """A shard of the graph."""

    shard: Shard
    state: ShardState


@dataclass(slots=True)
class _Node:
    shard: Shard
    state: ShardState = ShardState.WAITING
    position: Position | None = None
    is_described: bool = False  # its parents are known, from a list or an end answer
    was_listed: bool = False  # some list has shown it
    is_expected: bool = False  # it was known before the next list was asked for
    is_gone: bool = False  # it was expected in the newest list, which doesn't show it


class Lineage:
    """The graph of one stream's shards. Not thread-safe; no I/O."""

    def __init__(self, positions: Mapping[str, Position] | None = None) -> None:
        """`positions`: all stored ones, read *before* the first list is asked for."""
        self._nodes: dict[str, _Node] = {}
        self._children: dict[str, dict[str, None]] = {}
        self._is_resumed = bool(positions)
        for shard_id, position in (positions or {}).items():
            self._store(shard_id, position, [])
            self._nodes[shard_id].is_expected = True

    # ---- what the shell asks

    def state(self, shard_id: str) -> ShardState | None:
        """The shard's state; None when the graph doesn't know it."""
        node = self._nodes.get(shard_id)
        return None if node is None else node.state

    def readable(self) -> tuple[str, ...]:
        """Shards that may be read and aren't read by this process, older first."""
        return self._in({ShardState.READABLE})

    def wanted(self) -> tuple[str, ...]:
        """Shards whose lease is worth having: readable, being read, or read to the
        end and not yet durable; older first."""
        return self._in({ShardState.READABLE, ShardState.READING, ShardState.ENDED})

    def finished(self) -> tuple[str, ...]:
        """Finished shards that aren't forgotten yet, older first."""
        return self._in({ShardState.FINISHED})

    def gapped(self) -> tuple[str, ...]:
        """Shards that stand at a gap, older first."""
        return self._in({ShardState.GAPPED})

    def ancestors(self, shard_id: str) -> tuple[str, ...]:
        """The shard's parents, theirs, and so on, as far as they are known; by shard."""
        found: set[str] = set()
        frontier = [shard_id]
        while frontier:
            node = self._nodes.get(frontier.pop())
            parents = set() if node is None else set(node.shard.parents) - found
            found |= parents
            frontier += parents
        return tuple(sorted(found))

    def parents(self, shard_id: str) -> tuple[str, ...]:
        """The shard's parents, whether they are still known or not."""
        node = self._nodes.get(shard_id)
        return () if node is None else node.shard.parents

    def held_up(self, shard_id: str) -> tuple[str, ...]:
        """The known shards that wait for this one, children and further descendants, older
        first."""
        found: set[str] = set()
        frontier = [shard_id]
        while frontier:
            for child_id in self._children.get(frontier.pop(), ()):
                if child_id not in found and self.state(child_id) is not ShardState.FINISHED:
                    found.add(child_id)
                    frontier.append(child_id)
        return self._older_first(found)

    def is_over(self, shards: Sequence[Shard]) -> bool:
        """True when a listing shows shards, and none of them will ever bring anything more."""
        return bool(shards) and all(
            not shard.is_open and self.state(shard.id) is ShardState.FINISHED for shard in shards
        )

    def forgettable(self) -> tuple[str, ...]:
        """Shards whose rows may be deleted: finished, no longer listed, parents no
        longer listed, and every child has a position of its own. Deleted earlier, a
        shard would be taken for a new one and read again."""
        return self._older_first(
            shard_id
            for shard_id, node in self._nodes.items()
            if node.state is ShardState.FINISHED and node.is_gone
            if all(self._is_gone(parent_id) for parent_id in node.shard.parents)
            if all(
                self._nodes[child_id].position is not None
                for child_id in self._children.get(shard_id, ())
            )
        )

    def nodes(self) -> tuple[Known, ...]:
        """Every shard of the graph, in no order; for `core.holes`."""
        return tuple(Known(node.shard, node.state) for node in self._nodes.values())

    # ---- the machine

    def step(self, event: Event) -> list[Action]:
        """Takes one event in and gives what follows from it, in order."""
        actions: list[Action] = []
        match event:
            case Discovered(shards, positions):
                self._discover(shards, positions, actions)
            case Stored(shard_id, position):
                self._store(shard_id, position, actions)
                if position == SHARD_END and not self._children.get(shard_id):
                    actions.append(ListAgain(shard_id))
            case Started(shard_id) | Stopped(shard_id) | GapFound(shard_id):
                self._move(shard_id, _READERS[type(event)], actions)
            case Ended(shard_id, children):
                self._end(shard_id, children, actions)
            case DurableEnd(shard_id):
                self._move(shard_id, _Step.DURABLE, actions)
                self._nodes[shard_id].position = SHARD_END
            case Mended(shard_id):
                self._move(shard_id, _Step.MEND, actions)
                self._settle([shard_id], actions)
            case Forgotten(shard_ids):
                self._forget(shard_ids)
            case _:
                assert_never(event)
        return actions

    def _discover(
        self, shards: Sequence[Shard], positions: Mapping[str, Position], actions: list[Action]
    ) -> None:
        for shard_id, position in positions.items():
            self._store(shard_id, position, actions)
        nodes = [self._describe(shard) for shard in shards]
        newcomers = [node for node in nodes if not node.was_listed and node.position is None]
        listed = {shard.id for shard in shards}
        for shard_id, node in self._nodes.items():
            if shard_id in listed:
                node.was_listed = True
                if node.state is ShardState.LOST:
                    self._move(shard_id, _Step.REAPPEAR, actions)
        if self._is_resumed:
            self._miss_parents(newcomers)
        for shard_id in self._older_first(self._nodes):
            node = self._nodes[shard_id]
            node.is_gone = node.is_expected and shard_id not in listed
            # One that is being read is judged when its reader has stopped.
            if node.is_gone and node.state in _TABLE[_Step.VANISH]:
                self._move(shard_id, _Step.VANISH, actions)
            node.is_expected = True
        self._settle(self._older_first(self._nodes), actions)
        self._is_resumed = True

    def _miss_parents(self, newcomers: Iterable[_Node]) -> None:
        """Rule 3, second half: adds the parents that came and went unseen, so that
        this very list shows them as vanished."""
        for node in newcomers:
            for parent_id in node.shard.parents:
                if parent_id not in self._nodes:
                    self._nodes[parent_id] = _Node(Shard(parent_id), is_expected=True)

    def _end(self, shard_id: str, children: Sequence[Shard], actions: list[Action]) -> None:
        is_first = self.state(shard_id) is ShardState.READING
        self._move(shard_id, _Step.END, actions)
        is_open_question = not children
        for child in children:
            parents = tuple(dict.fromkeys((*child.parents, shard_id)))
            self._describe(replace(child, parents=parents))
            is_open_question |= any(parent_id not in self._nodes for parent_id in parents)
        self._settle([child.id for child in children], actions)
        if is_first and is_open_question:
            actions.append(ListAgain(shard_id))

    def _store(self, shard_id: str, position: Position, actions: list[Action]) -> None:
        assert position.kind is not PositionKind.LATEST, "LATEST is resolved before it is stored"
        node = self._nodes.setdefault(shard_id, _Node(Shard(shard_id)))
        if position == SHARD_END:
            node.position = position
            self._move(shard_id, _Step.STORED_END, actions)
        elif node.state is not ShardState.FINISHED:
            node.position = position

    def _forget(self, shard_ids: Sequence[str]) -> None:
        if not set(shard_ids) <= set(self.forgettable()):
            raise IllegalStep(f"{sorted(set(shard_ids) - set(self.forgettable()))} is needed")
        for shard_id in shard_ids:
            for parent_id in self._nodes.pop(shard_id).shard.parents:
                self._children.get(parent_id, {}).pop(shard_id, None)
            self._children.pop(shard_id, None)

    def _move(self, shard_id: str, step: _Step, actions: list[Action]) -> None:
        node = self._nodes.get(shard_id)
        if node is None:
            raise IllegalStep(f"{step.name}: shard {shard_id} is unknown")
        state = _TABLE[step].get(node.state)
        if state is None:
            raise IllegalStep(f"{step.name}: shard {shard_id} is {node.state}")
        if state is node.state:
            return
        node.state = state
        children = self._older_first(self._children.get(shard_id, ()))
        if state is ShardState.READABLE:
            actions.append(Readable(shard_id))
        elif state is ShardState.LOST:
            actions.append(ParentVanished(shard_id, node.position, children))
        elif state is ShardState.FINISHED:
            self._settle(children, actions)

    def _settle(self, shard_ids: Iterable[str], actions: list[Action]) -> None:
        """Rules 1, 2 and 4, for shards that nobody reads here."""
        for shard_id in shard_ids:
            node = self._nodes[shard_id]
            if node.state in _TABLE[_Step.UNBLOCK]:
                step = _Step.UNBLOCK if self._is_unblocked(node) else _Step.BLOCK
                self._move(shard_id, step, actions)

    def _is_unblocked(self, node: _Node) -> bool:
        if not node.is_described:
            return False
        is_placed = node.was_listed or node.position is not None
        for parent_id in node.shard.parents:
            parent = self._nodes.get(parent_id)
            if parent is None:
                if not is_placed:
                    return False
            elif parent.state is not ShardState.FINISHED:
                return False
        return True

    def _describe(self, shard: Shard) -> _Node:
        node = self._nodes.get(shard.id)
        if node is None:
            node = self._nodes[shard.id] = _Node(shard)
        # Neither a list nor an end answer takes a parent back that the other has named.
        parents = tuple(dict.fromkeys((*node.shard.parents, *shard.parents)))
        is_poorer = shard.starting_sequence_number is None
        known = node.shard if is_poorer and node.was_listed else shard
        node.shard = replace(known, parents=parents)
        node.is_described = True
        for parent_id in parents:
            self._children.setdefault(parent_id, {})[shard.id] = None
        return node

    def _is_gone(self, shard_id: str) -> bool:
        node = self._nodes.get(shard_id)
        return node is None or node.is_gone

    def _in(self, states: set[ShardState]) -> tuple[str, ...]:
        return self._older_first(i for i, node in self._nodes.items() if node.state in states)

    def _older_first(self, shard_ids: Iterable[str]) -> tuple[str, ...]:
        def age(shard_id: str) -> tuple[bool, int, str]:
            # A shard's first number grows with its creation time; one known from an
            # end answer alone has none yet, and is the newest there is.
            number = self._nodes[shard_id].shard.starting_sequence_number
            return (number is None, int(number or 0), shard_id)

        return tuple(sorted(shard_ids, key=age))
