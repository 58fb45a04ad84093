"""Event patterns compared with an oracle in plain Python, and broken ones. A seed is a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from replicator._core import ChangeBatch, Pattern, Records, decode
from tests.pattern_oracle import matches

ROUNDS = 1_500
NAMES = ["a", "a", "b", "N", "L", "or", 'ä"\\']
TEXTS = ["", "x", "x", "xy", "XY", "yx", "x*y", "ß", "SS", "10.1.2.3", "\\x", "ä\u2028"]
NUMBERS = ["0", "-0", "1", "1.0", "10E-1", "-2", "0.5", "1e3", "1000", "9" * 38]
BARE_NUMBERS = [0, 1, -2, 0.5, 1000, 10**38 - 1, 3]
WILDCARDS = ["*", "x*", "*y", "x*y", "*x*", "x\\*y", "", "x", "\\\\x*"]
BLOCKS = ["10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "::/0"]


class Maker:
    """Records and patterns that have a fair chance to meet."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.pick = self.random.choice

    def some(self, make: Callable[[], Any], most: int, least: int = 1) -> list[Any]:
        return [make() for _ in range(self.random.randint(least, most))]

    def one_in(self, n: int) -> bool:
        return self.random.randrange(n) == 0

    # ---- records

    def value(self, depth: int = 0) -> dict[str, Any]:
        kinds = ["S", "N", "N", "S", "B", "BOOL", "NULL", "SS", "NS"] + ["L", "M"] * 3
        match self.pick(kinds[: 9 if depth > 2 else None]):
            case "S":
                return {"S": self.pick(TEXTS)}
            case "N":
                return {"N": self.pick(NUMBERS)}
            case "B":
                return {"B": self.pick(["", "eA==", "eHk="])}
            case "BOOL":
                return {"BOOL": self.pick([True, False])}
            case "NULL":
                return {"NULL": True}
            case "SS":
                return {"SS": self.some(lambda: self.pick(TEXTS), 3)}
            case "NS":
                return {"NS": self.some(lambda: self.pick(NUMBERS), 3)}
            case "L":
                # Often alike, so that patterns meet some elements and not others.
                one = self.value(depth + 1)
                return {"L": self.some(lambda: self.pick([one, self.value(depth + 1)]), 3, 0)}
            case _:
                return {"M": self.image(depth + 1)}

    def image(self, depth: int = 0) -> dict[str, Any]:
        return dict(self.some(lambda: (self.pick(NAMES), self.value(depth)), 4, 0))

    def record(self) -> dict[str, Any]:
        user = {"type": "Service", "principalId": self.pick(TEXTS)}
        sides = {name: self.image() for name in ("NewImage", "OldImage") if not self.one_in(4)}
        return {
            "eventID": "1",
            "eventName": self.pick(["INSERT", "MODIFY", "REMOVE"]),
            "tableName": self.pick(["t", "t", "xy"]),
            "userIdentity": self.pick([None, user, [user], [[], [user]]]),
            "dynamodb": {
                "ApproximateCreationDateTime": 1706542773915835,
                "ApproximateCreationDateTimePrecision": "MICROSECOND",
                "Keys": {"id": {"S": "k"}},
                **sides,
                "SizeBytes": self.pick([0, 1, 1000]),
            },
        }

    # ---- patterns

    def either(self, make: Callable[[], Any]) -> Any:
        """One, or a list of them."""
        return make() if self.one_in(2) else self.some(make, 3)

    def text_operator(self) -> dict[str, Any]:
        side, text = self.pick(["prefix", "suffix"]), self.pick(TEXTS)
        return self.pick(
            [
                {side: text},
                {side: {"equals-ignore-case": text}},
                {"equals-ignore-case": text},
                {"wildcard": self.pick(WILDCARDS)},
                {"cidr": self.pick(BLOCKS)},
            ]
        )

    def denied_texts(self) -> dict[str, Any]:
        name = self.pick(["prefix", "suffix", "equals-ignore-case", "wildcard"])
        texts = WILDCARDS if name == "wildcard" else TEXTS
        return {"anything-but": {name: self.either(lambda: self.pick(texts))}}

    def range(self) -> dict[str, Any]:
        if self.one_in(2):
            return {"numeric": [self.pick(["=", "<", "<=", ">", ">="]), self.pick(BARE_NUMBERS)]}
        lower, upper = sorted(self.random.sample(BARE_NUMBERS, 2))
        sides = [[self.pick([">", ">="]), lower], [self.pick(["<", "<="]), upper]]
        self.random.shuffle(sides)
        return {"numeric": sides[0] + sides[1]}

    def leaf(self, *makers: Callable[[], Any]) -> list[Any]:
        if self.one_in(6):
            return [self.exists()]
        makers = (*makers * 3, self.exists)

        def one() -> Any:
            return self.pick(makers)()

        return self.some(one, 3)

    def exists(self) -> dict[str, Any]:
        return {"exists": self.pick([True, False])}

    def text(self) -> Any:
        return self.pick(TEXTS)

    def number(self) -> Any:
        return self.pick([*NUMBERS, *BARE_NUMBERS])

    def of_text(self) -> list[Any]:
        return self.leaf(
            self.text,
            self.text_operator,
            lambda: {"anything-but": self.either(self.text)},
            self.denied_texts,
        )

    def of_number(self) -> list[Any]:
        return self.leaf(
            self.number,
            self.range,
            self.range,
            lambda: {"anything-but": self.either(self.number)},
            self.text_operator,
        )

    def of_any(self) -> list[Any]:
        return self.leaf(
            lambda: self.pick([*TEXTS, *BARE_NUMBERS, True, False, None]),
            self.text_operator,
            self.range,
            lambda: {"anything-but": self.either(lambda: self.pick([*TEXTS, *BARE_NUMBERS]))},
            self.denied_texts,
        )

    def object(self, member: Callable[[], tuple[str, Any]], most: int = 3) -> dict[str, Any]:
        """Members, and sometimes a choice between such objects."""
        found = dict(self.some(member, most))
        if self.one_in(6):
            found["$or"] = self.some(lambda: dict(self.some(member, 2)), 3, 2)
        return found

    def typed(self, depth: int) -> Any:
        def member() -> tuple[str, Any]:
            match self.pick(["S", "SS", "N", "N", "NS", "B", "BOOL", "NULL", "M", "M", "L", "L"]):
                case "S" | "SS" as tag:
                    return tag, self.of_text()
                case "N" | "NS" as tag:
                    return tag, self.of_number()
                case "B":
                    return "B", self.leaf(lambda: self.pick(["", "eA==", "eHk="]))
                case "BOOL" | "NULL" as tag:
                    return tag, self.leaf(lambda: self.pick([True, False]))
                case tag if depth > 2:
                    return tag, [self.exists()]
                case "M":
                    return "M", self.image_pattern(depth + 1)
                case _:
                    return "L", self.typed(depth + 1)

        return [self.exists()] if self.one_in(8) else self.object(member, 2)

    def image_pattern(self, depth: int = 0) -> dict[str, Any]:
        return self.object(lambda: (self.pick(NAMES), self.typed(depth)), 2)

    def of_dynamodb(self) -> tuple[str, Any]:
        match self.pick(["NewImage", "NewImage", "OldImage", "Keys", "SizeBytes"]):
            case "Keys":
                return "Keys", {"id": {"S": self.pick([["k"], self.of_text()])}}
            case "SizeBytes":
                return "SizeBytes", self.of_any()
            case name:
                return name, [self.exists()] if self.one_in(8) else self.image_pattern()

    def of_record(self) -> tuple[str, Any]:
        match self.pick(["dynamodb"] * 4 + ["eventName", "tableName", "eventID", "userIdentity"]):
            case "dynamodb":
                return "dynamodb", self.object(self.of_dynamodb)
            case "eventName":
                names = ["INSERT", "MODIFY", "REMOVE"]
                return "eventName", self.leaf(lambda: self.pick(names), self.text_operator)
            case "userIdentity" if self.one_in(2):
                return "userIdentity", self.leaf(lambda: None)
            case "userIdentity":
                inner = ["type", "principalId"]
                return "userIdentity", self.object(lambda: (self.pick(inner), self.of_any()))
            case name:
                return name, self.of_any()

    def pattern(self) -> dict[str, Any]:
        return self.object(self.of_record)


