"""The tree's own rules, as far as a machine can hold them."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[2]
LINES_MAX = 600
# Written by tools, or by others.
NOT_OURS = frozenset({"Cargo.lock", "LICENSE"})
SUFFIXES_OF_DATA = frozenset({".json", ".jsonl", ".csv", ".svg", ".png"})

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="an unpacked archive has no list of its files"
)


@cache
def files() -> tuple[Path, ...]:
    """Every file that is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    found = (ROOT / name for name in listed.split("\0") if name)
    return tuple(sorted(path for path in found if path.is_file()))


def texts() -> Iterator[tuple[Path, str]]:
    """The files that people write and read."""
    for path in files():
        if path.name not in NOT_OURS and path.suffix not in SUFFIXES_OF_DATA:
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def is_compiled(path: Path) -> bool:
    return path.name.startswith("requirements") and path.suffix == ".txt"


def offences(pattern: str, *, besides: frozenset[str] = frozenset()) -> list[str]:
    wanted = re.compile(pattern)
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts()
        if str(path) not in besides
        for number, line in enumerate(text.splitlines(), 1)
        if wanted.search(line)
    ]


def test_nothing_is_left_to_do() -> None:
    # Split, so that this file passes its own rule.
    assert not offences(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")


def test_no_path_of_somebodys_machine() -> None:
    assert not offences(r"(?<![\w.])/(wo" + r"rk|ro" + r"ot|ho" + r"me|Us" + r"ers)/")


def test_files_stay_small_enough_to_read() -> None:
    long = {
        str(path): lines
        for path, text in texts()
        if not is_compiled(path) and (lines := text.count("\n")) > LINES_MAX
    }
    assert not long


def test_text_ends_with_one_newline_and_has_no_blanks_at_line_ends() -> None:
    untidy = [
        str(path)
        for path, text in texts()
        if text and (not text.endswith("\n") or text.endswith("\n\n"))
    ]
    assert not untidy
    assert not offences(r"[ \t]+$")


def test_relative_links_of_the_documentation_resolve() -> None:
    broken = []
    for path, text in texts():
        if path.suffix != ".md":
            continue
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for link in re.findall(r"\]\(<?([^)\s>]+)", prose):
            place, _, _ = link.partition("#")
            if not place or re.match(r"[a-z]+:", place):
                continue
            if not (ROOT / path.parent / place).exists():
                broken.append(f"{path}: {link}")
    assert not broken


def test_requirements_are_pinned_with_hashes_and_carry_no_address() -> None:
    compiled = [(path, text) for path, text in texts() if is_compiled(path)]
    assert len(compiled) >= 3
    for path, text in compiled:
        assert "://" not in text, path
        options = re.findall(r"^\s*(--?[a-z-]+)", text, re.MULTILINE)
        assert set(options) <= {"--hash"}, path
        for block in re.split(r"\n(?=\S)", text.strip()):
            if not block.startswith("#"):
                assert "==" in block.splitlines()[0], (path, block)
                assert "--hash=sha256:" in block, (path, block)


def test_every_input_of_requirements_is_compiled() -> None:
    names = {str(path) for path, _ in texts()}
    inputs = {name for name in names if name.startswith("requirements") and name.endswith(".in")}
    assert {name.removesuffix(".in") + ".txt" for name in inputs} <= names


def test_the_cores_rust_has_no_unsafe_and_one_door_to_python() -> None:
    for path, text in texts():
        if path.suffix == ".rs":
            code = re.sub(r"//.*", "", text)
            assert not re.search(r"\bunsafe\b(?!_code)", code), path
            if "pyo3" in code:
                assert path.parts[:3] == (
                    "rust",
                    "src",
                    "python",
                ), path


# The import linter follows Python modules only, so the door to the extension is watched here.
# (`settings` has the core read patterns and paths, to refuse them where they are written.)
MAY_CALL_THE_CORE = (
    "archive",
    "source",
    "sink",
    "testing",
    "pipeline",
    "inspect",
    "cli_options",
    "settings",
    "tail",
)


def test_only_the_rooms_that_move_bytes_call_the_core() -> None:
    package = ROOT / "python" / "replicator"
    offenders = []
    for path in files():
        if path.suffix != ".py" or not path.is_relative_to(package):
            continue
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room not in MAY_CALL_THE_CORE and _imports_the_core(ast.parse(path.read_text("utf-8"))):
            offenders.append(str(path.relative_to(ROOT)))
    assert not offenders


def _imports_the_core(tree: ast.AST) -> bool:
    """At run time: what is imported for the type checker alone doesn't count."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        return any(_imports_the_core(node) for node in tree.orelse)
    if isinstance(tree, ast.ImportFrom):
        names = {alias.name for alias in tree.names}
        return tree.module == "replicator._core" or (
            tree.module == "replicator" and "_core" in names
        )
    if isinstance(tree, ast.Import):
        return any(alias.name.startswith("replicator._core") for alias in tree.names)
    return any(_imports_the_core(node) for node in ast.iter_child_nodes(tree))


def test_change_notes_are_named_by_kind() -> None:
    kinds = {"added", "changed", "fixed", "removed", "security", "performance"}
    for path, text in texts():
        if path.parts[0] == "changelog.d" and path.name not in {"README.md", "template.md.jinja"}:
            parts = path.name.split(".")
            assert len(parts) == 3, path
            assert parts[1] in kinds, path
            assert parts[2] == "md", path
            assert text.strip(), path


def test_no_example_of_a_property_is_timed() -> None:
    """Regression: where nothing else was said, one that took 200 ms on a busy machine failed."""
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check
