"""Fuzzes one target of the core: `python rust/fuzz/run.py kinesis_record 600` (seconds).

It begins with the golden records and the kept findings of tests/vectors, and goes on with what an
earlier run left in target/fuzz. It wants a nightly compiler and `cargo install cargo-fuzz`.
`--keep` makes the inputs found as few as still reach everything, and puts some of them, evenly
over their lengths, into tests/vectors/fuzz.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VECTORS = ROOT / "tests" / "vectors"
BUILD = ROOT / "target" / "fuzz" / "build"
TARGETS = sorted(path.stem for path in (HERE / "fuzz_targets").glob("*.rs"))
INPUT_BYTES_MAX = 4096
KEPT_BYTES_MAX = 24_000


def vectors(name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((VECTORS / name).read_text("utf-8"))
    return rows


def seeds(target: str) -> Iterator[bytes]:
    """The inputs that a target starts from."""
    kept = VECTORS / "fuzz" / f"{target}.json"
    if kept.exists():
        yield from map(base64.b64decode, json.loads(kept.read_text("utf-8")))
    for row in vectors("fuzz/findings.json"):
        if row["target"] == target:
            yield base64.b64decode(row["base64"])
    match target:
        case "frames":
            for row in vectors("frames.json"):
                body = base64.b64decode(row["body_base64"])
                yield from (bytes([how]) + body for how in (0x00, 0x0A, 0x85))
        case "document":
            yield from (row["document"].encode() for row in vectors("documents.json"))
        case "order":
            # Key, instant and precision; old and new state; which copy it is.
            yield bytes([2, 4, 0, 2, 9, 0, 2, 14, 0, 2, 3, 0])
            yield bytes([2, 4, 0, 2, 1, 0, 2, 4, 1, 3, 8, 0, 3, 8, 1])
            yield bytes([0, 4, 0, 2, 9, 0, 8, 6, 0, 10, 11, 2])
        case _:
            for name in ("changes.json", "rejections.json"):
                for row in vectors(name):
                    text = row.get("payload")
                    yield base64.b64decode(row["payload_base64"]) if text is None else text.encode()


def cargo(command: str, target: str, *arguments: str) -> None:
    # The core is safe Rust: an address sanitizer would only make it slow.
    options = ["--sanitizer", "none", "--fuzz-dir", str(HERE), "--target-dir", str(BUILD)]
    subprocess.run(
        ["cargo", "+nightly", "fuzz", command, *options, target, *arguments], check=True, cwd=ROOT
    )


def keep(target: str, corpus: Path) -> None:
    """The corpus, made small, as a vector: the shortest inputs first, up to a size."""
    cargo("cmin", target, str(corpus))
    found = sorted(
        (path.read_bytes() for path in corpus.iterdir()), key=lambda raw: (len(raw), raw)
    )
    # Evenly over all lengths: the long ones reach deepest.
    chosen = found[:: sum(map(len, found)) // KEPT_BYTES_MAX + 1]
    lines = ",\n".join(json.dumps(base64.b64encode(raw).decode()) for raw in chosen)
    (VECTORS / "fuzz").mkdir(exist_ok=True)
    (VECTORS / "fuzz" / f"{target}.json").write_text(f"[\n{lines}\n]\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("seconds", type=int, nargs="?", default=600)
    parser.add_argument(
        "--keep", action="store_true", help="keep a small corpus in tests/vectors/fuzz"
    )
    options = parser.parse_args()
    corpus = ROOT / "target" / "fuzz" / "corpus" / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(options.target):
        (corpus / hashlib.sha256(seed).hexdigest()[:20]).write_bytes(seed)
    if options.keep:
        keep(options.target, corpus)
        return
    cargo(
        "run",
        options.target,
        str(corpus),
        "--",
        f"-max_total_time={options.seconds}",
        f"-dict={HERE / 'json.dict'}",
        f"-max_len={INPUT_BYTES_MAX}",
        "-timeout=10",
        "-print_final_stats=1",
        f"-artifact_prefix={corpus.parent}/{options.target}-",
    )


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
