"""A scripted shop: changes of a table as the wire carries them, and what must come of them."""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass, field
from typing import Any

TABLE = "products"
FIRST_US = 1_706_542_773_915_835

Item = dict[str, dict[str, Any]]


@dataclass
class Shop:
    """Makes changes of `keys` items in the order of their creation, from a seed.

    `items` is the table as it stands after the changes made so far: the oracle.
    """

    seed: int = 0
    keys: int = 50
    filler: int = 0
    items: dict[str, Item] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._now_us = FIRST_US + self.seed * 1_000_000_000

    def change(self) -> tuple[str, bytes]:
        """The next change: the item's id and its Kinesis payload."""
        key = f"item-{self._random.randrange(self.keys):04d}"
        self._now_us += self._random.randrange(1, 900)
        self.made += 1
        old = self.items.get(key)
        body: dict[str, Any] = {
            "ApproximateCreationDateTime": self._now_us,
            "Keys": {"id": {"S": key}},
            "SizeBytes": 100,
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
        }
        if old is not None:
            body["OldImage"] = old
        if old is not None and self._random.random() < 0.15:
            name = "REMOVE"
            del self.items[key]
        else:
            name = "MODIFY" if old is not None else "INSERT"
            body["NewImage"] = self.items[key] = {
                "id": {"S": key},
                "name": {"S": self._random.choice(["Banane", "Äpfel", 'a "quoted" \\ name'])},
                "Stock": {"N": str(self._random.randrange(500))},
                "made": {"N": str(self.made)},
                **({"filler": {"S": "x" * self.filler}} if self.filler else {}),
            }
        return key, payload(name, body, event_id=uuid.UUID(int=self._random.getrandbits(128)))

    def changes(self, count: int) -> list[tuple[str, bytes]]:
        """The next `count` changes."""
        return [self.change() for _ in range(count)]

    def disturbed(self, count: int) -> list[tuple[str, bytes]]:
        """The next `count` changes with duplicates among them and some out of order."""
        made = self.changes(count)
        made += self._random.choices(made, k=count // 20)
        return (
            sorted(made, key=lambda _: self._random.random())
            if count < 3
            else _shuffled_nearby(made, self._random)
        )

    def plain(self) -> dict[str, dict[str, Any]]:
        """The items as Postgres should show them: id → parsed `item`."""
        return {
            key: {name: _plain(value) for name, value in item.items()}
            for key, item in self.items.items()
        }


def payload(name: str, body: dict[str, Any], *, event_id: object, table: str = TABLE) -> bytes:
    """A Kinesis Data Streams for DynamoDB record."""
    return json.dumps(
        {
            "awsRegion": "eu-north-1",
            "eventID": str(event_id),
            "eventName": name,
            "userIdentity": None,
            "recordFormat": "application/json",
            "tableName": table,
            "dynamodb": body,
            "eventSource": "aws:dynamodb",
        },
        separators=(",", ":"),
        ensure_ascii=False,
    ).encode()


def _shuffled_nearby(made: list[tuple[str, bytes]], rng: random.Random) -> list[tuple[str, bytes]]:
    """Mostly in order: each change moves by a few places, as the service delivers them."""
    order = sorted(range(len(made)), key=lambda place: place + rng.uniform(-6, 6))
    return [made[place] for place in order]


def _plain(value: dict[str, Any]) -> object:
    ((kind, inner),) = value.items()
    return int(inner) if kind == "N" else inner
