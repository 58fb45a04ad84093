"""Projection compared with an oracle in plain Python; what it hides is in no output.

A seed is a run."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest

from replicator._core import ChangeBatch, Pattern, Projection, Records, decode

ROUNDS = 1_500
SECRET = b"0123456789abcdef"
NAMES = ["a", "b", "c.d", "e\\", 'ä"']
KEY: list[tuple[str, Any]] = [("id", "S")]
Path = tuple[str, ...]


def written(path: Path) -> str:
    return ".".join(name.replace("\\", "\\\\").replace(".", "\\.") for name in path)


class Maker:
    """Items whose every value is its own, and paths into them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.count = seed * 1_000
        self.tokens: dict[str, list[bytes]] = {}

    def scalar(self) -> dict[str, Any]:
        self.count += 1
        text = f"token{self.count}x"
        match self.random.randrange(5):
            case 0:
                return {"N": f"7{self.count:09}7"}
            case 1:
                return {"B": base64.b64encode(f"{text:12}".encode()).decode()}
            case 2:
                return {"SS": [text, text + "y"]}
            case 3:
                return {"NS": [f"7{self.count:09}7", f"7{self.count:09}78"]}
            case _:
                return {"S": text}

    def value(self, depth: int = 0) -> dict[str, Any]:
        match self.random.randrange(5 if depth < 3 else 3):
            case 3:
                return {"M": self.members(depth + 1)}
            case 4:
                return {"L": [self.value(depth + 1) for _ in range(self.random.randrange(4))]}
            case _:
                return self.scalar()

    def members(self, depth: int = 0) -> dict[str, Any]:
        return {name: self.value(depth) for name in NAMES if self.random.randrange(3)}

    def path(self) -> Path:
        return tuple(self.random.choice(NAMES) for _ in range(self.random.choice([1, 1, 2, 3])))

    def paths(self) -> list[Path]:
        return [self.path() for _ in range(self.random.randrange(3))]


def leaves(value: dict[str, Any]) -> Iterator[bytes]:
    """What must not be seen of a value that is hidden."""
    ((tag, content),) = value.items()
    match tag:
        case "M":
            for inner in content.values():
                yield from leaves(inner)
        case "L":
            for inner in content:
                yield from leaves(inner)
        case "SS" | "NS":
            yield from (one.encode() for one in content)
        case _:
            yield content.encode()


class Oracle:
    def __init__(
        self,
        include: Sequence[Path] | None,
        exclude: list[Path],
        mask: list[Path],
        hashed: list[Path],
    ) -> None:
        self.include = include
        self.exclude, self.mask, self.hash = exclude, mask, hashed
        self.hidden: list[bytes] = []

    def image(self, image: dict[str, Any]) -> dict[str, Any]:
        return self.members(image, ())

    def members(self, members: dict[str, Any], path: Path) -> dict[str, Any]:
        kept = {}
        for name, value in members.items():
            if not path and name == "id":
                kept[name] = value
            elif (shown := self.value(value, (*path, name))) is not None:
                kept[name] = shown
        return kept

    def value(self, value: dict[str, Any], path: Path) -> dict[str, Any] | None:
        ((tag, content),) = value.items()
        if path in self.exclude:
            return self.hide(value, None)
        if path in self.mask:
            return self.hide(value, {"S": "***"})
        if path in self.hash:
            return self.hide(value, {"S": "hash"})
        inside = self.include is not None and not any(
            path[: len(one)] == one for one in self.include
        )
        on_the_way = inside and any(one[: len(path)] == path for one in self.include or ())
        if (inside and not on_the_way) or (on_the_way and tag not in {"M", "L"}):
            return self.hide(value, None)
        if tag == "M":
            return {"M": self.members(content, path)}
        if tag == "L":
            shown = [self.value(one, path) for one in content]
            return {"L": [one for one in shown if one is not None]}
        return value

    def hide(self, value: dict[str, Any], shown: dict[str, Any] | None) -> dict[str, Any] | None:
        self.hidden += leaves(value)
        return shown


def overlap(paths: list[Path]) -> bool:
    pairs = itertools.permutations(range(len(paths)), 2)
    return any(paths[i][: len(paths[j])] == paths[j] for i, j in pairs)


def without_hashes(value: Any) -> Any:
    if isinstance(value, dict):
        text = value.get("S")
        if isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef"):
            return {"S": "hash"}
        return {name: without_hashes(one) for name, one in value.items()}
    return [without_hashes(one) for one in value] if isinstance(value, list) else value


