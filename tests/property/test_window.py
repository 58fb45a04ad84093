"""The memory of a log sink (laws 2, 3 and 7) against an oracle in plain Python: any order within
the window, copies, late changes and restarts; every distinct change once, in order per key."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import ChangeBatch, Projection, Records, Window, decode

T = 1_706_542_773_000_000
REORDER_US = 5_000
DUPLICATE_US = 1_000_000
"""Of the tests: events lie some milliseconds apart, so that all are known."""


@dataclass(frozen=True, slots=True)
class Change:
    number: int
    key: str
    us: int
    old: int | None
    new: int | None
    id: str | None = None
    precision: Literal["MICROSECOND", "MILLISECOND"] = "MICROSECOND"
    spelling: int = 0

    @property
    def ms(self) -> int:
        return self.us // 1000

    def payload(self) -> bytes:
        def image(value: int | None) -> dict[str, Any] | None:
            if value is None:
                return None
            members = {"id": {"S": self.key}, "n": {"N": [f"{value}", f"{value}.0"][self.spelling]}}
            return dict(reversed(members.items())) if self.spelling else members

        exact = self.precision == "MICROSECOND"
        event = "INSERT" if self.old is None else "REMOVE" if self.new is None else "MODIFY"
        return json.dumps(
            {
                "eventID": self.id or f"id{self.number}",
                "eventName": event,
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


def batch(changes: Sequence[Change], keep_all: bool = False) -> ChangeBatch:
    payloads = [change.payload() for change in changes]
    return decode(Records.pack(payloads, [str(i) for i in range(len(payloads))]), keep_all=keep_all)


@dataclass(frozen=True, slots=True)
class Given:
    key: str
    us: int
    old: int | None
    new: int | None
    late: bool


def shown(answer: ChangeBatch) -> list[Given]:
    def number(image: dict[str, Any] | None) -> int | None:
        return None if image is None else int(image["n"])

    lines = [json.loads(line) for line in answer.json_lines().splitlines()]
    given = [
        Given(
            line["key"]["id"],
            int(line["version"]),
            number(line["old"]),
            number(line["item"]),
            line.get("late", False),
        )
        for line in lines
    ]
    assert answer.late == sum(one.late for one in given)
    return given


class Oracle:
    """The laws, said slowly. Of one instant, a change that goes on where another ended is later."""

    def __init__(self, *, compacted: bool) -> None:
        self.compacted = compacted
        self.seen: set[int] = set()
        self.held: list[Change] = []
        self.newest: dict[str, Change] = {}
        self.greatest = 0
        self.given_ms = 0
        self.left_out = 0

    def add(self, changes: Iterable[Change]) -> list[Given]:
        for change in changes:
            if change.number not in self.seen:
                self.seen.add(change.number)
                self.held.append(change)
                self.greatest = max(self.greatest, change.us)
        return self.due(max(self.given_ms, (self.greatest - REORDER_US) // 1000))

    def due(self, given_ms: int) -> list[Given]:
        self.given_ms = given_ms
        due = sorted((c for c in self.held if c.ms < given_ms), key=lambda c: (c.us, c.number))
        self.held = [c for c in self.held if c.ms >= given_ms]
        before = dict(self.newest)
        # Where each key stands among the changes of the instant that was given before.
        state = {key: change.new for key, change in before.items()}
        given = []
        for change in due:
            newest = before.get(change.key)
            if newest is None or change.us > newest.us:
                late = False
            elif change.us < newest.us:
                late = True
            else:
                late = change.old != state[change.key]
                state[change.key] = state[change.key] if late else change.new
            if late and self.compacted:
                self.left_out += 1
                continue
            given.append(Given(change.key, change.us, change.old, change.new, late))
            if not late:
                self.newest[change.key] = change
        return given


Fact = tuple[str, int, int | None]


def fact(one: Change | Given) -> Fact:
    return (one.key, one.us, one.new)


def in_keys(given: Iterable[Given]) -> dict[str, list[Given]]:
    keys: dict[str, list[Given]] = {}
    for one in given:
        keys.setdefault(one.key, []).append(one)
    return keys


def same(answer: ChangeBatch, wanted: Iterable[Given]) -> None:
    found, wanted = shown(answer), list(wanted)
    if answer.ambiguous:
        # A link is missing: the arrival orders what is left of the instant.
        found.sort(key=lambda one: (one.us, one.new or 0))
        wanted.sort(key=lambda one: (one.us, one.new or 0))
    assert in_keys(found) == in_keys(wanted)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Change]]:
    """Fetches of one shard: true histories of three keys, shuffled, copies among them."""
    count = draw(st.integers(1, 25))
    us = T
    state: dict[str, int | None] = {}
    instants: set[tuple[str, int]] = set()
    changes = []
    for number in range(count):
        us += draw(st.sampled_from([0, 0, 1, 300, 1000, 2500, 7000]))
        key = draw(st.sampled_from("abc"))
        old = state.get(key)
        # A put and its delete at one instant would be a circle, which only the arrival orders.
        may_go = old is not None and (key, us) not in instants
        new = draw(st.sampled_from([number + 1, number + 1, None])) if may_go else number + 1
        instants.add((key, us))
        state[key] = new
        changes.append(Change(number, key, us, old, new))
    # How far each is delayed: mostly within the window, at times beyond it.
    delays = draw(
        st.lists(
            st.sampled_from([0, 0, 0, 1000, 4000, 4900, 20_000, 30_000]),
            min_size=count,
            max_size=count,
        )
    )
    arrivals = [
        (c.us + delay, i, c) for i, (c, delay) in enumerate(zip(changes, delays, strict=True))
    ]
    for i in draw(st.lists(st.integers(0, count - 1), max_size=5)):
        copy = replace(
            changes[i],
            spelling=draw(st.integers(0, 1)),
            id=draw(st.sampled_from([None, f"other{i}"])),
        )
        arrivals.append((changes[i].us + draw(st.sampled_from([0, 3000, 90_000])), count + i, copy))
    arrived = [change for _, _, change in sorted(arrivals, key=lambda arrival: arrival[:2])]
    cuts = sorted(draw(st.sets(st.integers(0, len(arrived)), max_size=8)))
    return [arrived[a:b] for a, b in itertools.pairwise([0, *cuts, len(arrived)])]


def window(*, compacted: bool = False, bytes_max: int = 1 << 20) -> Window:
    return Window(
        reorder_us=REORDER_US, duplicate_us=DUPLICATE_US, bytes_max=bytes_max, compacted=compacted
    )


@settings(max_examples=150)
@given(histories(), st.booleans(), st.booleans())
def test_every_distinct_change_once_and_in_order(
    fetches: list[list[Change]], compacted: bool, keep_all: bool
) -> None:
    ours, oracle = window(compacted=compacted), Oracle(compacted=compacted)
    everything: list[Given] = []
    for fetch in fetches:
        answer = ours.add(batch(fetch, keep_all))
        wanted = oracle.add(fetch)
        same(answer, wanted)
        everything += wanted
        assert ours.held == len(oracle.held)
        assert (ours.oldest is None) == (not oracle.held)
    answer = ours.flush()
    wanted = oracle.due(1 << 60)
    same(answer, wanted)
    everything += wanted
    assert (ours.held, ours.oldest, ours.left_out) == (0, None, oracle.left_out)
    distinct = {change.number for fetch in fetches for change in fetch}
    assert len(everything) + oracle.left_out == len(distinct), "each once"
    for one in in_keys(everything).values():
        times = [change.us for change in one if not change.late]
        assert times == sorted(times), "in order, those apart that came too late"


@given(histories(), st.data())
def test_a_restart_neither_loses_nor_repeats(
    fetches: list[list[Change]], data: st.DataObject
) -> None:
    """What was given and up to where it was read is stored together; the rest is read again."""
    compacted = data.draw(st.booleans())
    first, without = window(compacted=compacted), window(compacted=compacted)
    end = data.draw(st.integers(0, len(fetches)))
    for fetch in fetches[:end]:
        assert shown(first.add(batch(fetch))) == shown(without.add(batch(fetch)))
    second = window(compacted=compacted)
    read_again = data.draw(st.integers(1, 3))
    known = [change for fetch in fetches[:end] for change in fetch]
    if first.given_us is not None:
        # A restart cuts the stream anew.
        size = -(-len(known) // read_again) or 1
        for at in range(0, len(known), size):
            second.refill(batch(known[at : at + size]), first.given_us)
    assert second.held == without.held
    for fetch in fetches[end:]:
        assert in_keys(shown(second.add(batch(fetch)))) == in_keys(shown(without.add(batch(fetch))))
    assert in_keys(shown(second.flush())) == in_keys(shown(without.flush()))


@given(histories())
def test_positions_stay_behind_what_is_held(fetches: list[list[Change]]) -> None:
    ours = window()
    given: Counter[Fact] = Counter()
    for call, fetch in enumerate(fetches):
        given.update(fact(one) for one in shown(ours.add(batch(fetch))))
        durable = call + 1 if ours.oldest is None else ours.oldest
        passed = {fact(change) for fetch in fetches[:durable] for change in fetch}
        assert passed <= set(given), "a position passes only what was given"
        if ours.oldest is not None:
            oldest = {fact(change) for change in fetches[ours.oldest]}
            assert not oldest <= set(given), "and lies no further behind than it must"


@given(histories(), st.integers(0, 20_000))
def test_memory_is_bounded_and_nothing_is_lost_for_it(
    fetches: list[list[Change]], bytes_max: int
) -> None:
    ours = window(bytes_max=bytes_max)
    given: Counter[Fact] = Counter()
    for fetch in fetches:
        given.update(fact(one) for one in shown(ours.add(batch(fetch))))
        assert ours.nbytes <= bytes_max
    given.update(fact(one) for one in shown(ours.flush()))
    distinct = {fact(change) for fetch in fetches for change in fetch}
    assert set(given) == distinct
    if ours.forgotten == 0:
        assert max(given.values()) == 1, "a change is given twice only when it was forgotten"


@given(histories(), st.integers(0, 40_000))
def test_nothing_is_held_for_ever(fetches: list[list[Change]], wait: int) -> None:
    ours = window()
    for fetch in fetches:
        ours.add(batch(fetch))
    newest = max((c.us for fetch in fetches for c in fetch), default=T)
    ours.advance(newest + wait)
    if wait >= REORDER_US + 1000:
        assert ours.held == 0
    assert ours.advance(newest + REORDER_US + 1000).late == 0
    assert ours.held == 0


def one(number: int, us: int, old: int | None, new: int | None, **rest: Any) -> Change:
    return Change(number, "a", us, old, new, **rest)


def values(answer: ChangeBatch) -> list[tuple[int | None, bool]]:
    return [(given.new, given.late) for given in shown(answer)]


def test_a_change_at_an_instant_that_was_given_is_late_unless_it_goes_on_from_it() -> None:
    later = one(9, T + 50_000, 8, 9)
    for arriving, late in [(one(2, T, 2, 3), False), (one(3, T, 0, 1), True)]:
        ours = window()
        ours.add(batch([one(1, T, 1, 2), later]))
        assert values(ours.add(batch([arriving]))) == [(arriving.new, late)]
    put = one(4, T, None, 1)
    delete = one(5, T, 1, None)
    ours = window()
    assert values(ours.add(batch([put, delete, later]))) == [(1, False), (None, False)]
    assert values(ours.add(batch([one(6, T, None, 2)]))) == [(2, False)]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_chain_that_comes_together_at_an_instant_that_was_given_is_not_late(
    compacted: bool,
) -> None:
    """Regression: its second link doesn't begin where what was given before ended."""
    ours = window(compacted=compacted)
    ours.add(batch([one(1, T, 1, 2), one(9, T + 50_000, 8, 9)]))
    assert values(ours.add(batch([replace(one(8, T + 50_000, 8, 9), key="b")]))) == []
    chain = [one(3, T, 3, 4), one(2, T, 2, 3)]
    assert values(ours.add(batch(chain))) == [(3, False), (4, False)]
    assert values(ours.add(batch([one(4, T, 4, 5)]))) == [(5, False)]


