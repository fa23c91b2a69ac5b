"""Runs that are stopped: real processes, real signals, a model server with slow answers; what they leave, and what they do not."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.running import registered, running
from orchestrator.testing import ModelServer, Reply, agents_script, model_server
from orchestrator.testing.replies import answer_for

ROOT = Path(__file__).parent.parent
# The process as users start it, with another grace and another hard limit, so that no test waits for ten seconds.
QUICK = """
import sys
import orchestrator.driving, orchestrator.stopping
orchestrator.driving.GRACE, orchestrator.stopping.HARD_LIMIT = {grace}, {hard}
from orchestrator.cli import main
raise SystemExit(main())
"""
QUESTION = "Who designed the journal?"
QUESTIONS = [f"Who designed the journal, part {number}?" for number in range(3)]
STUBBORN = """
    '''Goes on whatever it is told.'''
    import asyncio
    from typing import TypedDict
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        text: str

    async def go_on(state: State) -> dict:
        print("begun", flush=True)
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("no", flush=True)

    graph = StateGraph(State).add_node("go_on", go_on).add_edge(START, "go_on").add_edge("go_on", END)
    """


@contextlib.contextmanager
def started(
    folder: Path, *words: str, grace: float = 20.0, hard: float = 40.0, environ: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """The command line as a process of its own, killed at the latest when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", QUICK.format(grace=grace, hard=hard), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Slow:
    """Answers for the agents; from the first request for `point` on, those for it take `delay` seconds. `reached` tells of the first."""

    def __init__(self, point: str, delay: float) -> None:
        self.point, self.delay, self.reached = point, delay, threading.Event()
        self._answers = agents_script(plan={"questions": QUESTIONS})

    def __call__(self, body: dict[str, Any]) -> Any:
        answer = self._answers(body)
        if answer_for(body) != self.point:
            return answer
        self.reached.set()
        return Reply(value=answer, delay=self.delay)


@contextlib.contextmanager
def researching(documents: Path, slow: Slow, *words: str, grace: float = 20.0) -> Iterator["tuple[subprocess.Popen[bytes], ModelServer]"]:
    """Research that has come to the slow point."""
    options = ["--documents", str(documents), "--model", "openai:small", "--max-concurrency", "1", *words]
    with model_server(slow) as server, started(documents, "research", "Who?", *options, grace=grace, environ=server.environ) as process:
        assert slow.reached.wait(40)
        yield process, server


def ended(process: "subprocess.Popen[bytes]") -> tuple[int, str, list[str]]:
    """The exit code, stdout, and what stderr has since the first word of stopping."""
    out, err = process.communicate(timeout=40)
    lines = err.decode().splitlines()
    begun = next((place for place, line in enumerate(lines) if line.startswith("stopping: ")), len(lines))
    return process.returncode, out.decode(), lines[begun:]


def processes_of(home: Path) -> list[int]:
    """The processes that have this ORCHESTRATOR_HOME in their environment; [] where the system does not show it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if f"ORCHESTRATOR_HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def nothing_left(home: Path) -> bool:
    """No process of the test's home, and no run that is said to go on."""
    return processes_of(home) == [] and not (home / "running").exists()


# --- signals


@pytest.mark.parametrize(
    ("point", "number", "code"),
    [("Plan", signal.SIGTERM, 143), ("Findings", signal.SIGINT, 130), ("Judgement", signal.SIGTERM, 143), ("Draft", signal.SIGINT, 130)],
)
def test_a_run_that_is_stopped_ends_its_calls_and_reports_what_it_found(
    point: str, number: signal.Signals, code: int, documents: Path, home: Path
) -> None:
    with researching(documents, Slow(point, 0.5)) as (process, server):
        process.send_signal(number)
        returned, out, lines = ended(process)

    assert (returned, out.startswith("# Who?"), nothing_left(home)) == (code, True, True)
    assert server.abandoned == 0
    assert lines[0] == "stopping: 1 call in flight may end, at most 20 s; again to end at once"
    assert re.fullmatch(r"cancelled: \d of 3 branches ok(, \d skipped)?", lines[1])
    assert (lines[-1].startswith("run: "), len(lines) <= 5) == (True, True)


def test_a_model_that_hangs_is_left_after_the_grace_time(documents: Path, home: Path) -> None:
    with researching(documents, Slow("Findings", 60), "--json", grace=0.5) as (process, server):
        process.send_signal(signal.SIGTERM)
        returned, out, lines = ended(process)

    result = json.loads(out)
    assert (returned, result["status"], nothing_left(home)) == (143, "cancelled", True)
    assert (len(server.requests), server.abandoned) == (2, 1)
    assert len(lines) <= 5


def test_events_end_with_the_result_of_a_run_that_is_stopped(documents: Path, home: Path) -> None:
    with researching(documents, Slow("Findings", 0.3), "--events", "--quiet") as (process, _):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=40)

    last = json.loads(out.splitlines()[-1])
    assert (process.returncode, last["event"], last["status"], nothing_left(home)) == (130, "result", "cancelled", True)
    assert err.decode().splitlines() == [f"error: cancelled: {last['error']}"]


