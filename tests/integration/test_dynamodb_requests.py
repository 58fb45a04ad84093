"""DynamoDB's request bodies, sent as they are to an emulator of DynamoDB."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import boto3
import pytest
from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import Records, Rows, decode
from replicator.testing.items import with_bytes
from tests.changes import put, remove
from tests.columns import KEYS, TABLE, batch_of, items
from tests.property.test_decode import plain

BLOB = base64.b64encode(bytes(range(256))).decode()
KEY = {"n": {"N": "-1234567890123456789012345678901234567.8"}, "b": {"B": BLOB}}


class Wire:
    """Sends bodies as they are; botocore signs them and reads the answers."""

    def __init__(self, url: str) -> None:
        self.client = boto3.client(
            "dynamodb",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    @contextmanager
    def _body(self, operation: str, body: bytes) -> Iterator[None]:
        def replace(params: dict[str, Any], **_: Any) -> None:
            params["body"] = body

        name = f"before-call.dynamodb.{operation}"
        self.client.meta.events.register(name, replace)
        try:
            yield
        finally:
            self.client.meta.events.unregister(name, replace)

    def put(self, body: bytes | None) -> dict[str, Any]:
        assert body is not None
        with self._body("PutItem", body):
            answer: dict[str, Any] = self.client.put_item(TableName="-", Item={"-": {"S": "-"}})
        return answer

    def transact(self, body: bytes) -> None:
        with self._body("TransactWriteItems", body):
            self.client.transact_write_items(
                TransactItems=[{"Put": {"TableName": "-", "Item": {"-": {"S": "-"}}}}]
            )

    def table(self, name: str, *keys: tuple[str, str]) -> None:
        self.client.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": k, "AttributeType": kind} for k, kind in keys],
            KeySchema=[
                {"AttributeName": k, "KeyType": role}
                for (k, _), role in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
        )

    def get(self, table: str, key: Any) -> Any:
        answer = self.client.get_item(
            TableName=table,
            Key={name: with_bytes(value) for name, value in key.items()},
            ConsistentRead=True,
        )
        return values(answer["Item"]) if "Item" in answer else None


class _Deserializer(TypeDeserializer):  # type: ignore[misc]
    """A server may write 1E38 with all its zeros: more than the 38 digits that boto3 takes."""

    def _deserialize_n(self, value: str) -> Decimal:
        return Decimal(value)


def values(item: dict[str, Any]) -> Any:
    """An item of botocore's as plain values."""
    deserialize = _Deserializer().deserialize
    return {name: plain(deserialize(value)) for name, value in item.items()}


def rows_of(*payloads: bytes, keys: Any = (("n", "N"), ("b", "B"))) -> Rows:
    return decode(Records.pack(payloads)).newest("t", keys)


@pytest.fixture
def wire(ministack_url: str) -> Wire:
    made = Wire(ministack_url)
    for table in ("copy", "side"):
        made.table(table, ("n", "N"), ("b", "B"))
    return made


def test_random_items_arrive_as_they_were(ministack_url: str) -> None:
    wire = Wire(ministack_url)
    for table in ("copy", "side"):
        wire.table(table, ("id", "S"))

    generations = itertools.count(1)  # each example is newer than the one before

    @settings(max_examples=50)
    @given(st.lists(items(), min_size=1, max_size=4))
    def check(found: list[Any]) -> None:
        generation = next(generations)
        # DynamoDB has no attribute without a name.
        found = [{name or "-": value for name, value in item.items()} for item in found]
        rows = batch_of(found).newest(TABLE, KEYS)
        for body in rows.dynamodb_transactions(
            "copy",
            "side",
            version_attribute="v",
            generation=generation,
            rows_max=50,
        ):
            wire.transact(body)
        for i, item in enumerate(found):
            stored = wire.get("copy", {"id": {"S": str(i)}})
            assert stored.pop("v").startswith(f"{generation:010}-")
            sent = {"id": {"S": str(i)}, **item}
            sent.pop("v", None)
            assert stored == values({name: with_bytes(value) for name, value in sent.items()})

    check()


def test_a_put_replaces_older_items_only(wire: Wire) -> None:
    (insert,) = rows_of(put("t", KEY, 5, a={"N": "1"})).dynamodb_transactions(
        "copy", "side", version_attribute="v"
    )
    (update,) = rows_of(put("t", KEY, 6, a={"N": "2"})).dynamodb_puts("copy", version_attribute="v")
    (same,) = rows_of(put("t", KEY, 6, a={"N": "3"})).dynamodb_puts("copy", version_attribute="v")
    with pytest.raises(ClientError, match="ConditionalCheckFailed") as none:
        wire.put(update)
    assert "Item" not in none.value.response, "there is none to replace"
    wire.transact(insert)
    wire.put(update)
    assert wire.get("copy", KEY)["a"] == 2
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        wire.put(same)
    # A later generation is newer, whatever the value.
    (later,) = rows_of(put("t", KEY, 1, a={"N": "4"})).dynamodb_puts(
        "copy", version_attribute="v", generation=1
    )
    wire.put(later)
    assert wire.get("copy", KEY)["v"] == f"{1:010}-{1:040}"


def test_a_tombstone_keeps_older_writes_out(wire: Wire) -> None:
    def transaction(payload: bytes) -> bytes:
        (body,) = rows_of(payload).dynamodb_transactions("copy", "side", version_attribute="v")
        return body

    wire.transact(transaction(put("t", KEY, 5, a={"S": "x"})))
    wire.transact(transaction(remove("t", KEY, 7)))
    assert wire.get("copy", KEY) is None
    assert wire.get("side", KEY)["v"] == f"{0:010}-{7:040}"
    for late in (put("t", KEY, 6, a={"S": "y"}), remove("t", KEY, 6), remove("t", KEY, 7)):
        with pytest.raises(ClientError, match="TransactionCanceled"):
            wire.transact(transaction(late))
    assert wire.get("copy", KEY) is None
    wire.transact(transaction(put("t", KEY, 8, a={"S": "z"})))
    assert wire.get("copy", KEY)["a"] == "z"
    assert wire.get("side", KEY) is None


def test_items_are_what_botocore_would_send() -> None:
    """Not the emulator's leniency: botocore's own model parses our item as an answer."""
    import botocore.parsers
    import botocore.session

    model = botocore.session.get_session().get_service_model("dynamodb")
    shape = model.operation_model("GetItem").output_shape
    parser = botocore.parsers.create_parser("json")

    @settings(max_examples=100)
    @given(items())
    def check(item: Any) -> None:
        ((_, sent),) = batch_of([item]).newest(TABLE, KEYS).dynamodb_items()
        assert sent is not None
        answer = {"status_code": 200, "headers": {}, "body": b'{"Item":' + sent + b"}"}
        parsed = parser.parse(answer, shape)["Item"]
        whole = {"id": {"S": "0"}, **item}
        assert values(parsed) == values({name: with_bytes(v) for name, v in whole.items()})
        assert json.loads(sent) == whole

    check()
