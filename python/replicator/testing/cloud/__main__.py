"""`python -m replicator.testing.cloud`: the fault cloud as a process of its own.

It prints one JSON line when it is ready, with its address, and ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any, get_args

from replicator.testing.cloud import KINDS, SCRIPTS, Fault, FaultCloud, StreamsCloud, parse_script
from replicator.testing.streams_server import ViewType

VIEW_TYPES: tuple[str, ...] = get_args(ViewType)


def main() -> int:
    """Exit code 0 after the signal, 2 for a script that can't be used."""
    kinds = "\n".join(f"  {kind:20} {meaning}" for kind, (_, meaning) in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="replicator.testing.cloud",
        description=__doc__,
        epilog=f"kinds of faults:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--source", choices=("kinesis", "streams"), default="kinesis")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same mischief")
    parser.add_argument("--script", default="none", help=f"{', '.join(SCRIPTS)}, or a JSON file")
    parser.add_argument("--stream", default="products", help="its name, and the table's")
    parser.add_argument(
        "--view-type", choices=VIEW_TYPES, default=VIEW_TYPES[-1], help="of streams"
    )
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--keys", type=int, default=500, help="items of the table")
    parser.add_argument("--rate", type=float, default=0.0, help="changes a second")
    parser.add_argument("--retention-seconds", type=float, default=86_400.0)
    parser.add_argument("--subscription-seconds", type=float, default=300.0)
    parser.add_argument("--heartbeat-seconds", type=float, default=5.0)
    parser.add_argument("--log", type=Path, help="a file for the journal, JSON lines")
    options = parser.parse_args()
    try:
        cloud = _cloud(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"--script {options.script}: {error}\n")
        return 2
    asyncio.run(_serve(cloud, options.seed))
    return 0


def _script(name: str) -> tuple[Fault, ...]:
    return SCRIPTS[name] if name in SCRIPTS else parse_script(Path(name).read_bytes())


def _cloud(options: argparse.Namespace) -> FaultCloud | StreamsCloud:
    both: dict[str, Any] = {
        "seed": options.seed,
        "script": _script(options.script),
        "shards": options.shards,
        "name": options.stream,
        "keys": options.keys,
        "rate": options.rate,
        "retention_seconds": options.retention_seconds,
        "journal_path": options.log,
        "port": options.port,
    }
    if options.source == "streams":
        return StreamsCloud(**both, view_type=options.view_type)
    return FaultCloud(
        **both,
        subscription_seconds=options.subscription_seconds,
        heartbeat_seconds=options.heartbeat_seconds,
    )


async def _serve(cloud: FaultCloud | StreamsCloud, seed: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with cloud:
        ready = {"event": "ready", "url": cloud.url, "stream": cloud.name, "seed": seed}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await stopping.wait()


if __name__ == "__main__":
    sys.exit(main())
