"""A finished record batch in the place of aiokafka's own `BatchBuilder`.

`AIOKafkaProducer.send_batch` takes a builder, asks it for its size, may sign it with the
producer's id, and sends what it builds. This one is built already, by the core: nothing is
appended, and signing patches fourteen bytes and the checksum. aiokafka has no public name for
that, so this file speaks of private ones: the version is pinned in `requirements.in`, and the
tests compare the two.
"""

from __future__ import annotations

from typing import Final

from replicator import _core

# What a producer signs with that is not idempotent.
UNSIGNED: Final = (-1, -1, -1)


class FinishedBatch:
    """One of the core's batches, as `send_batch` takes it; `transactional` as the producer is."""

    __slots__ = ("_batch", "_built", "_signature", "_transactional")

    def __init__(self, batch: _core.KafkaBatch, *, transactional: bool = False) -> None:
        self._batch = batch
        self._transactional = transactional
        self._signature: tuple[int, int, int] = UNSIGNED
        self._built: bytes | None = None

    @property
    def partition(self) -> int:
        """The partition it belongs to, for `send_batch`."""
        return self._batch.partition

    def append(self, **_message: object) -> None:
        """None, as a full builder says: nothing more goes in."""

    def close(self) -> None:
        """It always is."""

    def closed(self) -> bool:
        return True

    def size(self) -> int:
        return self._batch.nbytes

    def record_count(self) -> int:
        return self._batch.count

    def _set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> None:
        """Called once, before the first try: a retry repeats the same sequence numbers."""
        self._signature = (producer_id, producer_epoch, base_sequence)
        self._built = None

    def _build(self) -> bytes:
        """The same bytes at every try."""
        if self._built is None:
            self._built = self._batch.bytes(*self._signature, transactional=self._transactional)
        return self._built
