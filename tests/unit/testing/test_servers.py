from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from replicator.testing.servers import free_port


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which ports those are")
def test_a_free_port_is_none_that_the_system_gives_away() -> None:
    """Or another test's server gets it before the one listens that it was asked for."""
    settings = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first, last = map(int, settings.read_text().split())
    if first <= 20_000:
        pytest.skip("nearly every port may be given away here")
    assert not {free_port() for _ in range(100)} & {*range(first, last + 1)}


def test_a_port_in_use_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        port = used.getsockname()[1]
        drawn = iter([port, free_port()])
        monkeypatch.setattr("random.SystemRandom.randrange", lambda *_: next(drawn))
        assert free_port() != port
