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
JAVA = "#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n"
GOOD = {"python3": python(), "cargo": CARGO.format(version="1.95.0"), "cc": NOTHING}
GOOD_FOR_TESTS = GOOD | {"java": JAVA.format(version="17.0.15"), "mvn": NOTHING}


def without(name: str, programs: dict[str, str] = GOOD) -> dict[str, str]:
    return {key: value for key, value in programs.items() if key != name}


@pytest.mark.parametrize("verb", ["demo", "test"])
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
    scripts: dict[str, str], says: tuple[str, ...], verb: str, tmp_path: Path
) -> None:
    assert_said(make(verb, scripts, tmp_path), says)


@pytest.mark.parametrize(
    ("scripts", "says"),
    [
        (without("java", GOOD_FOR_TESTS), ("Java 17", "not found", "apt install openjdk-17")),
        (GOOD_FOR_TESTS | {"java": JAVA.format(version="11.0.2")}, ("Java 17", "11")),
        (without("mvn", GOOD_FOR_TESTS), ("mvn", "apt install maven")),
    ],
)
def test_what_only_the_tests_miss(
    scripts: dict[str, str], says: tuple[str, ...], tmp_path: Path
) -> None:
    assert_said(make("test", scripts, tmp_path), says)


def make(verb: str, scripts: dict[str, str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Runs a verb in a project that is not set up, where only these programs are."""
    folder = tmp_path / "project"
    pom = Path("python/replicator/testing/kafka.pom.xml")
    for name in (".ci", "rust", pom.parent):
        (folder / name).mkdir(parents=True)
    for name in ("Makefile", ".ci/prerequisites", "rust/Cargo.toml", pom):
        shutil.copy(ROOT / name, folder / name)
    (folder / "requirements-dev.txt").touch()
    (tmp_path / "bin").mkdir()
    done = subprocess.run(
        [MAKE, verb],
        cwd=folder,
        env={"PATH": str(programs(tmp_path / "bin", **scripts))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (folder / ".venv").exists()
    return done


def assert_said(done: subprocess.CompletedProcess[str], says: tuple[str, ...]) -> None:
    assert done.returncode == 2
    assert not done.stdout
    [line] = done.stderr.splitlines()
    for words in ("missing: ", *says):
        assert words in line


def test_nothing_is_said_when_all_is_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / ".ci" / "prerequisites", "python3", "java"],
        env={"PATH": str(programs(tmp_path, **GOOD_FOR_TESTS))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
