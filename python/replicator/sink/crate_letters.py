"""The dead letters of the CrateDB sink, read back and ended.

One is removed after its change is durable. Should that end in between, it is written once more, and
its row is the one that is there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from replicator._core import ChangeBatch
from replicator.model import EndedLetter, LetterOutcome, StoredLetter
from replicator.sink.crate_layout import CrateTable
from replicator.sink.crate_merge import CrateMerge, table_payloads
from replicator.sink.crate_session import CrateSession
from replicator.sink.crate_settings import CrateSettings
from replicator.sink.crate_state import CrateState
from replicator.sink.letters import gone, in_order, redriven, refused, written


class CrateLetters:
    """Those of one sink."""

    def __init__(self, settings: CrateSettings, session: CrateSession, state: CrateState) -> None:
        self._settings = settings
        self._session = session
        self._state = state

    async def waiting(self) -> Sequence[StoredLetter]:
        """All of them, of a shard in order; none before their table was made."""
        async with self._session.use("reading dead letters") as session:
            return in_order(await self._state.dead_letters(session))

    async def dropped(self, letters: Sequence[StoredLetter]) -> Sequence[EndedLetter]:
        """Removes them."""
        async with self._session.use("dropping dead letters") as session:
            were_there = await self._state.end_dead_letters(session, letters)
        return [
            EndedLetter(one, LetterOutcome.DROPPED) if was_there else gone(one)
            for one, was_there in zip(letters, were_there, strict=True)
        ]

    async def redriven(
        self, letters: Sequence[StoredLetter], tables: Sequence[CrateTable]
    ) -> AsyncGenerator[EndedLetter, None]:
        """Writes them into these tables, and gives what became of each once that is durable."""
        async with self._session.use("reading streams") as session:
            brought = await self._state.brought_last(session)

        async def again(letter: StoredLetter, batch: ChangeBatch) -> EndedLetter:
            parts, rejections = table_payloads(self._settings, batch, tables)
            outcome = LetterOutcome.WRITTEN
            async with self._session.use(f"redriving dead letter {letter.id}") as session:
                for part in parts:
                    merged = await CrateMerge(part.table, came_first=True).merge(session, part)
                    rejections += tuple(merged.rejections)
                    outcome = written(merged.duplicates, merged.superseded)
                if rejections:
                    why = rejections[0].code, rejections[0].message
                    is_there = await self._state.refuse_dead_letter(session, letter, *why)
                    return refused(letter, *why) if is_there else gone(letter)
                (was_there,) = await self._state.end_dead_letters(session, [letter])
            return EndedLetter(letter, outcome) if was_there else gone(letter)

        newest = {table.source.name: brought.get(table.full_name) for table in tables}
        async for ended in redriven(letters, newest, again):
            yield ended
