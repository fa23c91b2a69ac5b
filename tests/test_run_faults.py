"""Whole runs through what goes wrong below and around them: real processes, locks, disks and signals, and what `resume` makes of it."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Python, environ

from orchestrator.testing import ModelServer, Reply, model_server
from tests.research_made import topics_script, write_topics

ROOT = Path(__file__).parent.parent
TOPICS = 6


class Model:
    """Right answers; `asked` tells of the `number`th request: that and the next one take `slow` seconds."""

    def __init__(self, number: int, slow: float = 0.1) -> None:
        self.asked = threading.Event()
        self._number, self._slow, self._right = number, slow, topics_script(TOPICS)
        self.requests: list[str] = []

    def __call__(self, request: dict[str, Any]) -> Any:
        self.requests.append(json.dumps(request["messages"]))
        answer = self._right(request)
        if len(self.requests) >= self._number:
            self.asked.set()
        late = self._number <= len(self.requests) <= self._number + 1
        return answer if isinstance(answer, Reply) else Reply(value=answer, delay=self._slow if late else 0.02)


class Run:
    """A research run of a process of its own, and those that go on with it; `store` is the folder of its database."""

    def __init__(self, folder: Path, model: Model, server: ModelServer, store: Path) -> None:
        self.model, self._folder = model, folder
        self.path = store / "runs.db"
        self.url = f"sqlite:///{self.path}"
        self._environ = environ(**server.environ, ORCHESTRATOR_HOME=str(folder / "home"))
        write_topics(folder / "topics", TOPICS)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """A process of the command line."""
        null, pipe, words = subprocess.DEVNULL, subprocess.PIPE, ("-m", "orchestrator", *words, "--db", self.url)
        return Python(*words, cwd=self._folder, env=self._environ, stdin=null, stdout=pipe, stderr=pipe, text=True)

    def begin(self) -> "subprocess.Popen[str]":
        """The run, once its model was asked what the test waits for."""
        options = ["--model", "openai:small", "--max-concurrency", "2", "--run-id", "r", "--json"]
        process = self.start("research", "What is said of every topic?", "--documents", "topics", *options)
        assert self.model.asked.wait(40), process.communicate(timeout=20)
        return process

    def answered(self) -> int:
        """How many answers its journal has."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return int(connection.execute("SELECT count(*) FROM journal WHERE kind = 'model' AND state = 'ok'").fetchone()[0])

    def resumed(self) -> dict[str, Any]:
        """What it comes to in another process: all of it, and nothing is asked again that the journal has."""
        known, before = self.answered(), len(self.model.requests)
        process = self.start("resume", "r", "--json")
        out, told = process.communicate(timeout=40)
        assert process.returncode == 0, told
        result: dict[str, Any] = json.loads(out)
        assert (result["status"], [branch["status"] for branch in result["branches"]]) == ("complete", ["ok"] * TOPICS)
        assert len(result["output"]["findings"]) == TOPICS
        assert known + len(self.model.requests) - before == 2 * TOPICS + 3  # plan, a second plan, report; two calls a branch
        return result

    def ended(self, process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any], list[str]]:
        """Exit code, the JSON on stdout, and the lines on stderr, of which the last goes on with the run; there is no traceback."""
        out, told = process.communicate(timeout=40)
        lines = told.splitlines()
        assert "Traceback" not in told
        assert "Warning" not in told
        assert lines[-1] == f"resume: python -m orchestrator resume r --db {self.url}", told
        return process.returncode, json.loads(out), lines


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    """Makes a run whose model tells of a request."""
    with contextlib.ExitStack() as stack:

        def make(number: int, slow: float = 0.1, store: Path = tmp_path) -> Run:
            model = Model(number, slow)
            return Run(tmp_path, model, stack.enter_context(model_server(model)), store)

        yield make


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A stranger holds the write lock."""
    with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as stranger:
        stranger.execute("BEGIN EXCLUSIVE")
        yield
        stranger.execute("ROLLBACK")


def test_a_run_that_is_stopped_under_a_lock_ends_in_time_with_its_report_and_who_looks_need_not_wait(made: Any) -> None:
    run = made(4)
    process = run.begin()
    with locked(run.path):
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        looking = run.start("runs", "--json")
        listed, _ = looking.communicate(timeout=8)
        assert json.loads(listed)[0]["run_id"] == "r"
        code, result, _ = run.ended(process)
        assert time.monotonic() - began < 12
    assert (code, result["status"]) == (143, "cancelled")
    assert "this is not stored: " in result["error"] or "another process holds its write lock" in result["error"]
    run.resumed()


def test_a_stop_under_a_short_lock_makes_no_call_again(made: Any) -> None:
    run = made(4)
    process = run.begin()
    with locked(run.path):
        process.send_signal(signal.SIGINT)
        time.sleep(2.5)
    code, result, _ = run.ended(process)
    assert (code, result["status"]) == (130, "cancelled")
    run.resumed()


def test_a_run_that_is_killed_while_it_stops_is_whole_once_it_is_resumed(made: Any) -> None:
    run = made(3, slow=3.0)
    process = run.begin()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.kill()
    process.communicate(timeout=20)
    run.resumed()


def test_a_file_that_goes_ends_the_run_and_put_back_it_goes_on(made: Any, tmp_path: Path) -> None:
    store, away = tmp_path / "store", tmp_path / "away"
    store.mkdir()
    run = made(4, store=store)
    process = run.begin()
    store.rename(away)
    code, result, lines = run.ended(process)
    assert (code, result["status"]) == (1, "failed")
    assert any("was deleted or replaced while it was in use" in line for line in lines)
    shutil.rmtree(store, ignore_errors=True)
    away.rename(store)
    run.resumed()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of six megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(made: Any, small_disk: Path) -> None:
    run = made(4, store=small_disk)
    process = run.begin()
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(bytes(8_000_000))
    code, result, lines = run.ended(process)
    assert (code, result["status"]) == (1, "failed")
    assert any("its disk is full" in line for line in lines)
    ballast.unlink()
    run.resumed()


def test_a_run_that_another_machine_took_ends_and_writes_nothing(made: Any) -> None:
    run = made(4, slow=1.0)
    process = run.begin()
    with contextlib.closing(sqlite3.connect(run.path, timeout=20)) as connection:
        taken = "UPDATE runs SET owner = 'other', host = 'elsewhere', space = '', heartbeat = ?"
        connection.execute(taken, (time.time(),))
        connection.commit()
        before = connection.execute("SELECT count(*), max(seq) FROM journal").fetchone()
        out, told = process.communicate(timeout=20)
        assert (process.returncode, json.loads(out)["status"], "Traceback" in told) == (1, "failed", False)
        assert "Run 'r' is owned by another process by now" in told
        assert connection.execute("SELECT count(*), max(seq) FROM journal").fetchone() == before
        refused = run.start("resume", "r")
        assert "is already running" in refused.communicate(timeout=20)[1]
        connection.execute("UPDATE runs SET heartbeat = heartbeat - 60")  # it is heard of no more
        connection.commit()
    run.resumed()


_MANY = """
import asyncio, resource
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
from benchmarks.durable import at_once
print(asyncio.run(at_once(None, 150)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a thread reserves is a matter of glibc")
def test_many_runs_at_once_fit_into_400_mb_of_address_space(home: Path) -> None:
    words = [sys.executable, "-c", _MANY]
    told = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "ORCHESTRATOR_HOME": str(home)})
    assert (told.returncode, told.stdout[:13]) == (0, "150/150 right"), told.stderr[-500:]
