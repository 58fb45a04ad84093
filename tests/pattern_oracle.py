"""Event patterns in plain Python: slow, simple, and written without a look at the Rust core.

An event pattern is taken apart into alternatives (`$or`, and `exists: false` beside other
values), each a list of constraints: a path, and what must hold at its end.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

MISSING = object()
EXACT = Context(prec=300, Emax=10_000, Emin=-10_000)


@dataclass(frozen=True)
class Constraint:
    """`tests` None: nothing may be at the end of the path."""

    path: tuple[str, ...]
    tests: Sequence[Any] | None
    is_number: bool


def matches(pattern: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """The event matches the pattern."""
    return any(holds(constraints, event) for constraints in alternatives(pattern, ()))


def alternatives(pattern: Mapping[str, Any], path: tuple[str, ...]) -> list[list[Constraint]]:
    choices: list[list[list[Constraint]]] = []
    for name, wanted in pattern.items():
        if name == "$or":
            choices.append([one for inner in wanted for one in alternatives(inner, path)])
        elif isinstance(wanted, dict):
            choices.append(alternatives(wanted, (*path, name)))
        else:
            here = (*path, name)
            is_number = here[-1] in {"N", "NS"} and is_type(here)
            present = [one for one in wanted if one != {"exists": False}]
            leaf = [[Constraint(here, present, is_number)]] if present else []
            if len(present) < len(wanted):
                leaf.append([Constraint(here, None, is_number)])
            choices.append(leaf)
    return [list(itertools.chain(*chosen)) for chosen in itertools.product(*choices)]


def is_type(path: tuple[str, ...]) -> bool:
    """The last name is a type tag, not an attribute that is called like one."""
    if path[0] != "dynamodb" or path[1] not in {"Keys", "NewImage", "OldImage"}:
        return False
    kind, is_tag = "attribute", False
    for name in path[2:]:
        # Behind a list's type come its elements' types, behind any other a map's attributes.
        is_tag = kind == "type"
        kind = "type" if not is_tag or name == "L" else "attribute"
    return is_tag


def holds(constraints: Sequence[Constraint], value: Any) -> bool:
    if value is MISSING:
        return all(one.tests is None for one in constraints)
    here = [one for one in constraints if not one.path]
    below = [one for one in constraints if one.path]
    if isinstance(value, list):
        if not value:
            return all(map(allows_container, here)) and holds(below, MISSING)
        wants_something = any(one.tests is not None for one in constraints)
        return (any if wants_something else all)(holds(constraints, one) for one in value)
    if isinstance(value, dict):
        return all(map(allows_container, here)) and all(
            holds(group, value.get(name, MISSING)) for name, group in grouped(below)
        )
    return all(
        one.tests is not None and any(passes(test, value, one.is_number) for test in one.tests)
        for one in here
    ) and holds(below, MISSING)


def grouped(constraints: Sequence[Constraint]) -> Iterator[tuple[str, list[Constraint]]]:
    for name in {one.path[0] for one in constraints}:
        yield (
            name,
            [
                Constraint(one.path[1:], one.tests, one.is_number)
                for one in constraints
                if one.path[0] == name
            ],
        )


def allows_container(one: Constraint) -> bool:
    return one.tests is not None and {"exists": True} in one.tests


def passes(test: Any, value: Any, is_number: bool) -> bool:
    if not isinstance(test, dict):
        return equals(test, value, is_number)
    ((operator, wanted),) = test.items()
    match operator:
        case "exists":
            return True
        case "anything-but":
            return not any(denied(wanted, value, is_number))
        case "numeric":
            number = number_of(value, is_number)
            return number is not None and in_range(number, wanted)
    if not isinstance(value, str):
        return False
    match operator:
        case "prefix" if isinstance(wanted, dict):
            return folded(value).startswith(folded(wanted["equals-ignore-case"]))
        case "suffix" if isinstance(wanted, dict):
            return folded(value).endswith(folded(wanted["equals-ignore-case"]))
        case "prefix":
            return value.startswith(wanted)
        case "suffix":
            return value.endswith(wanted)
        case "equals-ignore-case":
            return folded(value) == folded(wanted)
        case "wildcard":
            return fits(wanted, value)
        case "cidr":
            try:
                return ipaddress.ip_address(value) in ipaddress.ip_network(wanted, strict=False)
            except ValueError:
                return False
    raise AssertionError(operator)


def denied(wanted: Any, value: Any, is_number: bool) -> Iterator[bool]:
    if isinstance(wanted, dict):
        ((operator, texts),) = wanted.items()
        for text in texts if isinstance(texts, list) else [texts]:
            yield passes({operator: text}, value, is_number)
    else:
        for one in wanted if isinstance(wanted, list) else [wanted]:
            yield equals(one, value, is_number)


def equals(wanted: Any, value: Any, is_number: bool) -> bool:
    if isinstance(wanted, bool) or wanted is None or isinstance(value, bool) or value is None:
        return wanted is value
    if is_number or not isinstance(wanted, str):
        number = number_of(value, is_number)
        return number is not None and EXACT.compare(number, Decimal(wanted)) == 0
    return bool(wanted == value)


def number_of(value: Any, is_number: bool) -> Decimal | None:
    if isinstance(value, bool) or value is None or (isinstance(value, str) and not is_number):
        return None
    return Decimal(value)


def in_range(number: Decimal, wanted: Sequence[Any]) -> bool:
    signs = {"=": (0,), "<": (-1,), "<=": (-1, 0), ">": (1,), ">=": (1, 0)}
    return all(
        EXACT.compare(number, Decimal(bound)) in signs[sign]
        for sign, bound in zip(wanted[::2], wanted[1::2], strict=True)
    )


def folded(text: str) -> str:
    return "".join(
        upper for character in text for lower in character.lower() for upper in lower.upper()
    )


def fits(wildcard: str, text: str) -> bool:
    pieces = re.findall(r"\\[*\\]|\*|[^*\\]", wildcard, re.DOTALL)
    expression = "".join(".*" if piece == "*" else re.escape(piece[-1]) for piece in pieces)
    return re.fullmatch(expression, text, re.DOTALL) is not None
