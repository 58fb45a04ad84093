"""Values by a registry's schemas, as other people's libraries read them: the oracle of the core."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import fastavro
import jsonschema
from boto3.dynamodb.types import TypeDeserializer

from replicator.testing.items import with_bytes
from tests.columns import exact
from tests.property.test_decode import plain


def number_of(value: bytes) -> int:
    """The schema's number in a framed value."""
    assert value[0] == 0
    return int.from_bytes(value[1:5], "big")


def avro_value(value: bytes, writer: Any, reader: Any = None) -> Any:
    """A framed Avro value; with another schema, resolved as a reader does that knows only it."""
    stream = io.BytesIO(value[5:])
    found: Any = fastavro.schemaless_reader(stream, writer, reader)
    assert not stream.read(), "the schema says less than was written"
    return found


def json_value(value: bytes, schema: Any) -> Any:
    """A framed JSON value, after the schema was found to hold; numbers as they are written."""
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(json.loads(value[5:]))
    return exact(value[5:])


def document(image: Mapping[str, Any]) -> dict[str, Any]:
    """An item of DynamoDB's form as plain values: numbers Decimal, binary base64, sets sorted."""
    deserialize = TypeDeserializer().deserialize
    return {name: plain(deserialize(with_bytes(value))) for name, value in image.items()}


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


_UNDONE: Mapping[str, Callable[[Any], Any]] = {
    "numeric": Decimal,
    "jsonb": exact,
    "bytea": _base64,
    "numeric[]": lambda texts: [Decimal(text) for text in texts],
    "bytea[]": lambda values: [_base64(value) for value in values],
}


def avro_document(item: Mapping[str, Any] | None, schema: Any) -> Any:
    """The plain values of an item that Avro read, its schema's own words used."""
    if item is None:
        return None
    fields = {field["name"]: field for field in item_schema(schema)["fields"]}
    found = exact(item["extra"])
    for name, value in item.items():
        if name != "extra" and value is not None:
            field = fields[name]
            undo = _UNDONE.get(field["column"], lambda same: same)
            found[field.get("attribute", name)] = undo(value)
    return found


def json_document(item: Mapping[str, Any] | None) -> Any:
    """The same of an item that JSON has."""
    return (
        None
        if item is None
        else {name: value for name, value in item.items() if name != "extra"}
        | item.get("extra", {})
    )


def item_schema(schema: Any) -> Any:
    """The record of an item, alone or in its change."""
    if schema["name"].endswith("Item"):
        return schema
    (item,) = (field["type"][1] for field in schema["fields"] if field["name"] == "item")
    return item
