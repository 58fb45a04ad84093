"""How long the positions topic is waited for, and what older versions stored there."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from replicator.errors import TransientError
from replicator.sink.kafka_positions import (
    MEMORY_SECONDS,
    MEMORY_SECONDS_MAX,
    Begun,
    KafkaPositions,
    Stored,
)
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


SHARD = {"position": "SHARD_END", "epoch": 3, "owner": "me/1", "stored_us": 5, "parts": 1}
STREAM = {"starts": {"shard-1": "TRIM_HORIZON"}, "topics": ["products"], "at_us": 7}


def test_what_an_older_version_stored_is_read_and_goes_on() -> None:
    stored, begun = Stored.of(SHARD), Begun.of(STREAM)
    assert (stored.parents, begun.joined_us) == ((), 7)
    # Nothing that wasn't there before is said before it is known.
    assert json.loads(stored.to_bytes()) == SHARD
    assert json.loads(begun.to_bytes()) == STREAM | {"joined_us": 7}


def test_a_memory_whose_children_an_older_version_stored_goes_in_the_end() -> None:
    """They don't say whose they are, until somebody claims them again."""
    positions = Positions(Topic(0, 0))
    stream = {"pipeline": "shop", "stream": "arn", "created": 1}

    def put(shard: str, members: dict[str, Any], **more: Any) -> None:
        key = stream | {"shard": shard}
        positions._apply(json.dumps(key | more).encode(), json.dumps(members).encode(), 0)

    def is_kept(seconds: int) -> bool:
        return not positions.outdated("shop", seconds * 1_000_000)

    put("parent", SHARD)
    put("parent", {}, remembered=0)
    for child in ("left", "right"):
        put(child, SHARD)
    assert is_kept(MEMORY_SECONDS_MAX)
    assert not is_kept(MEMORY_SECONDS_MAX + 1)
    for child in ("left", "right"):
        assert is_kept(MEMORY_SECONDS + 1)
        put(child, SHARD | {"parents": ["parent"]})
    assert not is_kept(MEMORY_SECONDS + 1)
    assert is_kept(MEMORY_SECONDS)
