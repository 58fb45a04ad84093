"""A throw-away Apache Kafka for the tests: the real broker, one node, on this machine only.

Its jars are those of `kafka.pom.xml`, which `make setup` copies into `.kafka/`; it wants Java 17.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replicator.errors import FatalError
from replicator.testing.servers import START_SECONDS_MAX, free_port, send_signal, stop_process

# What it hasn't written when it is killed it looks for at its next start.
STOP_SECONDS_MAX: Final = 30.0
_POLL_SECONDS: Final = 0.02
_CLUSTER_ID: Final = "replicator-test-broker"

# One node is broker and controller, every internal topic has one replica, and the log cleaner's
# buffer fits a small heap (its default alone wants 128 MB). Records are kept whatever their age,
# which Kafka counts from the time they bear: tests write changes that are years old, and who cleans
# comes by thirty seconds after the start, and every five minutes.
# https://kafka.apache.org/documentation/#brokerconfigs
_CONFIGURATION: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={folder}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=2097152
auto.create.topics.enable=false
log.retention.ms=-1
"""
# Two more ways in, where the plain one stays the administrator's: TLS and a password, or the
# password alone. Whoever signs in may do what he was granted, and nothing by default.
# https://kafka.apache.org/documentation/#security
_SECURED: Final = """\
listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl},TLS://127.0.0.1:{tls},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl},TLS://127.0.0.1:{tls}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SASL_SSL
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
{logins}
ssl.keystore.type=PEM
ssl.keystore.location={pem}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:{user}
"""
_LOGIN: Final = (
    "listener.name.{listener}.{mechanism}.sasl.jaas.config="
    "org.apache.kafka.common.security.{module} required{users};"
)
# https://kafka.apache.org/documentation/#security_sasl_oauthbearer
_UNSIGNED: Final = ' unsecuredLoginStringClaim_sub="broker"'
_JAVA_OPTIONS: Final = ("-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


@dataclass(frozen=True, slots=True)
class Security:
    """Who may sign in: `user` may do all, `guest` (with the same password) nothing. `pem` holds
    the server's key and certificate, for 127.0.0.1."""

    pem: Path
    user: str = "writer"
    guest: str = "guest"
    password: str = "a secret; with = in it"  # noqa: S105 of a throw-away server


class KafkaServer:
    """A broker; `str()` gives its bootstrap address."""

    sasl_address = ""
    tls_address = ""

    def __init__(self, folder: Path, port: int, command: list[str]) -> None:
        self.address = f"127.0.0.1:{port}"
        self._folder = folder
        self._port = port
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        return self.address

    def start(self) -> None:
        """Starts it, again after `stop` with all that it held. Raises FatalError."""
        with (self._folder / "log").open("ab") as log:
            before = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 the operator's own choice
                [*self._command, "kafka.Kafka", self._folder / "server.properties"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C belongs to whoever started us; he stops it in his own order.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline and self._process.poll() is None:
            # Its ports are open before it can answer.
            if (self._folder / "log").read_bytes()[before:].find(b"Kafka Server started") >= 0:
                return
            time.sleep(_POLL_SECONDS)
        self.stop()
        raise self._failed("it didn't get ready")

    def stop(self) -> None:
        """Stops it in order, and by force when that takes too long."""
        if self._process is not None:
            stop_process(self._process, STOP_SECONDS_MAX)
            self._process = None

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Inside, the broker doesn't move, but every connection stays open."""
        assert self._process is not None, "it isn't running"
        try:
            send_signal(self._process.pid, signal.SIGSTOP)
            yield
        finally:
            send_signal(self._process.pid, signal.SIGCONT)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Inside nothing more fits into its folder. As every broker whose only log directory
        fails it ends by itself; it is started again afterwards."""
        assert self._process is not None, "it isn't running"
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        yield
        self.stop()
        self.start()

    @contextmanager
    def losing(self, topic: str) -> Iterator[None]:
        """Whatever is written to the topic inside is gone afterwards, as when a replica becomes
        leader that lacks it. The broker is started again at both ends."""
        data, kept = self._folder / "data", self._folder / "kept"
        self.stop()
        found = [each.name for each in data.glob(f"{topic}-*")]
        for name in found:
            shutil.copytree(data / name, kept / name)
        self.start()
        yield
        self.stop()
        for name in found:
            shutil.rmtree(data / name)
            shutil.move(kept / name, data / name)
        self.start()

    def format(self, security: Security | None = None) -> None:
        """Prepares its empty folder."""
        port, controller = self._port, free_port()
        settings = self._folder / "server.properties"
        text = _CONFIGURATION.format(port=port, controller=controller, folder=self._folder)
        users: list[str] = []
        if security is not None:
            text += self._secured(security, controller)
            for name in (security.user, security.guest):
                for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                    users += ["-S", f'{mechanism}=[name="{name}",password="{security.password}"]']
        settings.write_text(text)
        with (self._folder / "log").open("ab") as log:
            done = subprocess.run(  # noqa: S603 see start
                [
                    *self._command,
                    "kafka.tools.StorageTool",
                    *("format", "--standalone", "-t", _CLUSTER_ID, "-c", str(settings), *users),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=START_SECONDS_MAX,
            )
        if done.returncode:
            raise self._failed("its folder couldn't be formatted")

    def _secured(self, security: Security, controller: int) -> str:
        sasl, tls = free_port(), free_port()
        self.sasl_address, self.tls_address = f"127.0.0.1:{sasl}", f"127.0.0.1:{tls}"
        users = "".join(
            f' user_{name}="{security.password}"' for name in (security.user, security.guest)
        )
        # Any token that isn't signed is taken for true while it lasts.
        modules = {
            "plain": ("plain.PlainLoginModule", users),
            "scram-sha-256": ("scram.ScramLoginModule", ""),
            "scram-sha-512": ("scram.ScramLoginModule", ""),
            "oauthbearer": ("oauthbearer.OAuthBearerLoginModule", _UNSIGNED),
        }
        logins = "\n".join(
            _LOGIN.format(listener=listener, mechanism=mechanism, module=module, users=options)
            for listener in ("sasl", "tls")
            for mechanism, (module, options) in modules.items()
        )
        return _SECURED.format(
            port=self._port,
            controller=controller,
            sasl=sasl,
            tls=tls,
            logins=logins,
            pem=security.pem,
            user=security.user,
        )

    def _failed(self, what: str) -> FatalError:
        tail = (self._folder / "log").read_text(errors="replace")[-2000:]
        return FatalError("kafka_failed", f"no Kafka could be started: {what}; it said: {tail}")


@contextmanager
def start_kafka(security: Security | None = None) -> Iterator[KafkaServer]:
    """A fresh broker without topics (and it makes none by itself); stopped and gone at the end.
    With `security` it can be reached by `sasl_address` and `tls_address` too.

    Raises FatalError when its jars or Java are missing, or it doesn't get ready in time.
    """
    command = [_java(), *_JAVA_OPTIONS, "-cp", str(_jars() / "*")]
    with tempfile.TemporaryDirectory(prefix="replicator-kafka-") as folder:
        server = KafkaServer(Path(folder), free_port(), command)
        server.format(security)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    if found := shutil.which("java", path=f"{home}/bin" if home else None):
        return found
    raise FatalError("kafka_missing", "no Java to run Kafka on: install Java 17 or newer")


def _jars() -> Path:
    project = Path(__file__).resolve().parents[3]
    named = os.environ.get("REPLICATOR_KAFKA")
    candidates = [Path(named)] if named else [Path.cwd() / ".kafka", project / ".kafka"]
    for folder in candidates:
        if any(folder.glob("kafka_*.jar")):
            return folder
    raise FatalError(
        "kafka_missing",
        "no Kafka to start: run `make setup`, or name the folder of its jars in REPLICATOR_KAFKA",
    )
