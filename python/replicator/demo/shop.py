"""A simulated supermarket: it buys, restocks, reprices, adds and delists.

Every change is a real call of the DynamoDB API. Each aisle owns its products, so one
product's changes follow each other and the aisle knows what its shelves hold.
Run as a process of its own: `python -m replicator.demo.shop '{"rate": 1000, …}'`.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from replicator.demo.child import TABLE, client, orders, run, say

Item = dict[str, Any]  # in DynamoDB's typed form
Request = dict[str, Any]

AISLES_MAX = 8
AISLE_CHANGES_PER_SECOND = 125
ROUND_SECONDS = 0.25
ROUND_CHANGES_MAX = 40
BATCH_ITEMS_MAX = 25  # of BatchWriteItem
REPORT_SECONDS = 0.2
# (name, category, SKU's letters, weight in kg, price); the first is the article's own.
ASSORTMENT: Final = (
    ("Banana", "Fruit", "BAN", "0.15", "0.3"),
    ("Apple", "Fruit", "APP", "0.18", "0.45"),
    ("Crème fraîche", "Dairy", "CRE", "0.2", "1.29"),
    ("Oat milk", "Dairy", "OAT", "1.03", "1.99"),
    ("Sourdough", "Bakery", "SOU", "0.75", "4.2"),
    ("Smörgåsrån", "Bakery", "SMO", "0.125", "1.75"),
    ("Salmon", "Fish", "SAL", "0.35", "12.5"),
    ("Lentils", "Dry goods", "LEN", "0.5", "2.15"),
    ("抹茶", "Tea", "MAT", "0.04", "9.9"),
    ("Dark chocolate 85 %", "Sweets", "CHO", "0.1", "2.49"),
)


class Aisle:
    """One aisle's products and what happens to them next. Pure: no clock, no I/O."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._items: dict[str, Item] = {}
        self._ids: list[str] = []
        self._delisted: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def added(self) -> Item:
        """A product that is new on the shelf; now and then one that was delisted."""
        chance = self._chance
        if self._delisted and chance.random() < 0.5:
            item = self._delisted.pop(chance.randrange(len(self._delisted)))
            item = item | {"Stock": {"N": str(chance.randrange(50, 200))}}
        else:
            item = self._made(str(uuid.UUID(int=chance.getrandbits(128), version=4)))
        product = item["id"]["S"]
        self._items[product] = item
        self._ids.append(product)
        return item

    def delivery(self, size: int) -> list[Request]:
        """At most `size` write requests for distinct products: restocked, repriced,
        added, delisted."""
        requests: list[Request] = []
        touched: set[str] = set()
        for _ in range(size):
            draw = self._chance.random()
            if draw < 0.14 or not self._ids:
                item = self.added()
                if item["id"]["S"] in touched:  # delisted a moment ago, in this very delivery
                    self._forget(item["id"]["S"])
                    continue
                requests.append({"PutRequest": {"Item": item}})
                touched.add(item["id"]["S"])
                continue
            product = self._popular()
            if product in touched:
                continue
            touched.add(product)
            if draw < 0.26 and len(self._ids) > 1:
                self._forget(product)
                requests.append({"DeleteRequest": {"Key": {"id": {"S": product}}}})
            else:
                item = self._repriced(product) if draw < 0.45 else self._restocked(product)
                requests.append({"PutRequest": {"Item": item}})
        return requests

    def basket(self, size: int) -> list[Request]:
        """At most `size` purchases of distinct products that are in stock, as the
        arguments of UpdateItem."""
        purchases: list[Request] = []
        for product in {self._popular() for _ in range(size)} if self._ids else ():
            stock = int(self._items[product]["Stock"]["N"])
            if stock == 0:
                continue
            pieces = self._chance.randint(1, min(stock, 6))
            self._items[product] = self._items[product] | {"Stock": {"N": str(stock - pieces)}}
            purchases.append(
                {
                    "TableName": TABLE,
                    "Key": {"id": {"S": product}},
                    "UpdateExpression": "SET Stock = Stock - :pieces",
                    "ConditionExpression": "Stock >= :pieces",
                    "ExpressionAttributeValues": {":pieces": {"N": str(pieces)}},
                }
            )
        return purchases

    def _made(self, product: str) -> Item:
        chance = self._chance
        name, category, letters, weight, price = chance.choice(ASSORTMENT)
        item: Item = {
            "id": {"S": product},
            "name": {"S": name},
            "Category": {"S": category},
            "SKU": {"S": f"{letters}{chance.randrange(1000):03}"},
            "Weight": {"N": weight},
            "Stock": {"N": str(chance.randrange(50, 200))},
            "Price": {"N": price},
        }
        # A table without a schema: some products know more about themselves.
        if chance.random() < 0.25:
            labels = ("organic", "vegan", "fair trade", "new")
            item["Labels"] = {"SS": chance.sample(labels, chance.randint(1, 4))}
            item["Sizes"] = {"NS": ["1", "2.5", "10"]}
        if chance.random() < 0.25:
            item["Nutrition"] = {
                "M": {
                    "energy_kj": {"N": str(chance.randrange(100, 3000))},
                    "exact": {"N": "0.12345678901234567890123456789012345678"},
                    "traces": {"L": [{"S": "nuts"}, {"NULL": True}, {"BOOL": False}]},
                }
            }
            item["Barcode"] = {"B": chance.randbytes(8)}
        return item

    def _restocked(self, product: str) -> Item:
        stock = int(self._items[product]["Stock"]["N"]) + self._chance.randint(10, 60)
        return self._replace(product, {"Stock": {"N": str(stock)}})

    def _repriced(self, product: str) -> Item:
        cents = self._chance.randint(10, 1999)
        return self._replace(product, {"Price": {"N": f"{cents / 100:.2f}"}})

    def _replace(self, product: str, attributes: Item) -> Item:
        self._items[product] = self._items[product] | attributes
        return self._items[product]

    def _popular(self) -> str:
        """Some products sell far better than others."""
        return self._ids[int(len(self._ids) * self._chance.random() ** 2)]

    def _forget(self, product: str) -> None:
        self._delisted.append(self._items.pop(product))
        self._ids.remove(product)


