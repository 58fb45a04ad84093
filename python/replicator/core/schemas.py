"""Schemas of values for a registry, and of objects: grown from items, written, and read back.

Columns are an item's attributes with their types (`_core.Columns`), in order. A column keeps its
type for good, and what doesn't fit it goes to the rest; so a schema only ever gets optional
members, which is what a registry calls BACKWARD compatible, and for Avro FULL too.
https://docs.confluent.io/platform/current/schema-registry/fundamentals/schema-evolution.html
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

Columns: TypeAlias = tuple[tuple[str, str], ...]
"""(attribute, type) of each."""
Format: TypeAlias = Literal["avro", "json_schema"]
Value: TypeAlias = Literal["change", "item"]

REST: Final = "extra"
"""Where everything is that has no column, or doesn't fit it."""

_BY_TAG: Final = {
    "S": "text",
    "N": "numeric",
    "B": "bytea",
    "BOOL": "boolean",
    "M": "jsonb",
    "L": "jsonb",
    "SS": "text[]",
    "NS": "numeric[]",
    "BS": "bytea[]",
}
# The core takes no more.
_COLUMNS_MAX: Final = 1_500
# A longer one is data that is used as a name.
_NAME_CHARACTERS_MAX: Final = 128


# ---- grown


def grown(columns: Columns, unplanned: Sequence[tuple[str, str, int]], columns_max: int) -> Columns:
    """With columns for attributes that have none: (attribute, DynamoDB's type, how often met). Each
    gets the type that it mostly came with, once for all; NULL tells none."""
    seen: dict[str, Counter[str]] = {}
    for name, tag, count in unplanned:
        if _has_column(name, tag):
            seen.setdefault(name, Counter())[_BY_TAG[tag]] += count
    more = ((name, types.most_common(1)[0][0]) for name, types in seen.items())
    return (*columns, *more)[: max(columns_max, len(columns))]


def _has_column(attribute: str, tag: str) -> bool:
    return tag in _BY_TAG and attribute != REST and len(attribute) <= _NAME_CHARACTERS_MAX


def distinct(
    columns: Columns, unplanned: Sequence[tuple[str, str, int]], taken: Sequence[str]
) -> list[tuple[str, str, int]]:
    """Without attributes that differ from a column, from one of `taken`, or from one before them
    in capitals alone: to readers of tables they are one, https://docs.aws.amazon.com/athena/latest/ug/tables-databases-columns-names.html
    (Who has the very name of `taken` gets a `_`, as the core gives it.)"""
    names, lower = {*taken}, {name.lower() for name in taken}
    known = dict.fromkeys(name for name, _ in columns)
    met = dict.fromkeys(name for name, tag, _ in unplanned if _has_column(name, tag))
    kept: set[str] = set()
    for attribute in (*known, *(name for name in met if name not in known)):
        name = attribute
        while name in names:
            name += "_"
        if attribute in known or name.lower() not in lower:
            kept.add(attribute)
            names.add(name)
            lower.add(name.lower())
    return [each for each in unplanned if each[0] in kept and each[0] not in known]


def joined(
    found: Columns, ours: Columns, told: Mapping[str, str], columns_max: int = _COLUMNS_MAX
) -> Columns:
    """What both have. Another worker's columns stay where and what they are, unless the operator
    told the type; to `columns_max` only what the operator told is added then."""
    known = {name for name, _ in found}
    more = [(name, kind) for name, kind in ours if name not in known]
    room = columns_max - len(found) - sum(name in told for name, _ in more)
    others = {name for name, _ in [each for each in more if each[0] not in told][: max(room, 0)]}
    both = (*found, *(each for each in more if each[0] in told or each[0] in others))
    return tuple((name, told.get(name, kind)) for name, kind in both)[:_COLUMNS_MAX]


# ---- written


def written(format_: Format, value: Value, columns: Columns, namespace: str) -> dict[str, Any]:
    """The schema of values that the core writes by these columns; its records are `Change` and
    `Item` of the namespace. The same arguments give the same schema."""
    if format_ == "avro":
        return _avro(value, columns, namespace)
    return _json(value, columns, namespace)


def record_name(value: Value, namespace: str) -> str:
    """The full name of a value's own record: what strategies of subjects' names go by."""
    return f"{namespace}.{value.capitalize()}"


def namespace_of(table: str, prefix: str = "replicator") -> str:
    """Where a table's records are: names have letters, digits and `_` only, and points between."""
    return f"{prefix}.{_plain_name(table)}"


