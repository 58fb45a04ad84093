"""Which stream may follow which into the same rows."""

from __future__ import annotations

import pytest

from replicator.core.start import require_comparable
from replicator.errors import FatalError

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
