"""The true history of a table: changes as the wire carries them, and the items they lead to.

Everything follows from the seed and the calls, the times too: they begin at a fixed instant.
Each put gives the item a number that it never had, so a state never comes back; and within
one millisecond an item that was absent at its beginning isn't deleted. So what must be
stored in the end has one answer, however the records are repeated, disordered or split up:
a put and a delete of one instant would leave it to their arrival.
"""

from __future__ import annotations

import base64
import json
import random
import uuid
from typing import Any, TypeAlias

Item: TypeAlias = dict[str, dict[str, Any]]

FIRST_US = 1_760_000_000_000_123
_NAMES = ("Banane", "Äpfel", "Crème fraîche", "抹茶", 'a "quoted" \\ name', "", "🥕 carrots")
_TTL_IDENTITY = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}


class History:
    """Changes of `keys` items; `items` is the table as it stands after those made so far."""

    def __init__(self, seed: int, table: str, *, keys: int = 500) -> None:
        self.items: dict[str, Item] = {}
        self.made = 0
        self._table = table
        self._keys = keys
        self._chance = random.Random(seed)  # noqa: S311 a scenario, no secret
        self._now_us = FIRST_US
        # By key: the millisecond of its last change, and whether the item existed before it.
        self._instants: dict[str, tuple[int, bool]] = {}

    def pick(self) -> str:
        """A key; some are changed much more often than others."""
        among = self._keys if self._chance.random() < 0.7 else min(10, self._keys)
        return f"item-{self._chance.randrange(among):05d}"

    def later(self) -> None:
        """Time passes before the next change, by up to two milliseconds."""
        self._now_us += self._chance.randrange(1, 2_000)

    def change(
        self, key: str, *, is_exact: bool = True, expires: bool = False, filler: int = 0
    ) -> bytes:
        """The item's next change, now. `is_exact` means microseconds; `expires` deletes it as
        the service does, if it may be deleted."""
        chance = self._chance
        self.made += 1
        old = self.items.get(key)
        may_delete = self._begin(key) and old is not None
        body: dict[str, Any] = {
            "ApproximateCreationDateTime": self._now_us if is_exact else self._now_us // 1_000,
            "Keys": {"id": {"S": key}},
            "SizeBytes": 100,
            "ApproximateCreationDateTimePrecision": "MICROSECOND" if is_exact else "MILLISECOND",
        }
        if old is not None:
            body["OldImage"] = old
        identity = None
        if may_delete and (expires or chance.random() < 0.12):
            name = "REMOVE"
            identity = _TTL_IDENTITY if expires else None
            del self.items[key]
        else:
            name = "INSERT" if old is None else "MODIFY"
            body["NewImage"] = self.items[key] = self._item(key, filler)
        return json.dumps(
            {
                "awsRegion": "eu-north-1",
                "eventID": str(uuid.UUID(int=chance.getrandbits(128))),
                "eventName": name,
                "userIdentity": identity,
                "recordFormat": "application/json",
                "tableName": self._table,
                "dynamodb": body,
                "eventSource": "aws:dynamodb",
            },
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()

    def poison(self) -> bytes:
        """A record that no decoder takes."""
        return self._chance.choice(
            (b"\x89PNG\r\n\x1a\n", b'{"dynamodb": {"Keys"', b"{}", b'{"eventName":"INSERT"}')
        )

    def _begin(self, key: str) -> bool:
        """Whether the item existed before the current millisecond."""
        now_ms = self._now_us // 1_000
        instant, existed = self._instants.get(key, (0, False))
        if instant != now_ms:
            existed = key in self.items
            self._instants[key] = (now_ms, existed)
        return existed

    def _item(self, key: str, filler: int) -> Item:
        chance = self._chance
        item: Item = {
            "id": {"S": key},
            "made": {"N": str(self.made)},
            "name": {"S": chance.choice(_NAMES)},
            "stock": {"N": str(chance.randrange(500))},
        }
        if chance.random() < 0.3:
            digits = str(chance.randrange(10**37, 10**38))
            item["price"] = {"N": f"{digits[:-9]}.{digits[-9:]}"}
        if chance.random() < 0.3:
            item["tags"] = {"SS": sorted({f"tag {chance.randrange(9)}" for _ in range(3)})}
            item["sizes"] = {"NS": sorted({str(chance.randrange(99)) for _ in range(3)})}
        if chance.random() < 0.3:
            item["picture"] = {"B": base64.b64encode(chance.randbytes(12)).decode()}
        if chance.random() < 0.3:
            shelf = {"M": {"row": {"N": "3"}, "is full": {"BOOL": True}, "left": {"NULL": True}}}
            item["places"] = {"L": [shelf, {"S": "till"}]}
        if filler:
            item["filler"] = {"S": "x" * filler}
        return item