def _plain_name(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", text)
    return f"_{plain}" if not plain or plain[0].isdigit() else plain


def _field_names(columns: Columns) -> list[str]:
    names: list[str] = []
    for attribute, _ in columns:
        name = _plain_name(attribute)
        while name in names or name == REST:
            name += "_"
        names.append(name)
    return names


_AVRO_TYPES: Final[Mapping[str, Any]] = {
    "text": "string",
    "numeric": "string",
    "jsonb": "string",
    "bigint": "long",
    "boolean": "boolean",
    "bytea": "bytes",
    "timestamptz": {"type": "long", "logicalType": "timestamp-micros"},
    "text[]": {"type": "array", "items": "string"},
    "numeric[]": {"type": "array", "items": "string"},
    "bytea[]": {"type": "array", "items": "bytes"},
}
_DECIMAL: Final = re.compile(r"numeric\(([0-9]{1,2}), ?([0-9]{1,2})\)")


def _avro_type(kind: str) -> Any:
    if digits := _DECIMAL.fullmatch(kind):
        precision, scale = map(int, digits.groups())
        return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}
    return _AVRO_TYPES[kind]


def _optional(type_: Any) -> dict[str, Any]:
    return {"type": ["null", type_], "default": None}


def _avro_item(columns: Columns, namespace: str) -> dict[str, Any]:
    fields: list[dict[str, Any]] = []
    for name, (attribute, kind) in zip(_field_names(columns), columns, strict=True):
        field = {"name": name, **_optional(_avro_type(kind)), "column": kind}
        fields.append(field if name == attribute else {**field, "attribute": attribute})
    doc = "all other attributes, as JSON"
    fields.append({"name": REST, "type": "string", "default": "{}", "doc": doc})
    return {"type": "record", "name": "Item", "namespace": namespace, "fields": fields}


def _avro(value: Value, columns: Columns, namespace: str) -> dict[str, Any]:
    item = _avro_item(columns, namespace)
    if value == "item":
        return item
    symbols = ["INSERT", "MODIFY", "REMOVE"]
    return {
        "type": "record",
        "name": "Change",
        "namespace": namespace,
        "fields": [
            {"name": "table", **_optional("string")},
            {"name": "event", "type": {"type": "enum", "name": "Event", "symbols": symbols}},
            {"name": "key", "type": "string", "doc": "as the record's key: JSON"},
            {"name": "version", "type": "string"},
            {"name": "late", "type": "boolean", "default": False},
            {"name": "item", **_optional(item)},
            {"name": "old", **_optional(f"{namespace}.Item")},
        ],
    }


_BASE64: Final = {"type": "string", "contentEncoding": "base64"}
_JSON_TYPES: Final[Mapping[str, Any]] = {
    "text": {"type": "string"},
    "numeric": {"type": "number"},
    "jsonb": {},
    "bigint": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "bytea": _BASE64,
    "timestamptz": {"type": "string", "format": "date-time"},
    "text[]": {"type": "array", "items": {"type": "string"}},
    "numeric[]": {"type": "array", "items": {"type": "number"}},
    "bytea[]": {"type": "array", "items": _BASE64},
}


def _json_item(columns: Columns) -> dict[str, Any]:
    # Closed: to an open one no member could be added, as old values may have it in any type.
    # https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/serdes-json.html
    members = {
        name: {**_JSON_TYPES["numeric" if _DECIMAL.fullmatch(kind) else kind], "column": kind}
        for name, kind in columns
    }
    rest = {"type": "object", "description": "all other attributes"}
    return {"type": "object", "properties": {**members, REST: rest}, "additionalProperties": False}


def _json(value: Value, columns: Columns, namespace: str) -> dict[str, Any]:
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": record_name(value, namespace),
    }
    item = _json_item(columns)
    if value == "item":
        return head | item
    image = {"oneOf": [{"type": "null"}, {"$ref": "#/definitions/Item"}]}
    return {
        **head,
        "type": "object",
        "properties": {
            "table": {"oneOf": [{"type": "null"}, {"type": "string"}]},
            "event": {"type": "string", "enum": ["INSERT", "MODIFY", "REMOVE"]},
            "key": {"type": "object", "description": "as the record's key"},
            "version": {"type": "string"},
            "item": image,
            "old": image,
            "late": {"type": "boolean"},
        },
        "required": ["table", "event", "key", "version", "item", "old"],
        "additionalProperties": False,
        "definitions": {"Item": item},
    }


# ---- read back