@pytest.mark.parametrize("backwards", [False, True])
def test_what_lies_before_a_given_change_stays_late_in_company(backwards: bool) -> None:
    """Regression: beside a change that goes on from the given one, an earlier one of the same
    instant seemed newer, and the next link was left out."""
    ours = window(compacted=True)
    ours.add(batch([one(1, T, 1, 2), one(9, T + 50_000, 8, 9)]))
    company = [one(3, T, 2, 3), one(2, T, 0, 1)]
    assert values(ours.add(batch(company[::-1] if backwards else company))) == [(3, False)]
    assert values(ours.add(batch([one(4, T, 3, 4)]))) == [(4, False)]
    assert ours.left_out == 1


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_older_than_the_memory_stays_so_in_company(size: int) -> None:
    ours = window(compacted=True)
    ours.add(batch([one(1, T, 1, 2)]))
    ours.add(batch([replace(one(2, T + 2 * DUPLICATE_US, 2, 3), key="b")]))
    old = [one(3, T - 5, 0, 1), one(4, T - 4, 1, 7)]
    given = [values(ours.add(batch(old[at : at + size]))) for at in range(0, 2, size)]
    assert list(itertools.chain(*given)) == [(1, True), (7, True)]


def test_a_late_change_does_not_become_the_newest() -> None:
    ours = window()
    ours.add(batch([one(3, T + 10_000, 3, 4), one(9, T + 50_000, 8, 9)]))
    assert values(ours.add(batch([one(1, T, 1, 2)]))) == [(2, True)]
    assert values(ours.add(batch([one(2, T + 5_000, 2, 3)]))) == [(3, True)]


