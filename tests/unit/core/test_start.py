"""Which stream may follow which into the same rows."""

from __future__ import annotations

import pytest

from replicator.core.start import require_comparable, require_start, require_successor
from replicator.errors import FatalError, TransientError
from replicator.model import TRIM_HORIZON, Stream

KINESIS = "arn:aws:kinesis:eu-north-1:000000000000:stream/products"
KINESIS_2 = "arn:aws-cn:kinesis:cn-north-1:000000000000:stream/kinesis"
TABLE = "arn:aws:dynamodb:eu-north-1:000000000000:table/products/stream/2026-01-01T00:00:00.000"
TABLE_2 = "arn:aws:dynamodb:eu-north-1:000000000000:table/products/stream/2026-01-02T00:00:00.000"


@pytest.mark.parametrize(
    ("arn", "begun"),
    [
        (KINESIS, []),
        (TABLE, []),
        (KINESIS_2, [KINESIS]),
        (KINESIS, [KINESIS_2, KINESIS]),
        (TABLE, [TABLE]),
    ],
)
def test_instants_follow_instants_and_a_stream_itself(arn: str, begun: list[str]) -> None:
    require_comparable(arn, begun)


@pytest.mark.parametrize(
    ("arn", "begun"),
    [
        (TABLE_2, [TABLE]),
        (TABLE, [TABLE, TABLE_2]),
        (TABLE, [KINESIS]),
        (KINESIS, [TABLE]),
        (KINESIS, [TABLE, KINESIS_2]),
    ],
)
def test_what_cannot_be_compared_is_refused_by_both_names(arn: str, begun: list[str]) -> None:
    with pytest.raises(FatalError) as refused:
        require_comparable(arn, begun)
    assert refused.value.code == "stream_replaced"
    assert arn in refused.value.message
    assert next(each for each in reversed(begun) if each != arn) in refused.value.message


def test_what_follows_a_stream_that_was_read_to_its_end() -> None:
    require_successor(KINESIS_2, KINESIS, is_left=False)
    for is_left, error in [(True, TransientError), (False, FatalError)]:
        with pytest.raises(error) as ended:
            require_successor(TABLE, TABLE_2, is_left=is_left)
        assert TABLE in str(ended.value)
        assert TABLE_2 in str(ended.value)


def test_a_start_into_rows_is_safe_after_streams_of_its_own_kind_only() -> None:
    stream = Stream("products", TABLE, 0)
    with pytest.raises(FatalError) as missing:
        require_start("p", stream, None, [])
    assert missing.value.code == "position_missing"
    assert "After another kind of source" in missing.value.message
    require_start("p", stream, TRIM_HORIZON, [TABLE])
    with pytest.raises(FatalError) as replaced:
        require_start("p", stream, TRIM_HORIZON, [KINESIS])
    assert replaced.value.code == "stream_replaced"
