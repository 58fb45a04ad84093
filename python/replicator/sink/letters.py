"""What all sinks have in common about their dead letters: names, choice, and what they hold. Pure.

A sink of the newest items writes one again as any change: by its version, so it undoes nothing,
whoever writes beside it: among changes of one instant as what arrived first. That needs no fence,
and moves no position.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from replicator._core import ChangeBatch, Records, Rejection, decode
from replicator.core.start import require_redrivable
from replicator.errors import FatalError, RejectedError
from replicator.model import EndedLetter, LetterOutcome, StoredLetter


def record_id(rejection: Rejection) -> tuple[str, int]:
    """Sequence number and index: the same whenever the record is read again, whatever comes with
    it then."""
    # Only user records of one aggregate share a number.
    index = rejection.sub_sequence_number if rejection.sequence_number else rejection.index
    return record_number(rejection.sequence_number, rejection.raw), index


def record_number(sequence_number: str, raw: bytes) -> str:
    """Without a number of the source's own, the bytes tell two records apart."""
    return sequence_number or f"sha256:{hashlib.sha256(raw).hexdigest()}"


def stored_letter(
    stream: str,
    shard: str,
    number: str,
    index: int,
    code: str,
    message: str,
    table: str | None,
    at: str,
    raw: bytes,
) -> StoredLetter:
    """One that nothing waits for; `number` and `index` are those of `record_id`."""
    letter = StoredLetter(
        id=f"{shard}/{number}/{index}",
        stream=stream,
        shard=shard,
        position=number if number.isdecimal() else "",
        index=index,
        code=code,
        message=message,
        table=table,
        key=None,
        at=at,
        is_held=False,
        raw=raw,
    )
    return replace(letter, key=key_of(letter))


def number_of(letter: StoredLetter) -> str:
    """The first of `record_id`."""
    return letter.id.rsplit("/", 2)[1]


def changes_of(letter: StoredLetter) -> ChangeBatch:
    """What it holds, decoded as it was when it came: a change or, still, a rejection."""
    return decode(Records.pack([letter.raw], [letter.position or "0"]), table=letter.table)


def key_of(letter: StoredLetter) -> str | None:
    """Its change's key in typed JSON; None where it can't be read."""
    if letter.table is None:
        return None
    # A limit that nothing keeps gives every key.
    _, keys = changes_of(letter).set_aside(letter.table, record_bytes_max=0)
    return keys[0].decode() if keys else None


def in_order(letters: Sequence[StoredLetter]) -> list[StoredLetter]:
    """By shard, and there as they came."""
    return sorted(letters, key=lambda one: (one.stream, one.shard, int(one.position or 0), one.id))


def chosen(waiting: Sequence[StoredLetter], ids: Sequence[str]) -> Sequence[StoredLetter]:
    """Those that these ids name; all, without ids. Raises FatalError for one that isn't there."""
    known = {one.id for one in waiting}
    for missing in (each for each in ids if each not in known):
        raise FatalError("usage_letter", f"no dead letter {missing} waits here")
    return [one for one in waiting if not ids or one.id in ids]


def written(duplicates: int, superseded: int) -> LetterOutcome:
    """What became of the one change that a write was about; see `WriteResult`."""
    if superseded:
        return LetterOutcome.SUPERSEDED
    return LetterOutcome.DUPLICATE if duplicates else LetterOutcome.WRITTEN


async def redriven(
    letters: Sequence[StoredLetter],
    newest: Mapping[str, str | None],
    again: Callable[[StoredLetter, ChangeBatch], Awaitable[EndedLetter]],
) -> AsyncGenerator[EndedLetter, None]:
    """Each of them by `again`, unless a sink of the newest items can't write it. `newest`: its
    tables, and which stream (ARN) came to each last."""
    for letter in letters:
        batch = changes_of(letter)
        try:
            if not batch.rejections:
                _require_place(letter, batch, newest)
        except RejectedError as error:
            yield refused(letter, error.code, error.message)
        else:
            yield await again(letter, batch)


def gone(letter: StoredLetter) -> EndedLetter:
    """Somebody else ended it meanwhile."""
    return EndedLetter(letter, LetterOutcome.GONE)


def refused(letter: StoredLetter, code: str, message: str) -> EndedLetter:
    """Still, and why."""
    return EndedLetter(letter, LetterOutcome.REFUSED, f"{code}: {message}")


def _require_place(
    letter: StoredLetter, batch: ChangeBatch, newest: Mapping[str, str | None]
) -> None:
    (table,) = batch.tables
    if table is None or table not in newest:
        raise RejectedError(
            "letter_unwritable",
            f"table {table or '(none)'} is none of the pipeline's: list it there, or drop the "
            "letter",
        )
    require_redrivable(letter.stream, newest[table])
