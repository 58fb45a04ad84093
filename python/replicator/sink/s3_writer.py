"""One shard's changes become objects: a plan, its objects, and then the next plan (law 7).

The walk of `write`: the fence is looked at, the shard's memory says what is due, that becomes a
plan, the plan becomes objects. A plan that another worker left is completed first: its range was
read again, and nothing else decides what goes into its objects.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import orjson
import structlog

from replicator._core import ChangeBatch, Columns, Rejection, compress
from replicator.core.plan import Encoding, Plan, PlannedObject, are_copies, differences
from replicator.core.schemas import REST
from replicator.core.schemas import Columns as TypedColumns
from replicator.core.windows import Windows
from replicator.errors import FatalError, TransientError
from replicator.model import SHARD_END, DeadLetter, Fence, Pending, WriteResult
from replicator.sink.log_shard import LogPosition, LogShard, Taken, growth
from replicator.sink.position import furthest, tip_age_seconds
from replicator.sink.s3_objects import Bucket
from replicator.sink.s3_plans import S3Plans, Standing
from replicator.sink.s3_schemas import S3Schemas
from replicator.sink.s3_selection import Selection
from replicator.sink.s3_settings import S3Settings

log = structlog.get_logger()

_FAILED = "processing-failed"
# What is known of an idle shard is a plan too, one each ten minutes: far from any retention.
IDLE_POSITION_SECONDS = 600.0
_Part: TypeAlias = tuple[str | None, int, ChangeBatch]


@dataclass(slots=True)
class S3Payload:
    """One write: fetches of the shard, in order. Its memory takes them when it is written."""

    pending: tuple[Pending, ...]
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class _Cut:
    """What one plan is about."""

    changes: ChangeBatch
    rejections: tuple[Rejection, ...]
    stored: LogPosition
    is_holding: bool
    is_idle: bool
    """No record was read, and the shard goes on."""
    remembered: bytes

    @classmethod
    def of(cls, taken: Sequence[Taken], *, is_idle: bool = False) -> _Cut:
        some = [one.changes for one in taken if len(one.changes) or one.changes.duplicates]
        changes = some[0] if len(some) == 1 else ChangeBatch.concat(some)
        rejections = tuple(each for one in taken for each in one.rejections)
        last = taken[-1]
        return cls(changes, rejections, last.stored, last.is_holding, is_idle, last.remembered)


@dataclass(frozen=True, slots=True)
class _Wrote:
    """How many changes a cut put into objects, and how many a filter left out of it."""

    rows: int
    unmatched: int


@dataclass(slots=True, eq=False)
class _Shard:
    """What is known of the shard under one fence. Once a write has failed nobody knows how far
    it came: then it is of no use any more. A `core.windows.Window`. `is_sure`: nothing is being
    written."""

    fence: Fence
    memory: LogShard
    windows: Mapping[str, int]
    """The times that the memory has, for plans to tell."""
    ordinal: int
    stored: LogPosition | None
    open: Plan | None
    taken: list[Taken] = field(default_factory=list)
    """What of the open plan's range was read."""
    is_sure: bool = True
    stored_at: float = float("-inf")
    """When the last plan was made here, by the clock that fetches are received by."""

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes + sum(each.changes.nbytes for each in self.taken)

    @property
    def early(self) -> int:
        return self.memory.early

    @property
    def forgotten(self) -> int:
        return self.memory.forgotten

    def limit(self, bytes_max: int | None) -> None:
        # What an open plan leaves out must stay known until it is completed.
        self.memory.limit(bytes_max if self.open is None else None)


