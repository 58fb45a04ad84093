from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from replicator.aws import AWSSettings
from replicator.core.plan import Encoding, Plan
from replicator.errors import FatalError
from replicator.model import Batching
from replicator.sink.place import SinkPlace
from replicator.sink.s3_selection import Selection
from replicator.sink.s3_settings import ROWS_MAX, S3Config

PLACE = SinkPlace("shop/products", "me", "", AWSSettings())


def config(**values: Any) -> S3Config:
    return S3Config.model_validate({"name": "archive", "kind": "s3", "bucket": "shop", **values})


def test_firehoses_names_are_ours() -> None:
    theirs = {
        "BucketARN": "arn:aws:s3:::shop",
        "Prefix": "x/!{timestamp:yyyy}/",
        "ErrorOutputPrefix": "bad/",
        "CompressionFormat": "UNCOMPRESSED",
        "BufferingHints": {"SizeInMBs": 64, "IntervalInSeconds": 60},
    }
    made = S3Config.model_validate({"name": "archive", "kind": "s3", **theirs})
    ours = config(
        prefix="x/!{timestamp:yyyy}/",
        error_output_prefix="bad/",
        compression="none",
        buffering={"size_mb": 64, "interval_seconds": 60},
    )
    assert made == ours
    settings = made.settings(PLACE)
    assert settings.batching == Batching(ROWS_MAX, 64 * 2**20, 60)
    assert settings.encoding == Encoding("change", "none")
    assert (settings.prefix.root, settings.pipeline) == ("x/", "shop/products")


def test_what_was_told_of_filters_is_known_again() -> None:
    attributes = {"hash": ["email"], "hash_key": "0123456789abcdef"}
    made = config(filter=['{"eventName": ["REMOVE"]}'], attributes=attributes).settings(PLACE)
    selection = Selection(frozenset({"products"}), made.filters, made.attributes)
    told = orjson.loads(orjson.dumps(selection.told()))
    assert "0123456789abcdef" not in str(told), "plans are read by others"
    plan = Plan("shard-1", 1, "", "", "me", settings=told)
    now = config(attributes={"mask": ["name"], **attributes}).settings(PLACE)
    assert Selection(frozenset(), (), now.attributes).told_by(plan) == selection
    with pytest.raises(FatalError, match="former key") as changed:
        Selection(frozenset()).told_by(plan)
    assert changed.value.code == "plan_hash_key_changed"
    old = Plan("shard-1", 1, "", "", "me", settings={"filters": ["{'include': None}"]})
    with pytest.raises(FatalError, match="version"):
        selection.told_by(old)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prefix": "!{timestamp:YYYY}/"}, "write y"),
        ({"error_output_prefix": "/x"}, "no slash"),
        ({"bucket": "No_Bucket"}, "bucket"),
        ({"columns": {"id": "text"}}, "Parquet"),
        ({"columns_max": 3}, "Parquet"),
        ({"format": "parquet", "columns": {"id": "varchar"}}, "varchar"),
        ({"format": "parquet", "columns": {"extra": "text"}}, "rest"),
        ({"state_prefix": "/"}, "state_prefix"),
        ({"state_prefix": "state"}, "state_prefix"),
        ({"duplicate_window_seconds": 1, "reorder_window_seconds": 2}, "no less than"),
        ({"buffering": {"SizeInMBs": 200}}, "128"),
        ({"Prefix": "a/", "prefix": "b/"}, "said twice"),
        ({"CompressionFormat": "Snappy"}, "compression"),
        ({"prefx": "a"}, "did you mean 'prefix'"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**values)


@pytest.mark.parametrize(
    "hidden", [{"exclude": ["email"]}, {"mask": ["email"]}, {"include": ["id"]}]
)
def test_raw_records_hide_nothing(hidden: dict[str, Any]) -> None:
    """Regression: attributes that were left out, masked or hashed were written as they came."""
    with pytest.raises(ValidationError, match="attributes: the records of format raw"):
        config(format="raw", attributes=hidden)
    assert config(format="plain", attributes=hidden).attributes is not None


def test_a_types_folder_is_for_errors() -> None:
    """Firehose refuses it too: data has no type of error."""
    with pytest.raises(ValidationError, match="stands in error_output_prefix only"):
        config(prefix="data/!{firehose:error-output-type}/")
