"""Records that look alike are read by comparing them with one before: what a record says must not
depend on its neighbours."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import Records, decode

ids = st.sampled_from(["1" * 8, "2" * 8, "3" * 9, 'a"\\b"cdef', "", "ä" * 4])
names = st.sampled_from(["INSERT", "MODIFY", "REMOVE", "CREATE", "UPSERT", "INSERTED", None])
times = st.sampled_from([1, 1706542773916055, 1706542773916056, 1.5e9, 10**17, "1", None])
images = st.sampled_from(
    [None, {}, {"a": {"N": "1"}}, {"SizeBytes": {"N": "1"}}, {"a": {"X": "1"}}]
)
sizes = st.sampled_from([1, 22, 333, None, {"SizeBytes": 1}])
precisions = st.sampled_from(["MICROSECOND", "MILLISECOND", "SECOND", None])
tables = st.sampled_from(["products", "stocks", "produkte", None])


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """Mostly members in the order that the services write; sometimes in another, or twice."""
    dynamodb: list[tuple[str, Any]] = [
        ("ApproximateCreationDateTime", draw(times)),
        ("Keys", {"id": {"S": draw(ids)}}),
        ("NewImage", draw(images)),
        ("OldImage", draw(images)),
        ("SequenceNumber", draw(st.sampled_from(["7", "8", None]))),
        ("SizeBytes", draw(sizes)),
        ("StreamViewType", draw(st.sampled_from(["NEW_AND_OLD_IMAGES", None]))),
        ("ApproximateCreationDateTimePrecision", draw(precisions)),
    ]
    event: list[tuple[str, Any]] = [
        ("eventID", draw(ids)),
        ("eventName", draw(names)),
        ("tableName", draw(tables)),
        ("dynamodb", _text(draw(_shuffled(dynamodb)))),
        ("eventSourceARN", draw(st.sampled_from(["arn:aws:dynamodb:x:1:table/shop/s", None]))),
    ]
    text = _text(draw(_shuffled(event)))
    return draw(st.sampled_from([text, text, text + " ", text[:-1], text + "}"])).encode()


def _shuffled(members: list[tuple[str, Any]]) -> st.SearchStrategy[list[tuple[str, Any]]]:
    usual = st.just([member for member in members if member[1] is not None])
    return st.one_of(usual, usual, usual, st.permutations(members), st.just(members + members[:2]))


class _Raw(str):
    """Text that is JSON already."""

    __slots__ = ()


def _text(members: list[tuple[str, Any]]) -> str:
    pieces = (
        f"{json.dumps(name)}:{value if isinstance(value, _Raw) else _value(value)}"
        for name, value in members
    )
    return _Raw("{" + ",".join(pieces) + "}")


def _value(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def said(raws: list[bytes]) -> list[tuple[object, ...]]:
    """What the core makes of these records, each for itself."""
    batch = decode(Records.pack(raws), keep_all=True)
    lines = iter(batch.json_lines("dynamodb").splitlines())
    refused = {one.index: one for one in batch.rejections}
    return [
        (refused[i].code, refused[i].message, refused[i].table) if i in refused else (next(lines),)
        for i in range(len(raws))
    ]


@settings(max_examples=400)
@given(st.lists(records(), min_size=2, max_size=6))
def test_a_record_says_the_same_beside_others_as_alone(raws: list[bytes]) -> None:
    assert said(raws) == [one for raw in raws for one in said([raw])]


def test_a_record_that_differs_in_one_byte_says_the_same_beside_the_other_as_alone() -> None:
    good = (
        b'{"awsRegion":"eu-north-1","eventID":"7ccb1d2e","eventName":"INSERT","userIdentity":null,'
        b'"recordFormat":"application/json","tableName":"products","dynamodb":{'
        b'"ApproximateCreationDateTime":1706542773916055,"Keys":{"id":{"S":"14"}},'
        b'"NewImage":{"id":{"S":"14"}},"SizeBytes":223,'
        b'"ApproximateCreationDateTimePrecision":"MICROSECOND"},"eventSource":"aws:dynamodb"}'
    )
    for at in range(len(good)):
        for other in (b'"', b"x", b"\\", b"}", b"\n", b"0"):
            raw = good[:at] + other + good[at + 1 :]
            assert said([good, raw])[1:] == said([raw]), raw
