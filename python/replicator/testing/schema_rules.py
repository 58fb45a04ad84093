"""When a reader by one schema can read what was written by another, as far as our schemas go.

Avro: https://avro.apache.org/docs/1.12.0/specification/#schema-resolution. JSON Schema:
https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/serdes-json.html#json-schema-compatibility-rules
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

_PRIMITIVES: Final = frozenset(
    {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
)
# A reader's type, and the writers' that it takes too.
_PROMOTED: Final[Mapping[str, frozenset[str]]] = {
    "long": frozenset({"int"}),
    "float": frozenset({"int", "long"}),
    "double": frozenset({"int", "long", "float"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}


def parsed(text: str) -> Any:
    """The schema. Raises ValueError when it is none."""
    schema = json.loads(text)
    if not isinstance(schema, dict | list | str):
        raise ValueError("a schema is an object, a list or a name")  # noqa: TRY004
    return schema


def canonical(kind: str, text: str) -> str:
    """Two spellings of one schema are one; it is kept and given back in this one. Of Avro it is
    what Java's `Schema.toString` writes: names without the namespace that they stand in."""
    schema = parsed(text)
    return json.dumps(_short(schema, "") if kind == "AVRO" else schema, separators=(",", ":"))


def _short(schema: Any, within: str) -> Any:
    if isinstance(schema, list):
        return [_short(branch, within) for branch in schema]
    if isinstance(schema, str):
        space, _, name = schema.rpartition(".")
        return name if space == within else schema
    if schema.keys() == {"type"}:
        return _short(schema["type"], within)
    made = dict(schema)
    if made["type"] in {"record", "enum", "fixed"}:
        space, _, made["name"] = made["name"].rpartition(".")
        told = made.pop("namespace", within)
        space = space or told
        if space != within:
            made["namespace"] = space
        within = space
    if "fields" in made:
        made["fields"] = [{**each, "type": _short(each["type"], within)} for each in made["fields"]]
    if "items" in made:
        made["items"] = _short(made["items"], within)
    return made


def complaints(kind: str, *, reader: Any, writer: Any) -> list[str]:
    """Why what was written can't be read; nothing when it can."""
    if kind == "AVRO":
        return list(_avro(reader, writer, _names(reader, {}), _names(writer, {}), ""))
    return list(_json(reader, writer, reader, writer, ""))


# ---- Avro


def _names(schema: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Records by their short name, which references are looked up by."""
    if isinstance(schema, list):
        for branch in schema:
            _names(branch, found)
    elif isinstance(schema, dict):
        if "name" in schema and schema.get("type") in {"record", "enum", "fixed"}:
            found[schema["name"].rpartition(".")[2]] = schema
        for field in schema.get("fields", []):
            _names(field["type"], found)
        _names(schema.get("items"), found)
    return found


def _type(schema: Any, names: Mapping[str, Any]) -> tuple[str, Any]:
    if isinstance(schema, list):
        return "union", schema
    if isinstance(schema, str):
        if schema in _PRIMITIVES:
            return schema, schema
        schema = names[schema.rpartition(".")[2]]
    if isinstance(schema["type"], dict | list):
        return _type(schema["type"], names)
    return schema["type"], schema


def _avro(
    reader: Any, writer: Any, ours: Mapping[str, Any], theirs: Mapping[str, Any], place: str
) -> Iterator[str]:
    (mine, read), (its, wrote) = _type(reader, ours), _type(writer, theirs)
    if its == "union":
        for branch in wrote:
            yield from _avro(reader, branch, ours, theirs, place)
    elif mine == "union":
        tried = {_type(one, ours)[0]: [*_avro(one, writer, ours, theirs, place)] for one in read}
        if all(tried.values()):
            yield from tried.get(its, [f"{place}: MISSING_UNION_BRANCH {its}"])
    elif mine != its:
        if its not in _PROMOTED.get(mine, ()):
            yield f"{place}: TYPE_MISMATCH {its} can't be read as {mine}"
    elif mine == "record":
        yield from _avro_record(read, wrote, ours, theirs, place)
    elif mine == "enum" and not set(wrote["symbols"]) <= set(read["symbols"]):
        yield f"{place}: MISSING_ENUM_SYMBOLS"
    elif mine == "array":
        yield from _avro(read["items"], wrote["items"], ours, theirs, f"{place}[]")


def _avro_record(
    read: Any, wrote: Any, ours: Mapping[str, Any], theirs: Mapping[str, Any], place: str
) -> Iterator[str]:
    if read["name"].rpartition(".")[2] != wrote["name"].rpartition(".")[2]:
        yield f"{place}: NAME_MISMATCH {wrote['name']} isn't {read['name']}"
    written = {field["name"]: field for field in wrote["fields"]}
    for field in read["fields"]:
        name = f"{place}/{field['name']}"
        if field["name"] in written:
            yield from _avro(field["type"], written[field["name"]]["type"], ours, theirs, name)
        elif "default" not in field:
            yield f"{name}: READER_FIELD_MISSING_DEFAULT_VALUE"


# ---- JSON Schema


def _json(reader: Any, writer: Any, ours: Any, theirs: Any, place: str) -> Iterator[str]:
    reader, writer = _referred(reader, ours), _referred(writer, theirs)
    if "oneOf" in reader or "oneOf" in writer:
        branches = reader.get("oneOf", [reader])
        for wrote in writer.get("oneOf", [writer]):
            tried = [list(_json(branch, wrote, ours, theirs, place)) for branch in branches]
            if all(tried):
                yield min(tried, key=len)[0]
        return
    types = reader.get("type")
    if types is not None and types != writer.get("type"):
        if (types, writer.get("type")) != ("number", "integer"):
            yield f"{place}: TYPE_CHANGED"
        return
    if types == "array":
        yield from _json(
            reader.get("items", {}), writer.get("items", {}), ours, theirs, f"{place}[]"
        )
    if types == "object":
        yield from _json_members(reader, writer, ours, theirs, place)


def _json_members(
    reader: Mapping[str, Any], writer: Mapping[str, Any], ours: Any, theirs: Any, place: str
) -> Iterator[str]:
    read, wrote = reader.get("properties", {}), writer.get("properties", {})
    is_closed = writer.get("additionalProperties") is False
    for name, member in read.items():
        if name in wrote:
            yield from _json(member, wrote[name], ours, theirs, f"{place}/{name}")
        elif not is_closed and member:
            yield f"{place}/{name}: PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL"
        elif name in reader.get("required", []):
            yield f"{place}/{name}: REQUIRED_PROPERTY_ADDED_TO_UNOPEN_CONTENT_MODEL"
    if reader.get("additionalProperties") is False:
        for name in wrote.keys() - read.keys():
            yield f"{place}/{name}: PROPERTY_REMOVED_FROM_CLOSED_CONTENT_MODEL"
        if not is_closed:
            yield f"{place}: ADDITIONAL_PROPERTIES_REMOVED"
    missing = set(reader.get("required", [])) - set(writer.get("required", []))
    if missing & wrote.keys():
        yield f"{place}: REQUIRED_ATTRIBUTE_ADDED"


def _referred(schema: Any, whole: Any) -> Any:
    while isinstance(schema, dict) and "$ref" in schema:
        place = whole
        for name in schema["$ref"].removeprefix("#/").split("/"):
            place = place[name]
        schema = place
    return schema
