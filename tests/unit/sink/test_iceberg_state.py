"""What a sink keeps in a snapshot's summary."""

from __future__ import annotations

from replicator.model import SHARD_END, TRIM_HORIZON, Reached, Stream, after
from replicator.sink.iceberg_state import SinkState
from replicator.sink.log_shard import LogPosition

STREAM = Stream("s", "arn:aws:kinesis:eu-north-1:1:stream/s", 1)
DAY_US = 86_400_000_000


def test_it_is_the_same_as_text_and_short_when_there_is_much_of_it() -> None:
    state = SinkState().begin(STREAM, {"shard-0": TRIM_HORIZON}, ["lake.s"], 7)
    state, fence = state.fenced(STREAM, "shard-0", "me", 8)
    assert state.row(STREAM, "shard-0").holds(fence)
    assert state.to_text().startswith('{"streams":[{"name":"s"')
    assert SinkState.from_text(state.to_text()) == state
    assert SinkState.from_text(None) == SinkState()
    for n in range(300):
        state, _ = state.fenced(STREAM, f"shardId-{n:012d}", "host-1234:567:89abcdef", 8)
        position = after(
            str(49_600_000_000_000_000_000_000_000_000_000_000_000_000 + 7**n % 10**38)
        )
        state = state.moved({(STREAM, f"shardId-{n:012d}"): LogPosition(position)}, {"x": 1}, 9)
    text = state.to_text()
    assert SinkState.from_text(text) == state
    assert state.letters == {"x": 300}
    assert len(text) < 300 * 100


def test_a_first_position_gives_way_to_one_that_is_there() -> None:
    state = SinkState().moved({(STREAM, "a"): LogPosition(after("5"))}, {}, 1)
    state = state.begin(STREAM, {"a": TRIM_HORIZON, "b": TRIM_HORIZON}, [], 2)
    logs = {shard_id: row.log for shard_id, row in state.of(STREAM).items()}
    assert logs["a"] == LogPosition(after("5"))
    assert state.row(STREAM, "b").reached == Reached(None, 2, 2)


def test_shards_that_ended_long_ago_are_forgotten() -> None:
    for arn, days in (("arn:aws:dynamodb:r:1:table/t/stream/x", 7), (STREAM.arn, 400)):
        stream = Stream("s", arn, 1)
        state = SinkState().moved({(stream, "old"): LogPosition(SHARD_END)}, {}, DAY_US)
        state = state.moved({(stream, "open"): LogPosition(TRIM_HORIZON)}, {}, DAY_US)
        later = (days + 1) * DAY_US
        assert set(state.moved({}, {}, later).of(stream)) == {"old", "open"}
        assert set(state.moved({}, {}, later + 1).of(stream)) == {"open"}