def test_two_precisions_inside_one_millisecond_wait_for_each_other() -> None:
    ours = window()
    assert values(ours.add(batch([one(1, T + 900, 2, 3), one(9, T + 5900, 9, 9)]))) == []
    coarse = one(2, T, 1, 2, precision="MILLISECOND")
    assert values(ours.add(batch([coarse]))) == []
    given = ours.add(batch([one(10, T + 6000, 9, 9)]))
    assert values(given) == [(2, False), (3, False)]
    assert given.ambiguous == 0


def test_changes_that_look_alike_are_two_at_millisecond_precision() -> None:
    alike = [one(i, T, 1, 2, precision="MILLISECOND") for i in (1, 2, 1)]
    ours = window()
    assert ours.add(batch(alike)).duplicates == 1
    assert len(ours.flush()) == 2


def test_what_is_older_than_all_that_is_remembered_is_late() -> None:
    ours = window(compacted=True)
    ours.add(batch([one(1, T, 1, 2)]))
    ours.add(batch([replace(one(2, T + 2 * DUPLICATE_US, 2, 3), key="b")]))
    assert (ours.forgotten, ours.early) == (0, 0)
    # Nobody knows whether something newer was given: it is kept, and marked.
    assert values(ours.add(batch([one(3, T - 5, 0, 1)]))) == [(1, True)]
    assert (ours.late, ours.left_out) == (1, 0)


