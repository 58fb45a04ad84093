"""Positions, fences, streams and dead letters in CrateDB.

There are no transactions: what one of them needs to see or change together is one row.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from replicator._core import Rejection
from replicator.core.start import Brought, Joining, joining, require_comparable
from replicator.model import (
    Fence,
    Position,
    Reached,
    SinkHeld,
    SinkReport,
    StoredLetter,
    Stream,
)
from replicator.sink.crate_errors import CONFLICT, CrateError
from replicator.sink.crate_layout import CrateTable, state_statements
from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.letters import number_of, record_id, stored_letter

_ATTEMPTS_MAX = 10


@dataclass(frozen=True, slots=True)
class StoredPosition:
    """A shard's row, and which state of it was read: `seq_no` and `primary_term` change with
    every write of the row. `stored_us` is how long ago it was written."""

    shard: str
    position: Position | None
    epoch: int
    owner: str
    store_id: str
    reached: Reached
    seq_no: int
    primary_term: int
    stored_us: int

    def holds(self, fence: Fence) -> bool:
        """True when the fence is the shard's newest."""
        return (self.epoch, self.owner) == (fence.epoch, fence.owner)


@dataclass(frozen=True, slots=True)
class Move:
    """How far one write brings one shard; the times in microseconds, None where they stay."""

    position: Position | None
    sequence_number: str | None
    last_arrival_us: int | None
    tip_age_us: int | None