class S3Writer:
    """Writes one shard."""

    def __init__(
        self,
        bucket: Bucket,
        plans: S3Plans,
        schemas: S3Schemas,
        settings: S3Settings,
        tables: frozenset[str],
        windows: Windows,
        monotonic: Callable[[], float],
        now_us: Callable[[], int],
    ) -> None:
        self._bucket = bucket
        self._plans = plans
        self._schemas = schemas
        self._settings = settings
        self._selection = Selection(tables, settings.filters, settings.attributes)
        self._windows = windows
        self._monotonic = monotonic
        self._now_us = now_us
        self._shard: _Shard | None = None
        self.parents: tuple[str, ...] = ()
        """Those of the shard, as far as they were told."""

    def start(
        self,
        fence: Fence,
        standing: Standing,
        first: LogPosition,
        inherited: Sequence[bytes] = (),
    ) -> None:
        """From here on it writes under this fence, from where the shard stands; `first` is what
        is stored of it, or would be, `inherited` what its parents remembered."""
        settings = self._settings
        # Who completes a plan gives nothing before its worker would have, and forgets no sooner.
        told = {} if standing.open is None else standing.open.settings
        windows = {
            "reorder_us": max(settings.reorder_us, told.get("reorder_us", 0)),
            "duplicate_us": max(settings.duplicate_us, told.get("duplicate_us", 0)),
        }
        memory = LogShard(
            first, **windows, bytes_max=settings.window_bytes_max, inherited=inherited
        )
        self.end()
        self._shard = _Shard(
            fence, memory, windows, standing.ordinal, standing.stored, standing.open
        )
        self._windows.begin(self._shard, is_bound=standing.open is None)

    def end(self) -> None:
        """The shard ended, or its fence is dead. May be called twice."""
        if self._shard is not None:
            self._windows.release(self._shard)
            self._shard = None

    def _end(self, shard: _Shard) -> None:
        """Not what began under a newer fence meanwhile."""
        if self._shard is shard:
            self.end()

    def look(self, standing: Standing) -> None:
        """Where the shard stands: further than it was brought here, it is another worker's."""
        shard = self._shard
        if shard is not None and shard.is_sure and standing.ordinal > shard.ordinal:
            self.end()

    @property
    def is_idle(self) -> bool:
        """True when the shard ended, or went to another worker."""
        return self._shard is None

    def encode(self, pending: Sequence[Pending]) -> S3Payload:
        return S3Payload(tuple(pending))

    async def write(self, payload: S3Payload) -> WriteResult:
        fence = payload.pending[0].fence
        is_mixed = any(one.fence != fence for one in payload.pending)
        if is_mixed or not await self._plans.holds(fence):
            if self._shard is not None and self._shard.fence == fence:
                self.end()
            return WriteResult(lost=frozenset({fence.shard_id}))
        if payload.is_done:
            return WriteResult()
        shard = self._shard
        if shard is None or shard.fence != fence or not shard.is_sure:
            raise TransientError(
                "position_moved",
                f"{fence.shard_id}: what was stored last isn't known here: the position is read "
                "again before anything is written",
                retry_after_seconds=0.0,
            )
        shard.is_sure = False
        try:
            result = await self._write(shard, payload.pending)
        except BaseException:
            self._end(shard)
            raise
        shard.is_sure, payload.is_done = True, True
        return result

    async def _write(self, shard: _Shard, pending: Sequence[Pending]) -> WriteResult:
        # What belongs to a plan that was found, nothing but the plan decides.
        is_bound = shard.open is None
        with self._windows.taking(shard, growth(pending), is_bound=is_bound):
            left, cut = await asyncio.to_thread(self._take, shard, pending)
        results: list[tuple[_Cut, _Wrote]] = []
        if left is not None:
            results.append((left, await self._complete(shard, left)))
        if cut is not None:
            results.append((cut, await self._cut(shard, cut)))
        shard_id = shard.fence.shard_id
        letters = [
            DeadLetter(shard_id, each.table, each) for one, _ in results for each in one.rejections
        ]
        known = sum(one.changes.duplicates for one, _ in results)
        return WriteResult(
            rows=sum(wrote.rows for _, wrote in results),
            unmatched=sum(wrote.unmatched for _, wrote in results),
            duplicates=max(0, known - sum(one.batch.duplicates for one in pending)),
            dead_letters=tuple(letters),
            holding=frozenset({shard_id} if results and results[-1][0].is_holding else ()),
        )

    # ---- what is due

    def _take(self, shard: _Shard, pending: Sequence[Pending]) -> tuple[_Cut | None, _Cut | None]:
        """What the open plan is about, once all of it was read, and what comes behind it."""
        left: _Cut | None = None
        taken: list[Taken] = []
        now, now_us = self._monotonic(), self._now_us()
        for one in pending:
            rest: Pending | None = one
            if shard.open is not None and left is None:
                left, rest = self._take_again(shard, shard.open, one)
            if rest is not None:
                age = tip_age_seconds(rest, now)
                tip_us = None if age is None else now_us - round(age * 1_000_000)
                taken.append(shard.memory.take(rest, tip_us))
        is_idle = not any(one.batch.records or one.next == SHARD_END for one in pending)
        return left, _Cut.of(taken, is_idle=is_idle) if taken else None

    def _take_again(
        self, shard: _Shard, plan: Plan, pending: Pending
    ) -> tuple[_Cut | None, Pending | None]:
        """Takes what of the fetch lies in the plan's range: what the plan is about when that was
        the last of it, and the rest of the fetch."""
        stored = LogPosition.from_json(plan.after)
        end = stored.position
        # Without its lag no time passes: the plan says what had become due.
        first, rest = replace(pending, behind_ms=None), None
        if end != SHARD_END and furthest(end, pending.next) != end:
            assert end.sequence_number is not None, plan
            known, behind = pending.batch.split(end.sequence_number)
            first = replace(first, batch=known, next=end)
            rest = replace(pending, batch=behind)
        shard.taken.append(shard.memory.take(first))
        if not stored.is_reached(first.next):
            return None, None
        shard.taken.append(shard.memory.reach(stored))
        left, shard.taken = _Cut.of(shard.taken), []
        return left, rest

    # ---- plans

    async def _complete(self, shard: _Shard, cut: _Cut) -> _Wrote:
        """Makes the objects of the plan that was found, and no others."""
        plan = shard.open
        assert plan is not None
        selection = self._selection.told_by(plan)
        parts, unmatched = await asyncio.to_thread(
            _parts, cut.changes, selection, plan.period_us, by_table=plan.by_table
        )
        keys = {(each.table, each.start_us): each.key for each in plan.objects}
        made = [
            PlannedObject(keys.get((table, us), f"{table or 'any table'} at {us}"), len(batch), us)
            for table, us, batch in parts
        ]
        found = [] if are_copies(plan, made) else differences(plan, made)
        if len(cut.rejections) != (plan.letters.count if plan.letters else 0):
            found.append(f"{len(cut.rejections)} refused records")
        if found:
            raise FatalError(
                "plan_differs",
                f"{shard.fence.shard_id}: plan {plan.ordinal} was left incomplete, and what was "
                f"read again of its range isn't what it names ({'; '.join(found[:3])}). What to "
                "do: look at the objects that it names; then set the shard's position (positions "
                "set): to before its range, and its objects are written once more, or behind it",
            )
        log.info("plan_completed", shard=shard.fence.shard_id, plan=plan.ordinal, by=plan.by)
        return _Wrote(await self._make(shard, plan, cut, parts), unmatched)

    async def _cut(self, shard: _Shard, cut: _Cut) -> _Wrote:
        """Decides a plan and makes its objects."""
        prefix = self._settings.prefix
        parts, unmatched = await asyncio.to_thread(
            _parts, cut.changes, self._selection, prefix.period_us, by_table=prefix.by_table
        )
        if not parts and not cut.rejections and self._can_wait(shard, cut):
            return _Wrote(0, unmatched)
        columns = await self._schemas.current(parts)
        plan = self._plan(shard, cut, parts, columns)
        found = await self._plans.create(shard.fence.stream, plan)
        if found != plan:
            raise TransientError(
                "plan_found",
                f"{shard.fence.shard_id}: plan {plan.ordinal} was decided by another worker: it is "
                "read, and completed as it is",
                retry_after_seconds=0.0,
            )
        return _Wrote(await self._make(shard, plan, cut, parts), unmatched)

    def _can_wait(self, shard: _Shard, cut: _Cut) -> bool:
        """True when a cut without objects needs no plan: nothing moved, or a little of a shard
        that is idle."""
        if cut.is_idle:
            is_soon = self._monotonic() - shard.stored_at < IDLE_POSITION_SECONDS
            return is_soon or cut.stored == shard.stored
        return shard.stored is not None and cut.stored.position == shard.stored.position

    def _plan(
        self,
        shard: _Shard,
        cut: _Cut,
        parts: Sequence[_Part],
        columns: Mapping[str, TypedColumns],
    ) -> Plan:
        settings, fence, stored = self._settings, shard.fence, cut.stored
        ordinal = shard.ordinal + 1
        # Names of their own, even where the state of another time was thrown away.
        whose = f"{settings.pipeline}\0{settings.name}\0{fence.owner}\0{fence.shard_id}\0{ordinal}"
        mark = hashlib.sha256(whose.encode()).hexdigest()[:10]
        stem = f"{settings.stem}{fence.shard_id}-{ordinal:09d}"
        suffix = settings.encoding.suffix
        objects = tuple(
            PlannedObject(
                f"{settings.prefix.key(us, table=table, mark=mark)}{stem}-{index}-{mark}{suffix}",
                len(batch),
                us,
                table,
            )
            for index, (table, us, batch) in enumerate(parts, 1)
        )
        letters = None
        if cut.rejections:
            us = stored.last_arrival_us or self._now_us()
            folder = settings.error_prefix.key(us, mark=mark, error=_FAILED)
            key = f"{folder}{stem}-0-{mark}.jsonl"
            letters = PlannedObject(key, len(cut.rejections), us)
        return Plan(
            shard_id=fence.shard_id,
            ordinal=ordinal,
            before="" if shard.stored is None else shard.stored.to_json(),
            after=stored.to_json(),
            by=fence.owner,
            encoding=settings.encoding,
            period_us=settings.prefix.period_us,
            by_table=settings.prefix.by_table,
            first=cut.changes.first_sequence_number,
            last=cut.changes.last_sequence_number,
            objects=objects,
            letters=letters,
            late=cut.changes.late,
            known=cut.changes.duplicates,
            settings={
                "bytes_max": settings.batching.bytes_max,
                "delay_seconds": settings.batching.delay_seconds,
                **shard.windows,
                "inherited": shard.memory.is_heir,
                **self._selection.told(),
            },
            remembered=self._plans.memory_key(fence.stream, fence.shard_id, ordinal)
            if cut.remembered
            else None,
            columns=columns,
        )

    async def _make(self, shard: _Shard, plan: Plan, cut: _Cut, parts: Sequence[_Part]) -> int:
        """Creates the plan's objects, those that aren't there yet; then it is the position."""
        if plan.remembered is not None:
            kind = "application/octet-stream"
            await self._put(plan.remembered, cut.remembered, kind, is_data=False)
        if plan.letters is not None:
            body = _letters(shard.fence, cut.rejections)
            await self._put(plan.letters.key, body, "application/x-ndjson")
        batches = {(table, us): batch for table, us, batch in parts}
        for each in plan.objects:
            batch = batches.get((each.table, each.start_us), ChangeBatch.concat(()))
            columns = plan.columns_of(each)
            body = await asyncio.to_thread(encoded, batch, plan.encoding, columns)
            await self._put(each.key, body, _content_type(plan.encoding))
        self._plans.completed(shard.fence.stream, plan)
        shard.ordinal, shard.open = plan.ordinal, None
        shard.stored, shard.stored_at = LogPosition.from_json(plan.after), self._monotonic()
        if shard.stored.position == SHARD_END:
            self._end(shard)  # its memory is as large as what it remembers
        return plan.count

    async def _put(self, key: str, body: bytes, content_type: str, *, is_data: bool = True) -> None:
        # False: somebody who completes the same plan was here before.
        await self._bucket.create(key, body, content_type=content_type, is_data=is_data)


