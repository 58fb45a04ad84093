"""Every peer that the core is measured by, and where its program is."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# Where `make bench` builds and installs them.
BUILT = HERE.parents[1] / "target" / "peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """A variant of one of the programs."""

    name: str
    package: str
    """What is measured: the program's name for the variant, and its lock file's."""
    command: tuple[str, ...]
    needs: Path
    """What is there when the peer is installed."""
    is_slow: bool = False
    images: Sequence[str] = ("NewImage", "OldImage")
    """Which ones it decodes."""

    @property
    def is_installed(self) -> bool:
        return self.needs.exists() and shutil.which(self.command[0]) is not None


def _python(
    name: str,
    package: str,
    interpreter: Path = BUILT / "python" / "bin" / "python",
    *,
    is_slow: bool = True,
    images: Sequence[str] = ("NewImage", "OldImage"),
) -> Peer:
    command = (str(interpreter), str(HERE / "python" / "peers.py"))
    return Peer(name, package, command, interpreter, is_slow, images)


def _rust(name: str, package: str) -> Peer:
    program = BUILT / "rust" / "release" / "peers"
    return Peer(name, package, (str(program),), program)


def _go(name: str, package: str) -> Peer:
    program = BUILT / "go" / "peers"
    return Peer(name, package, (str(program),), program, is_slow=True)


def _node(name: str, package: str) -> Peer:
    program = HERE / "node" / "peers.mjs"
    packages = HERE / "node" / "node_modules" / ".package-lock.json"
    return Peer(name, package, ("node", str(program)), packages, is_slow=True)


_PYTHON = Path(sys.executable)  # has orjson and boto3

PEERS = (
    _python("orjson.loads", "orjson", _PYTHON, is_slow=False),
    _python("orjson+TypeDeserializer", "boto3", _PYTHON),
    _python("msgspec.json", "msgspec", is_slow=False),
    _python("dynamodb-json", "dynamodb-json"),
    # It never looks at the old image.
    _python("orjson+commons-codec", "commons-codec", images=("NewImage",)),
    _rust("sonic-rs", "sonic-rs"),
    _rust("simd-json", "simd-json"),
    _rust("serde_json", "serde_json"),
    _rust("serde_json+serde_dynamo", "serde_dynamo"),
    _go("Go attributevalue", "aws-sdk-go-v2/feature/dynamodb/attributevalue"),
    _go("Go goccy+attributevalue", "goccy/go-json"),
    _node("Node unmarshall", "@aws-sdk/util-dynamodb"),
)