class CrateState:
    """The state tables of one pipeline. Every method raises what its session raises."""

    def __init__(self, settings: CrateSettings) -> None:
        self._pipeline = settings.pipeline
        self._store_id = settings.store_id
        self._schema = settings.schema
        self.sql = state_statements(settings)

    # ---- streams

    async def begin(
        self,
        session: CrateSession,
        stream: Stream,
        starts: Mapping[str, Position],
        tables: Sequence[str],
    ) -> bool:
        """One row decides who begins; the positions follow from it."""
        texts = {shard: str(position) for shard, position in sorted(starts.items())}
        is_new = await session.execute(
            self.sql["begin_stream"],
            self._stream_key(stream),
            *self._stream(stream),
            orjson.dumps(texts).decode(),
            list(tables),
        )
        return await self.is_known(session, stream) and bool(is_new)

    async def is_known(self, session: CrateSession, stream: Stream) -> bool:
        """Completes what a worker began and didn't end, too."""
        rows = await session.fetch(self.sql["begun_stream"], self._stream_key(stream))
        if not rows:
            return False
        ((starts, is_complete, begun_us),) = rows
        if not is_complete:
            positions = {s: Position.parse(text) for s, text in orjson.loads(starts).items()}
            await self._bulk(
                session,
                "begin_positions",
                [
                    (
                        self._key(stream, shard),
                        *self._stream(stream),
                        shard,
                        str(position),
                        position.sequence_number,
                        # What arrives from then on is owed, or from the instant of a start by time.
                        min(begun_us, position.timestamp_us or begun_us),
                        begun_us,
                    )
                    for shard, position in positions.items()
                ],
            )
            await session.execute(self.sql["complete_stream"], self._stream_key(stream))
        return True

    async def begun(self, session: CrateSession, tables: Sequence[str]) -> list[str]:
        """The ARNs of streams begun by this pipeline or into one of these tables, the newest
        last."""
        await session.execute(self.sql["refresh_streams"])
        rows = await session.fetch(self.sql["begun"])
        mine = (
            arn
            for pipeline, arn, theirs in rows
            if pipeline == self._pipeline or not set(theirs).isdisjoint(tables)
        )
        # The last time of each counts.
        return list(dict.fromkeys(reversed(list(mine))))[::-1]

    async def brought_last(self, session: CrateSession) -> dict[str, str]:
        """Which stream (ARN) came last to each table."""
        await session.execute(self.sql["refresh_streams"])
        rows = await session.fetch(self.sql["brought"])
        return {table: arn for _, arn, into, _ in rows for table in into}

    async def add_tables(
        self, session: CrateSession, stream: Stream, tables: Sequence[CrateTable]
    ) -> tuple[str, ...]:
        """See `protocols.Sink.add_tables`. Stored is what was seen of the stream's own row, and of
        no other state of it."""
        for attempt in range(_ATTEMPTS_MAX):
            rows = await session.fetch(self.sql["own_tables"], self._stream_key(stream))
            found, rivals, newest_us = await self._joined(session, stream, tables)
            if not rows or not found.is_needed:
                return ()
            require_comparable(stream.arn, rivals)
            ((before, *seen),) = rows
            row = (found.tables(before), newest_us + 1, self._stream_key(stream), *seen)
            (error,) = await session.bulk(self.sql["add_tables"], [row])
            if error is None:
                return found.added
            # Another worker of the pipeline was quicker.
            if error.code not in CONFLICT or attempt == _ATTEMPTS_MAX - 1:
                raise error
            await session.pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _joined(
        self, session: CrateSession, stream: Stream, tables: Sequence[CrateTable]
    ) -> tuple[Joining, tuple[str, ...], int]:
        """What the stream finds in the tables, the rivals in those that hold rows, and when the
        newest of all came."""
        await session.execute(self.sql["refresh_streams"])
        mine = self._stream_key(stream)
        rows = await session.fetch(self.sql["brought"])
        brought = [Brought(arn, frozenset(into), is_mine=key == mine) for key, arn, into, _ in rows]
        by_name = {table.full_name: table for table in tables}
        found = joining(stream.arn, by_name, brought)
        holding = [name for name in found.rivals if await holds_data(session, [by_name[name]])]
        return found, found.rivals_in(holding), max((row[-1] for row in rows), default=0)

    async def held(
        self, session: CrateSession, stream: Stream, tables: Sequence[CrateTable]
    ) -> SinkHeld:
        """What is there of a stream and in these tables, before any of them was made, too."""
        rivals: tuple[str, ...] = ()
        is_known, begun = False, []
        there = [table for table in tables if await self._exists(session, table.schema, table.name)]
        if await self._exists(session, self._schema, "replicator_streams"):
            rows = await session.fetch(self.sql["begun_stream"], self._stream_key(stream))
            is_known = bool(rows)
            begun = await self.begun(session, [table.full_name for table in tables])
            _, rivals, _ = await self._joined(session, stream, there)
        return SinkHeld(is_known, tuple(begun), await holds_data(session, there), rivals)

    # ---- positions

    async def positions(self, session: CrateSession, stream: Stream) -> list[list[Any]]:
        """(shard, position, epoch, owner) of every shard."""
        await session.execute(self.sql["refresh_positions"])
        return await session.fetch(self.sql["positions"], *self._stream(stream))

    async def read(
        self, session: CrateSession, shards: Iterable[tuple[Stream, str]]
    ) -> dict[tuple[Stream, str], StoredPosition]:
        """Those of these shards that have a row, as it is now."""
        by_key = {self._key(*shard): shard for shard in shards}
        rows = await session.look_up(self.sql["looked_up"], "key = ?", [(key,) for key in by_key])
        return {by_key[key]: _stored(*columns) for key, *columns in rows}

    async def raise_fence(
        self, session: CrateSession, stream: Stream, shard: str, mark: str
    ) -> tuple[int, Position | None]:
        """The new epoch, and the position as of then."""
        key = self._key(stream, shard)
        for attempt in range(_ATTEMPTS_MAX):
            try:
                ((epoch, position),) = await session.fetch(
                    self.sql["raise_fence"], key, *self._stream(stream), shard, mark, self._store_id
                )
            except CrateError as error:
                # Somebody else was quicker, several times over.
                if error.code not in CONFLICT or attempt == _ATTEMPTS_MAX - 1:
                    raise
                await session.pause(attempt)
            else:
                return epoch, _parsed(position)
        raise AssertionError("the last attempt returns or raises")

    async def move(
        self, session: CrateSession, stream: Stream, shard: str, position: Position, mark: str
    ) -> None:
        """Sets a position by hand, and raises the fence with it."""
        await session.execute(
            self.sql["move_position"],
            self._key(stream, shard),
            *self._stream(stream),
            shard,
            str(position),
            position.sequence_number,
            position.timestamp_us,
            mark,
        )

    async def store(
        self, session: CrateSession, moves: Mapping[StoredPosition, tuple[Stream, Move]]
    ) -> dict[StoredPosition, bool]:
        """Moves these positions, each unless its row has changed since it was read: whether it
        was moved."""
        results = await session.bulk(
            self.sql["store_position"],
            [
                (
                    str(move.position),
                    move.sequence_number,
                    move.last_arrival_us,
                    move.tip_age_us,
                    self._key(stream, stored.shard),
                    stored.seq_no,
                    stored.primary_term,
                )
                for stored, (stream, move) in moves.items()
            ],
        )
        for error in results:
            if error is not None and error.code not in CONFLICT:
                raise error
        return {stored: error is None for stored, error in zip(moves, results, strict=True)}

    # ---- dead letters

    async def store_dead_letters(
        self, session: CrateSession, letters: Sequence[tuple[Fence, Rejection]]
    ) -> None:
        """Returns when all of them are durable. One record has one row, however often it comes."""
        rows: dict[str, tuple[object, ...]] = {}
        for fence, one in letters:
            number, index = record_id(one)
            arn, shard = fence.stream.arn, fence.shard_id
            key = self._letter_key(arn, shard, number, index)
            rows[key] = (
                key,
                self._pipeline,
                one.table,
                arn,
                shard,
                number,
                index,
                one.code,
                one.message,
                base64.b64encode(one.raw).decode(),
            )
        await self._bulk(session, "store_dead_letter", list(rows.values()))

    async def dead_letters(self, session: CrateSession) -> list[StoredLetter]:
        """Those of the pipeline, in no order; none before their table was made."""
        if not await self._exists(session, self._schema, "replicator_dead_letters"):
            return []
        await session.execute(self.sql["refresh_dead_letters"])
        return [
            _letter(*row) for row in await session.fetch(self.sql["dead_letters"], self._pipeline)
        ]

    async def end_dead_letters(
        self, session: CrateSession, letters: Sequence[StoredLetter]
    ) -> list[bool]:
        """Removes them: of each, whether it was there."""
        return await self._changed(
            session, "end_dead_letter", [(self._key_of(x),) for x in letters]
        )

    async def refuse_dead_letter(
        self, session: CrateSession, letter: StoredLetter, code: str, message: str
    ) -> bool:
        """Tells what it was refused for this time: False when it isn't there any more."""
        row = (code, message, self._key_of(letter))
        return (await self._changed(session, "refuse_dead_letter", [row]))[0]

    async def report(self, session: CrateSession) -> SinkReport:
        """What is stored for the pipeline; empty before the tables were made."""
        for kind in ("positions", "dead_letters"):
            if not await self._exists(session, self._schema, f"replicator_{kind}"):
                return SinkReport()
            await session.execute(self.sql[f"refresh_{kind}"])
        positions = await session.fetch(self.sql["report_positions"], self._pipeline)
        letters = await session.fetch(self.sql["report_dead_letters"], self._pipeline)
        return SinkReport(tuple(_reported(*row) for row in positions), dict(map(tuple, letters)))

    async def _exists(self, session: CrateSession, schema: str, name: str) -> bool:
        return bool(await session.fetch(self.sql["relation"], schema, name))

    async def _bulk(
        self, session: CrateSession, name: str, rows: Sequence[Sequence[object]]
    ) -> None:
        """All rows, or an error."""
        if not rows:
            return
        for error in await session.bulk(self.sql[name], rows):
            if error is not None:
                raise error

    async def _changed(
        self, session: CrateSession, name: str, rows: Sequence[Sequence[object]]
    ) -> list[bool]:
        """Of each row, whether it was there to be changed."""
        results = await session.bulk(self.sql[name], rows) if rows else []
        for error in results:
            if error is not None and error.code not in CONFLICT:
                raise error
        return [error is None for error in results]

    def _key_of(self, letter: StoredLetter) -> str:
        return self._letter_key(letter.stream, letter.shard, number_of(letter), letter.index)

    def _letter_key(self, arn: str, shard: str, number: str, index: int) -> str:
        return f"{self._pipeline} {arn} {shard} {number} {index}"

    def _stream(self, stream: Stream) -> tuple[str, str, int]:
        return (self._pipeline, stream.arn, stream.created_at_s)

    def _stream_key(self, stream: Stream) -> str:
        return f"{self._pipeline} {stream.arn} {stream.created_at_s}"

    def _key(self, stream: Stream, shard: str) -> str:
        # None of them holds a blank.
        return f"{self._stream_key(stream)} {shard}"


