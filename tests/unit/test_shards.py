from __future__ import annotations

import pytest

from replicator.errors import FatalError
from replicator.shards import estimate


def test_the_articles_example() -> None:
    made = estimate(writes_per_second=40, nbytes=1285, updates_percent=25)
    assert made.shards == 1
    assert made.article_shards == 2
    figures = made.as_dict()
    assert figures["raw"] == pytest.approx(0.0612736, abs=1e-6)
    assert figures["article_raw"] == pytest.approx(1.27449, abs=1e-5)
    assert figures["writes_per_second"] == 40
    assert figures["updates_percent"] == 25
    text = made.as_text()
    for part in (
        "25 / 100 = 0.25",
        "40 × 1.25 × 1,285 = 64,250",
        "64,250 / 1,048,576 = 0.061 → 1",
        "result: 1 shard\n",
        "puts 25, not 0.25, for 25 %",
        "40 × 26 × 1,285 / 1,048,576 = 1.27 → 2 shards",
    ):
        assert part in text


def test_the_number_of_records_binds_for_small_items() -> None:
    made = estimate(writes_per_second=5_000, nbytes=100, updates_percent=50)
    assert made.shards == 5
    assert made.as_dict() | {"bytes_shards": 1, "records_shards": 5} == made.as_dict()
    assert "5,000 / 1,000 = 5.00 → 5" in made.as_text()


def test_a_full_shard_is_one_and_a_byte_more_is_two() -> None:
    assert estimate(writes_per_second=512, nbytes=2048, updates_percent=0).shards == 1
    more = estimate(writes_per_second=512, nbytes=2049, updates_percent=0)
    assert more.shards == 2
    # The figure shown must make the step visible.
    assert "= 1.0005 → 2" in more.as_text()


def test_tenths_are_exact() -> None:
    # In binary floating point 1.1 × 10 / 11 isn't 1.
    assert estimate(writes_per_second=10, nbytes=1_048_576 / 11, updates_percent=0).shards == 1
    assert estimate(writes_per_second=100, nbytes=10_485.76, updates_percent=0).raw == 1
    assert estimate(writes_per_second=0.1, nbytes=8_738_133, updates_percent=20).raw < 1


def test_nothing_needs_one_shard_and_no_updates_need_no_remark() -> None:
    made = estimate(writes_per_second=0, nbytes=0, updates_percent=0)
    assert made.shards == 1
    assert "article" not in made.as_text()


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ((-1, 1, 1), "--writes"),
        ((1, -1, 1), "--bytes"),
        ((1, 1, -1), "--updates"),
        ((1, 1, 100.5), "--updates"),
        ((float("nan"), 1, 1), "--writes"),
        ((1, float("inf"), 1), "--bytes"),
    ],
)
def test_impossible_inputs_are_refused(inputs: tuple[float, float, float], named: str) -> None:
    writes, nbytes, updates = inputs
    with pytest.raises(FatalError, match=named) as caught:
        estimate(writes_per_second=writes, nbytes=nbytes, updates_percent=updates)
    assert caught.value.code.startswith("usage_")
