"""The demo as a newcomer runs it: one command, real servers, a verdict, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from aiobotocore.session import get_session

from replicator.testing.servers import PostgresServer

WAIT_SECONDS_MAX = 120.0


class Demo:
    """One `replicator demo` process; everything it prints is kept."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._output: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "replicator", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "TMPDIR": str(folder),
                # Of an operator; nothing of it may be used or sent.
                "AWS_PROFILE": "absent",
                "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
                "AWS_SESSION_TOKEN": "secret",
            },
        )
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._output
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, name):
            self._output[name].append(line)

    @property
    def stdout(self) -> str:
        return "".join(self._output["stdout"])

    @property
    def stderr(self) -> str:
        return "".join(self._output["stderr"])

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not reached():
            assert time.monotonic() < deadline, self.stderr
            assert self.process.poll() is None, self.stderr
            threading.Event().wait(0.02)

    def end(self) -> int:
        code = self.process.wait(WAIT_SECONDS_MAX)
        for reader in self._readers:
            reader.join(WAIT_SECONDS_MAX)
        return code

    def close(self) -> None:
        """Ends it whatever the test found, by the signal that removes everything."""
        self.process.terminate()
        self.end()
        for name in self._output:
            getattr(self.process, name).close()

    def family(self) -> list[psutil.Process]:
        """Every process of the demo: its children, and Postgres, which is nobody's child."""
        return [
            *psutil.Process(self.process.pid).children(recursive=True),
            *(psutil.Process(self.postgres_pid(place)) for place in self.postmasters()),
        ]

    def postmasters(self) -> list[Path]:
        return list(self.folder.glob("replicator-pg-*/**/postmaster.pid"))

    @staticmethod
    def postgres_pid(place: Path) -> int:
        return int(place.read_text().splitlines()[0])

    def sql(self, server: PostgresServer, statement: str) -> str:
        """Runs SQL in the demo's own Postgres, with the psql of ours."""
        (place,) = self.postmasters()
        socket = place.read_text().splitlines()[4]
        return server.execute(statement, f"postgresql://postgres@/postgres?host={socket}")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder that the server's own user may enter, with a short name."""
    made = Path(tempfile.mkdtemp(prefix="demo-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Demo]]:
    """Starts `replicator demo` with these arguments; it is over when the test is."""
    with ExitStack() as stack:

        def started(*arguments: str) -> Demo:
            demo = Demo(folder, *arguments)
            stack.callback(demo.close)
            return demo

        yield started


def assert_nothing_is_left(demo: Demo, family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=WAIT_SECONDS_MAX)
    assert not alive
    # Where there is no XDG_RUNTIME_DIR, the Postgres wheel keeps its locks in a folder beside.
    assert [each.name for each in demo.folder.iterdir() if "runtime" not in each.name] == []


def test_both_sides_are_equal_and_the_last_line_says_so(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", "3", "--rate", "400", "--output", "json")
    demo.until(lambda: "changes" in demo.stderr)
    family = demo.family()
    assert len(family) >= 4  # the emulator, Postgres, the shop, the bridge
    assert demo.end() == 0, demo.stderr

    (line,) = demo.stdout.splitlines()
    result = json.loads(line)
    assert result["equal"] is True
    assert result["items"] == result["rows"] > 100
    assert result["changes"] > result["items"]
    assert result["records"] == result["changes"] + result["duplicates_injected"]
    assert result["duplicates_injected"] > 0
    assert 0 < result["duplicates_dropped"] <= result["duplicates_injected"]
    assert result["late_injected"] > 0
    assert result["dead_letters"] == 0
    assert result["changes_per_second"] > 0
    assert 0 < result["latency_ms_p50"] <= result["latency_ms_p99"]
    assert {"UpdateItem", "TransactWriteItems", "BatchWriteItem", "PutItem"} <= set(result["calls"])

    assert "some rows before" in demo.stderr
    assert "the same rows after" in demo.stderr
    assert "records  " in demo.stderr
    assert_nothing_is_left(demo, family)


def test_kafka_holds_every_change_once(start: Callable[..., Demo]) -> None:
    demo = start("--sink", "kafka", "--seconds", "2", "--rate", "300", "--output", "json")
    demo.until(lambda: "changes" in demo.stderr)
    family = demo.family()
    assert demo.end() == 0, demo.stderr
    result = json.loads(demo.stdout.splitlines()[-1])
    assert result["equal"] is True
    assert result["items"] == result["rows"] > 100
    assert result["rows_written"] == result["changes"] > result["items"]
    assert "rows in Kafka" in demo.stderr
    assert_nothing_is_left(demo, family)


def test_the_tables_own_stream_needs_no_bridge(start: Callable[..., Demo]) -> None:
    demo = start("--source", "streams", "--seconds", "2", "--rate", "300", "--output", "json")
    demo.until(lambda: "changes" in demo.stderr)
    family = demo.family()
    assert not any("replicator.demo.bridge" in process.cmdline() for process in family)
    assert demo.end() == 0, demo.stderr
    result = json.loads(demo.stdout.splitlines()[-1])
    assert result["equal"] is True
    assert result["items"] == result["rows"] > 100
    # A write that changes nothing makes no record.
    assert result["items"] < result["records"] <= result["changes"]
    assert (result["duplicates_dropped"], result["superseded"], result["shards"]) == (0, 0, 1)
    assert "own stream is read" in demo.stderr
    assert_nothing_is_left(demo, family)


def test_an_archive_holds_each_change_once_and_is_asked_at_the_end(
    start: Callable[..., Demo],
) -> None:
    demo = start("--sink", "s3", "--seconds", "2", "--rate", "200", "--output", "json")
    demo.until(lambda: "changes" in demo.stderr)
    family = demo.family()
    assert demo.end() == 0, demo.stderr
    result = json.loads(demo.stdout.splitlines()[-1])
    assert result["equal"] is True
    assert result["items"] == result["rows"] > 100
    assert result["rows_written"] == result["changes"]
    assert result["duplicates_dropped"] > 0
    assert "$ replicator archive query" in demo.stderr
    assert_nothing_is_left(demo, family)


def test_a_table_of_iceberg_holds_each_change_once(start: Callable[..., Demo]) -> None:
    demo = start("--sink", "iceberg", "--seconds", "2", "--rate", "200", "--output", "json")
    demo.until(lambda: "changes" in demo.stderr)
    family = demo.family()
    assert demo.end() == 0, demo.stderr
    result = json.loads(demo.stdout.splitlines()[-1])
    assert result["equal"] is True
    assert result["items"] == result["rows"] > 100
    assert result["rows_written"] == result["changes"]
    assert "the products that changed most" in demo.stderr
    assert_nothing_is_left(demo, family)


def test_a_stand_in_for_cratedb_is_called_one_and_the_last_line_is_the_verdict(
    start: Callable[..., Demo],
) -> None:
    demo = start("--sink", "cratedb", "--seconds", "2", "--rate", "200")
    demo.until(lambda: "changes" in demo.stderr)
    family = demo.family()
    assert demo.end() == 0, demo.stderr
    *_, note, last = demo.stdout.splitlines()
    assert note.startswith("No CrateDB runs here")
    assert re.fullmatch(
        r"equal: \d+ items in the table, \d+ rows in a stand-in for CrateDB, \d+ changes", last
    )
    assert_nothing_is_left(demo, family)


def test_a_difference_is_found_named_and_ends_with_1(
    start: Callable[..., Demo], postgres_server: PostgresServer
) -> None:
    demo = start("--seconds", "2", "--rate", "200", "--shards", "1", "--output", "json")
    demo.until(lambda: "some rows before" in demo.stderr)
    demo.sql(
        postgres_server,
        """
        CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN NEW.item = NEW.item || '{"Price": -1}'; RETURN NEW; END $$;
        CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON products
            FOR EACH ROW EXECUTE FUNCTION spoil();
        """,
    )
    assert demo.end() == 1, demo.stderr
    result = json.loads(demo.stdout.splitlines()[-1])
    assert result["equal"] is False
    assert 0 < len(result["differences"]) <= 10
    assert "-1 in Postgres" in result["differences"][0]
    assert "DIFFERENT" in demo.stderr


def test_a_signal_in_the_middle_leaves_nothing_behind(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", "60", "--rate", "100")
    demo.until(lambda: "changes" in demo.stderr)
    family = demo.family()
    demo.process.send_signal(signal.SIGTERM)
    assert demo.end() == 1
    assert "interrupted" in demo.stderr
    assert "Traceback" not in demo.stderr
    assert_nothing_is_left(demo, family)


async def test_keep_leaves_everything_up_and_replicating_until_a_signal(
    start: Callable[..., Demo], postgres_server: PostgresServer
) -> None:
    demo = start("--seconds", "1", "--rate", "100", "--keep")
    demo.until(lambda: "aws dynamodb" in demo.stdout)
    assert "equal: " in demo.stdout
    assert "replaced by a bridge" in demo.stdout
    endpoint = demo.stdout.split("AWS_ENDPOINT_URL=")[1].split()[0]
    async with get_session().create_client(
        "dynamodb",
        region_name="eu-north-1",
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    ) as dynamodb:
        await dynamodb.put_item(TableName="products", Item={"id": {"S": "by hand"}})
    demo.until(
        lambda: demo.sql(postgres_server, "SELECT id FROM products_live WHERE id = 'by hand'") != ""
    )
    family = demo.family()
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 0, demo.stderr
    assert_nothing_is_left(demo, family)
