"""The container image, built step by step without an engine, and run as its user.

The Dockerfile's own instructions are run (see `dockerfile.py`), each stage in an empty folder, and
the result runs with nothing writable but its state directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import boto3
import pytest

from replicator.testing.servers import PostgresServer, start_postgres
from tests.packaging.dockerfile import Builder, Image, context

ROOT = Path(__file__).parents[2]
USER = 65532
DEADLINE_SECONDS = 60
# Building it is one long fixture; the wheel is a release build.
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="the image is for Linux"),
]


def needs_a_package_manager(step: str) -> bool:
    return step.startswith("apt-get ")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that any user may enter, which pytest's own may not."""
    folder = Path(tempfile.mkdtemp(prefix="replicator-image-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def builder(place: Path) -> Builder:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("REPLICATOR_", "PYTHON", "PYO3_", "VIRTUAL_ENV", "AWS_"))
    }
    programs = _base_python(place)
    if os.geteuid() != 0:
        # Only root gives files away; what the user may write is checked either way.
        (place / "shims").mkdir()
        (place / "shims" / "chown").write_text("#!/bin/sh\n")
        (place / "shims" / "chown").chmod(0o755)
        programs = place / "shims", *programs
    environment["PATH"] = ":".join([*map(str, programs), environment["PATH"]])
    # Reused between runs, and apart from the working tree's own, which has another interpreter.
    environment["CARGO_TARGET_DIR"] = str(ROOT / "target" / "image")
    return Builder(
        place / "image",
        ROOT,
        context(_names(), (ROOT / ".dockerignore").read_text()),
        environment=environment,
        is_skipped=needs_a_package_manager,
    )


@pytest.fixture(scope="module")
def image(builder: Builder) -> Image:
    image = builder.build((ROOT / "Dockerfile").read_text())
    # Everything but the state directory is read-only, for its owner too.
    subprocess.run(["chmod", "-R", "a-w", image.root], check=True)
    image.place(image.volumes[0]).chmod(0o755)
    return image


def _names() -> list[str]:
    """The build context as an engine would be given it, less what is never sent."""
    names = []
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        if here == Path():
            folders[:] = [name for name in folders if name not in {".git", "target"}]
        names += [str(here / name) for name in files]
    return names


def _base_python(place: Path) -> tuple[Path, ...]:
    """The base image's Python: this one, copied when it lies where others can't reach it."""
    prefix = Path(sys.base_prefix).resolve()
    if all(folder.stat().st_mode & 0o001 for folder in [prefix, *prefix.parents]):
        return (Path(sys.base_prefix) / "bin",)
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (place / "python" / "bin").mkdir(parents=True)
    shutil.copy2(prefix / "bin" / name, place / "python" / "bin" / name)
    (place / "python" / "bin" / "python3").symlink_to(name)
    (place / "python" / "lib").mkdir()
    for library in (prefix / "lib").glob("libpython*"):
        shutil.copy2(library, place / "python" / "lib")
    shutil.copytree(
        prefix / "lib" / name,
        place / "python" / "lib" / name,
        ignore=shutil.ignore_patterns(
            "test", "__pycache__", "config-*", "idlelib", "site-packages"
        ),
    )
    packages = Path("lib") / name / "site-packages"
    shutil.copytree(prefix / packages / "pip", place / "python" / packages / "pip")
    return (place / "python" / "bin",)


def _environment(image: Image) -> dict[str, str]:
    """The image's own, a home and a folder for temporary files that can't be written, and
    the copied Python's library, which would be looked for where the user can't go."""
    return {
        **image.environment,
        "HOME": "/nonexistent",
        "TMPDIR": str(image.root),
        "LD_LIBRARY_PATH": str(image.root.parent / "python" / "lib"),
    }


def _start(image: Image, arguments: Sequence[str], **more: str) -> subprocess.Popen[str]:
    is_root = os.geteuid() == 0
    return subprocess.Popen(
        [*image.entrypoint, *arguments],
        executable=shutil.which(image.entrypoint[0], path=image.environment["PATH"]),
        cwd=image.place(image.directory),
        env=_environment(image) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        user=USER if is_root else None,
        group=USER if is_root else None,
        extra_groups=[] if is_root else None,
    )


def _finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, out, err


def _files(image: Image) -> dict[str, tuple[int, int]]:
    """Everything outside the state directory, with size and time."""
    state = image.place(image.volumes[0])
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in image.root.rglob("*")
        if path != state and state not in path.parents
    }


def _strays() -> set[str]:
    """What the user left in this machine's own places for temporary files."""
    return {
        str(path)
        for place in ("/tmp", "/var/tmp", "/dev/shm")
        if Path(place).is_dir()
        for path in Path(place).iterdir()
        if path.lstat().st_uid == USER
    }


def test_the_context_leaves_out_what_belongs_to_this_machine() -> None:
    names = [
        ".git/config",
        ".venv/bin/python",
        ".emulators/bin/ministack",
        "target/release/lib.so",
        "tests/conftest.py",
        "state/leases.sqlite",
        "python/replicator/_core.abi3.so",
        "python/replicator/__pycache__/cli.cpython-311.pyc",
    ]
    rules = (ROOT / ".dockerignore").read_text()
    assert context(names, rules) == []
    wanted = ["Cargo.lock", "python/replicator/cli.py", "python/replicator/_core.pyi"]
    assert context(wanted, rules) == wanted


