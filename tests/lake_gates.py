"""A catalog and a file system that ask a gate before each request, as PyIceberg lets one plug them
in: so that a worker can die, sleep, or lose an answer at any of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io.pyarrow import PyArrowFileIO

GATES: dict[str, Gate] = {}


class Gate:
    """What happens before and after the n-th request of a worker; requests count from 1."""

    def __init__(
        self,
        name: str,
        before: Callable[[int], None] = lambda _: None,
        after: Callable[[int, str], None] = lambda *_: None,
    ) -> None:
        self.count = 0
        self._before, self._after = before, after
        self._lock = threading.Lock()
        GATES[name] = self

    def ask(self, what: str, request: Callable[[], Any]) -> Any:
        with self._lock:
            self.count += 1
            nth = self.count
        self._before(nth)
        answer = request()
        self._after(nth, what)
        return answer


class Sleeper:
    """A `before` that lets the worker sleep at its n-th request until it is released."""

    def __init__(self, nth: int) -> None:
        self.reached, self.release = threading.Event(), threading.Event()
        self._nth = nth

    def ended(self, _: object) -> None:
        """The worker came to its end without that request."""
        self.reached.set()

    def __call__(self, nth: int) -> None:
        if nth == self._nth:
            self.reached.set()
            self.release.wait(30)


def _ask(properties: Any, what: str, request: Callable[[], Any]) -> Any:
    gate = GATES.get(properties.get("gate", ""))
    return request() if gate is None else gate.ask(what, request)


class GatedIO(PyArrowFileIO):
    def new_output(self, location: str) -> Any:
        return _ask(self.properties, "output", lambda: super(GatedIO, self).new_output(location))

    def delete(self, location: Any) -> None:
        _ask(self.properties, "delete", lambda: super(GatedIO, self).delete(location))


class GatedCatalog(SqlCatalog):
    def load_table(self, identifier: Any) -> Any:
        load = super().load_table
        return _ask(self.properties, "load", lambda: load(identifier))

    def commit_table(self, *arguments: Any) -> Any:
        commit = super().commit_table
        return _ask(self.properties, "commit", lambda: commit(*arguments))


IMPLEMENTATIONS = {
    "py-catalog-impl": f"{__name__}.GatedCatalog",
    "py-io-impl": f"{__name__}.GatedIO",
}
