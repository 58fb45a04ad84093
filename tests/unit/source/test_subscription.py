from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer

from replicator import _core
from replicator.model import LATEST, TRIM_HORIZON, Position, PositionKind, after, at_timestamp
from replicator.source.hand_over import INITIAL_RESPONSE
from replicator.source.subscription import starting_position
from replicator.testing import frames

AT = Position(PositionKind.AT_SEQUENCE_NUMBER, sequence_number="495")


def test_the_stub_is_a_frame_that_the_stock_parser_reads() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(INITIAL_RESPONSE)
    (event,) = list(buffer)
    assert event.headers[":event-type"] == "initial-response"
    assert event.payload == b"{}"


def test_the_frame_writer_and_the_stock_parser_agree() -> None:
    for data in (
        frames.initial_response(),
        frames.shard_event([], "1"),
        frames.exception("X", "y"),
        frames.error("X", "y"),
    ):
        buffer = EventStreamBuffer()
        buffer.add_data(data)
        assert len(list(buffer)) == 1


def test_the_core_gives_no_event_for_the_initial_response() -> None:
    stream = _core.EventStream()
    assert stream.feed(frames.initial_response()) == []
    assert stream.buffered_bytes == 0


@pytest.mark.parametrize(
    ("data", "exception"),
    [
        (frames.exception("KMSDisabledException", "no key"), ("KMSDisabledException", "no key")),
        (frames.error("InternalError", "oops"), ("InternalError", "oops")),
    ],
)
def test_the_core_names_exceptions(data: bytes, exception: tuple[str, str]) -> None:
    (event,) = _core.EventStream().feed(data)
    assert event.exception == exception


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (TRIM_HORIZON, {"Type": "TRIM_HORIZON"}),
        (LATEST, {"Type": "LATEST"}),
        (AT, {"Type": "AT_SEQUENCE_NUMBER", "SequenceNumber": "495"}),
        (after("496"), {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": "496"}),
        (
            at_timestamp(1_999_999),
            {"Type": "AT_TIMESTAMP", "Timestamp": datetime(1970, 1, 1, 0, 0, 1, 999_000, UTC)},
        ),
    ],
)
def test_starting_positions(position: Position, expected: dict[str, Any]) -> None:
    assert starting_position(position) == expected
