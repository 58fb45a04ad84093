from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from replicator import config as configuration
from replicator.errors import FatalError, TransientError, one_cause
from replicator.service import CLOSE_SECONDS, DrainTimeout, Service, closing
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


class Pipeline:
    """Stands in for a coordinator: works until told to stop, and `drains` for so long."""

    def __init__(self, drains: float = 0.0, error: Exception | None = None) -> None:
        self.drains = drains
        self.error = error
        self.ended = ""

    async def run(self, stopping: asyncio.Event) -> None:
        try:
            if self.error is not None:
                raise self.error
            await stopping.wait()
            await asyncio.sleep(self.drains)
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "drained"


def service(path: Path, *pipelines: Pipeline) -> Service:
    file = path / "config.yaml"
    file.write_text(TEXT)
    made = Service(configuration.load(file, {}))
    made.coordinators.extend(pipelines)  # type: ignore[arg-type]
    return made


async def stopped_after(made: Service, seconds: float) -> float:
    """Runs, stops after that long, and gives how long the stop took."""
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.call_later(seconds, stopping.set)
    begun = loop.time()
    with one_cause():
        await made._supervise(stopping)
    return loop.time() - begun - seconds


def test_a_stop_waits_for_every_pipeline(tmp_path: Path) -> None:
    quick, slow = Pipeline(), Pipeline(drains=5)
    took = run_virtually(stopped_after(service(tmp_path, quick, slow), 10))
    assert took == pytest.approx(5, abs=0.1)
    assert (quick.ended, slow.ended) == ("drained", "drained")


def test_a_drain_that_takes_too_long_is_ended_and_said(tmp_path: Path) -> None:
    quick, slow = Pipeline(), Pipeline(drains=8)
    with pytest.raises(DrainTimeout, match="7 s after the stop"):
        run_virtually(stopped_after(service(tmp_path, quick, slow), 10))
    assert (quick.ended, slow.ended) == ("drained", "cancelled")


def test_what_keeps_one_pipeline_from_beginning_ends_the_process(tmp_path: Path) -> None:
    other = Pipeline()
    broken = Pipeline(error=FatalError("stream_missing", "no stream of that name"))
    with pytest.raises(FatalError) as caught:
        run_virtually(stopped_after(service(tmp_path, other, broken), 10))
    assert caught.value.code == "stream_missing"
    assert other.ended == "cancelled"


def test_the_cause_is_found_however_deep_it_lies() -> None:
    first, echo = FatalError("denied", "no permission"), TransientError("cut", "connection lost")
    nested = BaseExceptionGroup("a", [BaseExceptionGroup("b", [first]), echo])
    with pytest.raises(FatalError) as caught, one_cause():
        raise nested
    assert caught.value is first
    assert caught.value.__cause__ is nested


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
    assert service(tmp_path).owner != service(tmp_path).owner
