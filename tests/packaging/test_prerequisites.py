"""A missing prerequisite is one line that says what is missing and how to get it, and exit 2."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make") or "make"

PYTHON = (
    '#!/bin/sh\ncase "$2" in *version_info*) echo {version}; exit {is_old};; esac\nexit {pip}\n'
)


def programs(folder: Path, **scripts: str) -> Path:
    """A PATH of its own: the shell's tools and these programs."""
    for name in ("sh", "sed", "cut", "sort", "head", "dirname", "find", "printf", "echo", "test"):
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


def python(version: str = "3.12", *, is_old: bool = False, has_pip: bool = True) -> str:
    return PYTHON.format(version=version, is_old=int(is_old), pip=int(not has_pip))


CARGO = "#!/bin/sh\necho cargo {version} '(x)'\n"
NOTHING = "#!/bin/sh\n"
GOOD = {"python3": python(), "cargo": CARGO.format(version="1.95.0"), "cc": NOTHING}


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("scripts", "says"),
    [
        (without("python3"), ("Python 3.11", "PYTHON=")),
        (GOOD | {"python3": python("3.9", is_old=True)}, ("Python 3.11", "3.9")),
        (GOOD | {"python3": python(has_pip=False)}, ("venv and pip", "apt install python3-venv")),
        (without("cargo"), ("cargo", "rustup.rs")),
        (without("cc"), ("C compiler", "apt install gcc")),
        (GOOD | {"cargo": CARGO.format(version="1.70.0")}, ("Rust", "rustup update")),
    ],
)
def test_what_is_missing_is_one_line(
    scripts: dict[str, str], says: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    (folder / ".ci").mkdir(parents=True)
    (folder / "rust").mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / ".ci" / "prerequisites", folder / ".ci")
    shutil.copy(ROOT / "rust" / "Cargo.toml", folder / "rust")
    (folder / "requirements-dev.txt").touch()
    (tmp_path / "bin").mkdir()

    done = subprocess.run(
        [MAKE, "demo"],
        cwd=folder,
        env={"PATH": str(programs(tmp_path / "bin", **scripts))},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert not done.stdout
    [line] = done.stderr.splitlines()
    for words in ("missing: ", *says):
        assert words in line
    assert not (folder / ".venv").exists()


def test_nothing_is_said_when_all_is_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / ".ci" / "prerequisites", "python3"],
        env={"PATH": str(programs(tmp_path, **GOOD))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
