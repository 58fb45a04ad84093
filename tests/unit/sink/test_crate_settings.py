"""What the configuration says of a CrateDB sink."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator import config
from replicator.aws import AWSSettings
from replicator.errors import FatalError
from replicator.sink.crate_settings import CrateConfig
from replicator.sink.place import SinkPlace

PLACE = SinkPlace("shop/p", "me", "store", AWSSettings())
FILE = """
pipelines:
  - name: p
    tables: [products]
    source: {kind: kinesis, stream: products}
    sinks: [{name: crate, kind: cratedb, %s}]
"""


def _loaded(tmp_path: Path, sink: str, **environment: str) -> CrateConfig:
    path = tmp_path / "replicator.yaml"
    path.write_text(FILE % sink)
    (loaded,) = config.load(path, environment).pipelines[0].sinks
    assert isinstance(loaded, CrateConfig)
    return loaded


def test_a_sink_as_it_is_written(tmp_path: Path) -> None:
    loaded = _loaded(
        tmp_path,
        "url: 'https://crate:4200/', user: me, password: hush, dynamic: ignored, shards: 6,"
        " replicas: 1-all, table: 'lake.{table}'",
    )
    settings = loaded.settings(PLACE)
    assert (settings.url, settings.dynamic) == ("https://crate:4200", False)
    assert (settings.shards, settings.replicas, settings.table) == (6, "1-all", "lake.{table}")
    assert (settings.pipeline, settings.store_id) == ("shop/p", "store")
    assert settings.password == "hush"
    assert "hush" not in repr(loaded) + repr(settings)


@pytest.mark.parametrize(
    ("sink", "place", "message"),
    [
        ("url: 'https://me:hush@crate:4200'", "url", "keys of their own"),
        ("url: 'crate:4200'", "url", "http://host:4200"),
        ("url: 'http://crate:4200/_sql'", "url", "http://host:4200"),
        ("url: 'http://crate:4200', ca_file: ca.pem", "crate", "not https"),
        ("replicas: many", "replicas", "pattern"),
        ("dynamic: strict", "dynamic", "'ignored'"),
        ("shard: 3", "crate", "did you mean 'shards'?"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, sink: str, place: str, message: str) -> None:
    with pytest.raises(FatalError) as refused:
        _loaded(tmp_path, sink)
    assert refused.value.code == "config_invalid"
    assert message in refused.value.message
    assert "hush" not in refused.value.message
