"""Runs a Dockerfile's stages in folders: enough of the format for our own file, no more.

Each stage is built under the same root folder, which is set aside under its name afterwards:
scripts and virtual environments hold absolute paths, and so find themselves in later stages too.
Absolute paths of the file are taken from that root. The base image is this machine.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Absolute only: neither part of a longer path, nor of an address, nor of a variable.
_ABSOLUTE = re.compile(r"(?<![\w.:/}$*-])/(?=[a-z])")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of the file, continuations joined."""

    word: str
    rest: str


@dataclass(slots=True)
class Image:
    """What the last stage says about running."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = "0"
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    volumes: Sequence[str] = ()
    stop_signal: str = "SIGTERM"
    ports: Sequence[int] = ()
    health_check: Sequence[str] = ()
    labels: str = ""

    def place(self, path: str) -> Path:
        """Where an absolute path of the image is on this machine."""
        return self.root / path.lstrip("/")


def parse(text: str) -> Iterator[Instruction]:
    """The file's instructions in order."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", kept).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield Instruction(word.upper(), rest.strip())


def context(names: Sequence[str], ignore: str) -> list[str]:
    """The names that .dockerignore lets through; the last line that matches decides."""
    rules = [line for line in ignore.splitlines() if line and not line.startswith("#")]

    def is_let_through(name: str) -> bool:
        passes = True
        parts = name.split("/")
        prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        for rule in rules:
            pattern = rule.lstrip("!").rstrip("/")
            wanted = parts if pattern.startswith("**/") else prefixes
            bare = pattern.removeprefix("**/")
            if any(fnmatch.fnmatch(each, bare) for each in wanted):
                passes = rule.startswith("!")
        return passes

    return [name for name in names if is_let_through(name)]


class Builder:
    """Builds a Dockerfile's stages under `root`; earlier ones end up in `root/../stages`."""

    def __init__(
        self,
        root: Path,
        source: Path,
        names: Sequence[str],
        *,
        environment: Mapping[str, str],
        is_skipped: Callable[[str], bool],
    ) -> None:
        self._root = root
        self._source = source
        self._names = names
        self._environment = dict(environment)
        self._is_skipped = is_skipped
        self._stages = root.parent / "stages"
        self._stage = ""
        self._arguments: dict[str, str] = {}
        self.skipped: list[str] = []
        self.image = Image(root)

    def build(self, text: str) -> Image:
        """Runs every instruction. Raises CalledProcessError with the step's output."""
        for instruction in parse(text):
            getattr(self, f"_{instruction.word.lower()}")(instruction.rest)
        return self.image

    def _from(self, rest: str) -> None:
        if self._stage:
            self._stages.mkdir(exist_ok=True)
            self._root.rename(self._stages / self._stage)
        name = re.search(r"\bAS\s+(\S+)", rest, re.IGNORECASE)
        self._stage = name.group(1) if name else "last"
        self._root.mkdir()
        self._arguments = {}
        self.image = Image(self._root)

    def _arg(self, rest: str) -> None:
        # What isn't given with the build has its default, for the rest of the stage.
        name, _, default = rest.partition("=")
        self._arguments[name] = default

    def _workdir(self, rest: str) -> None:
        self.image.directory = rest
        self.image.place(rest).mkdir(parents=True, exist_ok=True)

    def _env(self, rest: str) -> None:
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            self.image.environment[name] = self._expanded(self._rooted(value))

    def _expanded(self, value: str) -> str:
        known = {**self._environment, **self.image.environment}
        return re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found.group(1), ""), value)

    def _rooted(self, text: str) -> str:
        return _ABSOLUTE.sub(f"{self._root}/", text)

    def _copy(self, rest: str) -> None:
        words = rest.split()
        origin, names = self._source, self._names
        if words[0].startswith("--from="):
            stage = self._stages / words.pop(0).removeprefix("--from=")
            [place] = words[:-1]
            shutil.copytree(
                stage / place.lstrip("/"),
                self._target(words[-1]),
                symlinks=True,
                dirs_exist_ok=True,
            )
            return
        for word in words[:-1]:
            chosen = [name for name in names if name == word or name.startswith(f"{word}/")]
            assert chosen, f"COPY {word}: .dockerignore lets nothing of it through"
            for name in chosen:
                target = self._target(words[-1])
                if words[-1].endswith("/"):
                    target /= Path(name).name
                else:
                    target /= Path(name).relative_to(word)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin / name, target)

    def _target(self, path: str) -> Path:
        return self.image.place(os.path.join(self.image.directory, path))  # noqa: PTH118 - no Path yet

    def _run(self, rest: str) -> None:
        if self._is_skipped(rest):
            self.skipped.append(rest)
            return
        done = subprocess.run(
            ["sh", "-c", self._rooted(rest)],
            cwd=self.image.place(self.image.directory),
            env={**self._environment, **self._arguments, **self.image.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-4000:]}"

    def _label(self, rest: str) -> None:
        self.image.labels += rest

    def _volume(self, rest: str) -> None:
        self.image.volumes = [*self.image.volumes, rest]

    def _user(self, rest: str) -> None:
        self.image.user = rest

    def _expose(self, rest: str) -> None:
        self.image.ports = [*self.image.ports, int(rest)]

    def _healthcheck(self, rest: str) -> None:
        _, _, command = rest.partition(" CMD ")
        self.image.health_check = json.loads(command)

    def _stopsignal(self, rest: str) -> None:
        self.image.stop_signal = rest

    def _entrypoint(self, rest: str) -> None:
        self.image.entrypoint = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.image.command = json.loads(rest)
