"""What the dead letters' command makes of a stored position."""

from __future__ import annotations

import pytest

from replicator.model import Stream
from replicator.sink.kafka_redrive import stream_of
from tests.changes import STREAM


@pytest.mark.parametrize(
    "stream",
    [
        STREAM,
        Stream(
            "products",
            "arn:aws:dynamodb:eu-north-1:123456789012:table/products/stream/2026-01-02T03:04:05.678",
            1_767_323_045,
        ),
    ],
)
def test_a_stream_is_the_one_whose_shards_were_fenced(stream: Stream) -> None:
    """Its name is part of the transactional id: another name would fence nobody."""
    assert stream_of(("shop/p", stream.arn, stream.created_at_s, "shard-1")) == stream