@pytest.fixture
def stubborn(tmp_path: Path) -> Path:
    """A folder with a workflow that no cancellation ends."""
    (tmp_path / "stubborn.py").write_text(textwrap.dedent(STUBBORN).lstrip(), encoding="utf-8")
    return tmp_path


def test_a_second_signal_ends_the_process_at_once(stubborn: Path, home: Path) -> None:
    with started(stubborn, "./stubborn.py", "x") as process:
        assert process.stderr is not None
        assert b"begun\n" in iter(process.stderr.readline, b"")
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"stopping: the report is written, at most 20 s; again to end at once\n"
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=15)
    assert (process.returncode, nothing_left(home)) == (143, True)


def test_what_holds_a_run_is_ended_by_the_hard_limit(stubborn: Path, home: Path) -> None:
    with started(stubborn, "./stubborn.py", "x", grace=0.2, hard=1.0) as process:
        assert process.stderr is not None
        assert b"begun\n" in iter(process.stderr.readline, b"")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, b"no\n" in err, nothing_left(home)) == (143, b"", True, True)


def test_a_signal_before_the_run_says_that_nothing_was_done(tmp_path: Path, home: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(20)\n", encoding="utf-8")
    with started(tmp_path, "./slow.py", "x") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"importing\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err, nothing_left(home)) == (143, b"stopped by SIGTERM before anything was done\n", True)


def test_stops_at_random_points_leave_nothing_behind() -> None:
    words = [sys.executable, "-m", "benchmarks.stops", "--count", "4", "--seed", "7", "--within", "2", "--hanging", "0", "--jobs", "2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


# --- cancel


def test_cancel_from_another_shell(documents: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with researching(documents, Slow("Findings", 0.5), "--run-id", "r1") as (process, _):
        entry = home / "running" / "r1.json"
        assert (entry.stat().st_mode & 0o777, entry.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert [(run.run_id, run.pid, run.workflow) for run in running()] == [("r1", process.pid, "research")]
        threading.Thread(target=process.wait, daemon=True).start()  # as a shell does: a process that nobody fetches has not ended
        code = main(["cancel", "r1"])
        returned, out, lines = ended(process)

    told = re.sub(r"\d+\.\d s", "N s", capsys.readouterr().out + capsys.readouterr().err)
    assert (code, returned, out.startswith("# Who?"), lines[0][:9]) == (0, 143, True, "stopping:")
    assert (told, nothing_left(home)) == ("", True)


def test_no_run_has_the_id_of_one_that_runs(documents: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with registered("r1", "research"):
        told = str(running()[0])
        assert main(["research", QUESTION, "--documents", str(documents), "--run-id", "r1"]) == 2
        assert main(["cancel", "r2"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: run 'r1' is already running",
        f"  {told}",
        "  do: give another --run-id, or: python -m orchestrator cancel r1",
        "error: no run 'r2' is running",
        f"  these are running: r1 (research, {told})",
    ]
    assert main(["research", QUESTION, "--documents", str(documents), "--run-id", "r1", "--quiet"]) == 0
    assert nothing_left(home)


LEFT = {"run_id": "old", "pid": os.getpid(), "born": "1", "host": socket.gethostname(), "workflow": "research", "since": 0.0}


def left_behind(home: Path, **changes: Any) -> Path:
    """The entry of a run whose process is gone."""
    (home / "running").mkdir(mode=0o700)
    path = home / "running" / "old.json"
    path.write_text(json.dumps({**LEFT, **changes}), encoding="utf-8")
    return path


def test_what_a_killed_run_left_is_removed_by_whoever_meets_it(documents: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = left_behind(home)
    assert main(["cancel", "old"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: run 'old' of workflow 'research' has ended: its process is gone"
    assert not path.exists()
    path.write_text("{", encoding="utf-8")
    assert (running(), path.exists()) == ([], False)
    path.write_text(json.dumps(LEFT), encoding="utf-8")
    assert main(["research", QUESTION, "--documents", str(documents), "--run-id", "old", "--quiet"]) == 0
    assert nothing_left(home)


def test_a_run_of_another_machine_is_cancelled_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = left_behind(home, host="elsewhere", pid=2**22 + 1)
    assert main(["cancel", "old"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[2], path.exists()) == ("error: run 'old' is on another machine", "  do: cancel it on elsewhere", True)


def test_a_home_that_cannot_be_written_costs_no_run(documents: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    words = ["research", QUESTION, "--documents", str(documents)]
    with started(tmp_path, *words, environ={"ORCHESTRATOR_HOME": str(tmp_path / "file")}) as process:
        _, err = process.communicate(timeout=40)
    assert (process.returncode, err.decode().splitlines()[0]) == (
        0,
        "note: the run cannot be cancelled from another shell: Not a directory",
    )