def record(new: Any, old: Any, event_id: str = "1") -> bytes:
    return json.dumps(
        {
            "eventID": event_id,
            "eventName": "MODIFY",
            "tableName": "t",
            "dynamodb": {
                "ApproximateCreationDateTime": 1706542773915835,
                "ApproximateCreationDateTimePrecision": "MICROSECOND",
                "Keys": {"id": {"S": "k"}},
                "NewImage": new,
                "OldImage": old,
            },
        }
    ).encode()


def outputs(batch: ChangeBatch) -> bytes:
    rows = batch.newest("t", KEY)
    assert len(rows) == 1
    forms: list[Any] = ["plain", "dynamodb", "debezium", "change"]
    kafka = [one.bytes() for form in forms for one in batch.kafka(1, form=form)]
    lines = [batch.json_lines(form) for form in forms]
    return b"".join([*lines, *kafka, rows.copy(), *rows.arrays()])


def test_a_projection_does_what_the_oracle_says_and_leaks_nothing() -> None:
    tried = 0
    for seed in range(ROUNDS):
        make = Maker(seed)
        include = None if make.random.randrange(2) else [make.path(), *make.paths()]
        exclude, mask, hashed = make.paths(), make.paths(), make.paths()
        try:
            projection = Projection(
                include=None if include is None else [written(path) for path in include],
                exclude=[written(path) for path in exclude],
                mask=[written(path) for path in mask],
                hash=[written(path) for path in hashed],
                key=SECRET,
            )
        except ValueError:
            every, inner = [*exclude, *mask, *hashed], include or []
            outside = include is not None and any(
                not any(x[: len(y)] == y for y in include) for x in every
            )
            contradicts = any(x in inner for x in exclude)
            assert overlap(every) or overlap(inner) or outside or contradicts, seed
            continue
        tried += 1
        new, old = ({"id": {"S": "k"}, **make.members()} for _ in range(2))
        oracle = Oracle(include, exclude, mask, hashed)
        expected = oracle.image(new), oracle.image(old)
        batch = decode(Records.pack([record(new, old)]))
        projected = batch.project(projection)
        line = json.loads(projected.json_lines("dynamodb"))
        assert without_hashes(line["item"]) == expected[0], seed
        assert without_hashes(line["old"]) == expected[1], seed
        assert list(line["item"]) == list(expected[0]), "attributes keep their order"
        found = outputs(projected)
        for secret in oracle.hidden:
            assert secret in outputs(batch)
            assert secret not in found, (seed, secret)
        # What is shown is what decoding the shown image gives.
        again = decode(Records.pack([record(line["item"], line["old"])]))
        assert again.json_lines() == projected.json_lines(), seed
        rows = [one.newest("t", KEY) for one in (again, projected)]
        rows.append(batch.newest("t", KEY, None, projection))
        for one in rows[1:]:
            assert one.copy() == rows[0].copy()
            assert one.arrays() == rows[0].arrays()
    assert tried > ROUNDS / 5


def test_order_and_duplicates_are_decided_by_the_whole_images() -> None:
    """Two changes that only differ in what is hidden are two, in the order of what is hidden."""
    hide = Projection(exclude=["n"])

    def image(n: int) -> dict[str, Any]:
        return {"id": {"S": "k"}, "n": {"N": str(n)}}

    changes = [record(image(n + 1), image(n), str(n)) for n in (2, 0, 1)]
    parts = [decode(Records.pack([change])).project(hide) for change in changes]
    batch = ChangeBatch.concat(parts)
    assert (len(batch), batch.duplicates, batch.ambiguous) == (3, 0, 0)
    rows = batch.newest("t", KEY)
    assert json.loads(rows.record(0, "x", "x").raw)["dynamodb"]["NewImage"] == image(3)
    again = ChangeBatch.concat([batch, *parts])
    assert (len(again), again.duplicates) == (3, 3)


def test_what_is_stored_of_an_instant_is_what_is_seen_of_it() -> None:
    """The links of several changes at one instant, whichever way they were projected."""
    hide = Projection(exclude=["n"])

    def image(n: int) -> dict[str, Any]:
        return {"id": {"S": "k"}, "n": {"N": str(n)}, "seen": {"N": str(n // 2)}}

    batch = decode(Records.pack([record(image(n + 1), image(n), str(n)) for n in (2, 0, 1)]))
    at_once = batch.newest("t", KEY, None, hide)
    before = batch.project(hide)
    assert before.newest("t", KEY).copy() == at_once.copy() != batch.newest("t", KEY).copy()
    for more in [(Pattern('{"dynamodb": {"Keys": {"id": {"S": ["k"]}}}}'), None), (None, hide)]:
        with pytest.raises(ValueError, match="projected already"):
            before.newest("t", KEY, *more)
