from __future__ import annotations

import random
from typing import Any

import pytest

from replicator.demo.shop import BATCH_ITEMS_MAX, ROUND_CHANGES_MAX, Aisle, Pace


def key_of(request: dict[str, Any]) -> str:
    if "PutRequest" in request:
        return str(request["PutRequest"]["Item"]["id"]["S"])
    return str(request["DeleteRequest"]["Key"]["id"]["S"])


@pytest.fixture(params=range(5))
def aisle(request: pytest.FixtureRequest) -> Aisle:
    return Aisle(random.Random(request.param))


def test_a_table_kept_by_the_requests_alone_equals_the_shelves(aisle: Aisle) -> None:
    table: dict[str, Any] = {}
    for _ in range(40):
        item = aisle.added()
        table[item["id"]["S"]] = dict(item)
    for _ in range(200):
        for purchase in aisle.basket(10):
            stored = table[purchase["Key"]["id"]["S"]]
            stock = int(stored["Stock"]["N"])
            pieces = int(purchase["ExpressionAttributeValues"][":pieces"]["N"])
            assert 1 <= pieces <= stock  # the condition holds
            stored["Stock"] = {"N": str(stock - pieces)}
        for request in aisle.delivery(BATCH_ITEMS_MAX):
            if "PutRequest" in request:
                table[key_of(request)] = dict(request["PutRequest"]["Item"])
            else:
                del table[key_of(request)]
    assert len(table) == len(aisle)
    assert table == aisle._items


def test_one_call_never_names_a_product_twice(aisle: Aisle) -> None:
    for _ in range(3):
        aisle.added()
    for _ in range(300):
        keys = [key_of(request) for request in aisle.delivery(BATCH_ITEMS_MAX)]
        assert len(keys) == len(set(keys)) <= BATCH_ITEMS_MAX
        bought = [purchase["Key"]["id"]["S"] for purchase in aisle.basket(BATCH_ITEMS_MAX)]
        assert len(bought) == len(set(bought))


def test_everything_a_shop_does_happens(aisle: Aisle) -> None:
    first = {aisle.added()["id"]["S"] for _ in range(30)}
    requests = [request for _ in range(100) for request in aisle.delivery(BATCH_ITEMS_MAX)]
    deleted = {key_of(request) for request in requests if "DeleteRequest" in request}
    put = {key_of(request) for request in requests if "PutRequest" in request}
    assert deleted
    assert put - first, "new products"
    last = {key_of(request): "PutRequest" in request for request in requests}
    assert any(last[product] for product in deleted), "products that came back"


def test_an_empty_aisle_sells_nothing() -> None:
    assert Aisle(random.Random(1)).basket(5) == []


@pytest.mark.parametrize("rate", [0.5, 1, 10, 125, 126, 1_000, 5_000, 50_000])
def test_the_pace_makes_the_wanted_rate(rate: float) -> None:
    pace = Pace.of(rate)
    assert 1 <= pace.aisles <= 8
    assert 1 <= pace.round_changes <= ROUND_CHANGES_MAX
    assert pace.aisles * pace.round_changes / pace.round_seconds == pytest.approx(rate)
