"""Order and duplicates (laws 2 and 3) against an oracle in plain Python: every permutation of
small histories, delivered whole or in parts."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator._core import ChangeBatch, Records, decode

Image = int | None
"""What an item holds; None when there is no item."""


@dataclass(frozen=True, slots=True)
class Change:
    id: str
    key: str
    us: int
    old: Image
    new: Image
    precision: Literal["MICROSECOND", "MILLISECOND"] = "MICROSECOND"

    @property
    def event(self) -> str:
        if self.old is None:
            return "INSERT"
        return "REMOVE" if self.new is None else "MODIFY"

    @property
    def version(self) -> int:
        return self.us if self.precision == "MICROSECOND" else self.us // 1000 * 1000

    def payload(self, spelling: int = 0) -> bytes:
        def image(value: Image) -> dict[str, Any] | None:
            if value is None:
                return None
            number = [f"{value}", f"{value}.0", f"{value}0E-1"][spelling % 3]
            members: list[tuple[str, Any]] = [
                ("id", {"S": self.key}),
                ("n", {"N": number}),
                ("tags", {"SS": ["a", "b"] if spelling % 2 else ["b", "a"]}),
            ]
            return dict(members[::-1] if spelling % 2 else members)

        exact = self.precision == "MICROSECOND"
        return json.dumps(
            {
                "eventID": self.id,
                "eventName": self.event,
                "tableName": "t",
                "dynamodb": {
                    "ApproximateCreationDateTime": self.us if exact else self.us // 1000,
                    "ApproximateCreationDateTimePrecision": self.precision,
                    "Keys": {"id": {"S": self.key}},
                    "NewImage": image(self.new),
                    "OldImage": image(self.old),
                },
            }
        ).encode()

    @property
    def shown(self) -> tuple[str, str, str, Image, Image]:
        return (self.key, self.event, str(self.version), self.old, self.new)


def shown(batch: ChangeBatch) -> list[tuple[str, str, str, Image, Image]]:
    def image(value: dict[str, Any] | None) -> Image:
        return None if value is None else int(value["n"])

    lines = map(json.loads, batch.json_lines().splitlines())
    return [
        (line["key"]["id"], line["event"], line["version"], image(line["old"]), image(line["item"]))
        for line in lines
    ]


# --- the oracle -----------------------------------------------------------------------------


def without_duplicates(changes: Iterable[Change]) -> list[Change]:
    kept: list[Change] = []
    for change in changes:
        same_id = any(other.id == change.id for other in kept)
        same_fact = change.precision == "MICROSECOND" and any(
            other.precision == change.precision and other.shown == change.shown for other in kept
        )
        if not (same_id or same_fact):
            kept.append(change)
    return kept


def is_chain(changes: Sequence[Change]) -> bool:
    return all(a.new == b.old for a, b in itertools.pairwise(changes))


def exact_in_order(changes: Sequence[Change]) -> bool:
    exact = [change.us for change in changes if change.precision == "MICROSECOND"]
    return exact == sorted(exact)


def settled(group: list[Change]) -> tuple[list[Change], int]:
    """One key's changes of one instant, in order, and how many of them are ambiguous."""
    if len(group) < 2:
        return group, 0
    chains: dict[tuple[Any, ...], list[Change]] = {}
    for permutation in itertools.permutations(group):
        if is_chain(permutation):
            chains.setdefault(tuple((c.old, c.new) for c in permutation), list(permutation))
    if len(chains) == 1 and exact_in_order(only := next(iter(chains.values()))):
        return only, 0
    exact = iter(sorted((c for c in group if c.precision == "MICROSECOND"), key=lambda c: c.us))
    ordered = [next(exact) if c.precision == "MICROSECOND" else c for c in group]
    last = ending(group)
    return [*(c for c in ordered if c is not last), last], len(group)


def ending(group: Sequence[Change]) -> Change:
    """The last to arrive of those that may be last: what is exact has its own order, and an
    item that is left as often as it is entered is no end. (A circle has no end.)"""
    newest = max((c.us for c in group if c.precision == "MICROSECOND"), default=None)
    may_be = [c for c in group if c.precision == "MILLISECOND" or c.us == newest]
    balance = Counter[Image]()
    for change in group:
        balance[change.new] += 1
        balance[change.old] -= 1
    return [*may_be, *(c for c in may_be if balance[c.new] > 0)][-1]


