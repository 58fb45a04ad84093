"""The Kafka sink beside brokers that refuse, without any."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import InvalidProducerEpoch, ProducerFenced

from replicator.aws import AWSSettings
from replicator.errors import TransientError
from replicator.sink.kafka import KafkaSink
from replicator.sink.kafka_producer import Producer
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.place import SinkPlace
from tests.changes import STREAM


@pytest.mark.parametrize("refusal", [ProducerFenced, InvalidProducerEpoch])
def test_a_fence_that_another_raise_overtakes_is_tried_again(
    refusal: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it ended the process. Brokers say so when they end a transaction whose time is
    over while its id is taken over."""

    async def refused(_producer: Producer) -> None:
        raise refusal

    monkeypatch.setattr(Producer, "opened", refused)

    async def main() -> None:
        config = KafkaConfig(name="k", bootstrap_servers="127.0.0.1:1")
        sink = KafkaSink(config, SinkPlace("p", "me", "", AWSSettings()))
        with pytest.raises(TransientError, match="kafka_fenced"):
            await sink.fence(STREAM, "shard-0", "me")

    asyncio.run(main())
