"""How long the positions topic is waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from replicator.errors import TransientError
from replicator.sink.kafka_positions import KafkaPositions
from tests.pausable_loop import run_virtually


class Topic:
    """Both consumers of a topic of `end` records; nothing of it is decided from `stable` on."""

    def __init__(self, end: int, stable: int) -> None:
        self.end, self.stable, self.at = end, stable, 0

    async def end_offsets(self, partitions: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(partitions, self.end)

    async def position(self, _partition: Any) -> int:
        return self.at

    async def getmany(self, *_partitions: Any, timeout_ms: int) -> dict[Any, list[Any]]:
        await asyncio.sleep(1)
        self.at = min(self.at + 1, self.stable)
        return {}

    def resume(self, *_partitions: Any) -> None: ...

    pause = seek = resume

    async def stop(self) -> None: ...


class Positions(KafkaPositions):
    def __init__(self, topic: Topic) -> None:
        super().__init__({}, "positions", wait_seconds=1)
        self.of = topic

    async def _consumers(self) -> tuple[Any, Any]:
        return self.of, self.of


def test_a_topic_that_takes_long_is_read_to_its_end() -> None:
    """Regression: it was read from its beginning again and again."""
    topic = Topic(100, 100)
    run_virtually(Positions(topic).refresh())
    assert topic.at == 100


def test_an_open_transaction_is_not_waited_for_for_ever() -> None:
    topic = Topic(100, 50)
    with pytest.raises(TransientError, match="kafka_positions_pending"):
        run_virtually(Positions(topic).refresh())
    assert topic.at == 50
