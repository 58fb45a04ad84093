"""What a log sink remembers of one shard, and what it stores so that a restart knows it again:
pure, for every sink that keeps each change (laws 2 and 7).

The memory itself isn't stored. After a restart the shard is read again from
`LogPosition.replay_from`, which lies before its position by the time in which copies are known
and before everything that was still held; what lies up to the position only fills the memory.

Only with a shard's end it is stored, as `Taken.remembered`: its children begin with it, for a copy
of a change may come behind a reshard.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from replicator._core import Window
from replicator.model import SHARD_END, TRIM_HORIZON, Pending, Position, after
from replicator.sink.position import furthest

if TYPE_CHECKING:
    from replicator._core import ChangeBatch, Rejection

log = structlog.get_logger()

_NO_LIMIT: Final = 2**62
# What is remembered of one change, at most (`rust/src/window/memory.rs`), without its own bytes.
_CHANGE_BYTES: Final = 512


def growth(pending: Iterable[Pending]) -> int:
    """How many bytes a shard's memory grows by them, at most."""
    return sum(2 * each.batch.nbytes + _CHANGE_BYTES * len(each.batch) for each in pending)


@dataclass(frozen=True, slots=True)
class LogPosition:
    """What is stored of a shard. `position`: everything up to there was taken. `given_us`: all of
    that with an earlier event time was written (None: all of it). `replay_from`: where reading
    goes on after a restart, never behind `position`. `last_record`: the sequence number of the
    newest record up to `position`, where that lies behind it: a subscription goes on without
    records, an iterator doesn't. The others are those of `model.Reached`. Times are UTC
    microseconds."""

    position: Position
    given_us: int | None = None
    replay_from: Position | None = None
    last_arrival_us: int | None = None
    tip_us: int | None = None
    begun_us: int | None = None
    last_record: str | None = None

    def to_json(self) -> str:
        """One line of JSON without what isn't known."""
        members = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(
            {
                name: str(value) if isinstance(value, Position) else value
                for name, value in members.items()
                if value is not None
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> LogPosition:
        """What `to_json` wrote; members of other names are passed over. Raises ValueError."""
        members = json.loads(text)
        if not isinstance(members, dict) or "position" not in members:
            raise ValueError(f"{text!r} is no stored position")
        known = {name: members[name] for name in cls.__slots__ if name in members}
        for name in ("position", "replay_from"):
            if name in known:
                known[name] = Position.parse(known[name])
        return cls(**known)

    @property
    def start(self) -> Position:
        """Where reading goes on after a restart."""
        return self.position if self.replay_from is None else self.replay_from

    @property
    def inherits(self) -> bool:
        """True when what the shard's parents remembered is needed: it is read from its beginning
        on."""
        return self.start == TRIM_HORIZON

    def is_reached(self, position: Position) -> bool:
        """True when who has read up to there has read every record up to this one's position."""
        end = self.position if self.last_record is None else after(self.last_record)
        return furthest(position, end) == position


@dataclass(frozen=True, slots=True)
class Taken:
    """What is to be written now, together: the changes that are due, in order per key, the
    records that were refused, and then `stored`. `is_holding`: some changes wait for their
    time, so the shard wants to hear of time that passes without a record. `remembered` comes with
    the shard's end, and is stored with it; it is empty where a child has no need of it."""

    changes: ChangeBatch
    rejections: Sequence[Rejection]
    stored: LogPosition
    is_holding: bool
    remembered: bytes = b""


@dataclass(frozen=True, slots=True)
class _Added:
    """What a fetch brought: where it began, and its newest event."""

    start: Position
    newest_us: int


class LogShard:
    """One shard under one fence: takes its fetches in order, from `LogPosition.start` on. It is a
    `core.windows.Window`."""

    def __init__(
        self,
        stored: LogPosition,
        *,
        reorder_us: int = 1_000_000,
        duplicate_us: int = 60_000_000,
        bytes_max: int = 67_108_864,
        compacted: bool = False,
        inherited: Iterable[bytes] = (),
    ) -> None:
        """See `_core.Window` for the limits. A shard without a stored position has
        `LogPosition(TRIM_HORIZON)`, or the start that was resolved for it. `inherited` is what its
        parents remembered, when the position `inherits`; what another version stored is said and
        passed over, for an upgrade that is taken back must not stop."""
        self._window = Window(
            reorder_us=reorder_us,
            duplicate_us=duplicate_us,
            bytes_max=bytes_max,
            compacted=compacted,
        )
        self._reorder_us, self._duplicate_us = reorder_us, duplicate_us
        self._bytes_max = bytes_max
        self._stored = stored
        self._next = stored.start
        self._is_refilling = stored.start != stored.position
        self._last = _last_of(stored)
        self._added: deque[_Added] = deque()
        # The newest event, and when it came: time that passes without a change is told from it.
        # The worker's own clock may be wrong.
        self._newest: tuple[int, float] | None = None
        # How far the source's time went on without a change.
        self._passed_to_us: int | None = None
        # The newest event of the parents. Until it is too old to matter, who begins anew inherits
        # again, and so from the shard's beginning.
        self._inherited_us: int | None = None
        for remembered in inherited:
            if remembered:
                try:
                    newest_us = self._window.inherit(remembered)
                except ValueError:
                    log.warning(
                        "memory_unreadable",
                        version=remembered[:8],
                        action="a shard begins without what its parents remembered, which "
                        "another version stored: a copy of their last changes is written again",
                    )
                else:
                    self._inherited_us = _later(self._inherited_us, newest_us)
        if self._inherited_us is not None:
            self._added.append(_Added(self._next, self._inherited_us))

    @property
    def stored(self) -> LogPosition:
        """What the last `take` gave to store, or what was stored before."""
        return self._stored

    @property
    def is_heir(self) -> bool:
        """True when it began with what its parents remembered."""
        return self._inherited_us is not None

    @property
    def nbytes(self) -> int:
        """Memory held, at most."""
        return self._window.nbytes

    @property
    def early(self) -> int:
        """Changes given before their time for want of memory."""
        return self._window.early

    @property
    def forgotten(self) -> int:
        """Changes known no more, for want of memory."""
        return self._window.forgotten

    def limit(self, bytes_max: int | None) -> None:
        """No more than this from here on; None: what is given or known doesn't depend on it."""
        self._window.limit(_NO_LIMIT if bytes_max is None else min(bytes_max, self._bytes_max))

    @property
    def counts(self) -> dict[str, int]:
        """What `_core.Window` counted under this fence: late, left_out, early, forgotten."""
        window = self._window
        return {
            "late": window.late,
            "left_out": window.left_out,
            "early": window.early,
            "forgotten": window.forgotten,
        }

    def take(self, pending: Pending, tip_us: int | None = None) -> Taken:
        """Takes the shard's next fetch; `tip_us` is the instant up to which nothing more is
        owed, when the source says so. Not to be called twice with the same fetch."""
        begun_at, self._next = self._next, pending.next
        batch = pending.batch
        if self._newest is None and self._inherited_us is not None:
            # It came before that.
            self._newest = (self._inherited_us, pending.received_at)
        if self._is_refilling:
            before = self._stored.position
            assert before.sequence_number is not None
            known, batch = batch.split(before.sequence_number)
            self._window.refill(known, self._stored.given_us)
            if self._stored.given_us is None and known.last_event_us is not None:
                # Stored by an older version: all of it was given, and `given_us` must never say
                # less, or whoever begins after that gives some again.
                self._window.advance(known.last_event_us + self._reorder_us + 1_000)
            self._remember(known, begun_at, pending.received_at)
            self._is_refilling = not self._stored.is_reached(pending.next)
            if furthest(before, pending.next) == before:
                # Nothing is new. What is stored stays true.
                return Taken(batch, (), self._stored, self._window.held > 0)
        changes = self._window.add(batch)
        self._remember(batch, begun_at, pending.received_at)
        if pending.next == SHARD_END:
            changes = _both(changes, self._window.flush())
        elif not len(batch) and pending.behind_ms == 0 and self._newest is not None:
            # Nothing more is there: the time of the source goes on with ours.
            event_us, received_at = self._newest
            passed_us = int((pending.received_at - received_at) * 1_000_000)
            self._passed_to_us = _later(self._passed_to_us, event_us + passed_us)
            changes = _both(changes, self._window.advance(event_us + passed_us))
        self._stored = self._reached(pending, tip_us)
        is_holding = self._window.held > 0
        return Taken(changes, changes.rejections, self._stored, is_holding, self._remembered())

    def reach(self, stored: LogPosition) -> Taken:
        """What is still to be given of what another worker had given when it would have stored
        this, once all up to its position was taken without the time that passes (`behind_ms`
        None): the same changes then, however they came in fetches here and there."""
        window = self._window
        if stored.given_us is None:
            changes = window.flush()
        else:
            changes = window.advance(stored.given_us + self._reorder_us)
        self._stored, self._is_refilling = stored, False
        self._last = _last_of(stored)
        return Taken(changes, (), stored, window.held > 0, self._remembered())

    def _remembered(self) -> bytes:
        return self._window.remembered() if self._stored.position == SHARD_END else b""

    def _remember(self, batch: ChangeBatch, begun_at: Position, received_at: float) -> None:
        newest_us = batch.last_event_us
        if newest_us is not None:
            self._added.append(_Added(begun_at, newest_us))
            if self._newest is None or newest_us > self._newest[0]:
                self._newest = (newest_us, received_at)

    def _reached(self, pending: Pending, tip_us: int | None) -> LogPosition:
        stored, window = self._stored, self._window
        arrival_ms = pending.batch.last_arrival_ms
        position = furthest(stored.position, pending.next)
        if (number := pending.batch.last_sequence_number) is not None:
            self._last = furthest(self._last, after(number))
        last = None
        # (Of a fetch that was cut the batch still tells the last record of all of it.)
        if self._last is not None and furthest(self._last, position) != self._last:
            last = None if position == SHARD_END else self._last.sequence_number
        return LogPosition(
            position=position,
            # Also when nothing is held: who goes on must hold nothing again that was given.
            given_us=None if position == SHARD_END else window.given_us,
            replay_from=self._replay_from(window.given_us if window.held else None, position),
            last_arrival_us=_later(stored.last_arrival_us, arrival_ms and arrival_ms * 1_000),
            # Not the later one: who began at the oldest record may be hours behind it.
            tip_us=stored.tip_us if tip_us is None else tip_us,
            begun_us=stored.begun_us,
            last_record=last,
        )

    def _replay_from(self, given_us: int | None, position: Position) -> Position | None:
        """Where the first fetch began that a restart needs. None: nothing before `position`."""
        if self._newest is None or position == SHARD_END:
            return None
        # What is held is no older than `given_us`, so it is read again too. Of a quiet shard
        # nothing is: its last records may be trimmed by then.
        now_us = max(self._newest[0], self._passed_to_us or 0)
        known_from_us = (now_us if given_us is None else given_us) - self._duplicate_us
        while self._added and self._added[0].newest_us < known_from_us:
            self._added.popleft()
        return self._added[0].start if self._added else None


def _last_of(stored: LogPosition) -> Position | None:
    """Behind its last record, or what is known instead; None where no record is known."""
    if stored.last_record is not None:
        return after(stored.last_record)
    return None if stored.position.sequence_number is None else stored.position


def _both(changes: ChangeBatch, rest: ChangeBatch) -> ChangeBatch:
    if not len(rest):
        return changes
    return type(rest).concat([changes, rest]) if changes.records else rest


def _later(one: int | None, other: int | None) -> int | None:
    return max((us for us in (one, other) if us is not None), default=None)
