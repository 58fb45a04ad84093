"""Who reads which shard, judged by counters on this process's own clock.

Rules of the file:
1. A row that nobody owns may be taken at once. A row that somebody owns may be
   taken when its counter stood still for longer than `duration_seconds` since
   *this* process first saw it at that value: a fresh observer waits a whole duration.
   Wall clocks and the time of other machines have no say.
2. The holder counts from *before* it asked for the renewal that succeeded, and
   stops after `duration_seconds`. So it has stopped before anybody else's
   patience, which began later, can end. What is still on its way then
   is refused by the sink's fence.
3. A lease that ran out is never renewed; it is taken again, after the reader stopped.
4. Free and expired rows are taken whatever the balance. Only when there are none, one
   shard a step is taken from the owner who has most, if that makes the two more equal;
   never one that this worker could not read when it had it.

The shell, every `until_next`: read the rows, `step`, do the actions, feed the
outcomes back (`taken`, `renewed`, `stopped`), and only then read the rows again.
It calls `step(None, …)` when the rows can't be read: leases run out all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from replicator.model import LeaseRow

DURATION_SECONDS = 10.0  # the field's own (KCL: failoverTimeMillis)


class ExpireReason(StrEnum):
    """Why a lease isn't ours any more."""

    NOT_RENEWED = "not_renewed"
    TAKEN = "taken"
    ROW_MISSING = "row_missing"


class TakeReason(StrEnum):
    """Why a lease may be taken."""

    FREE = "free"  # nobody owns it
    OURS = "ours"  # the reply to our take was lost, or our lease ran out
    EXPIRED = "expired"  # its owner stopped renewing
    BALANCE = "balance"  # its owner has more than its share, and learns it from its renewal


@dataclass(frozen=True, slots=True)
class Create:
    """`LeaseStore.create` these rows: the shards may be read and have none."""

    shard_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Take:
    """`LeaseStore.take` the row; then call `taken` if it gave one."""

    row: LeaseRow
    reason: TakeReason


@dataclass(frozen=True, slots=True)
class Renew:
    """`LeaseStore.renew` the row; then call `renewed`, or `lost` on LeaseLost."""

    row: LeaseRow


@dataclass(frozen=True, slots=True)
class Release:
    """The shard needs no reader: stop it if one is left, `LeaseStore.release` the
    row, then call `stopped`."""

    row: LeaseRow


@dataclass(frozen=True, slots=True)
class Expire:
    """Stop reading at once, write nothing more, then call `stopped`."""

    row: LeaseRow
    reason: ExpireReason


Action = Create | Take | Renew | Release | Expire


@dataclass(slots=True)
class _Held:
    row: LeaseRow
    renewed_at: float
    is_stopping: bool = False  # Expire or Release was given, `stopped` not yet called


@dataclass(frozen=True, slots=True)
class _Seen:
    counter: int
    owner: str | None
    since: float


