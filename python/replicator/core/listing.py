"""The shards of one stream, put together from pages that no snapshot holds together.

DescribeStream of DynamoDB Streams gives at most 100 shards a page, and between two pages shards
begin, end and are trimmed. So a list of thousands may lack a shard that is there, or show a
child without its parent. Rules of the file:

1. A listing under way goes on at the page that failed, in the next call too: however often
   pages fail, it comes to its end, and what came with earlier pages is kept.
2. Until it has come to its end, the shards are those of the complete listing before it and
   all that its pages have shown. There is nothing to give before the first complete one: a
   shard that is missing only because its page is would be taken for lost.
3. A shard is gone when two complete listings in a row lack it: one of them may have missed it.
4. A parent that no listing has shown may be trimmed, or missed. The first time one is missing
   the stream is listed once more before its children are believed to have none.
5. A shard that has ended stays ended, whatever a later page says.
"""

from __future__ import annotations

from collections.abc import Sequence

from replicator.model import Shard


class Listing:
    """Takes pages in and gives the shards. No I/O."""

    def __init__(self) -> None:
        # Of the newest complete listing, and of the one before it what the newest lacks.
        self._seen: dict[str, Shard] = {}
        self._missed: dict[str, Shard] = {}
        # Of the listing under way.
        self._pages: dict[str, Shard] = {}
        self._after: str | None = None
        self._orphans: frozenset[str] = frozenset()
        self._is_second = False
        self._is_complete = False

    @property
    def after(self) -> str | None:
        """The shard behind which the next page begins; None: at the beginning."""
        return self._after

    @property
    def is_usable(self) -> bool:
        """True once one listing came to its end."""
        return self._is_complete

    def page(self, shards: Sequence[Shard], last: str | None) -> bool:
        """Takes the page behind `after`; `last` is the service's LastEvaluatedShardId. True when
        the listing has come to its end."""
        for shard in shards:
            known = self._pages.get(shard.id) or self._seen.get(shard.id)
            self._pages[shard.id] = known if known and not known.is_open else shard
        # A page that ends where it began would be asked for again for ever.
        if last is not None and last != self._after:
            self._after = last
            return False
        self._after = None
        orphans = self._missing_parents()
        if not orphans <= self._orphans and not self._is_second:
            self._is_second = True  # rule 4: what this listing has shown counts in the second
            return False
        self._orphans, self._is_second = orphans, False
        self._missed = {i: shard for i, shard in self._seen.items() if i not in self._pages}
        self._seen, self._pages = self._pages, {}
        self._is_complete = True
        return True

    def restart(self) -> None:
        """The shard behind which the next page would begin is gone: begin again, and keep what
        was shown."""
        self._after = None

    def shards(self) -> list[Shard]:
        """All shards as far as they are known (rules 2 and 3)."""
        return list((self._seen | self._missed | self._pages).values())

    def _missing_parents(self) -> frozenset[str]:
        known = self._pages.keys() | self._seen.keys()
        return frozenset(
            parent
            for shard in self._pages.values()
            for parent in shard.parents
            if parent not in known
        )
