from __future__ import annotations

import json
from dataclasses import replace

import pytest

from replicator.core.plan import (
    ORDINAL_MAX,
    TOGETHER,
    Encoding,
    Plan,
    PlannedObject,
    are_copies,
    differences,
    numbered,
    ordinal_of,
)

PLAN = Plan(
    shard_id="shard-1",
    ordinal=7,
    before="",
    after='{"position":"SHARD_END"}',
    by="me/1",
    encoding=Encoding("parquet", "zstd", (("id", "text"),)),
    objects=(PlannedObject("a", 2, 0, "t"), PlannedObject("b", 1, 5)),
    letters=PlannedObject("e", 1, 3),
    settings={"filters": ["x"]},
    columns={"t": (("id", "text"), ("n", "numeric")), "u": ()},
)


def test_a_plan_is_the_same_after_its_way_through_json() -> None:
    assert Plan.of(json.loads(json.dumps(PLAN.as_dict()))) == PLAN
    bare = Plan("s", 1, "", "x", "me")
    assert Plan.of(json.loads(json.dumps(bare.as_dict()))) == bare


def test_a_plan_of_before_is_read() -> None:
    data = PLAN.as_dict()
    del data["late"], data["known"], data["columns"]
    assert Plan.of(data) == replace(PLAN, columns={})


def test_an_objects_columns_are_those_that_followed_its_table_or_were_told() -> None:
    one, together = PLAN.objects
    assert PLAN.columns_of(one) == (("id", "text"), ("n", "numeric"))
    assert PLAN.columns_of(replace(one, table="u")) == (), "none yet, and room for what comes"
    assert PLAN.columns_of(together) == PLAN.encoding.columns
    follows = replace(PLAN, columns={TOGETHER: (("n", "numeric"),)})
    assert follows.columns_of(together) == (("n", "numeric"),)
    assert Plan("s", 1, "", "x", "me").columns_of(one) is None


@pytest.mark.parametrize(
    "change", [{"plan": 2}, {"objects": [{"x": 1}]}, {"encoding": {}}, {"columns": []}]
)
def test_another_kind_of_plan_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="plan"):
        Plan.of({**PLAN.as_dict(), **change})


def test_letters_are_made_first_and_what_is_missing_keeps_its_order() -> None:
    assert PLAN.keys == ("e", "a", "b")
    assert PLAN.missing(["a"]) == ("e", "b")
    assert PLAN.missing(["a", "b", "e"]) == ()
    assert PLAN.count == 3


@pytest.mark.parametrize("ordinal", [1, 2, 9, 10, 99_999, ORDINAL_MAX])
def test_the_newest_name_is_the_first(ordinal: int) -> None:
    assert ordinal_of(f"plans/x/{numbered(ordinal)}.json") == ordinal
    if ordinal < ORDINAL_MAX:
        assert numbered(ordinal + 1) < numbered(ordinal)


def test_another_name_is_no_plan() -> None:
    with pytest.raises(ValueError, match="no number"):
        ordinal_of("plans/x/readme.txt")


def test_what_is_made_otherwise_is_named() -> None:
    made = [PlannedObject("a", 2, 0), PlannedObject("c", 4, 9)]
    assert differences(PLAN, made) == ["b: 0 changes instead of 1", "c: 4 changes instead of 0"]
    assert differences(PLAN, [*PLAN.objects]) == []


@pytest.mark.parametrize(
    ("counts", "late", "known", "expected"),
    [
        ((2, 1, 0), 0, 0, True),
        ((1, 1, 0), 0, 9, False),
        ((1, 1, 0), 1, 0, True),
        ((1, 0, 0), 1, 0, False),
        ((2, 2, 1), 9, 1, False),
        ((2, 2, 1), 0, 2, True),
    ],
)
def test_copies_alone_may_make_a_difference(
    counts: tuple[int, ...], late: int, known: int, expected: bool
) -> None:
    made = [
        PlannedObject(key, count, us, table)
        for (key, us, table), count in zip(
            [("a", 0, "t"), ("b", 5, None), ("new", 9, None)], counts, strict=True
        )
        if count
    ]
    assert are_copies(replace(PLAN, late=late, known=known), made) == expected


@pytest.mark.parametrize(
    ("encoding", "suffix"),
    [
        (Encoding(), ".jsonl.gz"),
        (Encoding("plain", "zstd"), ".jsonl.zst"),
        (Encoding("raw", "none"), ".json"),
        (Encoding("parquet", "gzip"), ".parquet"),
    ],
)
def test_the_names_end_tells_the_encoding(encoding: Encoding, suffix: str) -> None:
    assert encoding.suffix == suffix
    assert encoding.is_lossless == (encoding.format == "change")
