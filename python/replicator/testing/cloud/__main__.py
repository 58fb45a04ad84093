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

from replicator.testing.cloud import KINDS, SCRIPTS, Fault, FaultCloud, parse_script


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
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same mischief")
    parser.add_argument("--script", default="none", help=f"{', '.join(SCRIPTS)}, or a JSON file")
    parser.add_argument("--stream", default="products", help="its name, and the table's")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--keys", type=int, default=500, help="items of the table")
    parser.add_argument("--rate", type=float, default=0.0, help="changes a second")
    parser.add_argument("--retention-seconds", type=float, default=86_400.0)
    parser.add_argument("--subscription-seconds", type=float, default=300.0)
    parser.add_argument("--heartbeat-seconds", type=float, default=5.0)
    parser.add_argument("--log", type=Path, help="a file for the journal, JSON lines")
    options = parser.parse_args()
    try:
        script = _script(options.script)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"--script {options.script}: {error}\n")
        return 2
    asyncio.run(_serve(options, script))
    return 0


def _script(name: str) -> tuple[Fault, ...]:
    return SCRIPTS[name] if name in SCRIPTS else parse_script(Path(name).read_bytes())


async def _serve(options: argparse.Namespace, script: tuple[Fault, ...]) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with FaultCloud(
        seed=options.seed,
        script=script,
        shards=options.shards,
        name=options.stream,
        keys=options.keys,
        rate=options.rate,
        retention_seconds=options.retention_seconds,
        subscription_seconds=options.subscription_seconds,
        heartbeat_seconds=options.heartbeat_seconds,
        journal_path=options.log,
        port=options.port,
    ) as cloud:
        ready = {"event": "ready", "url": cloud.url, "stream": cloud.name, "seed": options.seed}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await stopping.wait()


if __name__ == "__main__":
    sys.exit(main())