class LeaseView:
    """One worker's view of one pipeline's leases. All times are seconds of one
    monotonic clock of this process. Not thread-safe; no I/O."""

    def __init__(
        self,
        owner: str,
        *,
        duration_seconds: float = DURATION_SECONDS,
        shards_max: int | None = None,
    ) -> None:
        """`owner` is unique for this process's life; `shards_max` limits what it holds."""
        assert owner
        assert duration_seconds > 0
        self.owner = owner
        self.duration_seconds = duration_seconds
        self.renew_seconds = duration_seconds / 3
        self.shards_max = shards_max
        self._seen: dict[str, _Seen] = {}
        self._held: dict[str, _Held] = {}

    # ---- what the shell asks

    def holds(self, shard_id: str, now: float) -> bool:
        """True while this worker may read the shard."""
        held = self._held.get(shard_id)
        return held is not None and not held.is_stopping and not self._is_over(held, now)

    def held(self) -> tuple[LeaseRow, ...]:
        """The rows that this worker holds or is giving up, by shard id."""
        return tuple(self._held[shard_id].row for shard_id in sorted(self._held))

    def row(self, shard_id: str) -> LeaseRow | None:
        """The shard's row, while this worker holds it or is giving it up."""
        held = self._held.get(shard_id)
        return None if held is None else held.row

    def until_next(self, now: float) -> float:
        """Seconds until the next renewal or expiry is due, at most a renewal interval."""
        renewed = [held.renewed_at for held in self._held.values() if not held.is_stopping]
        return max(0.0, min((now, *renewed)) + self.renew_seconds - now)

    # ---- the machine

    def step(
        self,
        rows: Sequence[LeaseRow] | None,
        wanted: AbstractSet[str],
        now: float,
        avoided: AbstractSet[str] = frozenset(),
    ) -> list[Action]:
        """What to do now, most urgent first.

        `rows` are all rows of the pipeline, read after the outcomes of the last step
        were fed back; None when they can't be read. `wanted` are the shards worth
        a lease (`Lineage.wanted`), `avoided` those that are taken from nobody who reads them."""
        by_shard = None if rows is None else {row.shard_id: row for row in rows}
        actions: list[Action] = []
        self._expire(by_shard, now, actions)
        self._keep(wanted, now, actions)
        if by_shard is not None:
            self._observe(by_shard, now)
            missing = tuple(sorted(wanted - by_shard.keys() - self._held.keys()))
            if missing:
                actions.append(Create(missing))
            candidates = [by_shard[shard_id] for shard_id in sorted(wanted & by_shard.keys())]
            actions.extend(self._choose(candidates, avoided, now))
        return actions

    def taken(self, row: LeaseRow, asked_at: float) -> None:
        """A take succeeded; `asked_at` is the time before it was asked for."""
        assert row.owner == self.owner, row
        assert row.shard_id not in self._held, f"{row.shard_id} is held already"
        self._held[row.shard_id] = _Held(row, asked_at)

    def renewed(self, row: LeaseRow, asked_at: float) -> None:
        """A renewal succeeded; `asked_at` is the time before it was asked for."""
        assert row.owner == self.owner, row
        held = self._held[row.shard_id]
        # Rows that were read meanwhile may have shown this renewal before its reply came.
        if row.counter > held.row.counter:
            held.row = row
        held.renewed_at = max(held.renewed_at, asked_at)

    def lost(self, shard_id: str) -> Expire:
        """A renewal ended in LeaseLost: gives the action to perform."""
        held = self._held[shard_id]
        held.is_stopping = True
        return Expire(held.row, ExpireReason.TAKEN)

    def stopped(self, shard_id: str) -> None:
        """The reader has ended (and the row is released, if it was to be)."""
        del self._held[shard_id]

    def _expire(self, rows: dict[str, LeaseRow] | None, now: float, actions: list[Action]) -> None:
        for shard_id in sorted(self._held):
            held = self._held[shard_id]
            if held.is_stopping:
                continue
            reason = ExpireReason.NOT_RENEWED if self._is_over(held, now) else None
            if rows is not None:
                row = rows.get(shard_id)
                if row is None:
                    reason = ExpireReason.ROW_MISSING
                elif row.counter > held.row.counter:
                    if row.owner == self.owner:
                        # The reply to our own renewal was lost; the time isn't known, so
                        # `renewed_at` stays.
                        held.row = row
                    else:
                        reason = ExpireReason.TAKEN
            if reason is not None:
                held.is_stopping = True
                actions.append(Expire(held.row, reason))

    def _keep(self, wanted: AbstractSet[str], now: float, actions: list[Action]) -> None:
        for shard_id in sorted(self._held):
            held = self._held[shard_id]
            if held.is_stopping:
                continue
            if shard_id not in wanted:
                self._release(held, actions)
            elif now >= held.renewed_at + self.renew_seconds:
                actions.append(Renew(held.row))

    def _release(self, held: _Held, actions: list[Action]) -> None:
        if not held.is_stopping:
            held.is_stopping = True
            actions.append(Release(held.row))

    def _observe(self, rows: dict[str, LeaseRow], now: float) -> None:
        seen: dict[str, _Seen] = {}
        for shard_id, row in rows.items():
            before = self._seen.get(shard_id)
            if before is not None and (before.counter, before.owner) == (row.counter, row.owner):
                seen[shard_id] = before
            else:
                seen[shard_id] = _Seen(row.counter, row.owner, now)
        self._seen = seen

    def _choose(
        self, candidates: Sequence[LeaseRow], avoided: AbstractSet[str], now: float
    ) -> list[Take]:
        """What to take of the rows that are worth it."""
        room = len(candidates) if self.shards_max is None else self.shards_max - len(self._held)
        others = [row for row in candidates if row.shard_id not in self._held]
        free = [Take(row, reason) for row in others if (reason := self._reason(row, now))]
        if free or room <= 0:
            return free[: max(0, room)]
        loads = Counter(row.owner for row in others)
        if not loads:
            return []
        victim = max(loads, key=lambda owner: (loads[owner], str(owner)))
        if loads[victim] - len(self._held) < 2:
            return []
        offered = [r for r in others if r.owner == victim and r.shard_id not in avoided]
        return [Take(row, TakeReason.BALANCE) for row in offered[:1]]

    def _reason(self, row: LeaseRow, now: float) -> TakeReason | None:
        if row.owner is None:
            return TakeReason.FREE
        if row.owner == self.owner:
            return TakeReason.OURS
        is_still = now - self._seen[row.shard_id].since > self.duration_seconds
        return TakeReason.EXPIRED if is_still else None

    def _is_over(self, held: _Held, now: float) -> bool:
        return now >= held.renewed_at + self.duration_seconds
