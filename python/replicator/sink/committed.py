"""What this process saw committed under its fences: pure, for every sink.

A destination may fail over to a replica that lacks the last transactions. The
connection is opened again, the epoch may still be ours, and the next write
would carry the position past what is gone. So whoever writes compares the
stored position with the one it saw last (laws 6 and 7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from replicator.model import SHARD_END, Fence, Position, Stream

Shard: TypeAlias = tuple[Stream, str]


@dataclass(slots=True)
class _Seen:
    fence: Fence
    position: Position | None
    is_sure: bool = True


class Committed:
    """The last position seen of each shard that is fenced here; the others' are forgotten."""

    def __init__(self, on_forgotten: Callable[[Shard], None] = lambda _: None) -> None:
        self._on_forgotten = on_forgotten
        self._seen: dict[Shard, _Seen] = {}

    def __contains__(self, shard: object) -> bool:
        return shard in self._seen

    def fences(self, stream: Stream) -> Iterator[Fence]:
        """The fences of one stream that may still hold."""
        return (seen.fence for (of, _), seen in self._seen.items() if of == stream)

    def read(self, fence: Fence, position: Position | None) -> None:
        """The fence is its shard's newest and the position was read behind it. Nobody
        else moves it from here on; of a shard that is finished there is nothing to remember."""
        if position == SHARD_END:
            if self._seen.pop((fence.stream, fence.shard_id), None) is not None:
                self._on_forgotten((fence.stream, fence.shard_id))
            return
        self._seen[fence.stream, fence.shard_id] = _Seen(fence, position)

    def unsure(self, fence: Fence) -> None:
        """A commit is on its way: until its answer is here, or the position was read
        again, nothing may be written under this fence."""
        if (seen := self._of(fence)) is not None:
            seen.is_sure = False

    def moved(self, fence: Fence, position: Position | None) -> None:
        """The commit's answer: that is the position now. After SHARD_END nothing follows."""
        if position == SHARD_END:
            self.forget(fence)
        elif self._of(fence) is not None:
            self.read(fence, position)

    def forget(self, fence: Fence) -> None:
        """The fence is dead, or its shard finished."""
        if self._of(fence) is not None:
            shard = (fence.stream, fence.shard_id)
            del self._seen[shard]
            self._on_forgotten(shard)

    def keep(self, stream: Stream, newest: Mapping[str, tuple[int, str | None]]) -> None:
        """Forgets the stream's fences that aren't among the newest: (epoch, owner) by shard."""
        for fence in tuple(self.fences(stream)):
            if newest.get(fence.shard_id) != (fence.epoch, fence.owner):
                self.forget(fence)

    def agrees(self, fence: Fence, stored: Position | None) -> bool:
        """True when a write under this fence begins where the last one ended. Of a fence
        that was forgotten only the shard's end is known: behind it nothing can be lost."""
        seen = self._of(fence)
        if seen is None:
            return stored == SHARD_END
        return seen.is_sure and seen.position == stored

    def _of(self, fence: Fence) -> _Seen | None:
        seen = self._seen.get((fence.stream, fence.shard_id))
        return seen if seen is not None and seen.fence == fence else None


def moved_message(fences: Mapping[Fence, Position | None]) -> str:
    """What to say of shards whose stored position isn't the one seen last."""
    places = ", ".join(f"{fence.shard_id} ({position})" for fence, position in fences.items())
    return (
        f"the stored position isn't the one last seen here: {places}; the server may have failed"
        " over without its last transactions, so reading goes on from the stored position"
    )