def decoded(record: dict[str, Any], **spelling: Any) -> ChangeBatch:
    batch = decode(Records.pack([json.dumps(record, **spelling).encode()]))
    assert not batch.rejections, batch.rejections[0].message
    return batch


def compiled(*patterns: dict[str, Any]) -> Pattern | None:
    """None when they multiply out to more than there may be."""
    texts = [json.dumps(pattern) for pattern in patterns]
    try:
        return Pattern(texts)
    except ValueError:
        with pytest.raises(ValueError, match="multiply out"):
            Pattern(texts)
        return None


def test_a_pattern_matches_as_the_oracle_says() -> None:
    matched = 0
    for seed in range(ROUNDS):
        make = Maker(seed)
        pattern = make.pattern()
        core = compiled(pattern)
        if core is None:
            continue
        for _ in range(4):
            record = make.record()
            batch = decoded(
                record,
                ensure_ascii=make.one_in(2),
                separators=make.pick([(",", ":"), (" , ", " :\n")]),
            )
            kept = batch.filter(core)
            expected = matches(pattern, record)
            assert bool(len(kept)) == expected, (seed, pattern, record)
            assert (len(kept) + kept.filtered, kept.records) == (1, 1)
            matched += expected
    assert ROUNDS / 2 < matched < 4 * ROUNDS * 0.8, "both outcomes are tried"


