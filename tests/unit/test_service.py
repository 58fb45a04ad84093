from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from replicator import config as configuration
from replicator.errors import FatalError, TransientError, one_cause
from replicator.service import CLOSE_SECONDS, Service, closing
from tests.pausable_loop import run_virtually

TEXT = """
name: shop
pipelines:
  - name: products
    tables: [products]
    source: {stream: products}
    sinks: [{name: warehouse, kind: postgres, dsn: "postgresql://localhost/db"}]
drain_timeout_seconds: 7
"""


def test_the_cause_is_found_however_deep_it_lies() -> None:
    first, echo = FatalError("denied", "no permission"), TransientError("cut", "connection lost")
    nested = BaseExceptionGroup("a", [BaseExceptionGroup("b", [first]), echo])
    with pytest.raises(FatalError) as caught, one_cause():
        raise nested
    assert caught.value is first
    assert caught.value.__cause__ is nested


def test_a_bug_is_never_taken_for_an_echo() -> None:
    bug = KeyError("a bug")
    with pytest.raises(KeyError) as caught, one_cause():
        raise BaseExceptionGroup("a", [FatalError("denied", "no permission"), bug])
    assert caught.value is bug


def test_what_is_no_group_passes_as_it_is() -> None:
    with pytest.raises(KeyError), one_cause():
        raise KeyError("a bug")


def test_a_stalled_other_side_is_not_waited_for() -> None:
    class Stalled:
        async def close(self) -> None:
            await asyncio.Event().wait()

    async def main() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with closing(Stalled()):
            pass
        return loop.time() - begun

    assert run_virtually(main()) == pytest.approx(CLOSE_SECONDS, abs=0.1)


def test_a_worker_has_a_name_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(TEXT)
    config = configuration.load(file, {})
    assert Service(config).owner != Service(config).owner