@dataclass(frozen=True, slots=True)
class Pace:
    """How many aisles there are, and what each does how often, for a wanted rate."""

    aisles: int
    round_changes: int
    round_seconds: float

    @classmethod
    def of(cls, rate: float) -> Pace:
        """The pace that makes `rate` changes a second, if the emulator keeps up."""
        aisles = min(AISLES_MAX, math.ceil(rate / AISLE_CHANGES_PER_SECOND))
        changes = min(ROUND_CHANGES_MAX, max(1, round(rate * ROUND_SECONDS / aisles)))
        return cls(aisles, changes, changes * aisles / rate)


class Shop:
    """Puts what the aisles decide on the wire. `changes` counts what was answered."""

    def __init__(self, dynamodb: Any, rate: float, seed: int) -> None:
        self._dynamodb = dynamodb
        self._rate = rate
        self._pace = Pace.of(rate)
        self._aisles = [Aisle(random.Random(seed + n)) for n in range(self._pace.aisles)]  # noqa: S311 no secret
        self.changes = 0
        self.calls: Counter[str] = Counter()

    async def stock(self, products: int) -> None:
        """Fills the shelves for the first time."""
        for aisle in self._aisles:
            share = math.ceil(products / len(self._aisles))
            for start in range(0, share, BATCH_ITEMS_MAX):
                size = min(BATCH_ITEMS_MAX, share - start)
                await self._write([{"PutRequest": {"Item": aisle.added()}} for _ in range(size)])

    async def trade(self, seconds: float) -> None:
        """Opens all aisles for that long."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number, aisle in enumerate(self._aisles):
                # Spread over the round, so that the changes come evenly.
                offset = self._pace.round_seconds * number / len(self._aisles)
                group.create_task(self._trade_in(aisle, time.monotonic() + offset, end))

    async def _trade_in(self, aisle: Aisle, due: float, end: float) -> None:
        seconds_per_change = len(self._aisles) / self._rate
        while (now := time.monotonic()) < end:
            if due > now:
                await asyncio.sleep(min(due, end) - now)
                continue
            changes = await self._round(aisle)
            # Slower than wanted: what is more than a second late is left out.
            due = max(due + changes * seconds_per_change, now - 1.0)

    async def _round(self, aisle: Aisle) -> int:
        changes = self._pace.round_changes
        delivered = min(BATCH_ITEMS_MAX, math.ceil(changes * 0.6))
        purchases = aisle.basket(changes - delivered)
        await self._check_out(purchases)
        requests = aisle.delivery(delivered)
        # One by its own call, so that every kind of write is there.
        await self._write(requests[:1])
        await self._write(requests[1:])
        return len(purchases) + len(requests)

    async def _check_out(self, purchases: Sequence[Request]) -> None:
        """One customer with one product, the others together in one transaction."""
        if not purchases:
            return
        await self._dynamodb.update_item(**purchases[0])
        self.calls["UpdateItem"] += 1
        self.changes += 1
        if basket := purchases[1:]:
            await self._dynamodb.transact_write_items(
                TransactItems=[{"Update": purchase} for purchase in basket]
            )
            self.calls["TransactWriteItems"] += 1
            self.changes += len(basket)

    async def _write(self, requests: Sequence[Request]) -> None:
        """A lone request by its own call, several by BatchWriteItem until all are taken."""
        if len(requests) == 1:
            await self._write_one(requests[0])
            return
        waiting = {TABLE: list(requests)} if requests else {}
        while waiting:
            answer = await self._dynamodb.batch_write_item(RequestItems=waiting)
            self.calls["BatchWriteItem"] += 1
            waiting = answer["UnprocessedItems"]
        self.changes += len(requests)

    async def _write_one(self, request: Request) -> None:
        if put := request.get("PutRequest"):
            await self._dynamodb.put_item(TableName=TABLE, Item=put["Item"])
            self.calls["PutItem"] += 1
        else:
            await self._dynamodb.delete_item(TableName=TABLE, Key=request["DeleteRequest"]["Key"])
            self.calls["DeleteItem"] += 1
        self.changes += 1


async def _serve(rate: float, seconds: float, products: int, seed: int) -> None:
    opened = asyncio.Event()

    async def business() -> None:
        async with client("dynamodb") as dynamodb:
            shop = Shop(dynamodb, rate, seed)
            await shop.stock(products)
            stocked = shop.changes
            say(stocked=stocked)
            await opened.wait()
            async with asyncio.TaskGroup() as group:
                reporting = group.create_task(_report(shop))
                await shop.trade(seconds)
                reporting.cancel()
            say(made=shop.changes, calls=dict(shop.calls), closed=True)

    async with asyncio.TaskGroup() as group:
        tasks = {
            group.create_task(orders(lambda _: opened.set())),
            group.create_task(business()),
        }
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


async def _report(shop: Shop) -> None:
    while True:
        say(made=shop.changes)
        await asyncio.sleep(REPORT_SECONDS)


if __name__ == "__main__":
    run(_serve(**orjson.loads(sys.argv[1])))
