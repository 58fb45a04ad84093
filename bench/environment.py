"""What results say beside their figures: when, how, on what, and against which versions."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from bench.peers.known import PEERS
from replicator import _core

ROOT = Path(__file__).parents[1]
HERE = ROOT / "bench" / "peers"
# Those of the processor's features that the measured programs can use.
FEATURES = ("sse4_2", "pclmulqdq", "avx2", "avx512bw", "sha_ni", "asimd")


def lines(arguments: Sequence[str]) -> Iterator[str]:
    """One a fact."""
    yield f"date: {dt.datetime.now(dt.UTC):%Y-%m-%d}"
    yield f'command: `make bench ARGS="{" ".join(arguments)}"`'
    yield f"core: {_core.__version__}, commit {_core.COMMIT}, {_core.BUILD_PROFILE} build"
    yield f"machine: {machine()}"
    yield f"tools: Python {platform.python_version()}, {', '.join(_tools())}"
    yield f"peers: {', '.join(f'{name} {version}' for name, version in versions().items())}"


def versions() -> dict[str, str]:
    """Of the packages that are measured, as their lock files have them."""
    cargo = tomllib.loads((HERE / "rust" / "Cargo.lock").read_text())
    npm = json.loads((HERE / "node" / "package-lock.json").read_text())
    known = {package["name"]: package["version"] for package in cargo["package"]}
    known |= re.findall(r"^([a-z][\w.-]*)==([\w.]+)", _text("requirements-bench.txt"), re.MULTILINE)
    known |= {name: metadata.version(name) for name in ("orjson", "boto3")}
    known |= re.findall(
        r"^\s+github\.com/(?:aws/)?(\S+) v(\S+)", _text("bench/peers/go/go.mod"), re.MULTILINE
    )
    known |= {
        name.removeprefix("node_modules/"): package["version"]
        for name, package in npm["packages"].items()
        if name
    }
    return {peer.package: known[peer.package] for peer in PEERS if peer.is_installed}


def machine() -> str:
    """Processor, system and load."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", cpu, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpu, re.MULTILINE)
    has = set(flags.group(1).split()) if flags else set()
    features = [name for name in FEATURES if name in has]
    return (
        f"{os.cpu_count()} cores, {model.group(1) if model else platform.machine()}"
        f" ({', '.join(features)}), {platform.system()} {platform.release().split('-')[0]},"
        f" load {os.getloadavg()[0]:.1f} at the beginning"
    )


def _tools() -> Iterator[str]:
    for command in (["cargo", "--version"], ["go", "version"], ["node", "--version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        version = re.search(r"\d+\.\d+(\.\d+)?", done.stdout)
        if version:
            yield f"{command[0]} {version.group()}"


def _text(path: str) -> str:
    return (ROOT / path).read_text()
