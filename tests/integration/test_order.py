"""Order across writes (law 3) at a real server: changes of one key at one instant, in every order
and every split into writes, against an oracle in plain Python.

Each order and split is a key of its own, so that all of them together need no more writes than a
history has changes.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from decimal import Context, Decimal
from typing import Any, Literal

import pytest

from replicator.model import TableSchema, WriteResult
from replicator.sink.postgres_payload import ARRAYS_BYTES_MAX
from tests.changes import STREAM, pending
from tests.property.test_order import Change, Image, history
from tests.warehouse import connected, opened, rows

MANY = ARRAYS_BYTES_MAX // 100
"""More rows than go as arrays."""
T = 1_706_542_773_915_000
TABLE = TableSchema("t", (("id", "S"),))
Precision = Literal["MICROSECOND", "MILLISECOND"]

HISTORIES: dict[str, list[Change]] = {
    "one": list(history("", [1, 2], [T])),
    "two": list(history("", [None, 1, 2], [T, T])),
    "a middle change": list(history("", [1, 2, 3, 4], [T] * 3)),
    "a delete at the end": list(history("", [1, 2, 3, None], [T] * 3)),
    "a delete in the middle": list(history("", [1, None, 2, 3], [T] * 3)),
    "a state comes again": list(history("", [1, 2, 1, 3], [T] * 3)),
    "put, delete, put": list(history("", [None, 1, None, 2], [T] * 3)),
    "five": list(history("", [None, 1, 2, 3, 4, 5], [T] * 5)),
    "five with states that come again": list(history("", [1, 2, 1, None, 1, 3], [T] * 5)),
    "a circle": list(history("", [None, 1, None], [T] * 2)),
    "a long circle": list(history("", [1, 2, 3, 1], [T] * 3)),
    "times decide in the millisecond": list(history("", [1, 2, 1, 2, 3], [T, T + 1, T + 1, T + 2])),
}


def at(changes: Iterable[Change], precisions: str) -> list[Change]:
    """The same changes, `m` exact to the millisecond only, each at a time of its own."""
    names: dict[str, Precision] = {"m": "MILLISECOND", "u": "MICROSECOND"}
    return [
        Change(c.id, c.key, T + 10 * i, c.old, c.new, names[precision])
        for i, (c, precision) in enumerate(zip(changes, precisions, strict=True))
    ]


for precisions in ("mmmm", "ummu", "mumu", "uumm"):
    HISTORIES[f"precisions {precisions}"] = at(history("", [1, 2, 1, 3, 4], [T] * 4), precisions)
for precisions in ("umum", "muum", "mumm", "mmum"):
    # A part of it may be a circle whose end isn't what is stored.
    again = history("", [None, 1, 2, None, 2], [T] * 4)
    HISTORIES[f"an item that comes again, {precisions}"] = at(again, precisions)


def splits(count: int) -> Iterator[list[int]]:
    """Every way to cut `count` changes into writes: the number of the write of each."""
    for cuts in itertools.product((0, 1), repeat=count - 1):
        yield list(itertools.accumulate((0, *cuts)))


def truth(changes: Sequence[Change]) -> Image:
    """A fold: the state behind the last change."""
    return changes[-1].new


def is_circle(changes: Sequence[Change]) -> bool:
    return len(changes) > 1 and changes[0].old == changes[-1].new


def deliveries(changes: Sequence[Change]) -> dict[str, list[list[bytes]]]:
    """Per key the payloads of each write: each order and split is a key."""
    found: dict[str, list[list[bytes]]] = {}
    for order in itertools.permutations(range(len(changes))):
        for split in splits(len(changes)):
            key = f"{''.join(map(str, order))}/{''.join(map(str, split))}"
            writes: list[list[bytes]] = [[] for _ in changes]
            for spelling, (place, number) in enumerate(zip(order, split, strict=True)):
                of = changes[place]
                change = Change(key + of.id, key, of.us, of.old, of.new, of.precision)
                writes[number].append(change.payload(spelling))
            found[key] = writes
    return found


async def stored(dsn: str) -> dict[str, tuple[Image, int]]:
    found = await rows(dsn, "SELECT id, item::text, version::bigint, deleted FROM t")
    assert all((item is None) == deleted for _, item, _, deleted in found)
    return {
        key: (None if item is None else int(float(json.loads(item)["n"])), version)
        for key, item, version, _ in found
    }


async def deliver(
    dsn: str, writes: Sequence[Sequence[bytes]], shards: int = 1
) -> list[WriteResult]:
    async with opened(dsn, [TABLE]) as sink:
        fences = [await sink.fence(STREAM, f"shard-{n}", "me") for n in range(shards)]
        results = []
        first = 1
        for number, payloads in enumerate(writes):
            fence = fences[number % shards]
            writer = sink.writer(fence)
            payload = writer.encode([pending(fence, payloads, first=first)])
            results.append(await writer.write(payload))
            first += len(payloads)
    return results


@pytest.mark.parametrize("name", HISTORIES)
async def test_every_order_and_every_split_of(postgres_dsn: str, name: str) -> None:
    changes = HISTORIES[name]
    by_key = deliveries(changes)
    writes = [
        [payload for payloads in by_key.values() for payload in payloads[number]]
        for number in range(len(changes))
    ]
    # And all of it once more, which changes nothing.
    again = [payload for payloads in writes for payload in payloads]
    results = await deliver(postgres_dsn, [*writes, again])
    found = await stored(postgres_dsn)
    newest = max(change.version for change in changes)
    assert {version for _, version in found.values()} == {newest}
    assert set(found) == set(by_key)
    if is_circle(changes):
        # The arrival decides, and says so: the last one where they came one by one.
        for key, (state, _) in found.items():
            order, split = key.split("/")
            if split == "".join(map(str, range(len(changes)))):
                assert state == changes[int(order[-1])].new, key
        assert sum(result.ambiguous for result in results[:-1]) > 0
    else:
        wrong = {key: state for key, (state, _) in found.items() if state != truth(changes)}
        assert not wrong
        if len({change.new for change in changes} | {changes[0].old}) > len(changes):
            # Where no state comes again nothing looks like a circle on the way.
            assert sum(result.ambiguous for result in results) == 0
    assert (results[-1].rows, results[-1].duplicates) == (0, len(by_key)), "known, all of it"


async def test_redelivered_under_another_id(postgres_dsn: str) -> None:
    changes = list(history("a", [1, 2, 1, 3], [T] * 3))
    copies = [Change(f"other {c.id}", c.key, c.us, c.old, c.new) for c in changes]
    arrived = [changes[2], copies[0], changes[1], copies[2], changes[0], copies[1]]
    results = await deliver(postgres_dsn, [[change.payload()] for change in arrived])
    assert await stored(postgres_dsn) == {"a": (3, T)}
    assert sum(result.duplicates for result in results) == 3


async def test_a_delete_and_a_late_change_of_before(postgres_dsn: str) -> None:
    """REMOVE, then the MODIFY before it: at one instant, and at an earlier one."""
    for key, times in (("a", [T, T, T]), ("b", [T, T + 1, T + 2]), ("c", [T, T + 5000, T + 9000])):
        made, changed, gone = history(key, [None, 1, 2, None], times)
        if key == "a":  # a circle would be ambiguous: what was before isn't nothing
            made, changed, gone = history(key, [7, 1, 2, None], times)
        results = await deliver(postgres_dsn, [[c.payload()] for c in (gone, changed, made)])
        assert [result.rows for result in results] == [1, 0, 0]
        assert (await stored(postgres_dsn))[key] == (None, times[-1])


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_a_key_that_moves_to_a_child_shard_at_one_instant(
    postgres_dsn: str, order: tuple[int, ...]
) -> None:
    """Parent then child hold the changes of one key and instant; each shard keeps its order,
    whichever is written when."""
    changes = list(history("a", [1, 2, 3, 2, 4], [T] * 4))
    await deliver(postgres_dsn, [[changes[place].payload(place)] for place in order], shards=2)
    assert await stored(postgres_dsn) == {"a": (4, T)}


async def test_large_and_small_writes_agree(postgres_dsn: str) -> None:
    """Arrays and COPY are two ways to one table: a row written by one is settled by the other."""
    many = [Change(f"x{n}", f"x{n}", T, 1, 2) for n in range(MANY)]
    first, second, third = history("a", [1, 2, 3, 4], [T] * 3)
    results = await deliver(
        postgres_dsn,
        [
            [change.payload() for change in (*many, third)],
            [first.payload()],
            [change.payload() for change in (*many, second)],
        ],
    )
    assert [(r.rows, r.duplicates, r.superseded) for r in results] == [
        (len(many) + 1, 0, 0),
        (1, 0, 0),
        (1, len(many), 0),
    ]
    assert (await stored(postgres_dsn))["a"] == (4, T)
    async with connected(postgres_dsn) as connection:
        # What is ordinarily kept for a row is small.
        length = await connection.fetchval("SELECT max(length(chain)) FROM t WHERE id <> 'a'")
    assert length == 17


def number(rng: random.Random) -> list[str]:
    """A number in three spellings."""
    digits = rng.choice([rng.randrange(10), rng.randrange(1000) * 10, rng.randrange(10**37)])
    exponent = rng.choice([0, -1, -5, 4, -40, 80])
    value = Decimal(digits).scaleb(exponent, Context(prec=60)) * rng.choice([1, -1])
    normal = value.normalize(Context(prec=60))
    spaced = f"{normal:f}" + (".00" if normal == normal.to_integral_value() else "0")
    return [f"{normal:E}", spaced if len(spaced) < 38 else f"{normal:e}", f"{value}"]


def value(rng: random.Random, depth: int = 3) -> list[Any]:
    """An attribute value in three spellings."""
    text = "".join(rng.choice('aZ0 é中😀"\\/\b\n\t\x01\x7f\0␀') for _ in range(rng.randrange(40)))
    pick = rng.randrange(8 if depth else 6)
    match pick:
        case 0:
            return [{"N": spelling} for spelling in number(rng)]
        case 1:
            numbers = {Decimal(n[0]): n for n in (number(rng) for _ in range(4))}.values()
            return [{"NS": rng.sample([n[i] for n in numbers], len(numbers))} for i in range(3)]
        case 2:
            texts = list({f"{n}{text}" for n in range(4)})
            return [{"SS": rng.sample(texts, 4)} for _ in range(3)]
        case 3:
            raw = [base64.b64encode(rng.randbytes(n)).decode() for n in range(1, 5)]
            return [{"BS": rng.sample(raw, 4)} for _ in range(3)]
        case 4:
            return [
                rng.choice([{"BOOL": True}, {"BOOL": False}, {"NULL": True}, {"B": "AA=="}])
            ] * 3
        case 6:
            inner = [value(rng, depth - 1) for _ in range(rng.randrange(4))]
            return [{"L": [spellings[i] for spellings in inner]} for i in range(3)]
        case 7:
            return [{"M": item} for item in item_spellings(rng, depth - 1)]
        case _:
            return [{"S": text}] * 3


def item_spellings(rng: random.Random, depth: int = 3) -> list[dict[str, Any]]:
    names = [f"{n}{rng.choice(['', 'é', chr(0), ' long name of an attribute'])}" for n in range(5)]
    members = [(name, value(rng, depth)) for name in names[: rng.randrange(1, 6)]]
    return [{name: v[i] for name, v in rng.sample(members, len(members))} for i in range(3)]


@pytest.mark.parametrize("seed", range(3))
async def test_a_stored_item_is_known_as_the_image_it_was(postgres_dsn: str, seed: int) -> None:
    """Whatever jsonb did to it and however the old image is spelled: a REMOVE of just that item
    at the instant of its INSERT closes a circle; of any other item it would not."""
    rng = random.Random(seed)

    def record(key: str, event: str, ascii_only: bool, **images: Any) -> bytes:
        change = {
            "ApproximateCreationDateTime": T,
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
            "Keys": {"id": {"S": key}},
            **images,
        }
        whole = {"eventName": event, "tableName": "t", "eventID": event + key, "dynamodb": change}
        return json.dumps(whole, ensure_ascii=ascii_only).encode()

    items = {f"k{n}": item_spellings(rng) for n in range(300)}
    puts = [record(key, "INSERT", False, NewImage=one) for key, (one, _, _) in items.items()]
    gone = [
        record(key, "REMOVE", bool(n % 2), OldImage=item[1 + n % 2])
        for n, (key, item) in enumerate(items.items())
    ]
    first, second = await deliver(postgres_dsn, [puts, gone])
    assert (first.rows, first.dead_letters) == (len(items), ())
    kept = await rows(postgres_dsn, "SELECT id, item::text FROM t WHERE NOT deleted LIMIT 3")
    assert (second.rows, second.ambiguous) == (len(items), len(items)), [
        (item, items[key]) for key, item in kept
    ]