async def holds_data(session: CrateSession, tables: Sequence[CrateTable]) -> bool:
    """True when one of them has a row."""
    for table in tables:
        sql = table.statements()
        await session.execute(sql["refresh"])
        if await session.fetch(sql["holds_data"]):
            return True
    return False


def _parsed(position: str | None) -> Position | None:
    return None if position is None else Position.parse(position)


def _stored(
    shard: str,
    position: str | None,
    epoch: int,
    owner: str | None,
    store_id: str | None,
    last_arrival_us: int | None,
    tip_us: int | None,
    begun_us: int | None,
    seq_no: int,
    primary_term: int,
    stored_us: int,
) -> StoredPosition:
    return StoredPosition(
        shard,
        _parsed(position),
        epoch,
        owner or "",
        store_id or "",
        Reached(last_arrival_us, tip_us, begun_us),
        seq_no,
        primary_term,
        stored_us,
    )


def _letter(
    table: str | None,
    stream: str,
    shard: str,
    number: str,
    index: int,
    code: str,
    message: str,
    raw: str,
    created_us: int,
) -> StoredLetter:
    at = _moment(created_us)
    assert at is not None
    return stored_letter(
        stream, shard, number, index, code, message, table, at, base64.b64decode(raw)
    )


def _reported(
    stream_arn: str,
    shard: str,
    position: str | None,
    epoch: int,
    owner: str | None,
    last_arrival_us: int | None,
    tip_us: int | None,
    updated_us: int,
    now_us: int,
) -> Mapping[str, Any]:
    """See `SinkReport.positions`."""
    complete_us = max(filter(None, (last_arrival_us, tip_us)), default=None)
    return {
        "stream_arn": stream_arn,
        "shard": shard,
        "position": position,
        "epoch": epoch,
        "owner": owner,
        "last_arrival_at": _moment(last_arrival_us),
        "tip_at": _moment(tip_us),
        "updated_at": _moment(updated_us),
        "age_seconds": _seconds(now_us, last_arrival_us),
        "lag_seconds": _seconds(now_us, complete_us),
        "stored_seconds": _seconds(now_us, updated_us),
    }


def _moment(us: int | None) -> str | None:
    if us is None:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).isoformat()


def _seconds(now_us: int, us: int | None) -> float | None:
    return None if us is None else (now_us - us) / 1_000_000
