"""Of which streams dead letters may be written again."""

from __future__ import annotations

import pytest

from replicator.core.start import require_redrivable
from replicator.errors import RejectedError

KINESIS = "arn:aws:kinesis:eu-north-1:000000000000:stream/products"
KINESIS_2 = "arn:aws-cn:kinesis:cn-north-1:000000000000:stream/kinesis"
TABLE = "arn:aws:dynamodb:eu-north-1:000000000000:table/products/stream/2026-01-01T00:00:00.000"
TABLE_2 = "arn:aws:dynamodb:eu-north-1:000000000000:table/products/stream/2026-01-02T00:00:00.000"


@pytest.mark.parametrize(
    ("arn", "begun", "is_written"),
    [
        (KINESIS, [KINESIS], True),
        (KINESIS, [KINESIS_2], True),
        (TABLE, [TABLE], True),
        (TABLE, [KINESIS, TABLE], True),
        (TABLE, [TABLE, TABLE_2], False),
        (KINESIS, [KINESIS, TABLE], False),
        (TABLE, [TABLE, KINESIS], False),
        (KINESIS, [], False),
    ],
)
def test_a_dead_letter_is_written_where_its_version_says_something(
    arn: str, begun: list[str], is_written: bool
) -> None:
    """The rows are the newest stream's: the tables were empty when one of another kind began."""
    if is_written:
        require_redrivable(arn, begun)
    else:
        with pytest.raises(RejectedError, match="versions can't be compared"):
            require_redrivable(arn, begun)