def test_every_step_ran_but_those_of_a_package_manager(builder: Builder, image: Image) -> None:
    assert [step.split(" && ")[0] for step in builder.skipped] == ["apt-get update"]
    assert image.entrypoint == ["replicator"]
    assert image.command == ["run", "--config", "/etc/replicator/config.yaml"]
    assert image.user == f"{USER}:{USER}"
    assert image.stop_signal == "SIGTERM"
    assert image.volumes == ["/var/lib/replicator"] == [image.directory]
    assert "org.opencontainers.image.licenses" in image.labels


def test_the_last_stage_has_the_wheel_and_what_it_needs_only(image: Image) -> None:
    assert {path.name for path in image.root.iterdir()} == {"etc", "opt", "var"}
    packages = next(image.place("/opt/replicator/lib").glob("python*/site-packages"))
    assert not list(packages.glob("pip*"))
    assert not list(packages.glob("maturin*"))
    assert not list(packages.glob("*.pth")), "an editable install isn't a wheel"
    assert (packages / "replicator" / "py.typed").is_file()
    assert (packages / "replicator" / "sink" / "sql" / "document.sql").is_file()
    [library] = (packages / "replicator").glob("_core*.so")
    assert "abi3" in library.name
    [distribution] = packages.glob("replicator-*.dist-info")
    assert list((distribution / "sboms").glob("*.json")), "the wheel lists its parts"
    assert not [path for path in image.root.rglob("*") if path.suffix in {".rs", ".toml"}]


def test_version_names_a_release_build(image: Image) -> None:
    code, out, err = _finish(_start(image, ["--version"]))
    assert (code, err) == (0, "")
    assert "release" in out


def test_a_missing_configuration_is_exit_code_2_and_one_line(image: Image) -> None:
    before = _files(image)
    # A name of its own: another test may have put the usual one there.
    config = str(image.place("/etc/replicator/missing.yaml"))
    code, out, err = _finish(_start(image, [*image.command[:-1], config]))
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert config in err
    assert _files(image) == before


@pytest.fixture
def open_postgres() -> Iterator[PostgresServer]:
    """A server whose socket other users reach: the shared one's folder keeps them out."""
    with start_postgres(durable=False) as server:
        server.folder.chmod(0o711)
        yield server


def test_run_replicates_as_its_user_and_writes_to_its_state_only(
    image: Image, open_postgres: PostgresServer, ministack_url: str, tmp_path: Path
) -> None:
    aws = {
        "AWS_ACCESS_KEY_ID": "000000000001",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-north-1",
        "AWS_ENDPOINT_URL": ministack_url,
    }
    _put_changes(aws)
    config = _configure(image, open_postgres.dsn)
    before, strays = _files(image), _strays()

    process = _start(image, [*image.command[:-1], str(config)], **aws)
    try:
        _await_rows(open_postgres, process)
        process.send_signal(getattr(signal, image.stop_signal))
        code, out, err = _finish(process)
    finally:
        process.kill()
        process.wait()

    assert code == 0, out + err
    assert list(image.place(image.volumes[0]).iterdir()), "leases live in the state directory"
    assert _files(image) == before
    assert _strays() == strays


def _put_changes(aws: dict[str, str]) -> None:
    session = boto3.Session(
        aws_access_key_id=aws["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=aws["AWS_SECRET_ACCESS_KEY"],
        region_name=aws["AWS_REGION"],
    )
    tables = session.client("dynamodb", endpoint_url=aws["AWS_ENDPOINT_URL"])
    streams = session.client("kinesis", endpoint_url=aws["AWS_ENDPOINT_URL"])
    tables.create_table(
        TableName="products",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    streams.create_stream(StreamName="products", ShardCount=2)
    streams.get_waiter("stream_exists").wait(StreamName="products", WaiterConfig={"Delay": 1})
    for number in range(10):
        key = {"id": {"S": f"banana-{number}"}}
        image = key | {"Stock": {"N": str(number)}}
        change = {
            "awsRegion": aws["AWS_REGION"],
            "eventID": f"00000000-0000-0000-0000-{number:012d}",
            "eventName": "INSERT",
            "userIdentity": None,
            "recordFormat": "application/json",
            "tableName": "products",
            "dynamodb": {
                "ApproximateCreationDateTime": int(time.time() * 1000),
                "Keys": key,
                "NewImage": image,
                "SizeBytes": 20,
            },
            "eventSource": "aws:dynamodb",
        }
        streams.put_record(
            StreamName="products", Data=json.dumps(change).encode(), PartitionKey=str(number)
        )
    streams.close()
    tables.close()


def _configure(image: Image, dsn: str) -> Path:
    """Mounts a configuration where the image expects one; who runs it can't write it."""
    config = image.place(image.command[-1])
    config.parent.chmod(0o755)
    config.write_text(
        json.dumps(
            {
                "name": "shop",
                "admin": {"port": 0},
                "pipelines": [
                    {
                        "name": "products",
                        "tables": ["products"],
                        "source": {"kind": "kinesis", "stream": "products"},
                        "snapshot": "never",
                        "sinks": [{"name": "warehouse", "kind": "postgres", "dsn": dsn}],
                    }
                ],
            }
        )
    )
    config.chmod(0o444)
    config.parent.chmod(0o555)
    return config


def _await_rows(server: PostgresServer, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        made = server.execute("SELECT to_regclass('products') IS NOT NULL")
        if made == "t" and server.execute("SELECT count(*) FROM products") == "10":
            return
        time.sleep(0.1)
    if process.poll() is None:
        process.kill()
    out, err = process.communicate()
    pytest.fail(f"exit code {process.returncode}, rows missing\n{out}\n{err}")
