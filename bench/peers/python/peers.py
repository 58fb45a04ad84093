"""Peers in Python. `peers.py VARIANT FILE COUNT` speaks as `bench/peers/child.py` says.

A script of its own, and nothing of the product: some peers can't share an environment with it.
"""

from __future__ import annotations

import base64
import gc
import importlib
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

IMAGES = ("NewImage", "OldImage")

Decode = Callable[[bytes], Any]
# Of what was decoded: the `Stock` of each image.
Stocks = Callable[[Any], list[Any]]


def _typed(record: dict[str, Any]) -> list[Any]:
    return [image["Stock"]["N"] for image in _images(record)]


def _plain(record: dict[str, Any]) -> list[Any]:
    return [image["Stock"] for image in _images(record)]


def _images(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    change = record["dynamodb"]
    return (change[image] for image in IMAGES if image in change)


def _orjson() -> tuple[Decode, Stocks]:
    return orjson.loads, _typed


def _msgspec() -> tuple[Decode, Stocks]:
    return importlib.import_module("msgspec").json.Decoder().decode, _typed


def _boto3() -> tuple[Decode, Stocks]:
    types = importlib.import_module("boto3.dynamodb.types")
    deserializer = types.TypeDeserializer()
    # JSON carries binary as base64 text, which the original refuses.
    deserializer._deserialize_b = lambda value: types.Binary(base64.b64decode(value))  # noqa: SLF001
    deserialize = deserializer.deserialize

    def decode(payload: bytes) -> dict[str, Any]:
        record: dict[str, Any] = orjson.loads(payload)
        change = record["dynamodb"]
        for name in ("Keys", *IMAGES):
            if name in change:
                change[name] = {key: deserialize(value) for key, value in change[name].items()}
        return record

    return decode, _plain


def _dynamodb_json() -> tuple[Decode, Stocks]:
    loads = importlib.import_module("dynamodb_json.json_util").loads
    return lambda payload: loads(payload.decode()), _plain


def _commons_codec() -> tuple[Decode, Stocks]:
    module = importlib.import_module("commons_codec.transform.dynamodb")
    to_sql = module.DynamoDBCDCTranslator(table_name="products").to_sql

    def stocks(operation: Any) -> list[Any]:
        row = operation.parameters["typed"]
        return [row["Stock"]] if "Stock" in row else []

    return lambda payload: to_sql(orjson.loads(payload)), stocks


VARIANTS = {
    "orjson": _orjson,
    "msgspec": _msgspec,
    "boto3": _boto3,
    "dynamodb-json": _dynamodb_json,
    "commons-codec": _commons_codec,
}


def main(variant: str, file: str, count: int) -> None:
    decode, stocks = VARIANTS[variant]()
    payloads = list(_payloads(Path(file).read_bytes(), count))
    found = [stocks(decode(payload)) for payload in payloads]
    print(len(found), sum(map(len, found)), sum(int(s) for of in found for s in of), flush=True)
    # Off, which favours all that make objects.
    gc.disable()
    for _ in sys.stdin:
        for payload in payloads:
            decode(payload)
        print("done", flush=True)


def _payloads(file: bytes, count: int) -> Iterator[bytes]:
    at = 0
    for _ in range(count):
        (length,) = struct.unpack_from("<I", file, at)
        yield file[at + 4 : at + 4 + length]
        at += 4 + length


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
