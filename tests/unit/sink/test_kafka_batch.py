"""Our finished batch beside aiokafka's own builder, whose place it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from aiokafka.record.default_records import DefaultRecordBatch

from replicator._core import KafkaBatch, Records, decode
from replicator.sink.kafka_batch import FinishedBatch
from tests.changes import put


@pytest.fixture
def batch() -> KafkaBatch:
    payloads = [put("orders", {"id": {"N": str(n)}}, 1_706_542_773_915_835 + n) for n in range(3)]
    (made,) = decode(Records.pack(payloads)).kafka(1, compression="lz4")
    return made


def test_it_has_all_that_aiokafka_asks_a_builder_for(batch: KafkaBatch) -> None:
    """The names are private: a new version of aiokafka that asks for more is seen here."""
    asked = inspect.getsource(MessageBatch) + inspect.getsource(MessageAccumulator)
    ours = FinishedBatch(batch)
    for name in vars(BatchBuilder):
        if f"builder.{name}(" in asked:
            assert callable(getattr(ours, name)), name
    for name in ("append", "close", "closed", "record_count", "_build", "_set_producer_state"):
        assert f"builder.{name}(" in asked, "aiokafka no longer asks for it"


def test_it_is_full_and_closed(batch: KafkaBatch) -> None:
    ours = FinishedBatch(batch)
    ours.close()
    assert ours.closed()
    append: Callable[..., object] = ours.append
    assert append(timestamp=1, key=b"k", value=b"v", headers=[]) is None
    assert (ours.partition, ours.size(), ours.record_count()) == (0, batch.nbytes, 3)


def test_unsigned_it_is_the_batch_itself(batch: KafkaBatch) -> None:
    ours = FinishedBatch(batch)
    assert ours._build() == batch.bytes()
    assert ours._build() is ours._build(), "a retry sends the same bytes"


@pytest.mark.parametrize("transactional", [False, True])
def test_signed_as_aiokafka_signs(batch: KafkaBatch, transactional: bool) -> None:
    ours = FinishedBatch(batch, transactional=transactional)
    theirs = BatchBuilder(1000, 3, is_transactional=transactional)
    theirs.append(timestamp=1, key=b"k", value=b"v")
    for builder in (ours, theirs):
        builder._set_producer_state(9_000_000_001, 5, 77)
    for name in ("producer_id", "producer_epoch", "base_sequence", "is_transactional"):
        built = [DefaultRecordBatch(bytes(builder._build())) for builder in (ours, theirs)]
        assert getattr(built[0], name) == getattr(built[1], name)
        assert built[0].validate_crc()