def columns_of(format_: Format, value: Value, schema: Any) -> Columns:
    """The columns of a schema's items, as far as they can be told; somebody else may have written
    it. What it doesn't say is taken from the types."""
    read = _avro_columns if format_ == "avro" else _json_columns
    found: dict[str, str] = {}
    for attribute, kind in read(value, schema):
        if kind is not None and attribute != REST:
            found.setdefault(attribute, kind)
    return tuple(found.items())[:_COLUMNS_MAX]


def is_written(format_: Format, value: Value, schema: Any, columns: Columns) -> bool:
    """True when values by these columns can be read by the schema: its members are those, in
    order, whatever its records are called and however they are described."""
    ours = written(format_, value, columns, "n")
    reduced = _reduced if format_ == "avro" else _said
    return bool(reduced(schema) == reduced(ours))


_Read: TypeAlias = list[tuple[str, str | None]]


def _avro_columns(value: Value, schema: Any) -> _Read:
    fields = _fields(schema)
    if value == "change":
        items = [field for field in fields if field.get("name") == "item"]
        fields = _fields(_branch(items[0].get("type"))) if items else []
    return [(str(field.get("attribute", field.get("name"))), _avro_kind(field)) for field in fields]


def _fields(schema: Any) -> list[Mapping[str, Any]]:
    fields = _mapping(schema).get("fields")
    return (
        [field for field in fields if isinstance(field, Mapping)]
        if isinstance(fields, list)
        else []
    )


def _branch(union: Any) -> Any:
    """What stands beside null."""
    if isinstance(union, list) and len(union) == 2 and union[0] == "null":
        return union[1]
    return None


def _avro_kind(field: Mapping[str, Any]) -> str | None:
    type_, told = _branch(field.get("type")), field.get("column")
    if isinstance(told, str) and _is_type(told) and _reduced(_avro_type(told)) == _reduced(type_):
        return told
    if isinstance(type_, Mapping) and type_.get("logicalType") == "decimal":
        digits = f"numeric({type_.get('precision')},{type_.get('scale', 0)})"
        return digits if type_.get("type") == "bytes" and _is_type(digits) else None
    return next((kind for kind, known in _AVRO_TYPES.items() if known == _reduced(type_)), None)


def _is_type(kind: str) -> bool:
    if digits := _DECIMAL.fullmatch(kind):
        precision, scale = map(int, digits.groups())
        return 1 <= precision <= 38 and scale <= precision
    return kind in _AVRO_TYPES


_AVRO_SAID: Final = ("type", "items", "symbols", "logicalType", "precision", "scale")


def _reduced(schema: Any) -> Any:
    """What decides about the bytes of a value, and the names of the members."""
    if isinstance(schema, list):
        return [_reduced(branch) for branch in schema]
    if not isinstance(schema, Mapping):
        # A record that stands elsewhere is named, with its namespace or without.
        return schema.rpartition(".")[2] if isinstance(schema, str) else schema
    if "fields" in schema:
        return [(field.get("name"), _reduced(field.get("type"))) for field in _fields(schema)]
    found = {name: _reduced(schema[name]) for name in _AVRO_SAID if name in schema}
    return found["type"] if found.keys() == {"type"} else found


def _json_columns(value: Value, schema: Any) -> _Read:
    item = _mapping(schema)
    if value == "change":
        item = _mapping(_mapping(item.get("definitions")).get("Item"))
    return [(name, _json_kind(member)) for name, member in _mapping(item.get("properties")).items()]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _json_kind(member: Any) -> str | None:
    said, told = _said(member), _mapping(member).get("column")
    if isinstance(told, str) and _is_type(told):
        kind = "numeric" if _DECIMAL.fullmatch(told) else told
        return told if said == _JSON_TYPES[kind] else None
    return next((kind for kind, known in _JSON_TYPES.items() if known == said), None)


_DESCRIBED: Final = frozenset({"$schema", "$id", "title", "description", "column", "default"})


def _said(schema: Any) -> Any:
    """What decides whether a value is valid. (A member may be named as a word of it.)"""
    if isinstance(schema, list):
        return [_said(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: {key: _said(each) for key, each in inner.items()}
        if name in {"properties", "definitions"} and isinstance(inner, Mapping)
        else _said(inner)
        for name, inner in schema.items()
        if name not in _DESCRIBED
    }


def is_named(format_: Format, schema: Any, name: str) -> bool:
    """True when nothing of a record's full name keeps it from being a next version's. (Of a JSON
    Schema nothing does.)"""
    if format_ != "avro":
        return True
    found, space = _mapping(schema).get("name"), _mapping(schema).get("namespace")
    return name in (found, f"{space}.{found}")


def text_of(schema: Any) -> str:
    """As it is sent: one spelling."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
