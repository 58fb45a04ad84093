"""The verbs: listed, and idle when there is nothing to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make") or "make"
# Run by `make test`, this must not listen to that make.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MAKE, "--no-print-directory", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_every_verb() -> None:
    done = make("help")
    assert done.returncode == 0
    listed = re.findall(r"^make (\w+)", done.stdout, re.MULTILINE)
    declared = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared
    assert set(listed) == set(declared.group(1).split()) - {"FORCE"}
    assert {"setup", "build", "lint", "test", "bench", "demo"} <= set(listed)


@pytest.mark.skipif(
    not (ROOT / ".venv" / ".extension").exists(), reason="make setup has not run here"
)
def test_a_second_run_rebuilds_nothing() -> None:
    done = make("--question", "setup")
    assert done.returncode == 0, make("--dry-run", "setup").stdout