def _parts(
    changes: ChangeBatch, selection: Selection, period_us: int, *, by_table: bool
) -> tuple[list[_Part], int]:
    """What an object each is made of, and how many changes a filter left out."""
    tables = selection.tables
    changes, unmatched = selection.of(changes)
    if changes.tables.keys() <= tables:
        return changes.partition(period_us, by_table=by_table), unmatched
    # A stream may carry other tables' changes too.
    ours = [part for part in changes.partition(period_us, by_table=True) if part[0] in tables]
    if by_table:
        return ours, unmatched
    together: dict[int, list[ChangeBatch]] = {}
    for _, start_us, batch in ours:
        together.setdefault(start_us, []).append(batch)
    return [
        (None, us, ChangeBatch.concat(some)) for us, some in sorted(together.items())
    ], unmatched


def encoded(batch: ChangeBatch, encoding: Encoding, columns: TypedColumns | None) -> bytes:
    """An object's bytes: the same for the same changes."""
    match encoding.format:
        case "parquet":
            plan = None if columns is None else Columns(columns, REST)
            if encoding.compression == "none":
                return batch.parquet(plan, compression="none")
            return batch.parquet(plan)
        case "raw":
            data = batch.payloads(b"")
            return data if encoding.compression == "none" else compress(data, encoding.compression)
        case form:
            return batch.json_lines(form, compression=encoding.compression)


def _content_type(encoding: Encoding) -> str:
    if encoding.format == "parquet":
        return "application/vnd.apache.parquet"
    types = {"gzip": "application/gzip", "zstd": "application/zstd"}
    return types.get(encoding.compression, "application/x-ndjson")


def _letters(fence: Fence, rejections: Sequence[Rejection]) -> bytes:
    """Refused records as lines of JSON, by Firehose's names where it has some."""
    return b"".join(
        orjson.dumps(
            {
                "errorCode": each.code,
                "errorMessage": each.message,
                "rawData": base64.b64encode(each.raw).decode(),
                "table": each.table,
                "streamARN": fence.stream.arn,
                "shardId": fence.shard_id,
                "sequenceNumber": each.sequence_number,
                "subSequenceNumber": each.sub_sequence_number,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for each in rejections
    )