def oracle(arrived: Iterable[Change]) -> tuple[dict[str, list[Change]], int, int]:
    """Per key the changes in order; duplicates; ambiguous ones."""
    arrived = list(arrived)
    kept = without_duplicates(arrived)
    ordered: dict[str, list[Change]] = {}
    ambiguous = 0
    for key in {change.key for change in kept}:
        of_key = [change for change in kept if change.key == key]
        for _, in_ms in itertools.groupby(
            sorted(of_key, key=lambda c: c.version // 1000), key=lambda c: c.version // 1000
        ):
            millisecond = list(in_ms)
            if any(change.precision == "MILLISECOND" for change in millisecond):
                groups = [millisecond]
            else:
                millisecond.sort(key=lambda c: c.us)
                groups = [list(g) for _, g in itertools.groupby(millisecond, key=lambda c: c.us)]
            for group in groups:
                sequence, count = settled(group)
                ordered.setdefault(key, []).extend(sequence)
                ambiguous += count
    return ordered, len(arrived) - len(kept), ambiguous


# --- comparing --------------------------------------------------------------------------------


def compare(batch: ChangeBatch, arrived: Sequence[Change]) -> None:
    ordered, duplicates, ambiguous = oracle(arrived)
    found = shown(batch)
    for key, changes in ordered.items():
        assert [line for line in found if line[0] == key] == [c.shown for c in changes], arrived
    assert len(found) == sum(map(len, ordered.values()))
    assert (batch.duplicates, batch.ambiguous) == (duplicates, ambiguous), arrived
    rows = batch.newest("t", [("id", "S")])
    last = {key: changes[-1] for key, changes in ordered.items()}
    newest = {
        (r.raw, json.loads(r.raw)["dynamodb"]["Keys"]["id"]["S"])
        for r in (rows.record(i, "x", "x") for i in range(len(rows)))
    }
    assert {key for _, key in newest} == set(last)
    for raw, key in newest:
        event = json.loads(raw)
        image = event["dynamodb"]["NewImage"]
        assert event["eventName"] == last[key].event
        assert (None if image is None else int(float(image["n"]["N"]))) == last[key].new
    assert rows.deletes == sum(change.new is None for change in last.values())
    assert rows.folded == len(batch) - len(rows)


def decoded(changes: Sequence[Change]) -> ChangeBatch:
    payloads = [change.payload(spelling) for spelling, change in enumerate(changes)]
    return decode(Records.pack(payloads))


def check(changes: Sequence[Change]) -> None:
    compare(decoded(changes), changes)


def check_every_permutation(changes: Sequence[Change]) -> None:
    for arrived in itertools.permutations(changes):
        check(arrived)
        for cut in range(1, len(arrived)):
            parts = [decoded(arrived[:cut]), decoded(arrived[cut:])]
            compare(ChangeBatch.concat(parts), arrived)


def history(key: str, states: Sequence[Image], times: Sequence[int]) -> Iterator[Change]:
    """The changes that lead an item through these states, at these times."""
    for i, ((old, new), us) in enumerate(zip(itertools.pairwise(states), times, strict=True)):
        yield Change(f"{key}{i}", key, us, old, new)


T = 1_706_542_773_915_000

HISTORIES: dict[str, list[Change]] = {
    "put, update, delete": list(history("a", [None, 1, 2, None], [T, T + 1, T + 2])),
    "all at one instant": list(history("a", [None, 1, 2, 3], [T, T, T])),
    "a chain of four at one instant": list(history("a", [1, 2, 3, 4, 5], [T] * 4)),
    "delete and put again": list(history("a", [1, None, 2, None, 3], [T, T + 5, T + 9, T + 2000])),
    "put and delete at one instant": list(history("a", [None, 1, None], [T, T])),
    "put, delete, put something else at one instant": list(
        history("a", [None, 1, None, 2], [T, T, T])
    ),
    "a chain with a tail later": list(history("a", [1, 2, 3, 4], [T, T, T + 1])),
    "a fork": [Change("x", "a", T, 1, 2), Change("y", "a", T, 1, 3)],
    "a gap": [Change("x", "a", T, 1, 2), Change("y", "a", T, 3, 4), Change("z", "a", T, 2, 5)],
    "two keys": [
        *history("a", [None, 1, 2], [T, T]),
        *history("b", [None, 1, None], [T, T + 1]),
    ],
    "redelivered": [
        *history("a", [None, 1, 2], [T, T + 1]),
        *history("a", [None, 1, 2], [T, T + 1]),
    ],
    "redelivered at millisecond precision": [
        Change("a0", "a", T, None, 1, "MILLISECOND"),
        Change("a1", "a", T, 1, 2, "MILLISECOND"),
        Change("a0", "a", T, None, 1, "MILLISECOND"),
    ],
    "redelivered under another id": [
        *history("a", [None, 1, 2], [T, T]),
        Change("other", "a", T, None, 1),
    ],
    "an old copy of a deleted item": [
        *history("a", [None, 1, None], [T, T + 3]),
        Change("a0", "a", T, None, 1),
    ],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_every_permutation_of(name: str) -> None:
    check_every_permutation(HISTORIES[name])


def test_at_millisecond_precision_equal_changes_are_two() -> None:
    # Put 1, put 2, put 1 again, put 2 again, within one millisecond.
    changes = [
        Change(f"m{i}", "a", T, old, new, "MILLISECOND")
        for i, (old, new) in enumerate([(1, 2), (2, 1), (1, 2)])
    ]
    check_every_permutation(changes)
    assert decoded(changes).duplicates == 0


def test_mixed_precisions_inside_one_millisecond_follow_the_chain() -> None:
    changes = [
        Change("a0", "a", T + 100, None, 1),
        Change("a1", "a", T + 200, 1, 2, "MILLISECOND"),
        Change("a2", "a", T + 900, 2, 3),
    ]
    check_every_permutation(changes)
    for arrived in itertools.permutations(changes):
        assert [line[4] for line in shown(decoded(arrived))] == [1, 2, 3]


def test_mixed_precisions_without_a_chain_keep_exact_ones_in_order() -> None:
    check_every_permutation(
        [
            Change("a0", "a", T + 900, 5, 6),
            Change("a1", "a", T + 200, 1, 2, "MILLISECOND"),
            Change("a2", "a", T + 100, 7, 8),
        ]
    )


states = st.sampled_from([None, 1, 2])


@st.composite
def small_histories(draw: st.DrawFn) -> list[Change]:
    """True histories of one or two keys, with equal instants and redelivered copies."""
    changes: list[Change] = []
    for key in draw(st.sampled_from(["a", "ab"])):
        length = draw(st.integers(1, 3))
        path = [draw(states)]
        while len(path) <= length:
            # What isn't there can't be deleted.
            path.append(draw(states if path[-1] is not None else st.sampled_from([1, 2])))
        times = sorted(draw(st.lists(st.integers(T, T + 2), min_size=length, max_size=length)))
        precision = draw(st.sampled_from(["MICROSECOND", "MICROSECOND", "MILLISECOND"]))
        for change in history(key, path, times):
            if draw(st.booleans()):
                changes.append(change)
            else:
                at = change.us if precision == "MICROSECOND" else change.us // 1000 * 1000
                changes.append(
                    Change(change.id, key, at, change.old, change.new, precision)  # type: ignore[arg-type]
                )
    copies = draw(st.lists(st.sampled_from(changes), max_size=1))
    return changes + copies


@given(small_histories())
def test_random_small_histories(changes: list[Change]) -> None:
    if len(changes) <= 4:
        check_every_permutation(changes)
        return
    shuffled = list(changes)
    for seed in range(20):
        random.Random(seed).shuffle(shuffled)
        check(shuffled)


@given(small_histories(), st.randoms(use_true_random=False))
def test_the_last_state_wins_whatever_the_order(changes: list[Change], rng: random.Random) -> None:
    """The truth itself, not the oracle: where nothing is ambiguous the newest row is the item."""
    if any(change.precision == "MILLISECOND" for change in changes):
        return
    truth = {change.key: change.new for change in sorted(changes, key=lambda c: c.id)}
    arrived = list(changes)
    rng.shuffle(arrived)
    batch = decoded(arrived)
    if batch.ambiguous:
        return
    rows = batch.newest("t", [("id", "S")])
    for row in range(len(rows)):
        event = json.loads(rows.record(row, "x", "x").raw)
        image = event["dynamodb"]["NewImage"]
        value = None if image is None else int(float(image["n"]["N"]))
        assert value == truth[event["dynamodb"]["Keys"]["id"]["S"]]


def test_sequence_numbers_are_compared_as_numbers() -> None:
    def streams(number: str, value: int) -> bytes:
        return json.dumps(
            {
                "eventName": "MODIFY",
                "eventVersion": "1.1",
                "dynamodb": {
                    "ApproximateCreationDateTime": 1576516897,
                    "Keys": {"id": {"S": "a"}},
                    "NewImage": {"n": {"N": str(value)}},
                    "SequenceNumber": number,
                },
            }
        ).encode()

    numbers = ["9", "10", "125319600000000013310543218", "9" * 39, "1" + "0" * 39, "9" * 40]
    payloads = [streams(number, i) for i, number in enumerate(numbers)]
    for seed in range(20):
        random.Random(seed).shuffle(payloads)
        batch = decode(Records.pack(payloads), table="t")
        lines = [json.loads(line) for line in batch.json_lines().splitlines()]
        assert [line["version"] for line in lines] == numbers
        assert len(batch.newest("t", [("id", "S")])) == 1
