"""When the shards are listed again.

A listing of 10,001 shards takes 101 calls of DescribeStream, of which an account has ten a second
(https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_DescribeStream.html),
for all its streams and all workers. So the pause after a listing grows with its calls.
"""

from __future__ import annotations

# By itself discovery makes about one call a second, until the pause has this length.
SECONDS_PER_CALL = 1.0
PAUSE_SECONDS_MAX = 300.0
# Asked for, by the end of a shard say, it lists at once but for this distance from the listing
# before: what ends meanwhile is served by the same list.
ASKED_SECONDS_PER_CALL = 0.25
ASKED_SECONDS_MAX = 60.0


def pause_seconds(calls: int, seconds: float) -> float:
    """How long after a listing of so many calls the next one begins by itself; `seconds` is
    the pause of a small stream."""
    assert calls >= 0
    return max(seconds, min(calls * SECONDS_PER_CALL, PAUSE_SECONDS_MAX))


def asked_seconds(calls: int) -> float:
    """How long after a listing of so many calls the next one begins at the earliest."""
    assert calls >= 0
    return min(calls * ASKED_SECONDS_PER_CALL, ASKED_SECONDS_MAX)