def test_a_long_first_fetch_is_not_late() -> None:
    ours = window()
    answer = ours.add(batch([one(2, T + 3 * DUPLICATE_US, 2, 3), one(1, T, 1, 2)]))
    assert values(answer) == [(2, False)]
    assert values(ours.flush()) == [(3, False)]


def test_sequence_numbers_need_no_window() -> None:
    def streams(number: int, value: int) -> bytes:
        return json.dumps(
            {
                "eventName": "MODIFY",
                "dynamodb": {
                    "ApproximateCreationDateTime": 1_576_516_897,
                    "Keys": {"id": {"S": "a"}},
                    "NewImage": {"n": {"N": str(value)}},
                    "SequenceNumber": str(number),
                },
            }
        ).encode()

    ours = window()
    given = ours.add(decode(Records.pack([streams(5, 1), streams(6, 2), b"bad"]), table="t"))
    assert (len(given), len(given.rejections), given.records, ours.held) == (2, 1, 3, 0)
    again = ours.add(decode(Records.pack([streams(6, 2), streams(7, 3)]), table="t"))
    assert (len(again), again.duplicates, again.late) == (1, 1, 0)
    restarted = window()
    restarted.refill(decode(Records.pack([streams(5, 1), streams(6, 2)]), table="t"))
    assert len(restarted.add(decode(Records.pack([streams(6, 2), streams(7, 3)]), table="t"))) == 1


def test_a_held_change_lets_its_neighbours_go() -> None:
    """One change of the future must not keep a large batch in memory."""
    ours = window(bytes_max=1 << 26)
    big = [replace(one(i, T + i, i, i + 1), key=f"k{i}") for i in range(5000)]
    fetch = batch([*big, one(9000, T + 50_000_000, 1, 2)])
    before = ours.nbytes
    assert len(ours.add(fetch)) == 5000
    assert ours.held == 1
    assert ours.nbytes - before < fetch.nbytes / 20
    given = ours.flush()
    assert values(given) == [(2, False)]
    assert given.last_sequence_number == "5000"
    assert (
        json.loads(given.newest("t", [("id", "S")]).record(0, "c", "m").raw)["eventID"] == "id9000"
    )


def test_a_window_that_can_not_be() -> None:
    for reorder, duplicate in [(-1, 0), (2, 1)]:
        with pytest.raises(ValueError, match="reorder_us"):
            Window(reorder_us=reorder, duplicate_us=duplicate)


def test_a_window_that_has_seen_nothing() -> None:
    ours = Window()
    assert (ours.held, ours.oldest, ours.given_us, ours.nbytes) == (0, None, None, 0)
    assert len(ours.flush()) == len(ours.add(batch([]))) == 0
    assert len(ours.advance(T)) == 0


def test_a_projection_makes_no_duplicates() -> None:
    """What was decoded decides, not what a sink may see of it."""
    changes = [one(1, T, 1, 2), one(2, T, 2, 3)]
    seen = batch(changes).project(Projection(exclude=["n"]))
    ours = window()
    ours.add(seen)
    given = ours.flush()
    assert (len(given), given.late, given.duplicates) == (2, 0, 0)