def test_several_patterns_are_alternatives() -> None:
    for seed in range(ROUNDS // 3):
        make = Maker(-seed)
        several = make.some(make.pattern, 4)
        core = compiled(*several)
        record = make.record()
        if core:
            kept = decoded(record).filter(core)
            assert bool(len(kept)) == any(matches(one, record) for one in several), seed


def test_in_a_state_sink_a_change_that_does_not_match_deletes() -> None:
    for seed in range(ROUNDS // 3):
        make = Maker(seed)
        pattern = {"dynamodb": {"NewImage": make.image_pattern()}}
        core = compiled(pattern)
        record = make.record() | {"tableName": "t"}
        is_remove = record["eventName"] == "REMOVE"
        if core is None or not (is_remove or "NewImage" in record["dynamodb"]):
            continue
        batch = decoded(record)
        rows = batch.newest("t", [("id", "S")], core)
        belongs = not is_remove and matches(pattern, record)
        turned = not is_remove and not belongs
        assert (len(rows), rows.deletes, rows.filtered) == (1, not belongs, turned), seed
        record["eventName"] = record["eventName"] if belongs else "REMOVE"
        assert rows.copy() == decoded(record).newest("t", [("id", "S")]).copy(), seed


def test_a_broken_pattern_is_an_error_or_a_pattern() -> None:
    pieces = ['"', "{", "}", "[", "]", ",", "\\", "9", "$or", "null", "", "\0"]
    for seed in range(ROUNDS):
        make = Maker(seed)
        text = json.dumps(make.pattern())
        batch = decoded(make.record())
        for _ in range(3):
            at = make.random.randint(0, len(text))
            text = text[:at] + make.pick(pieces) + text[at + make.random.randint(0, 2) :]
            try:
                kept = batch.filter(Pattern(text))
            except ValueError:
                continue
            assert len(kept) + kept.filtered == 1


@pytest.mark.parametrize("depth", [10, 32])
def test_patterns_reach_as_deep_as_items(depth: int) -> None:
    inner: Any = {"N": "7"}
    wanted: Any = {"N": [{"numeric": ["=", 7]}]}
    for level in range(depth):
        inner = {"L": [inner]} if level % 2 else {"M": {"a": inner}}
        wanted = {"L": wanted} if level % 2 else {"M": {"a": wanted}}
    record = Maker(0).record()
    record["dynamodb"]["NewImage"] = {"a": inner}
    pattern = Pattern(json.dumps({"dynamodb": {"NewImage": {"a": wanted}}}))
    assert len(decoded(record).filter(pattern)) == 1
